"""From the words of a call to a verb and its arguments, and complaints that name things as the help does."""

import math
import re
import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from functools import partial
from typing import get_args, get_origin

import yaml
from jsonargparse import ArgumentParser, Namespace

from airstreams.commands import COMMANDS
from airstreams.commands.command import DEVICE_HELP, PRECISION_HELP
from airstreams.commands.help import ShowHelp, help_of, overview, usage_of
from airstreams.errors import did_you_mean
from airstreams.old_keys import with_current_key_options
from airstreams.recipe import (
    GivenConfig,
    add_config_arguments,
    config_from,
    key_types,
    load_recipe,
    named_keys,
    readable_type_error,
    recipe_path,
    similar_keys,
)
from airstreams.runs.trust import custom_classes, require_trusted
from airstreams.version import __version__

POSITIONALS = {
    "source": "DATA",
    "run": "RUN",
    "videos": "PATH",
    "labels": "LABELS",
    "table": "TABLE",
    "what": "RECIPE_OR_RUN",
}
"""Names of positional arguments in the parser and in the help."""


KEY_OPTIONS = {
    "--device": "--training.device",
    "--precision": "--training.precision",
    "--group-by": "--data.group_by",
}
"""Options of verbs with config keys that stand for a key."""


def make_parser(words: Sequence[str]) -> ArgumentParser:
    """The parser of all verbs. `verb` is the one that was called; its arguments stand under its name.

    Config keys take longer to set up than everything else here. So only a verb among `words` gets them.
    """
    parser = ArgumentParser(
        prog="airstreams",
        version=__version__,
        exit_on_error=False,
        add_help=False,
        allow_abbrev=False,  # a mistyped key is an error, not another key
    )
    parser.add_argument("-h", "--help", action=ShowHelp, text=partial(overview, COMMANDS), help="show this help")
    subcommands = parser.add_subcommands(dest="verb", required=True)
    for name in COMMANDS:
        subcommands.add_subcommand(name, _verb_parser(name, with_keys=name in words))
    return parser


def _verb_parser(name: str, with_keys: bool) -> ArgumentParser:
    command = COMMANDS[name]
    parser = ArgumentParser(exit_on_error=False, add_help=False, allow_abbrev=False)
    command.add_arguments(parser)
    if command.computes:
        parser.add_argument("--device", type=str, help=DEVICE_HELP)
        parser.add_argument("--precision", metavar="NAME", type=str, help=PRECISION_HELP)
    if command.takes_config and with_keys:
        add_config_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else there")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    text = partial(help_of, name, command, parser, usage_of(name, parser))
    parser.add_argument("-h", "--help", action=ShowHelp, text=text, help="show this help")
    if command.takes_config:
        every_key = partial(text, all_keys=True)
        parser.add_argument("--help-all", action=ShowHelp, text=every_key, help="show this help with every config key")
    return parser


def with_current_options(argv: Sequence[str]) -> list[str]:
    """The words of a call with the options and keys of version 0.1 under today's names.

    `--device`, `--precision` and `--group-by` become the keys that they stand for.

    A DeprecationWarning names each old one that had an effect.
    """
    if "--compact-classes" in argv:
        warnings.warn(
            "--compact-classes is now --data.compact_classes true. Change the option.", DeprecationWarning, stacklevel=1
        )
    words = ["--data.compact_classes=true" if word == "--compact-classes" else word for word in argv]
    if _takes_config(argv):  # a run keeps them with its other keys
        for option, key in KEY_OPTIONS.items():
            words = [re.sub(f"^{option}(?==|$)", key, word) for word in words]
    return with_current_key_options(words)


def as_typed(argv: Sequence[str], message: str) -> str:
    """A message about `training.device` or `training.precision` that names the option that the call gives."""
    for name in ("device", "precision"):
        if any(word.partition("=")[0] == f"--{name}" for word in argv):
            message = re.sub(rf"^(--|training\.)*{name}(?=: )|--training\.{name}\b", f"--{name}", message)
    return message


def for_parser(argv: Sequence[str]) -> list[str]:
    """The words of a call as the parser takes them: recipes as text, and lists in brackets.

    InputError: a recipe by itself is wrong.
    """
    return _with_lists(_with_recipes(argv)) if _takes_config(argv) else list(argv)


def _takes_config(argv: Sequence[str]) -> bool:
    return bool(argv) and argv[0] in COMMANDS and COMMANDS[argv[0]].takes_config


def _with_recipes(argv: Sequence[str]) -> list[str]:
    """The words with the text of the recipe, under today's keys, for `--config NAME`, right after the verb.

    Behind other keys the parser would let the recipe override them.
    """
    recipes, rest = [], []
    words = iter(argv)
    for word in words:
        name = next(words, None) if word == "--config" else word.removeprefix("--config=")
        if name is None or name == word:
            rest.append(word)
        else:
            values, _ = load_recipe(recipe_path(name))
            recipes.append(f"--config={yaml.safe_dump(values)}")
    return [*rest[:1], *recipes, *rest[1:]]


def _with_lists(argv: Sequence[str]) -> list[str]:
    """The words with `--KEY A,B` as `--KEY=[A, B]` for each key that takes a list of texts or numbers."""
    kinds = {f"--{key}": get_args(kind)[0] for key, kind in key_types().items() if get_origin(kind) is list}
    current = []
    words = iter(argv)
    for word in words:
        option, equals, value = word.partition("=")
        if kinds.get(option) not in (str, int, float):
            current.append(word)
            continue
        given = value if equals else next(words, None)
        if given is None:
            current.append(word)
        elif given.lstrip().startswith("["):
            current.append(f"{option}={given}")
        else:
            items = [item.strip() for item in given.split(",") if item.strip()]
            as_yaml = yaml.safe_dump(items, default_flow_style=True, width=math.inf).strip()
            current.append(f"{option}={as_yaml if kinds[option] is str else f'[{given}]'}")
    return current


def config_keys(argv: Sequence[str]) -> list[str]:
    """The config's keys among the words of a call."""
    return [found[1] for word in argv if (found := re.match(r"--(\w+\.[\w.]+)", word))]


def given_config(argv: Sequence[str], parsed: Namespace) -> GivenConfig:
    """The config of a call with `takes_config`, and the keys that its words and its recipes name."""
    config = config_from(parsed)
    named: set[str] = set()
    sections = {key.partition(".")[0] for key in key_types()}
    words = for_parser(argv)
    for word, following in zip(words, [*words[1:], ""], strict=True):
        option, equals, value = word.partition("=")
        key = option.removeprefix("--").removesuffix("+")
        if not option.startswith("--") or key.partition(".")[0] not in {"config", *sections}:
            continue
        values = yaml.safe_load(value if equals else following) if key == "config" or _is_section(key) else None
        named |= named_keys(values, "" if key == "config" else f"{key}.") if isinstance(values, dict) else {key}
    has_recipe = any(word.startswith("--config=") for word in words)
    if has_recipe and "trust_module" in parsed:
        # The class of a stream may also be in the words of the call themselves.
        said = " ".join(word for word in words if not word.startswith("--config="))
        said_modules = [path.partition(":")[0] for path in custom_classes(config.model).values() if path in said]
        require_trusted(config.model, [*parsed.trust_module, *said_modules], "--config")
    return GivenConfig(config, frozenset(named), has_recipe)


def _is_section(key: str) -> bool:
    return any(leaf.startswith(f"{key}.") for leaf in key_types())


def complaint_about(argv: Sequence[str], complaint: str) -> str:
    """The parser's complaint about a call, in the words of the help, with what was probably meant."""
    verb = next((word for word in argv if not word.startswith("-")), None)
    if verb is not None and verb not in COMMANDS:
        return f"there is no verb {verb}.{did_you_mean(verb, COMMANDS)} See `airstreams --help`."
    if not argv or argv[0] not in COMMANDS:
        return f"{_readable(complaint)}. See `airstreams --help`."
    unknown = _unknown_option(argv)
    about = f"there is no option {unknown}.{_meant(argv[0], unknown)}" if unknown else f"{_readable(complaint)}."
    return f"{about} See `airstreams {argv[0]} --help`."


def _options_of(verb: str) -> list[str]:
    parser = _verb_parser(verb, with_keys=True)
    return [option for action in parser._actions for option in action.option_strings]


def _unknown_option(argv: Sequence[str]) -> str | None:
    """The first option among the words of a call that its verb does not have."""
    options = _options_of(argv[0])
    custom = tuple(f"--{key}." for key, kind in key_types().items() if get_origin(kind) is dict)
    for word in argv[1:]:
        option = word.partition("=")[0].removesuffix("+")  # the parser reads --KEY+ as: add to the list
        if re.match(r"--\w", option) and option not in options and not option.startswith(custom):
            return option
    return None


def _meant(verb: str, unknown: str) -> str:
    """A question with the option or the key that an unknown option probably means; empty where nothing is alike."""
    name = unknown.removeprefix("--")
    sections = {key.partition(".")[0] for key in key_types()}
    options = {option.removeprefix("--") for option in _options_of(verb)}
    own = [option for option in options - sections if "." not in option]
    keys = similar_keys(name)[: 2 if verb == "evolve" else 1] if COMMANDS[verb].takes_config else []
    is_last_part = any(key.endswith(f".{name.replace('-', '_')}") for key in keys)
    similar = keys if is_last_part else get_close_matches(name, own, n=1) or keys
    return f" Did you mean {' or '.join(f'--{option}' for option in similar)}?" if similar else ""


def _readable(complaint: str) -> str:
    """A complaint of the parser with the names of arguments that the help shows."""
    listed = re.search(r"arguments are required: (.*)", complaint)
    if listed:
        missing = [word.rpartition(".")[2] for word in listed[1].split(", ")]
        return "expected " + " and ".join(POSITIONALS.get(name, f"--{name.replace('_', '-')}") for name in missing)
    if words := re.match(r"unrecognized arguments: (.*)", complaint):
        return f"unexpected: {words[1]}. Put a name with blanks in quotes"
    if complaint.startswith('expected "verb"'):
        return "expected a verb"
    if key := re.match(r'Parser key "([\w.]+)":', complaint):
        name = key[1] if "." in key[1] else key[1].replace("_", "-")
        complaint = f"--{name}:{complaint[key.end() :]}"
    return readable_type_error(complaint)
