"""The interface of a teacher, and loading one by its name on the command line.

A teacher runs all frames of a call as one batch, so the caller must know how many fit into memory. Every teacher,
including the user's own, is wrapped: its target and each of its answers are checked, so that a store gets nothing that
it cannot hold. The price: a pass over every answer, well under 1 ms for a label map of 640x480.
"""

import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from airstreams.errors import InputError, describe, did_you_mean
from airstreams.machine import precision_on
from airstreams.teachers import ensemble, hugging_face, i3d, maskrcnn, onnx, torchvision
from airstreams.teachers.drawing import SCORE_THRESHOLD
from airstreams.teachers.target_spec import TargetSpec, problem_of


class Teacher(Protocol):
    """A model that says something about still images or short clips."""

    name: str
    """Its name in a store."""

    target: TargetSpec
    """What it gives."""

    def __call__(self, frames_THW3: np.ndarray) -> np.ndarray:
        """What `TargetSpec` says of its kind, of RGB frames uint8 (T, H, W, 3) or clips (B, N, H, W, 3)."""
        ...


def load_teacher(
    spec: str, options: Mapping[str, Any], device: torch.device, precision: str = "auto"
) -> "CheckedTeacher":
    """Load a teacher.

    Args:
        spec: `i3d-kinetics400`, `torchvision:NAME`, `maskrcnn`, `hf:MODEL`, `onnx:FILE`, `FILE.py:FACTORY`, or several
            of them as `ensemble:A,B,C`. A factory is called as `FACTORY(**options)`. It returns an object with
            `classes` or `target`, with `__call__`, and perhaps with a `name`.
        options: `score_threshold` and `unsure_from`, both optional and in 0..1; see `teachers/drawing.py`. An ensemble
            takes `votes`, too.
        device: for the model.
        precision: `float32`, `auto` or, for maskrcnn alone, `bfloat16`. The others compute as they always do.

    Returns:
        The teacher. It raises RuntimeError if its answers are not valid.

    Raises:
        InputError: the spec, an option or the teacher's target is not valid, or a package is not installed.
    """
    if spec.startswith(ensemble.PREFIX):
        return CheckedTeacher(_ensemble(spec, options, device, precision), spec)
    _check_options(options)
    if spec == "maskrcnn":
        return CheckedTeacher(maskrcnn.load(device, precision=precision_on(device, precision), **options), spec)
    if precision == "bfloat16":
        raise InputError(f"--precision: got bfloat16, which only the teacher maskrcnn has, not {spec}. Leave it out.")
    kind, colon, name = spec.partition(":")
    if colon and kind in LIBRARIES:
        return CheckedTeacher(LIBRARIES[kind](name, device, options), spec)
    if spec == i3d.NAME:
        _refuse(options, spec)
        return CheckedTeacher(i3d.load(device), spec)
    file, colon, factory = spec.rpartition(":")
    if colon and file.endswith(".py"):
        return CheckedTeacher(_from_factory(Path(file), factory, options), spec)
    raise InputError(
        f"There is no teacher {spec!r}.{did_you_mean(spec, ['maskrcnn', i3d.NAME])} Give {i3d.NAME}, torchvision:NAME, "
        "maskrcnn, hf:MODEL, onnx:FILE or FILE.py:FACTORY, such as hf:facebook/mask2former-swin-tiny-coco-instance or "
        "my_teacher.py:load, or several as ensemble:A,B."
    )


def _torchvision(name: str, device: torch.device, options: Mapping[str, Any]) -> Any:
    _refuse({key: value for key, value in options.items() if key != "score_threshold"}, f"torchvision:{name}")
    return torchvision.load(name, device, **options)


LIBRARIES: dict[str, Callable[[str, torch.device, Mapping[str, Any]], Any]] = {
    "hf": lambda name, device, options: hugging_face.load(name, device, **options),
    "onnx": lambda name, device, options: onnx.load(Path(name), device, **options),
    "torchvision": _torchvision,
}
"""How a name after a prefix such as `hf:` is loaded."""


def _refuse(options: Mapping[str, Any], spec: str) -> None:
    """InputError: there is an option that a teacher has no use for."""
    for name in options:
        raise InputError(f"--{name.replace('_', '-')}: the teacher {spec} has no such score. Leave it out.")


def checked(teacher: Any) -> "CheckedTeacher":
    """Wrap an object in the checks that `load_teacher` adds. A teacher that has them is returned as it is.

    InputError: it has no `name`, or its classes are not valid.
    """
    if isinstance(teacher, CheckedTeacher):
        return teacher
    name = getattr(teacher, "name", None)
    if not isinstance(name, str):
        raise InputError(
            f"The teacher {type(teacher).__name__} has the name {name!r:.80}. Give it a `name` of type str, by which a "
            "store of label maps recognises its teacher."
        )
    return CheckedTeacher(teacher, name)


class CheckedTeacher:
    """A teacher whose target and answers are checked.

    classes: of a teacher that makes label maps; empty for others.
    """

    def __init__(self, teacher: Any, spec: str) -> None:
        if not callable(teacher) or not (hasattr(teacher, "classes") or hasattr(teacher, "target")):
            raise InputError(
                f"The teacher {spec} is a {type(teacher).__name__} without `classes` and `target`, or without "
                "`__call__`. Give it `classes`, a tuple of names, or `target`, a TargetSpec, and a call with frames."
            )
        self._teacher = teacher
        self.name: str = getattr(teacher, "name", spec)
        self.target = _target_of(teacher, spec)
        self.classes = self.target.names if self.target.kind == "classes" else ()

    def __call__(self, frames_THW3: np.ndarray) -> np.ndarray:
        """As `Teacher`. RuntimeError: the teacher failed, or its answer is not valid."""
        try:
            answer = self._teacher(frames_THW3)
        except Exception as error:
            raise RuntimeError(f"The teacher {self.name} failed: {describe(error)}") from error
        if problem := problem_of(answer, self.target, len(frames_THW3), frames_THW3.shape[-3:-1]):
            raise RuntimeError(f"The teacher {self.name} returned {problem}.")
        checked_answer: np.ndarray = answer
        return checked_answer


def _target_of(teacher: Any, spec: str) -> TargetSpec:
    """What a teacher gives. One with `classes` alone gives label maps. InputError: it is not valid."""
    target = getattr(teacher, "target", None)
    if isinstance(target, TargetSpec):
        return target
    if target is not None:
        raise InputError(f"The teacher {spec} has the target {target!r:.80}. Make it a TargetSpec.")
    classes = teacher.classes
    if not isinstance(classes, (tuple, list)) or not all(isinstance(name, str) for name in classes):
        raise InputError(f"The teacher {spec} has the classes {classes!r:.80}. Make them a tuple of str.")
    try:
        return TargetSpec("classes", tuple(classes))
    except InputError as error:
        raise InputError(f"The teacher {spec} has wrong classes. {error}") from None


def _ensemble(spec: str, options: Mapping[str, Any], device: torch.device, precision: str) -> ensemble.Ensemble:
    votes = ensemble.votes_needed(spec, options.get("votes"))
    of_members = {name: value for name, value in options.items() if name != "votes"}
    members = [load_teacher(name, of_members, device, precision) for name in ensemble.members_of(spec)]
    for member in members:
        if not member.classes:
            raise InputError(f"--teacher {spec}: {member.name} makes no label maps. Leave it out of the vote.")
    return ensemble.Ensemble(members, votes)


def _check_options(options: Mapping[str, Any]) -> None:
    if "votes" in options:
        raise InputError("--votes: only the teacher ensemble:A,B,C has votes. Leave it out.")
    for name, value in options.items():
        if not 0 <= value <= 1:
            raise InputError(f"{name} is {value}. Give a score from 0 to 1, such as {SCORE_THRESHOLD}.")
    threshold = options.get("score_threshold", SCORE_THRESHOLD)
    if options.get("unsure_from", -1.0) >= threshold:
        raise InputError(
            f"unsure_from is {options['unsure_from']}, not below score_threshold, {threshold}. "
            "Lower unsure_from, or raise score_threshold."
        )


def _from_factory(file: Path, factory: str, options: Mapping[str, Any]) -> Any:
    make = factory_in(file, factory)
    given = ", ".join(f"{name}={value}" for name, value in options.items())
    call = f"{file}:{factory}({given})"
    _require_arguments(make, options, call)
    try:
        return make(**options)
    except Exception as error:
        raise InputError(f"{call} failed: {describe(error)}. Fix the factory.") from error


def _require_arguments(make: Callable[..., Any], options: Mapping[str, Any], call: str) -> None:
    """InputError: a factory does not take one of the options, or needs other arguments."""
    fix = "Write the factory in Python."  # a function written in C may have no signature
    try:
        signature = inspect.signature(make)
        for name, value in options.items():
            fix = f"Leave out --{name.replace('_', '-')}, or add a parameter {name} to the factory."
            signature.bind_partial(**{name: value})
        fix = "Give its other parameters a default."
        signature.bind(**options)
    except (TypeError, ValueError) as error:
        raise InputError(f"{call}: the factory does not take these arguments ({error}). {fix}") from None


def factory_in(file: Path, name: str) -> Callable[..., Any]:
    """The factory of that name in a Python file, which is imported. InputError: there is none."""
    if not file.is_file():
        raise InputError(f"The teacher file {file} does not exist. Correct the path in FILE.py:FACTORY.")
    spec = importlib.util.spec_from_file_location(f"airstreams_teacher_{file.stem}", file)
    assert spec is not None  # a name that ends in .py always has a loader
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look up a class's module there
    folder = str(file.parent.resolve())
    if sys.path[:1] != [folder]:
        sys.path.insert(0, folder)  # as for a script: the teacher can import its neighbours, now and later
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"The teacher file {file} cannot be imported: {describe(error)}. Fix the file.") from error
    found = getattr(module, name, None)
    if not callable(found):
        own = [k for k, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == spec.name]
        raise InputError(
            f"{file} has no function {name!r}. Give a function or class that returns a teacher; "
            f"the file has: {', '.join(own) or 'none'}."
        )
    return found
