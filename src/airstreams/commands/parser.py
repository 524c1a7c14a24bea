"""From the words of a call to a verb and its arguments, and complaints that name things as the help does."""

import re
import warnings
from collections.abc import Sequence

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from airstreams.commands import COMMANDS
from airstreams.old_keys import with_current_key_options
from airstreams.recipe import add_config_arguments, load_recipe, readable_type_error, recipe_path
from airstreams.version import __version__

POSITIONALS = {
    "source": "DATA",
    "run": "RUN",
    "videos": "VIDEO",
    "labels": "LABELS",
    "table": "TABLE",
    "what": "RECIPE_OR_RUN",
}
"""Names of positional arguments in the parser and in the help."""


def make_parser(words: Sequence[str]) -> ArgumentParser:
    """The parser of all verbs. `verb` is the one that was called; its arguments stand under its name.

    Config keys and their descriptions take longer to set up than everything else here. So only a verb among `words`
    gets the keys, and only a call for help gets their descriptions.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=not {"-h", "--help"}.isdisjoint(words))
    parser = ArgumentParser(
        prog="airstreams",
        description="Video action recognition from RGB alone.",
        version=__version__,
        exit_on_error=False,
        allow_abbrev=False,  # a mistyped key is an error, not another key
    )
    subcommands = parser.add_subcommands(dest="verb", required=True)
    for name, command in COMMANDS.items():
        verb = ArgumentParser(
            description=f"{command.help}.", epilog=f"Example: airstreams {command.example}", exit_on_error=False
        )
        subcommands.add_subcommand(name, verb, help=command.help)
        verb.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else there")
        verb.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.add_arguments(verb)
        if command.takes_config and name in words:
            add_config_arguments(verb)
    return parser


def with_current_options(argv: Sequence[str]) -> list[str]:
    """The words of a call with the options and keys of version 0.1 under today's names.

    A DeprecationWarning names each old one that had an effect.
    """
    if "--compact-classes" in argv:
        warnings.warn(
            "--compact-classes is now --data.compact_classes true. Change the option.", DeprecationWarning, stacklevel=1
        )
    words = ["--data.compact_classes=true" if word == "--compact-classes" else word for word in argv]
    return with_current_key_options(words)


def with_recipes(argv: Sequence[str]) -> list[str]:
    """The words of a call with the text of the recipe, under today's keys, for `--config NAME`, right after the verb.

    Behind other keys the parser would let the recipe override them. InputError: the recipe by itself is wrong.
    """
    if not argv or argv[0] not in COMMANDS or not COMMANDS[argv[0]].takes_config:
        return list(argv)
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


def config_keys(argv: Sequence[str]) -> list[str]:
    """The config's keys among the words of a call."""
    return [found[1] for word in argv if (found := re.match(r"--(\w+\.[\w.]+)", word))]


def readable(complaint: str) -> str:
    """A complaint of the parser with the names of arguments that the help shows."""
    listed = re.search(r"arguments are required: (.*)", complaint)
    if listed:
        missing = [word.rpartition(".")[2] for word in listed[1].split(", ")]
        return "expected " + " and ".join(POSITIONALS.get(name, f"--{name.replace('_', '-')}") for name in missing)
    if complaint.startswith('expected "verb"'):
        return "expected a verb"
    if key := re.match(r'Parser key "([\w.]+)":', complaint):
        name = key[1] if "." in key[1] else key[1].replace("_", "-")
        complaint = f"--{name}:{complaint[key.end() :]}"
    return readable_type_error(complaint)
