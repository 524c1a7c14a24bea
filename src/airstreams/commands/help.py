"""The text of `--help`: a verb's own options, the commonest keys of the config, and the recipes.

`--help-all` describes every key, in the words that stand below it in `config/`.
"""

import argparse
import ast
import functools
import inspect
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser

from airstreams import config as config_module
from airstreams.commands.command import Command
from airstreams.config import Config
from airstreams.recipe import key_types, recipe_summaries

INDENT = 28  # the column where descriptions begin

Rows = list[tuple[str, str]]


class ShowHelp(argparse.Action):
    """An option that prints a text and ends the program with status 0.

    Args:
        text: makes the text.
    """

    def __init__(self, option_strings: Sequence[str], dest: str, text: Callable[[], str], help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)
        self.text = text

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print the text, and end."""
        print(self.text())
        raise SystemExit(0)


def overview(commands: Mapping[str, Command]) -> str:
    """What `airstreams --help` prints."""
    lines = ["usage: airstreams VERB [options]", "", "Video action recognition from RGB alone."]
    lines += _section("verbs", [(name, f"{command.help}.") for name, command in commands.items()])
    lines += _section("options", [("-h, --help", "show this help"), ("--version", "print the version")])
    return "\n".join([*lines, "", "The options of a verb: airstreams VERB --help"])


def usage_of(name: str, parser: ArgumentParser) -> str:
    """The first line of a verb's help. While jsonargparse parses, it hides which arguments are required."""
    named = [action for action in parser._actions if not action.option_strings]
    named += [action for action in parser._actions if action.option_strings and action.required]
    return f"usage: airstreams {name} {' '.join(map(_as_given, named))} [options]"


def help_of(name: str, command: Command, parser: ArgumentParser, usage: str, all_keys: bool = False) -> str:
    """What `airstreams NAME --help` prints or, with all keys of the config, `--help-all`."""
    hidden = {"print_config", *(item.name for item in fields(Config))}
    own = [action for action in parser._actions if action.dest.partition(".")[0] not in hidden]
    positionals = [action for action in own if not action.option_strings]
    options = [action for action in own if action.option_strings]
    lines = _wrapped(usage, indent=11)
    lines += ["", *_wrapped(f"{command.help}.")]
    lines += _section("arguments", [(_as_given(action), action.help or "") for action in positionals])
    lines += _section("options", [_row(action) for action in options])
    if command.takes_config:
        lines += _every_key(Config) if all_keys else _common_keys(name, command)
    if any("--config" in action.option_strings for action in options):
        lines += _section("recipes, for --config", list(recipe_summaries().items()))
    return "\n".join([*lines, "", *_wrapped(f"Example: airstreams {command.example}", indent=4)])


def _as_given(action: argparse.Action) -> str:
    """An argument as it stands in a call, such as `--out RUN`."""
    value = f"{action.metavar or action.dest.upper()}{'...' if action.nargs in ('+', '*') else ''}"
    name = ", ".join(action.option_strings)
    return f"{name} {value}" if name and action.nargs != 0 else name or value


def _row(action: argparse.Action) -> tuple[str, str]:
    hidden = action.default in (None, False, argparse.SUPPRESS)
    return _as_given(action), f"{action.help}{'' if hidden else f' (default: {_as_words(action.default)})'}"


def _common_keys(name: str, command: Command) -> list[str]:
    described, types = _described_keys(Config), key_types()
    rows = [(f"--{key} {_value_of(types[key])}", _first_sentence(described[key])) for key in command.common_keys]
    return _section(f"common keys of the config (all keys: airstreams {name} --help-all)", rows)


def _every_key(section: type, prefix: str = "") -> list[str]:
    """A section of the help for each section of the config."""
    described, default, hints = _described_keys(section), section(), get_type_hints(section)
    rows, below = Rows(), list[str]()
    for item in fields(section):
        kind, key = hints[item.name], f"{prefix}{item.name}"
        if _is_section(kind):
            below += _every_key(kind, f"{key}.")
            rows.append((f"--{key} KEYS", f"All keys of {key} at once, as YAML."))
            continue
        value = getattr(default, item.name)
        shown = "" if value in (None, [], {}) else f" (default: {_as_words(value)})"
        rows.append((f"--{key} {_value_of(kind)}", f"{described[item.name]}{shown}"))
    title = " ".join((inspect.getdoc(section) or "").partition("\n\n")[0].split()).removesuffix(".")
    return _section(title, rows) + below


def _described_keys(section: type, prefix: str = "") -> dict[str, str]:
    """The text below each key of a section of the config, and of the sections below it."""
    texts = _texts_below_attributes()
    described: dict[str, str] = {}
    for name, kind in get_type_hints(section).items():
        if _is_section(kind):
            described |= _described_keys(kind, f"{prefix}{name}.")
        else:
            described[f"{prefix}{name}"] = texts[section.__name__, name]
    return described


@functools.cache
def _texts_below_attributes() -> dict[tuple[str, str], str]:
    """The text below each attribute in `config/`, by class and attribute. Python itself does not keep it."""
    texts: dict[tuple[str, str], str] = {}
    sources = Path(str(config_module.__file__)).parent.glob("*.py")
    definitions = (part for path in sources for part in ast.parse(path.read_text(encoding="utf-8")).body)
    for definition in definitions:
        if not isinstance(definition, ast.ClassDef):
            continue
        for attribute, text in pairwise(definition.body):
            if isinstance(attribute, ast.AnnAssign) and isinstance(text, ast.Expr):
                words = ast.literal_eval(text.value).split()
                texts[definition.name, ast.unparse(attribute.target)] = " ".join(words)
    return texts


def _is_section(kind: Any) -> bool:
    return is_dataclass(kind) and isinstance(kind, type)


def _value_of(kind: Any) -> str:
    """What stands for a value of a type, such as `N` for an int."""
    if get_origin(kind) is Literal:
        return f"{{{','.join(map(str, get_args(kind)))}}}"
    if get_origin(kind) is list:
        return "A,B,..." if get_args(kind)[0] is str else f"{_value_of(get_args(kind)[0])},..."
    if get_origin(kind) is UnionType:
        return _value_of(get_args(kind)[0])
    return {int: "N", float: "X", bool: "{true,false}", str: "TEXT"}.get(kind, "VALUE")


def _as_words(value: object) -> str:
    """A default value as it is written in a call."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _first_sentence(text: str) -> str:
    return text.partition(". ")[0].removesuffix(".")


def _section(title: str, rows: Rows) -> list[str]:
    """A titled list of names and descriptions; nothing without rows."""
    lines = ["", *_wrapped(f"{title}:")] if rows else []
    for name, text in rows:
        beside = len(name) <= INDENT - 4
        wrapped = _wrapped(" " * INDENT + text, indent=INDENT)
        if beside:
            wrapped[0] = f"  {name:{INDENT - 2}}{wrapped[0][INDENT:]}"
        lines += wrapped if beside else [f"  {name}", *wrapped]
    return lines


def _wrapped(text: str, indent: int = 0) -> list[str]:
    """Lines that fit the terminal; all but the first are indented."""
    width = max(shutil.get_terminal_size().columns, INDENT + 20)
    return textwrap.wrap(text, width, subsequent_indent=" " * indent, break_on_hyphens=False, break_long_words=False)
