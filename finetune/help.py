"""The guides in `finetune/docs`, shown by `finetune help [TOPIC]`. Imports no torch."""

from __future__ import annotations

import sys
from pathlib import Path

from finetune.errors import FinetuneError, did_you_mean, shorten

DOCS = Path(__file__).parent / "docs"
_PREFIX_LENGTH = 3  # a topic with these first letters is suggested: for `heads`, head-analysis
_MAX_WIDTH = 110  # characters; longer lines are hard to read


def guides() -> dict[str, Path]:
    """Return the file of each guide by its topic, sorted by topic."""
    return {path.stem: path for path in sorted(DOCS.glob("*.md"))}


def summary(guide: Path) -> str:
    """Return the first line below a guide's title, which says what the guide is about."""
    lines = guide.read_text(encoding="utf-8").splitlines()
    return next(line for line in lines[1:] if line)


def help_text(topic: str | None = None) -> str:
    """Return the guide on a topic as Markdown, or the list of topics.

    Raises:
        FinetuneError: there is no guide on this topic; the message suggests a similar one.
    """
    topics = guides()
    if topic is None:
        lines = "\n".join(f"- **{name}**: {summary(path)}" for name, path in topics.items())
        return f"# Guides\n\n{lines}\n\n`finetune help TOPIC` shows a guide, `finetune --help` the commands.\n"
    if topic not in topics:
        same_prefix = [name for name in topics if name.startswith(topic.lower()[:_PREFIX_LENGTH])]
        hint = f"; did you mean '{same_prefix[0]}'?" if same_prefix else did_you_mean(topic, topics)
        raise FinetuneError(f"there is no guide on '{shorten(topic, 80)}'; topics are {', '.join(topics)}{hint}")
    return topics[topic].read_text(encoding="utf-8")


def show_help(topic: str | None = None) -> None:
    """Print the guide on a topic, or the list of topics: formatted in a terminal, plain Markdown elsewhere."""
    text = help_text(topic)
    if not sys.stdout.isatty():
        print(text, end="")
        return
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    console.width = min(console.width, _MAX_WIDTH)
    console.print(Markdown(text))
