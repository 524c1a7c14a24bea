"""The job behind `airstreams annotate`: a teacher's label maps for every video of a data set.

Other processes decode ahead of the teacher, which runs in this one and sees frames of several videos at once, since
clips are short and batches are what accelerators are fast at. A model's last bits may depend on what else is in its
batch, so files in a row form groups that no batch crosses: a group that was interrupted is annotated anew as a whole,
each frame meets the teacher in the company that it had, and the store comes out byte for byte as if nothing had
happened. The price: up to `GROUP_FILES` short files are done twice after an interruption.

Processes started by `torchrun` share the groups out, so no two write one file.

Legend: T frames, H, W pixels.
"""

import csv
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from airstreams.data.clips import frame_range
from airstreams.data.label_maps import LabelMapWriter, LabelStore, create, file_of
from airstreams.data.listing import Video
from airstreams.data.loader_processes import die_with_parent, loader_options, share_memory
from airstreams.data.video import check, iterate_frames, probe
from airstreams.distributed import gather, is_main_process, share
from airstreams.errors import InputError, VideoError
from airstreams.files import is_temporary, temporary_name, write_rows
from airstreams.machine import keep_freed_memory
from airstreams.teachers.teacher import Teacher, checked

GROUP_FILES = 16
GROUP_BYTES = 20_000_000  # of video files: what is longer is a group of its own
LEFT_OUT = "left_out.csv"


@dataclass(frozen=True)
class Settings:
    """What decides over a store's label maps, beside the teacher.

    stride: every so many frames are labelled, from the first one.
    max_side: px; larger frames are reduced to it before the teacher sees them; None: as they are.
    classes: names of the teacher's classes to keep beside the background, which the others become; None: all.
    teacher: the options that the teacher was loaded with.
    """

    stride: int = 1
    max_side: int | None = None
    classes: tuple[str, ...] | None = None
    teacher: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise InputError(f"--stride {self.stride}: expected at least 1, every frame; give 2 for every second one")
        if self.max_side is not None and self.max_side < 16:
            raise InputError(
                f"--max-side {self.max_side}: expected at least 16 px; leave it out for frames as they are"
            )

    def described(self) -> dict[str, Any]:
        """For the store's index."""
        classes = None if self.classes is None else list(self.classes)
        return {"stride": self.stride, "max_side": self.max_side, "classes": classes, **self.teacher}


@dataclass
class AnnotationResult:
    """What a job did.

    files: of the data set. frames: labelled now, in all processes. seconds: of this process, decoding included.
    left_out: a bad file's path and the reason. missing: files without label maps for no known reason, such as a disk
        that not all processes share. Both are the first process's to know.
    """

    files: int
    frames: int
    seconds: float
    left_out: list[tuple[str, str]]
    missing: list[str]


class _File(NamedTuple):
    key: str
    videos: tuple[Video, ...]  # a video, or the segments of one

    @property
    def path(self) -> Path:
        return self.videos[0].path


class _Chunk(NamedTuple):
    """Some of a file's frames on their way to the teacher; the last of a file ends it, with the reason if it is bad."""

    group: int
    place: int  # of the file in its group
    frame_indices: list[int]
    frames_THW3: torch.Tensor
    ends: bool = False
    reason: str | None = None


def annotate(
    videos: Sequence[Video],
    teacher: Teacher,
    settings: Settings,
    out: Path,
    batch_size: int,
    workers: int,
    console: Console,
) -> AnnotationResult:
    """Fill the store `out` with the label maps of all files that it lacks.

    Args:
        videos: of one data set.
        teacher: as `load_teacher` gives it, or an object of one's own with `name`, `classes` and a call.
        settings: beside the teacher's own.
        out: the store's folder.
        batch_size: frames that the teacher sees at once.
        workers: processes that decode; 0: this one does.
        console: to talk to.

    Raises:
        InputError: `out` cannot be written, is of another teacher or other settings, the teacher lacks a class to keep,
            or it is none.
        RuntimeError: the teacher failed, or gave what are no label maps.
    """
    keep_freed_memory()
    teacher = checked(teacher)
    classes, ids = _kept(teacher, settings)
    files = _files_of(videos)
    if is_main_process():
        _open(out, teacher.name, classes, settings)
        _sweep(out, files)
    # The others begin when the store is there; sizes of files may look different from another machine.
    groups = share(gather([_groups_of(files)] if is_main_process() else [])[0])
    job = _Job(out, groups, teacher, ids, batch_size)
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), "{task.fields[rate]:.1f} frames/s,", "left:")
    started = time.perf_counter()
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not is_main_process()) as progress:
        task = progress.add_task("annotating", total=sum(map(len, groups)), rate=0.0)
        chunks = DataLoader(
            _Frames(out, groups, settings, batch_size, _read_left_out(out / LEFT_OUT)),
            batch_size=None,
            prefetch_factor=4 if workers else None,
            **loader_options(workers, die_with_parent),
        )
        for files_done in job.run(chunks):
            rate = job.frames / (time.perf_counter() - started)
            progress.update(task, advance=files_done, rate=rate)
    seconds = time.perf_counter() - started
    frames = sum(gather([job.frames]))
    left_out = sorted(gather(job.left_out))
    missing: list[str] = []
    if is_main_process():
        named = {path for path, _ in left_out}
        missing += [str(f.path) for f in files if str(f.path) not in named and not file_of(out, f.key).is_file()]
        _write_left_out(out / LEFT_OUT, left_out)
    return AnnotationResult(len(files), frames, seconds, left_out, missing)


class _Frames(IterableDataset[_Chunk]):
    """The frames of the files that have no label maps yet, group by group, each group by one process.

    suspects: paths of the files that were bad last time.
    """

    def __init__(
        self,
        out: Path,
        groups: Sequence[Sequence[_File]],
        settings: Settings,
        chunk_frames: int,
        suspects: set[str],
    ) -> None:
        self.out, self.groups, self.settings, self.chunk_frames = out, groups, settings, chunk_frames
        self.suspects = suspects

    def __iter__(self) -> Iterator[_Chunk]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for group in range(first, len(self.groups), step):
            files = self.groups[group]
            lacking = {place for place, file in enumerate(files) if not file_of(self.out, file.key).is_file()}
            # There may be nothing left to do but to say again which files are bad.
            begun = len(lacking) < len(files) or any(str(file.path) in self.suspects for file in files)
            reasons = {place: _reason(files[place]) for place in lacking} if begun else {}
            again = any(place not in reasons or reasons[place] is None for place in lacking)
            for place, file in enumerate(files):
                if again:
                    yield from self._chunks(group, place, file)
                else:
                    yield _end(group, place, reasons.get(place))

    def _chunks(self, group: int, place: int, file: _File) -> Iterator[_Chunk]:
        indices: list[int] = []
        frames: list[np.ndarray] = []
        try:
            wanted = _wanted(file, self.settings.stride)
            short_side = _short_side(file.path, self.settings.max_side)
            for index, frame_HW3 in zip(wanted, iterate_frames(file.path, short_side, wanted), strict=True):
                indices.append(index)
                frames.append(frame_HW3)
                if len(frames) == self.chunk_frames:
                    yield _chunk(group, place, indices, frames)
                    indices, frames = [], []
        except VideoError as error:
            yield _end(group, place, error.reason)
            return
        if frames:
            yield _chunk(group, place, indices, frames)
        yield _end(group, place, None)


class _Job:
    """Brings the chunks of each group together into batches, and the label maps of each file to the disk.

    left_out: bad files so far, with the reason. frames: how many the teacher has seen.
    """

    def __init__(
        self, out: Path, groups: Sequence[Sequence[_File]], teacher: Teacher, ids: np.ndarray, batch_size: int
    ) -> None:
        self.out, self.groups, self.teacher, self.ids, self.batch_size = out, groups, teacher, ids, batch_size
        self.left_out: list[tuple[str, str]] = []
        self.frames = 0
        self._waiting: dict[int, list[tuple[int, int, np.ndarray]]] = defaultdict(list)  # place, index, frame; by group
        self._writers: dict[tuple[int, int], LabelMapWriter] = {}
        self._ended: dict[int, dict[int, str | None]] = defaultdict(dict)  # place to the reason, by group

    def run(self, chunks: DataLoader[_Chunk]) -> Iterator[int]:
        """Works through all chunks; yields after each how many more files are done."""
        try:
            for chunk in chunks:
                waiting = self._waiting[chunk.group]
                frames_THW3 = chunk.frames_THW3.numpy()
                waiting += [(chunk.place, i, frame) for i, frame in zip(chunk.frame_indices, frames_THW3, strict=True)]
                while len(waiting) >= self.batch_size:
                    self._batch(chunk.group)
                if chunk.ends:
                    ended = self._ended[chunk.group]
                    ended[chunk.place] = chunk.reason
                    if len(ended) == len(self.groups[chunk.group]):
                        while waiting:
                            self._batch(chunk.group)
                        yield self._finish(chunk.group)
                        continue
                yield 0
        finally:
            for writer in self._writers.values():
                writer.discard()

    def _batch(self, group: int) -> None:
        """Takes the next frames of one size to the teacher."""
        waiting = self._waiting[group]
        size = waiting[0][2].shape
        count = 1
        while count < min(len(waiting), self.batch_size) and waiting[count][2].shape == size:
            count += 1
        batch, self._waiting[group][:] = waiting[:count], waiting[count:]
        labels_THW = self.ids[self.teacher(np.stack([frame for _, _, frame in batch]))]
        self.frames += count
        for (place, index, _), label_map_HW in zip(batch, labels_THW, strict=True):
            if (group, place) not in self._writers:
                self._writers[group, place] = LabelMapWriter(self.out, self.groups[group][place].key)
            self._writers[group, place].add(index, label_map_HW)

    def _finish(self, group: int) -> int:
        for place, reason in self._ended.pop(group).items():
            file, writer = self.groups[group][place], self._writers.get((group, place))
            if reason is not None:
                self.left_out.append((str(file.path), reason))
                if writer is not None:
                    writer.discard()
            elif writer is not None:
                writer.finish()
            elif not file_of(self.out, file.key).is_file():  # a segment between two strides: no frame to label
                LabelMapWriter(self.out, file.key).finish()
            self._writers.pop((group, place), None)
        del self._waiting[group]
        return len(self.groups[group])


def _files_of(videos: Sequence[Video]) -> list[_File]:
    """Each file once, with all its segments, in the order of the keys."""
    by_key: dict[str, list[Video]] = defaultdict(list)
    for video in videos:
        by_key[video.label_map or video.name].append(video)
    return [_File(key, tuple(by_key[key])) for key in sorted(by_key)]


def _groups_of(files: Sequence[_File]) -> list[list[_File]]:
    """Files in a row, the same for the same files whatever is done already."""
    groups: list[list[_File]] = []
    room = 0
    for file in files:
        size = file.path.stat().st_size if file.path.is_file() else 0
        if not groups or size > room or len(groups[-1]) == GROUP_FILES:
            groups.append([])
            room = GROUP_BYTES
        groups[-1].append(file)
        room -= size
    return groups


def _wanted(file: _File, stride: int) -> list[int]:
    """The frames to label, of all segments together. VideoError: a segment without frames, or an unreadable file."""
    wanted: set[int] = set()
    for video in file.videos:
        part = frame_range(video)
        wanted.update(range(-(-part.first // stride) * stride, part.last + 1, stride))
    return sorted(wanted)


def _short_side(path: Path, max_side: int | None) -> int | None:
    info = probe(path)
    if max_side is None or max(info.width, info.height) <= max_side:
        return None
    return max(1, min(info.width, info.height) * max_side // max(info.width, info.height))


def _reason(file: _File) -> str | None:
    """Why a file is bad; None: it is good."""
    try:
        check(file.path)
        _wanted(file, stride=1)
    except VideoError as error:
        return error.reason
    return None


def _chunk(group: int, place: int, indices: list[int], frames: list[np.ndarray]) -> _Chunk:
    chunk = _Chunk(group, place, indices, torch.from_numpy(np.stack(frames)))
    share_memory(chunk)
    return chunk


def _end(group: int, place: int, reason: str | None) -> _Chunk:
    return _Chunk(group, place, [], torch.empty(0), ends=True, reason=reason)


def _kept(teacher: Teacher, settings: Settings) -> tuple[tuple[str, ...], np.ndarray]:
    """The store's classes, and the id there of each id that the teacher may give (256,)."""
    ids = np.arange(256, dtype=np.uint8)
    if settings.classes is None:
        return teacher.classes, ids
    unknown = [name for name in settings.classes if name not in teacher.classes[1:]]
    if unknown or not settings.classes:
        raise InputError(
            f"--classes {','.join(settings.classes)}: {teacher.name} has no {', '.join(unknown) or 'empty class'}; "
            f"expected some of {', '.join(teacher.classes[1:])}"
        )
    classes = (teacher.classes[0], *dict.fromkeys(settings.classes))
    ids[: len(teacher.classes)] = [classes.index(name) if name in classes else 0 for name in teacher.classes]
    return classes, ids


def _open(out: Path, teacher: str, classes: tuple[str, ...], settings: Settings) -> None:
    """Make the store, or find it to be this job's own and writable."""
    try:
        if (out / "labels.json").exists():
            store = LabelStore.open(out)
            ours, theirs = settings.described(), store.settings
            differences = [(name, theirs.get(name), ours.get(name)) for name in [*ours, *theirs]]
            differences += [("teacher", store.teacher, teacher), ("classes", store.classes, classes)]
            for name, then, now in differences:
                if then != now:
                    raise InputError(
                        f"--out {out}: made with {name} {then!s:.80}, not {now!s:.80}; "
                        "give the same call as then to go on with it, or another --out"
                    )
            probe_file = temporary_name(out / "labels.json")
            probe_file.touch()
            probe_file.unlink()
        elif out.is_dir() and not all(path.name.startswith(".") for path in out.iterdir()):
            raise InputError(f"--out {out}: no store of label maps, and not empty; give a new folder")
        else:
            create(out, teacher, classes, settings.described())
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error.strerror}); give a folder that can") from error


def _sweep(out: Path, files: Sequence[_File]) -> None:
    """Remove what a process that was killed was writing."""
    for folder in {out, *(file_of(out, file.key).parent for file in files)}:
        for path in folder.glob(".*"):
            if is_temporary(path):
                path.unlink()


def _read_left_out(path: Path) -> set[str]:
    """The paths that the last call left out."""
    if not path.is_file():
        return set()
    with path.open(newline="", encoding="utf-8") as file, suppress(KeyError, ValueError, csv.Error):
        return {row["path"] for row in csv.DictReader(file)}
    return set()  # damaged, which costs a second look


def _write_left_out(path: Path, left_out: list[tuple[str, str]]) -> None:
    if not left_out:
        path.unlink(missing_ok=True)
        return
    write_rows(path, ("path", "reason"), left_out)
