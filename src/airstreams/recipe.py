"""A `Config` and its keys in files and on the command line: YAML recipes, and the `config.yaml` of a run."""

import re
import warnings
from argparse import ArgumentError
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace

from airstreams.config import Config
from airstreams.errors import InputError, one_line
from airstreams.files import replacing
from airstreams.towers import BACKBONES

RECIPES = Path(__file__).parent / "recipes"

OF_THE_MACHINE = frozenset({"data.workers", "data.cache", "data.cache_gb", "training.device", "training.cuda_graph"})
"""Keys that say where data lie and on what a run runs and how, and change no model."""

OLD_KEYS = {"loss_weights.further": "loss_weights.custom", "training.compile": None, "training.ema": None}
"""Keys of version 0.1: each with its name today, or None where it was removed."""

REMOVED_TOWERS = ("tvn1", "tvn2", "tvn3", "tvn4")
REMOVED_LAYERS = ("depthwise_conv2d", "average_pool2d")


def add_config_arguments(parser: ArgumentParser) -> None:
    """Give a parser every key of `Config` as an option, such as `--training.epochs`, and `--config` for a YAML file."""
    parser.add_argument("--config", action="config", help="a packaged recipe's name or a YAML file")
    parser.add_class_arguments(Config)


def config_from(parsed: Namespace) -> Config:
    """The `Config` in what a parser with `add_config_arguments` parsed. InputError: a value out of its range."""
    return Config(**{item.name: parsed[item.name] for item in fields(Config)})


def from_dict(values: dict[str, Any]) -> Config:
    """A `Config` from plain values, as `asdict` gives them. InputError: an unknown key or an impossible value."""
    values = with_current_keys(values)
    _refuse_wrong_keys(values, Config)
    parser = ArgumentParser(exit_on_error=False)
    add_config_arguments(parser)
    try:
        return config_from(parser.instantiate(parser.parse_object(values)))
    except ArgumentError as error:
        complaint = re.sub(r'^Parser key "([\w.]+)":', r"\1:", str(error))
        raise InputError(about_types(complaint)) from error


def with_current_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a recipe or a run of version 0.1 under today's keys.

    A DeprecationWarning names each old key that had an effect. InputError: a tower that only version 0.1 can build.
    """
    current = _renamed(values, "")
    current = {
        key: _renamed(value, f"{key}.") if isinstance(value, Mapping) else value for key, value in current.items()
    }
    model = current.get("model")
    if isinstance(model, dict) and isinstance(model.get("tower"), list):
        model["tower"] = [_current_block(block) for block in model["tower"]]
        # Version 0.1 wrote a packaged tower block by block, beside its name or alone.
        name = next((name for name, blocks in _packaged().items() if blocks == model["tower"]), None)
        if name is not None:
            model["tower"] = []
            model["backbone"] = model.get("backbone") or (None if name == "airstreams" else name)
    return current


def with_current_options(argv: Sequence[str]) -> list[str]:
    """The words of a command with `--KEY VALUE` and `--KEY=VALUE` of version 0.1 under today's keys."""
    current = []
    words = iter(argv)
    for word in words:
        option, equals, value = word.partition("=")
        key = option.removeprefix("--")
        if key == option or _old_key(key) is None:
            current.append(word)
            continue
        value = value if equals else next(words, "")
        new = _current_key(key, None if value in ("0", "0.0", "false", "null", "{}") else value)
        current += [f"--{new}={value}"] if new else []
    return current


def _renamed(values: Mapping[str, Any], section: str) -> dict[str, Any]:
    keys = {key: _current_key(f"{section}{key}", value) for key, value in values.items()}
    return {new.removeprefix(section): values[key] for key, new in keys.items() if new is not None}


def _old_key(key: str) -> str | None:
    """The entry of `OLD_KEYS` that a key is or lies below."""
    return next((old for old in OLD_KEYS if key == old or key.startswith(f"{old}.")), None)


def _current_key(key: str, value: object) -> str | None:
    """Today's name of a key, or None where it was removed. Warns of an old key whose value had an effect."""
    if key == "model.backbone" and value in REMOVED_TOWERS:
        raise InputError(f"model.backbone: {value} was removed. Use version 0.1 of airstreams for it.")
    old = _old_key(key)
    if old is None:
        return key
    new = OLD_KEYS[old]
    if value:
        what = "was removed and has no effect. Delete the key." if new is None else f"is now {new}. Rename the key."
        warnings.warn(f"{old} {what}", DeprecationWarning, stacklevel=1)
    return None if new is None else new + key.removeprefix(old)


def _packaged() -> dict[str, list[dict[str, Any]]]:
    """The packaged towers as a complete config of version 0.1 gives them."""
    return {name: [asdict(block) for block in blocks()] for name, blocks in BACKBONES.items()}


def _current_block(block: Any) -> Any:
    """A block of a tower without the options that only the Tiny Video Networks of version 0.1 used."""
    if not isinstance(block, Mapping) or not isinstance(block.get("layers"), list):
        return block
    layers = [layer for layer in block["layers"] if isinstance(layer, Mapping)]
    removed = [layer["kind"] for layer in layers if layer.get("kind") in REMOVED_LAYERS]
    removed += ["every" for layer in layers if layer.get("every") is not None]
    removed += ["skip: projection"] if block.get("skip") == "projection" else []
    if removed:
        raise InputError(f"model.tower: {removed[0]} was removed. Use version 0.1 of airstreams for this tower.")
    return dict(block) | {"layers": [_without_every(layer) for layer in block["layers"]]}


def _without_every(layer: Any) -> Any:
    return {key: value for key, value in layer.items() if key != "every"} if isinstance(layer, Mapping) else layer


def about_types(complaint: str) -> str:
    """The parser's complaint of a value, if it is one, in words that are not Python's."""
    complaint = re.sub(r"<class '(\w+)'>", r"\1", one_line(complaint))
    found = re.search(r"Expected an? (?P<types>.*?)\. Got value: (?P<given>.*)", complaint)
    found = found or re.search(
        r"Does not validate .* Subtypes: \[(?P<types>.*?)\] .* Given value: (?P<given>.*)", complaint
    )
    if not found:
        return complaint
    words = {"int": "a whole number", "float": "a number", "bool": "true or false", "list": "a list such as '[a,b]'"}
    words |= {"str": "text", "NoneType": "null"}
    types = re.sub(r"^(?:typing\.)?Literal\[(.*)]$", r"one of \1", found["types"])
    expected = types if types.startswith("one of") else " or ".join(words.get(name, name) for name in types.split(", "))
    return f"{complaint[: found.start()]}got {found['given']}, expected {expected}"


def _refuse_wrong_keys(values: Mapping[str, Any], config: type, at: str = "") -> None:
    """InputError: an unknown key, or a section without keys or a key without a value, which the parser lets pass."""
    types = get_type_hints(config)
    for key in values:
        if key not in types and "." not in str(key):  # training.epochs means epochs below training
            alike = get_close_matches(str(key), types, n=1)
            expected = alike[0] if alike else f"one of {', '.join(types)}"
            raise InputError(f"{at}{key}: there is no such key, expected {expected}; change it, or delete the line")
    for item in fields(config):
        if item.name not in values:
            continue
        given, section = values[item.name], item.default_factory
        if isinstance(section, type) and is_dataclass(section):
            if not isinstance(given, Mapping):
                got = "nothing" if given is None else given
                raise InputError(f"{at}{item.name}: got {got}, expected keys below it; indent them, or delete the line")
            _refuse_wrong_keys(given, section, f"{at}{item.name}.")
        elif isinstance(given, list):
            kinds = [kind for kind in get_args(types[item.name]) if isinstance(kind, type) and is_dataclass(kind)]
            for number, element in enumerate(given if kinds else ()):
                where = f"{at}{item.name}[{number}]"
                if not isinstance(element, Mapping):
                    raise InputError(f"{where}: got {element}, expected keys; write some, or delete the line")
                _refuse_wrong_keys(element, kinds[0], f"{where}.")
        elif given is None and NoneType not in get_args(types[item.name]):
            raise InputError(f"{at}{item.name}: got nothing, expected a value; write one, or delete the line")


def comparable(config: Config) -> dict[str, Any]:
    """A config's values but for `OF_THE_MACHINE`: equal ones train the same model, perhaps on different machines."""
    values = asdict(config)
    for key in OF_THE_MACHINE:
        section, name = key.split(".")
        del values[section][name]
    return values


def moved(config: Config, there: Config, keys: Iterable[str]) -> Config:
    """A config with those of the keys that are `OF_THE_MACHINE` as they are in another one."""
    return _with_keys(config, there, OF_THE_MACHINE.intersection(keys))


def _with_keys(config: Config, other: Config, keys: Iterable[str]) -> Config:
    """A config with these keys, such as `training.epochs`, as they are in another one."""
    config = deepcopy(config)
    for key in keys:
        ours, theirs, path = config, other, key.split(".")
        while len(path) > 1 and is_dataclass(
            getattr(ours, path[0])
        ):  # a dict such as loss_weights.custom counts as one
            ours, theirs, path = getattr(ours, path[0]), getattr(theirs, path[0]), path[1:]
        setattr(ours, path[0], getattr(theirs, path[0]))
    return config


def to_resume(path: Path, given: Config, keys: Sequence[str]) -> Config:
    """A run's own config, with the values given of the keys that are `OF_THE_MACHINE`.

    Args:
        path: the run's config.
        given: the config of the call: the defaults where the call says nothing.
        keys: those that the call names.

    Raises:
        InputError: the call asks for another training.
    """
    run = load_config(path)
    config = moved(run, given, keys)
    only_keys = given == _with_keys(Config(), given, keys)  # the call gave no recipe
    if not (given == config or (only_keys and run == _with_keys(run, given, set(keys) - OF_THE_MACHINE))):
        raise InputError(
            f"--resume goes by {path}; leave out --config and all keys but {', '.join(sorted(OF_THE_MACHINE))}; "
            "to train on with others, begin a new --out with --init RUN"
        )
    return config


def to_yaml(config: Config) -> str:
    """The complete config."""
    return yaml.safe_dump(asdict(config), sort_keys=False)


def save_config(config: Config, path: Path) -> None:
    """Write the complete config as YAML."""
    with replacing(path) as temporary:
        temporary.write_text(to_yaml(config))


def load_config(path: Path) -> Config:
    """Read a YAML file of some or all keys. InputError: not YAML, an unknown key or an impossible value."""
    return load_recipe(path)[1]


def load_recipe(path: Path) -> tuple[dict[str, Any], Config]:
    """The values that a YAML file sets, under today's keys, and their config. InputError: as `load_config`."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _EachKeyOnce)
    except (yaml.YAMLError, ValueError, AttributeError, KeyError, RecursionError) as error:  # as it reads 2026-02-30
        raise InputError(f"{path}: not YAML: {one_line(error)}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: got {type(values).__name__}, expected keys such as `training:`")
    try:
        values = with_current_keys(values)
        return values, from_dict(values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


class _EachKeyOnce(yaml.SafeLoader):
    """YAML itself takes the last of equal keys and forgets the others: half a recipe, where it is a section's."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} stands there twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def recipe_path(name: str) -> Path:
    """The YAML file that a recipe's name or path stands for. InputError: neither."""
    for path in (Path(name), RECIPES / f"{name}.yaml"):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
    raise InputError(f"{name}: neither a YAML file nor a packaged recipe ({known})")
