"""What a teacher gives: the kind of its targets, their names, and how they are stored."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from airstreams.data.label_maps import NO_LABEL
from airstreams.errors import InputError
from airstreams.teachers.drawing import BACKGROUND_NAMES

Kind = Literal["classes", "maps", "points", "grid", "clip"]

SHAPES: dict[Kind, str] = {
    "classes": "(T, H, W)",
    "maps": "(T, maps, h, w)",
    "points": "(T, people, points, 3)",
    "grid": "(T, D, h, w)",
    "clip": "(B, D)",
}
"""What a call of a teacher returns for T frames, or for B clips."""

WORDS: dict[Kind, str] = {
    "classes": "label maps",
    "maps": "maps of values",
    "points": "points",
    "grid": "features on a grid",
    "clip": "features per clip",
}
PEOPLE = 8
"""The most people of a frame whose points a teacher gives."""
MAP_SIDE = 160
"""px of the longer side of a map of values; larger ones are reduced. Training reads one value per 4 px of a clip."""

_SIDES = {"left": "right", "right": "left", "l": "r", "r": "l"}


@dataclass(frozen=True)
class TargetSpec:
    """What a teacher gives.

    | kind    | a call gets               | and returns                                                           |
    | ------- | ------------------------- | --------------------------------------------------------------------- |
    | classes | frames uint8 (T, H, W, 3) | class ids uint8 (T, H, W), 255 where there is no label                |
    | maps    | frames                    | values (T, maps, h, w) of any size h, w                               |
    | points  | frames                    | (T, people, points, 3): x and y in 0..1 of the frame, and how visible |
    | grid    | frames                    | features (T, D, h, w)                                                 |
    | clip    | clips (B, N, H, W, 3)     | features (B, D)                                                       |

    All but class ids are float, and NaN where there is no value.

    Args:
        kind: see above.
        names: of the classes (the background first), maps or points. Features have none.
        unit: of the maps' values, for people.
        value_range: maps with values in this range take one byte per value. None: two bytes, any range.
        negated: maps whose values change sign where a picture is mirrored: those along x of a vector.
        in_px: the maps' values are lengths in px of the map, such as flow.
        clip_frames: N, the frames of a clip.
        components: how many principal components of features are kept.
        mirrored: pairs of names that change places where a picture is mirrored. None: `left_right_pairs(names)`.

    Raises:
        InputError: the values contradict each other.
    """

    kind: Kind
    names: tuple[str, ...] = ()
    unit: str = ""
    value_range: tuple[float, float] | None = None
    negated: tuple[str, ...] = ()
    in_px: bool = False
    clip_frames: int = 1
    components: int = 64
    mirrored: tuple[tuple[str, str], ...] | None = None

    def __post_init__(self) -> None:
        if self.kind not in SHAPES:
            raise InputError(f"There is no kind of target {self.kind!r}. Give one of {', '.join(SHAPES)}.")
        if not isinstance(self.names, (tuple, list)) or not all(isinstance(name, str) for name in self.names):
            raise InputError(f"names is {self.names!r:.80}. Make it a tuple of str.")
        if len(set(self.names)) < len(self.names) and self.kind != "classes":
            raise InputError(f"names has {self.names!r:.200}, some of them twice. Give each one once.")
        if self.has_features and self.names:
            raise InputError(f"names is {self.names!r:.80}, but features of the kind {self.kind} have no names.")
        if self.kind in ("maps", "points") and not self.names:
            raise InputError(f"names is empty. Name the {self.kind} that the teacher gives.")
        if self.kind == "classes":
            _require_classes(self.names)
        if self.clip_frames < 1 or self.components < 1 or (self.clip_frames > 1 and self.kind != "clip"):
            raise InputError(
                f"clip_frames is {self.clip_frames} and components {self.components}, with the kind {self.kind}. Give "
                "whole numbers from 1 on, and clip_frames with the kind clip alone."
            )

    @property
    def words(self) -> str:
        """The kind in words, for people."""
        return WORDS[self.kind]

    @property
    def has_features(self) -> bool:
        """Whether principal components are stored."""
        return self.kind in ("grid", "clip")

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The pairs of names that change places where a picture is mirrored."""
        return left_right_pairs(self.names) if self.mirrored is None else self.mirrored


def _require_classes(names: Sequence[str]) -> None:
    if not 1 <= len(names) <= NO_LABEL:
        raise InputError(
            f"It has {len(names)} classes, and label maps hold 1 to {NO_LABEL} with the background. Merge classes, "
            "or give another teacher."
        )
    if names[0].strip("_ ").lower() not in BACKGROUND_NAMES:
        raise InputError(
            f"Class 0 is {names[0]!r}. Name class 0 {' or '.join(sorted(BACKGROUND_NAMES))}, and start the other ids "
            "at 1."
        )


def left_right_pairs(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Pairs of names that differ in left and right alone, the left one first.

    >>> left_right_pairs(["nose", "right_knee", "left_knee", "L_Eye", "R_Eye"])
    (('left_knee', 'right_knee'), ('L_Eye', 'R_Eye'))
    """
    by_words: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        by_words.setdefault(_words(name), []).append(name)
    pairs = []
    for words, (name, *others) in by_words.items():
        opposite = by_words.get(tuple(_SIDES.get(word, word) for word in words), [])
        is_left = any(word in ("left", "l") for word in words)
        if is_left and not others and len(opposite) == 1 and opposite != [name]:
            pairs.append((name, opposite[0]))
    return tuple(pairs)


def _words(name: str) -> tuple[str, ...]:
    """The words of a name in lower case. A capital letter within a word begins another one."""
    return tuple(word.lower() for word in re.findall(r"[A-Z]?[^\W_A-Z]+|[A-Z]+(?![a-z])", name))


def problem_of(answer: object, spec: TargetSpec, count: int, size: tuple[int, ...]) -> str | None:
    """What is wrong with an answer of a teacher, and what it must be; None: nothing.

    Args:
        answer: what a call returned.
        spec: what the teacher gives.
        count: how many frames or clips the call got.
        size: the height and width of the frames.
    """
    if not isinstance(answer, np.ndarray):
        return f"a {type(answer).__name__}. It must return a numpy array"
    if spec.kind == "classes":
        return _problem_of_ids(answer, spec, (count, *size))
    place = {"maps": 1, "points": 2}.get(spec.kind)
    fits = answer.ndim == SHAPES[spec.kind].count(",") + 1 and len(answer) == count and 0 not in answer.shape
    fits = fits and (place is None or answer.shape[place] == len(spec.names))
    fits = fits and (spec.kind != "points" or answer.shape[3] == 3)
    if not fits or not np.issubdtype(answer.dtype, np.floating):
        names = f" for {count} inputs and {len(spec.names)} {spec.kind}" if spec.names else f" for {count} inputs"
        return f"{answer.dtype} {answer.shape}. It must return float {SHAPES[spec.kind]}{names}"
    if np.isinf(answer).any():
        return "infinite values. It must return NaN where there is no value"
    return None


def _problem_of_ids(ids_THW: np.ndarray, spec: TargetSpec, shape: tuple[int, ...]) -> str | None:
    if ids_THW.dtype != np.uint8 or ids_THW.shape != shape:
        return f"{ids_THW.dtype} {ids_THW.shape}. It must return uint8 {shape}, a class id for each pixel of each frame"
    unknown = ids_THW[(ids_THW >= len(spec.names)) & (ids_THW != NO_LABEL)]
    if unknown.size:
        return (
            f"the class id {unknown[0]}. Its ids must be below {len(spec.names)}, the number of its classes, or "
            f"{NO_LABEL} for no label"
        )
    return None


def reduced(maps_TCHW: Tensor) -> Tensor:
    """Reduce maps (T, C, H, W) whose longer side exceeds `MAP_SIDE` to that size, by the mean."""
    height, width = maps_TCHW.shape[2:]
    if max(height, width) <= MAP_SIDE:
        return maps_TCHW
    size = [max(1, round(side * MAP_SIDE / max(height, width))) for side in (height, width)]
    return F.interpolate(maps_TCHW, size, mode="bilinear", antialias=True)
