"""The YAML file beside an ONNX file that says what its network takes and gives.

`teacher.yaml` describes `teacher.onnx`:

| key | value |
| --- | --- |
| `kind` | `classes`, `maps`, `points`, `grid` or `clip`; see `TargetSpec` |
| `names` | of the classes (the background first), maps or points. Features have none. |
| `input.size` | [height, width] in px, to which frames are resized; without it, frames keep their size |
| `input.mean`, `input.deviation` | of RGB in 0..1; the network gets (RGB - mean) / deviation. One number, or three. |
| `input.frames` | of a clip, for the kind `clip` |
| `output.name` | the output to read; not needed if there is one |
| `output.channels` | `first`: (N, C, h, w); `last`: (N, h, w, C) |
| `output.activation` | `sigmoid` or `softmax` over C, or `none` |
| `output.foreground` | an output with one channel: the probability that a pixel is not background |
| `output.points` | `unit`: x and y are in 0..1; `px`: in px of the input |
| `range` | [low, high] of the maps, which then take one byte per value; [0, 1] after an activation |
| `unit`, `negated`, `in_px`, `components`, `mirrored` | as in `TargetSpec` |

With `foreground`, the class `background` is added in front, and maps are multiplied with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from airstreams.errors import InputError, did_you_mean, one_line
from airstreams.teachers.target_spec import TargetSpec

_SPEC_KEYS = ("kind", "names", "unit", "negated", "in_px", "components", "mirrored")


@dataclass(frozen=True)
class InputDescription:
    """What a network takes; see the module."""

    size: tuple[int, int] | None = None
    mean: tuple[float, ...] = (0.0,)
    deviation: tuple[float, ...] = (1.0,)
    frames: int = 1


@dataclass(frozen=True)
class OutputDescription:
    """What a network gives; see the module."""

    name: str | None = None
    channels: str = "first"
    activation: str = "none"
    foreground: str | None = None
    points: str = "unit"


_CHOICES = {
    "channels": ("first", "last"),
    "activation": ("none", "sigmoid", "softmax"),
    "points": ("unit", "px"),
}


@dataclass(frozen=True)
class Description:
    """What a network takes and gives; see the module."""

    target: TargetSpec
    input: InputDescription = field(default_factory=InputDescription)
    output: OutputDescription = field(default_factory=OutputDescription)


def description_of(file: Path) -> Description | None:
    """What the YAML file beside an ONNX file says; None: there is no such file. InputError: it is not valid."""
    path = file.with_suffix(".yaml")
    if not path.is_file():
        return None
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as YAML ({one_line(error)}). Correct the file.") from error
    given = _mapping(path, "", content, ("input", "output", "range", *_SPEC_KEYS))
    try:
        return _description(path, given)
    except InputError as error:
        raise InputError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"{path} has a value of a wrong type ({one_line(error)}). Correct it.") from error


def _description(path: Path, given: dict[str, Any]) -> Description:
    network_input = _mapping(path, "input", given.get("input") or {}, [one.name for one in fields(InputDescription)])
    output = _mapping(path, "output", given.get("output") or {}, [one.name for one in fields(OutputDescription)])
    if "kind" not in given:
        raise InputError("kind is missing. Give classes, maps, points, grid or clip.")
    for name, choices in _CHOICES.items():
        if output.get(name, choices[0]) not in choices:
            raise InputError(f"output.{name} is {output[name]!r:.80}. Give one of {', '.join(choices)}.")
    names = tuple(str(name) for name in given.get("names") or ())
    if given["kind"] == "classes" and "foreground" in output:
        names = ("background", *names)
    value_range = given.get("range")
    if value_range is None and given["kind"] == "maps" and output.get("activation", "none") != "none":
        value_range = (0, 1)
    numbers = {name: _numbers(network_input[name]) for name in ("mean", "deviation") if name in network_input}
    size = tuple(int(side) for side in network_input["size"]) if network_input.get("size") else None
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise InputError(f"input.size is {network_input['size']!r:.80}. Give [height, width] in px.")
    spec = {name: given[name] for name in ("unit", "in_px", "components") if name in given}
    target = TargetSpec(
        given["kind"],
        names,
        value_range=None if value_range is None else _range(value_range),
        negated=tuple(given.get("negated") or ()),
        clip_frames=int(network_input.get("frames", 1)),
        mirrored=None if "mirrored" not in given else tuple((left, right) for left, right in given["mirrored"]),
        **spec,
    )
    return Description(
        target,
        InputDescription(size, frames=target.clip_frames, **numbers),
        OutputDescription(**output),
    )


def _mapping(path: Path, name: str, content: Any, known: Any) -> dict[str, Any]:
    """A mapping with some of the known keys. InputError: it is none, or it has others."""
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: {name or 'the file'} is {content!r:.80}. Make it a mapping of keys to values.")
    for key in content:
        if key not in known:
            full = f"{name}.{key}" if name else str(key)
            raise InputError(
                f"{path}: there is no key {full}.{did_you_mean(str(key), known)} Give some of {', '.join(known)}."
            )
    return dict(content)


def _numbers(given: Any) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in (given if isinstance(given, list) else [given]))
    if len(numbers) not in (1, 3):
        raise InputError(f"input.mean or input.deviation is {given!r:.80}. Give one number, or three for RGB.")
    return numbers


def _range(given: Any) -> tuple[float, float]:
    low, high = (float(value) for value in given)
    if not low < high:
        raise InputError(f"range is {given!r:.80}. Give [low, high].")
    return low, high
