"""Config keys of version 0.1, read under today's names.

A removed key that had no effect is dropped silently. Any other old key gives a DeprecationWarning, or an InputError if
only version 0.1 can do what it asks for.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from airstreams.errors import InputError
from airstreams.towers import BACKBONES

OLD_KEYS = {"loss_weights.further": "loss_weights.custom", "training.compile": None, "training.ema": None}
"""Old keys with their names today; None: removed."""

REMOVED_BACKBONES = ("tvn1", "tvn2", "tvn3", "tvn4")
REMOVED_LAYERS = ("depthwise_conv2d", "average_pool2d")


def with_keys_of_older_runs(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a run's config, with those that its version had instead of keys that it lacks."""
    data = values.get("data", {})
    return {**values, "data": {"deinterlace": "off", **data}} if isinstance(data, Mapping) else dict(values)


def with_current_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a recipe or a saved config under today's keys. InputError: a tower that was removed."""
    current = _renamed(values, section="")
    current = {
        key: _renamed(value, f"{key}.") if isinstance(value, Mapping) else value for key, value in current.items()
    }
    model = current.get("model")
    if isinstance(model, dict) and isinstance(model.get("tower"), list):
        model["tower"] = [_current_block(block) for block in model["tower"]]
        _name_packaged_tower(model)
    return current


def with_current_key_options(argv: Sequence[str]) -> list[str]:
    """The words of a call with `--KEY VALUE` and `--KEY=VALUE` under today's keys."""
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
    """The entry of `OLD_KEYS` that a key is, or lies below."""
    return next((old for old in OLD_KEYS if key == old or key.startswith(f"{old}.")), None)


def _current_key(key: str, value: object) -> str | None:
    """Today's name of a key; None: removed. Warns if the key is old and its value had an effect."""
    if key == "model.backbone" and value in REMOVED_BACKBONES:
        raise InputError(f"model.backbone: {value} was removed. Use version 0.1 of airstreams for it.")
    old = _old_key(key)
    if old is None:
        return key
    new = OLD_KEYS[old]
    if value:
        what = "was removed and has no effect. Delete the key." if new is None else f"is now {new}. Rename the key."
        warnings.warn(f"{old} {what}", DeprecationWarning, stacklevel=1)
    return None if new is None else new + key.removeprefix(old)


def _current_block(block: Any) -> Any:
    """A block without the options that only the Tiny Video Networks of version 0.1 used. InputError: it used one."""
    if not isinstance(block, Mapping) or not isinstance(block.get("layers"), list):
        return block
    layers = [layer for layer in block["layers"] if isinstance(layer, Mapping)]
    removed = [f"the layer kind `{layer['kind']}`" for layer in layers if layer.get("kind") in REMOVED_LAYERS]
    removed += ["the key `every`" for layer in layers if layer.get("every") is not None]
    removed += ["`skip: projection`"] if block.get("skip") == "projection" else []
    if removed:
        raise InputError(f"model.tower: {removed[0]} no longer exists. Use version 0.1 of airstreams for this tower.")
    return dict(block) | {"layers": [_without_every(layer) for layer in block["layers"]]}


def _without_every(layer: Any) -> Any:
    return {key: value for key, value in layer.items() if key != "every"} if isinstance(layer, Mapping) else layer


def _name_packaged_tower(model: dict[str, Any]) -> None:
    """Replace the blocks of a packaged tower, which version 0.1 wrote out, by the name of the backbone."""
    for name, blocks in BACKBONES.items():
        if model["tower"] == [asdict(block) for block in blocks()]:
            model["tower"] = []
            model["backbone"] = model.get("backbone") or (None if name == "airstreams" else name)
            return
