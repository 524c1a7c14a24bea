"""What a teacher is, and how the command line's name of one becomes one.

A teacher runs all the frames of a call as one batch; how many fit is the caller's to know. Every teacher, the user's
own included, is wrapped: the names of its classes are looked at before it is asked and each label map when it is made,
so nothing that a store could not hold gets into one. The price: a pass over every label map, well under 1 ms for
640x480.
"""

import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from airstreams.data.label_maps import NO_LABEL
from airstreams.errors import InputError, describe
from airstreams.teachers import hugging_face, maskrcnn, onnx
from airstreams.teachers.drawing import BACKGROUND_NAMES, SCORE_THRESHOLD


class Teacher(Protocol):
    """A segmentation model trained on still images: uint8 RGB frames (T, H, W, 3) to uint8 class ids (T, H, W).

    255 is *no label here*.
    """

    name: str
    """How it is called in a store of label maps."""

    classes: tuple[str, ...]
    """Name of each class id; index 0 is the background."""

    def __call__(self, frames_THW3: np.ndarray) -> np.ndarray:
        """The label maps of some frames, at the frames' size."""
        ...


def load_teacher(spec: str, options: Mapping[str, Any], device: torch.device) -> Teacher:
    """The teacher that `spec` names: `maskrcnn`, `hf:MODEL`, `onnx:FILE` or `FILE.py:FACTORY`.

    options: what the user gave of `score_threshold` (0..1; instances below it are not drawn) and `unsure_from` (below
    the threshold; from this score up to it, instances or pixels become 255 where nothing sure lies). A factory is
    called as `FACTORY(**options)`; what it returns needs `classes` and a call, and may have a `name`.
    The teacher raises RuntimeError when its label maps are not what a teacher's should be.
    InputError: the spec, the options or the teacher's classes do not hold, or something is not installed.
    """
    _check_options(options)
    if spec == "maskrcnn":
        return _Checked(maskrcnn.load(device, **options), spec)
    if spec.startswith("hf:"):
        return _Checked(hugging_face.load(spec.removeprefix("hf:"), device, **options), spec)
    if spec.startswith("onnx:"):
        return _Checked(onnx.load(Path(spec.removeprefix("onnx:")), device, **options), spec)
    file, colon, factory = spec.rpartition(":")
    if colon and file.endswith(".py"):
        return _Checked(_own(Path(file), factory, options), spec)
    raise InputError(
        f"teacher {spec!r} is none of those known; expected maskrcnn, hf:MODEL, onnx:FILE or FILE.py:FACTORY, "
        "such as hf:facebook/mask2former-swin-tiny-coco-instance or my_teacher.py:load"
    )


def checked(teacher: Any) -> Teacher:
    """An object that is to be a teacher, wrapped as `load_teacher` wraps it; what is wrapped already stays as it is.

    InputError: it has no `name`, or its classes do not hold.
    """
    if isinstance(teacher, _Checked):
        return teacher
    name = getattr(teacher, "name", None)
    if not isinstance(name, str):
        raise InputError(
            f"teacher {type(teacher).__name__}: its name is {name!r:.80}; expected a text, by which a store of label "
            "maps knows its teacher again; give it a `name`"
        )
    return _Checked(teacher, name)


class _Checked:
    def __init__(self, teacher: Any, spec: str) -> None:
        if not callable(teacher) or not hasattr(teacher, "classes"):
            raise InputError(
                f"teacher {spec} is a {type(teacher).__name__} without `classes` or without __call__; expected an "
                "object with `classes`, a tuple of names, that is called with frames; give it both"
            )
        classes = teacher.classes
        if not isinstance(classes, (tuple, list)) or not all(isinstance(name, str) for name in classes):
            raise InputError(f"teacher {spec}: classes is {classes!r:.80}; expected names; make it a tuple of str")
        if not 1 <= len(classes) <= NO_LABEL:
            raise InputError(
                f"teacher {spec} has {len(classes)} classes; expected 1 to {NO_LABEL} with the background, as an id is "
                f"one byte and {NO_LABEL} means no label; merge classes or take another teacher"
            )
        if classes[0].strip("_ ").lower() not in BACKGROUND_NAMES:
            raise InputError(
                f"teacher {spec}: class 0 is {classes[0]!r}; expected {' or '.join(sorted(BACKGROUND_NAMES))}, for the "
                "pixels of no other class; put 'background' first and count the other ids from 1"
            )
        self._teacher = teacher
        self.name: str = getattr(teacher, "name", spec)
        self.classes: tuple[str, ...] = tuple(classes)

    def __call__(self, frames_THW3: np.ndarray) -> np.ndarray:
        try:
            labels_THW = self._teacher(frames_THW3)
        except Exception as error:
            raise RuntimeError(f"teacher {self.name} failed: {describe(error)}") from error
        expected = frames_THW3.shape[:3]
        if not isinstance(labels_THW, np.ndarray):
            raise RuntimeError(f"teacher {self.name} returned a {type(labels_THW).__name__}; expected a numpy array")
        if labels_THW.dtype != np.uint8 or labels_THW.shape != expected:
            raise RuntimeError(
                f"teacher {self.name} returned {labels_THW.dtype} {labels_THW.shape}; expected uint8 {expected}, "
                "a class id for each pixel of each frame"
            )
        unknown = labels_THW[(labels_THW >= len(self.classes)) & (labels_THW != NO_LABEL)]
        if unknown.size:
            raise RuntimeError(
                f"teacher {self.name} returned the class id {unknown[0]}; expected ids below {len(self.classes)}, the "
                f"number of its classes, or {NO_LABEL} for no label"
            )
        return labels_THW


def _check_options(options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        if not 0 <= value <= 1:
            raise InputError(f"{name} is {value}; expected a score from 0 to 1; give one, such as {SCORE_THRESHOLD}")
    threshold = options.get("score_threshold", SCORE_THRESHOLD)
    if options.get("unsure_from", -1.0) >= threshold:
        raise InputError(
            f"unsure_from is {options['unsure_from']} and score_threshold {threshold}; expected unsure_from below it; "
            "lower unsure_from or raise score_threshold"
        )


def _own(file: Path, factory: str, options: Mapping[str, Any]) -> Any:
    make = _factory(file, factory)
    given = ", ".join(f"{name}={value}" for name, value in options.items())
    call = f"{file}:{factory}({given})"
    try:
        inspect.signature(make).bind(**options)
    except (TypeError, ValueError) as error:  # ValueError: what is written in C may have no signature
        raise InputError(
            f"{call} is no call that the factory takes ({error}); expected a factory that takes these options and "
            "needs no others; change its parameters, or leave out the option"
        ) from None
    try:
        return make(**options)
    except Exception as error:
        raise InputError(
            f"{call} failed: {describe(error)}; expected it to return a teacher; mend the factory"
        ) from error


def _factory(file: Path, name: str) -> Callable[..., Any]:
    if not file.is_file():
        raise InputError(f"teacher file {file} does not exist; expected FILE.py:FACTORY; correct the path")
    spec = importlib.util.spec_from_file_location(f"airstreams_teacher_{file.stem}", file)
    assert spec is not None  # a name that ends in .py always has a loader
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look a class's module up there
    folder = str(file.parent.resolve())
    if sys.path[:1] != [folder]:
        sys.path.insert(0, folder)  # what lies beside it can be imported, as by a script, when it is made and asked too
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(
            f"teacher file {file} cannot be imported: {describe(error)}; expected a Python file that can; mend it"
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        own = [k for k, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == spec.name]
        raise InputError(
            f"{file} has no function {name!r}; expected FILE.py:FACTORY, a function or class that makes a teacher; "
            f"take one of its own: {', '.join(own) or 'there is none'}"
        )
    return found
