"""Configs in files and on the command line: YAML recipes, the `config.yaml` of a run, and options such as `--seed`."""

import functools
import re
from argparse import ArgumentError
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, fields, is_dataclass
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace

from airstreams.config import Config
from airstreams.errors import InputError, did_you_mean, one_line, require
from airstreams.files import replacing
from airstreams.old_keys import with_current_keys, with_keys_of_older_runs

RECIPES = Path(__file__).parent / "recipes"

MACHINE_KEYS = frozenset(
    {"data.workers", "data.patience", "data.cache", "data.cache_gb", "training.device", "training.cuda_graph"}
)
"""Keys about the machine that a run uses. They do not change the model that it trains."""


MOST_BLOCKS, MOST_NAMES = 24, 1000  # in one list; the parser's time grows with their square


def add_config_arguments(parser: ArgumentParser) -> None:
    """Add every key of `Config` as an option, such as `--training.epochs`, and `--config` for a YAML file."""
    parser.add_argument("--config", action="config", metavar="RECIPE", help="a recipe's name or a YAML file")
    parser.add_class_arguments(Config)


def key_types(config: type = Config, prefix: str = "") -> dict[str, Any]:
    """The type of every key, such as `training.epochs`, in the order of the config."""
    types: dict[str, Any] = {}
    hints = get_type_hints(config)
    for item in fields(config):
        kind = hints[item.name]
        is_section = is_dataclass(kind) and isinstance(kind, type)
        types |= key_types(kind, f"{prefix}{item.name}.") if is_section else {f"{prefix}{item.name}": kind}
    return types


def similar_keys(name: str) -> list[str]:
    """The keys that a mistyped key, or the last part of one, probably means: `epochs` means `training.epochs`."""
    keys = sorted(key_types(), key=lambda key: not key.startswith("training."))  # a training is what most calls change
    name = name.replace("-", "_")
    named = [key for key in keys if key.rpartition(".")[2] == name]
    if named:
        return named
    if "." in name:
        return get_close_matches(name, keys, n=1)
    last_parts = {key.rpartition(".")[2]: key for key in reversed(keys)}
    return [last_parts[part] for part in get_close_matches(name, last_parts, n=1, cutoff=0.75)]


def config_from(parsed: Namespace) -> Config:
    """The `Config` among the results of a parser with `add_config_arguments`. InputError: a value out of range."""
    return Config(**{item.name: parsed[item.name] for item in fields(Config)})


def from_dict(values: Mapping[str, Any]) -> Config:
    """A `Config` from plain values, as `asdict` gives them. InputError: an unknown key or an invalid value."""
    values = with_current_keys(values)
    _check_keys(values, Config)
    parser = _config_parser()
    try:
        return config_from(parser.instantiate(parser.parse_object(values)))
    except ArgumentError as error:
        message = re.sub(r'^Parser key "([\w.]+)":', r"\1:", str(error))
        raise InputError(readable_type_error(message)) from error


@functools.cache
def _config_parser() -> ArgumentParser:
    """A parser of the config alone. Making it takes about as long as parsing a config."""
    parser = ArgumentParser(exit_on_error=False)
    add_config_arguments(parser)
    return parser


def readable_type_error(message: str) -> str:
    """The parser's message about a value of a wrong type, in the words of YAML. Other messages stay as they are."""
    message = re.sub(r"<class '(\w+)'>", r"\1", one_line(message))
    found = re.search(r"Expected an? (?P<types>.*?)\. Got value: (?P<given>.*)", message)
    found = found or re.search(
        r"Does not validate .* Subtypes: \[(?P<types>.*?\]?)\] .* Given value: (?P<given>.*)", message
    )
    if not found:
        return message
    words = {"int": "a whole number", "float": "a number", "bool": "true or false", "list": "a list such as '[a,b]'"}
    words |= {"str": "text", "NoneType": "null"}
    expected = []
    for kind in re.findall(r"(?:typing\.)?Literal\[.*?\]|[^,\s][^,]*", found["types"]):
        choices = re.search(r"Literal\[(.*)\]", kind)
        expected.append(f"one of {choices[1]}" if choices else words.get(kind, kind))
    return f"{message[: found.start()]}got {found['given']}, expected {' or '.join(expected)}"


def _check_keys(values: Mapping[str, Any], config: type, prefix: str = "") -> None:
    """InputError: an unknown key, a section without keys, or a key without a value. The parser accepts the last two."""
    types = get_type_hints(config)
    for key in values:
        if key not in types and "." not in str(key):  # training.epochs means epochs below training
            expected = _expected_key(str(key), types, prefix)
            raise InputError(f"{prefix}{key}: no such key, expected {expected}. Change it, or delete the line.")
    for item in fields(config):
        if item.name in values:
            _check_value(f"{prefix}{item.name}", values[item.name], types[item.name])


def _expected_key(given: str, known: Mapping[str, Any], prefix: str) -> str:
    """The key that was probably meant: one of these, else one of another section, else a list of these."""
    similar = get_close_matches(given, known, n=1)
    elsewhere = similar_keys(given) if not similar else []
    if elsewhere:
        section, _, name = elsewhere[0].rpartition(".")
        return f"{name} below {section}" if section else name
    return similar[0] if similar else f"one of {', '.join(known)}"


def _check_value(key: str, value: Any, kind: Any) -> None:
    if is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            given = "nothing" if value is None else value
            raise InputError(f"{key}: got {given}, expected keys below it. Indent them, or delete the line.")
        _check_keys(value, kind, f"{key}.")
    elif isinstance(value, list):
        of_list = [part for part in get_args(kind) if is_dataclass(part) and isinstance(part, type)]
        most = MOST_BLOCKS if of_list else MOST_NAMES
        require(len(value) <= most, key, f"{len(value)} entries", f"at most {most}")
        for number, element in enumerate(value if of_list else ()):
            if not isinstance(element, Mapping):
                raise InputError(f"{key}[{number}]: got {element}, expected keys. Write some, or delete the line.")
            _check_keys(element, of_list[0], f"{key}[{number}].")
    elif value is None and NoneType not in get_args(kind):
        raise InputError(f"{key}: got nothing, expected a value. Write one, or delete the line.")


def training_settings(config: Config) -> dict[str, Any]:
    """The values of a config without `MACHINE_KEYS`. Configs with equal ones train the same model."""
    values = asdict(config)
    for key in MACHINE_KEYS:
        section, name = key.split(".")
        del values[section][name]
    return values


@dataclass(frozen=True)
class GivenConfig:
    """A config, and what its author named of it. All other keys have their defaults.

    named: the keys, such as `training.epochs`.
    has_recipe: a recipe or a whole `Config` was given, not keys alone.
    """

    config: Config
    named: frozenset[str] = frozenset()
    has_recipe: bool = False


def named_keys(values: Mapping[str, Any], prefix: str = "") -> set[str]:
    """The keys that the values of a recipe set."""
    names: set[str] = set()
    for name, value in values.items():
        key = f"{prefix}{name}"
        names |= named_keys(value, f"{key}.") if isinstance(value, Mapping) and value else {key}
    return names


def with_keys(config: Config, other: Config, keys: Iterable[str]) -> Config:
    """A config with the values of another one for these keys, such as `training.epochs`."""
    config = deepcopy(config)
    for key in keys:
        section, name = _place(config, key)
        setattr(section, name, getattr(_place(other, key)[0], name))
    return config


def _place(config: Config, key: str) -> tuple[Any, str]:
    """The section of a key, and its name there. A dict such as loss_weights.custom counts as a whole."""
    section, (name, *path) = config, key.split(".")
    while path and is_dataclass(getattr(section, name)):
        section, (name, *path) = getattr(section, name), path
    return section, name


def _value(config: Config, key: str) -> Any:
    section, name = _place(config, key)
    return getattr(section, name)


def config_to_resume(path: Path, given: GivenConfig) -> Config:
    """A run's own config, with the values given of the keys that are `MACHINE_KEYS`, and with more epochs if asked.

    Args:
        path: the run's config.
        given: what the caller asks for. Every other key that it names must be as the run has it.

    Raises:
        InputError: the call asks for another training.
    """
    run = load_run_config(path)
    for key in sorted(given.named - MACHINE_KEYS - {"training.epochs", "training.precision"}):
        value, own = _value(given.config, key), _value(run, key)
        if value != own:
            raise InputError(
                f"config: --resume goes by {path}, where {key} is {own}, not {value}. Leave out all keys but "
                f"{', '.join(sorted(MACHINE_KEYS))} and training.epochs. To train on with other values, start a new "
                "--out with --init RUN."
            )
    epochs = given.config.training.epochs if "training.epochs" in given.named else run.training.epochs
    expected = f"at least {run.training.epochs}, as {path} has it. A run can only be lengthened"
    require(epochs >= run.training.epochs, "training.epochs", epochs, expected)
    # The run may say auto. Its state has the precision that this meant, and is compared with what is given.
    config = with_keys(run, given.config, given.named & {*MACHINE_KEYS, "training.precision"})
    config.training.epochs = epochs
    return config


def to_yaml(config: Config) -> str:
    """The complete config as YAML."""
    return yaml.safe_dump(asdict(config), sort_keys=False)


def save_config(config: Config, path: Path) -> None:
    """Write the complete config as YAML."""
    with replacing(path) as temporary:
        temporary.write_text(to_yaml(config))


def load_config(path: Path | str) -> Config:
    """Read a YAML file of some or all keys.

    Args:
        path: the file. `recipe_path` gives that of a recipe's name: `load_config(recipe_path("demo"))`.

    Raises:
        InputError: not YAML, an unknown key or an invalid value.
        OSError: the file cannot be read.
    """
    return load_recipe(Path(path))[1]


def load_run_config(path: Path) -> Config:
    """The config of a run, perhaps of an earlier version. InputError: as `load_config`."""
    values, config = load_recipe(path)
    older = with_keys_of_older_runs(values)
    return config if older == values else from_dict(older)


def load_recipe(path: Path) -> tuple[dict[str, Any], Config]:
    """The values that a YAML file sets, under today's keys, and their config. InputError: as `load_config`."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader)
    except (yaml.YAMLError, ValueError, AttributeError, KeyError, RecursionError) as error:  # 2026-02-30: ValueError
        raise InputError(f"{path}: not YAML: {one_line(error)}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: got {type(values).__name__}, expected keys such as `training:`")
    try:
        values = with_current_keys(values)
        return values, from_dict(values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that occurs twice. YAML itself would take the last one, and lose half of a section."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value} occurs twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def recipe_path(name: str) -> Path:
    """The YAML file of a recipe's name, or of a path. InputError: there is none."""
    for path in (Path(name), RECIPES / f"{name}.yaml"):
        if path.is_file():
            return path
    known = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    similar = did_you_mean(name, known)
    raise InputError(f"{name} is neither a YAML file nor a recipe.{similar} Recipes: {', '.join(known)}.")


def closest_recipe(config: Config) -> tuple[str, dict[str, Any]]:
    """The packaged recipe that differs least from a config, and the config's values of the keys that differ.

    The seed and keys about the machine do not count.
    """
    keys = [key for key in key_types() if key not in MACHINE_KEYS | {"seed"}]
    own, defaults = ({key: _value(given, key) for key in keys} for given in (config, Config()))
    differing = {"the defaults": {key: value for key, value in own.items() if value != defaults[key]}}
    for name, values in _packaged_recipes().items():
        of_recipe = defaults | values
        differing[f"the recipe {name}"] = {key: value for key, value in own.items() if value != of_recipe[key]}
    name = min(differing, key=lambda name: len(differing[name]))
    return name, differing[name]


@functools.cache
def _packaged_recipes() -> dict[str, dict[str, Any]]:
    """The values that each packaged recipe sets, by whole keys. They are not checked, which would take a second."""
    paths = sorted(RECIPES.glob("*.yaml"))
    return {path.stem: _values_of_keys(yaml.safe_load(path.read_text(encoding="utf-8"))) for path in paths}


def _values_of_keys(values: Mapping[str, Any], section: type = Config, prefix: str = "") -> dict[str, Any]:
    """The values of a recipe by whole keys, such as `training.epochs`."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        kind = get_type_hints(section)[name]
        is_section = is_dataclass(kind) and isinstance(kind, type)
        found |= _values_of_keys(value, kind, f"{prefix}{name}.") if is_section else {f"{prefix}{name}": value}
    return found


def recipe_summaries() -> dict[str, str]:
    """The first sentence of each packaged recipe's first comment, by the recipe's name."""
    summaries = {}
    for path in sorted(RECIPES.glob("*.yaml")):
        comment = "".join(takewhile(lambda line: line.startswith("#"), path.read_text().splitlines(keepends=True)))
        summaries[path.stem] = " ".join(comment.replace("#", "").split()).partition(". ")[0].removesuffix(".")
    return summaries
