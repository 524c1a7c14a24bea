"""Opening the store of a teacher's targets, and what becomes of the teacher's answers on the way there."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console

from airstreams.console import Progress
from airstreams.data import label_maps, value_store
from airstreams.data.label_maps import LabelStore
from airstreams.data.patience import reading
from airstreams.data.value_store import ABOUT, PROJECTION, Projection, ValueStore, learn_projection
from airstreams.errors import InputError, VideoError
from airstreams.files import temporary_name
from airstreams.teachers.frames import File, Sampling
from airstreams.teachers.target_spec import TargetSpec
from airstreams.teachers.teacher import Teacher

Item = TypeVar("Item")

SAMPLE_INPUTS = {"grid": 64, "clip": 256}
"""How many frames or clips the principal components of features are learnt from."""
SAMPLE_FEATURES = 8192
"""The most features of them."""


@dataclass(frozen=True)
class Settings:
    """All that decides, together with the teacher, what a store's targets are.

    stride: the teacher gets every n-th frame, starting with the first one.
    max_side: px; the teacher gets larger frames reduced to this size. None: frames keep their size.
    classes: of a teacher that makes label maps, those to keep; all others become background. None: all classes.
    teacher: the options that the teacher was loaded with.
    """

    stride: int = 1
    max_side: int | None = None
    classes: tuple[str, ...] | None = None
    teacher: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise InputError(f"--stride {self.stride} is too small. Give 1 for every frame, or 2 for every second one.")
        if self.max_side is not None and self.max_side < 16:
            raise InputError(f"--max-side {self.max_side} is too small. Give at least 16 px, or leave the option out.")

    def as_dict(self, target: TargetSpec) -> dict[str, Any]:
        """The JSON for the store's index."""
        classes = None if self.classes is None else list(self.classes)
        if target.kind == "classes":
            return {"stride": self.stride, "max_side": self.max_side, "classes": classes, **self.teacher}
        described: dict[str, Any] = {"stride": self.stride, "max_side": self.max_side, **self.teacher}
        if target.unit:
            described["unit"] = target.unit
        if target.has_features:
            described["components"] = target.components
        if target.kind == "clip":
            described["clip_frames"] = target.clip_frames
        return described


@dataclass(frozen=True)
class OpenStore:
    """A store, and how a teacher's answers become its rows.

    files: the store.
    ids: for each class id of the teacher, the id in the store (256,). None: the teacher gives values.
    projection: of features; None: values are stored as they are.
    """

    files: LabelStore | ValueStore
    ids: np.ndarray | None = None
    projection: Projection | None = None

    def rows(self, answer: np.ndarray) -> np.ndarray:
        """The rows of a teacher's answer, one for each input."""
        if self.ids is not None:
            rows: np.ndarray = self.ids[answer]
            return rows
        return answer if self.projection is None else np.moveaxis(self.projection(np.moveaxis(answer, 1, -1)), -1, 1)


def open_store(
    out: Path, teacher: Teacher, settings: Settings, files: Sequence[File], sampling: Sampling, console: Console
) -> OpenStore:
    """Open the store in a folder for a teacher, or create it.

    A new store of features needs principal components, so the teacher sees a sample of the files first.

    Raises:
        InputError: `out` cannot be written, or belongs to another teacher or other settings; the teacher lacks a class
            to keep, or there are too few good files to learn from.
        RuntimeError: the teacher failed.
    """
    target = teacher.target
    names, ids = _kept_names(teacher, settings)
    described = settings.as_dict(target)
    index = out / ("labels.json" if target.kind == "classes" else ABOUT)
    try:
        if index.exists():
            store = LabelStore.open(out) if target.kind == "classes" else ValueStore.open(out)
            _require_equal(out, store, teacher, names, described)
            _require_writable(index)
            return OpenStore(store, ids, store.projection() if isinstance(store, ValueStore) else None)
        if out.is_dir() and not all(path.name.startswith(".") or path.name == PROJECTION for path in out.iterdir()):
            raise InputError(f"--out {out} is not empty and has no {target.words}. Give a new folder.")
        if target.kind == "classes":
            pairs = [pair for pair in target.pairs if set(pair) <= set(names)]
            return OpenStore(label_maps.create(out, teacher.name, names, described, pairs), ids)
        out.mkdir(parents=True, exist_ok=True)
        _require_writable(index)
        return _created(out, teacher, described, files, sampling, console)
    except OSError as error:
        raise InputError(f"--out {out} cannot be written ({error.strerror}). Give a folder that can be.") from error


def _created(
    out: Path,
    teacher: Teacher,
    described: dict[str, Any],
    files: Sequence[File],
    sampling: Sampling,
    console: Console,
) -> OpenStore:
    target, projection, names = teacher.target, None, teacher.target.names
    if target.has_features:
        sample_ND = _sample(teacher, files, sampling, console)
        components = min(target.components, len(sample_ND) - 1)
        projection = learn_projection(sample_ND, components, standardise=target.kind == "clip")
        names = tuple(f"component {number}" for number in range(1, len(projection.components) + 1))
    assert target.kind != "classes"
    store = ValueStore(
        out,
        teacher.name,
        target.kind,
        names,
        described,
        "float16" if target.value_range is None else "uint8",
        *(target.value_range or (0.0, 1.0)),
        mirrored=target.pairs,
        negated=target.negated,
        in_px=target.in_px,
    )
    created = value_store.create(store, projection)
    return OpenStore(created, projection=created.projection())


def _sample(teacher: Teacher, files: Sequence[File], sampling: Sampling, console: Console) -> np.ndarray:
    """Features (N, D) of frames or clips that are spread over the files. InputError: there are less than two."""
    wanted = SAMPLE_INPUTS[teacher.target.kind]
    chosen = _spread(files, wanted)
    found: list[np.ndarray] = []
    with Progress(console) as progress:
        task = progress.add_task("learning components", len(chosen), "files")
        for file in chosen:
            try:
                with reading(file.path):
                    inputs = list(sampling.inputs_of(file).items())
                    # At least one of each file. With few files, more.
                    some = dict(_spread(inputs, max(1, wanted // len(chosen))))
                    for _, frames in sampling.decode(file, some):
                        answer_1DX = teacher(frames[None])
                        found += list(np.moveaxis(answer_1DX, 1, -1).reshape(-1, answer_1DX.shape[1]))
            except VideoError:
                continue  # the job reports it
            finally:
                task.advance(1)
    known = [feature for feature in found if np.isfinite(feature).all()]
    if len(known) < 2:
        raise InputError(
            f"The teacher {teacher.name} gave {len(known)} features for a sample of {len(chosen)} videos, and their "
            "principal components need at least 2. Give more videos."
        )
    return np.stack(_spread(known, SAMPLE_FEATURES))


def _spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` items, at equal distances."""
    if len(items) <= count:
        return list(items)
    return [items[(2 * number + 1) * len(items) // (2 * count)] for number in range(count)]


def _kept_names(teacher: Teacher, settings: Settings) -> tuple[tuple[str, ...], np.ndarray | None]:
    """The names in the store, and for each class id of the teacher the id in the store (256,)."""
    target = teacher.target
    if target.kind != "classes":
        if settings.classes is not None:
            raise InputError(f"--classes is for label maps, but {teacher.name} gives {target.words}. Leave it out.")
        return target.names, None
    ids = np.arange(256, dtype=np.uint8)
    if settings.classes is None:
        return target.names, ids
    unknown = [name for name in settings.classes if name not in target.names[1:]]
    if unknown or not settings.classes:
        raise InputError(
            f"--classes {','.join(settings.classes)}: {teacher.name} has no class {', '.join(unknown) or repr('')}. "
            f"Give some of {', '.join(target.names[1:])}."
        )
    classes = (target.names[0], *dict.fromkeys(settings.classes))
    ids[: len(target.names)] = [classes.index(name) if name in classes else 0 for name in target.names]
    return classes, ids


def _require_equal(
    out: Path, store: LabelStore | ValueStore, teacher: Teacher, names: tuple[str, ...], described: dict[str, Any]
) -> None:
    """InputError: a store is of another teacher, or of other settings."""
    differences: list[tuple[str, Any, Any]] = [("teacher", store.teacher, teacher.name)]
    differences += [(name, store.settings.get(name), described.get(name)) for name in [*described, *store.settings]]
    if isinstance(store, LabelStore):
        differences.append(("classes", store.classes, names))
    else:
        differences.insert(0, ("kind", store.kind, teacher.target.kind))
        if not teacher.target.has_features:
            differences.append(("names", store.names, names))
    for name, before, now in differences:
        if before != now:
            raise InputError(
                f"--out {out} was made with {name} {before!s:.80}, not {now!s:.80}. "
                "Repeat the first call to resume it, or give another --out."
            )


def _require_writable(index: Path) -> None:
    """OSError: files cannot be created beside a file."""
    probe_file = temporary_name(index)
    probe_file.touch()
    probe_file.unlink()
