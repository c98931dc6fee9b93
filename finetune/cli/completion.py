"""Shell completion: a script for bash, zsh or fish, made from the parsers of the commands."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Literal, get_args

from finetune.cli.shared import Arguments, Commands, add_command

Shell = Literal["bash", "zsh", "fish"]
Parsers = Mapping[str, argparse.ArgumentParser]

# zsh runs the same function in its emulation of bash's completion.
_ZSH_START = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"
_BASH = """\
_finetune() {{
    local current="${{COMP_LINE:0:$COMP_POINT}}" command="${{COMP_LINE#*[[:space:]]}}" words="" keys="{keys}"
    current="${{current##*[[:space:]]}}"
    command="${{command%%[[:space:]]*}}"
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{commands}"
    else
        case "$command" in
{cases}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    case "${{COMPREPLY[*]}}" in
        *" "*) ;;
        *=) compopt -o nospace 2> /dev/null ;;  # the value of the only match follows
    esac
    # bash completes only the part of a word after its last colon.
    case "$current" in
        *:*) case "$COMP_WORDBREAKS" in *:*) COMPREPLY=("${{COMPREPLY[@]#"${{current%:*}}:"}}") ;; esac ;;
    esac
}}
complete -o bashdefault -o default -F _finetune finetune  # where nothing matches: names of files
"""


def add_commands(commands: Commands) -> None:
    """Add the command of this module."""
    parser = add_command(commands, "completion", _completion, "print a completion script for a shell")
    parser.add_argument("shell", choices=get_args(Shell), help="see `finetune help recipes` for where to put it")
    parser.set_defaults(parsers=commands.choices)


def _completion(args: Arguments) -> None:
    print(completion_script(args.shell, args.parsers), end="")


def completion_script(shell: Shell, parsers: Parsers) -> str:
    """Return the script that completes commands, options, recipe keys, shipped recipes, topics and files in a shell."""
    return "\n".join(_fish_lines(parsers)) + "\n" if shell == "fish" else _bash_script(shell, parsers)


def _bash_script(shell: Shell, parsers: Parsers) -> str:
    indent = " " * 12
    cases = []
    for name, parser in parsers.items():
        words = [*_words(name, parser), *(["$keys"] if _takes_keys(name, parser) else [])]
        cases.append(f'{indent}{name}) words="{" ".join(words)}" ;;')
    keys = " ".join(f"{key}=" for key in recipe_keys())
    script = _BASH.format(commands=" ".join(parsers), cases="\n".join(cases), keys=keys)
    return _ZSH_START + script if shell == "zsh" else script


def _words(name: str, parser: argparse.ArgumentParser) -> list[str]:
    """Return what can follow a command, without recipe keys and names of files."""
    from finetune.help import guides
    from finetune.recipe.shipped import PREFIX, SWEEP_PREFIX, shipped_recipes, shipped_sweeps

    actions = {action.dest: action for action in parser._actions}
    words = [option for action in actions.values() for option in action.option_strings if option.startswith("--")]
    words += [str(choice) for action in actions.values() for choice in action.choices or ()]
    words += [f"{PREFIX}{recipe}" for recipe in shipped_recipes()] if "recipe" in actions else []
    words += [f"{SWEEP_PREFIX}{sweep}" for sweep in shipped_sweeps()] if "sweep" in actions else []
    return words + (list(guides()) if name == "help" else [])


def _takes_keys(name: str, parser: argparse.ArgumentParser) -> bool:
    """Return whether a command takes changes to the recipe."""
    return name == "heads" or any(action.dest == "overrides" for action in parser._actions)


def recipe_keys() -> Iterator[str]:
    """Yield every key of a recipe, as it is written in an override."""
    from pydantic import BaseModel

    from finetune.recipe.schema import Recipe

    for name, field in Recipe.model_fields.items():
        kinds = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
        sections = [kind for kind in kinds if issubclass(kind, BaseModel)]
        yield from (f"{name}.{key}" for section in sections for key in section.model_fields)
        if not sections:
            yield name


def _fish_lines(parsers: Parsers) -> Iterator[str]:
    for name, parser in parsers.items():
        yield f"complete -c finetune -n __fish_use_subcommand -f -a {name} -d {_quoted(parser.description or '')}"
        condition = f"-n '__fish_seen_subcommand_from {name}'"
        words = [word for word in _words(name, parser) if not word.startswith("--")]
        words += [f"{key}=" for key in recipe_keys()] if _takes_keys(name, parser) else []
        for action in parser._actions:
            for option in (option for option in action.option_strings if option.startswith("--")):
                value = "" if action.nargs == 0 else " -r"
                value += f" -f -a {_quoted(' '.join(map(str, action.choices)))}" if action.choices else ""
                yield f"complete -c finetune {condition} -l {option[2:]}{value} -d {_quoted(action.help or '')}"
        if words:
            yield f"complete -c finetune {condition} -a {_quoted(' '.join(words))}"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("%%", "%") + "'"
