"""The job behind `airstreams annotate`: a teacher's label maps for every video of a data set.

Loader processes decode ahead. The teacher runs in this process, in batches that mix frames of several videos, because
videos can be shorter than a batch.

An interrupted job that is resumed gives the same store, byte for byte. A model's last bits can depend on the other
frames of its batch, so consecutive files form groups, and no batch mixes groups. A group that was interrupted is
annotated again as a whole, in the same batches. The price: up to `GROUP_FILES` short files are annotated twice after an
interruption.

Under `torchrun` each process takes a share of the groups, so no two processes write one file.

Legend of shape suffixes: T frames, H, W pixels.
"""

import csv
import time
from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from rich.console import Console
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from airstreams.console import Progress, say
from airstreams.data.clips import frame_range
from airstreams.data.content import contents_of
from airstreams.data.label_maps import LabelMapWriter, LabelStore, create, file_of
from airstreams.data.listing import Video
from airstreams.data.loader_processes import die_with_parent, loader_options, share_memory
from airstreams.data.patience import patiently, reading
from airstreams.data.video import check, iterate_frames, probe
from airstreams.distributed import SharedProgress, gather, is_main_process, share
from airstreams.errors import InputError, VideoError
from airstreams.files import is_temporary, temporary_name, unguarded, write_rows
from airstreams.machine import cpus, keep_freed_memory
from airstreams.plural import count_of
from airstreams.teachers.teacher import Teacher, checked

T = TypeVar("T")

GROUP_FILES = 16
GROUP_BYTES = 20_000_000  # of video files; a larger file is a group of its own
PATIENCE = 3600.0  # s to wait for a loader's process; a long file without an index takes minutes to count
LEFT_OUT = "left_out.csv"


@dataclass(frozen=True)
class Settings:
    """All that decides, together with the teacher, what a store's label maps are.

    stride: every n-th frame is labelled, starting with the first one.
    max_side: px; the teacher gets larger frames reduced to this size. None: frames keep their size.
    classes: the teacher's classes to keep; all others become background. None: all classes.
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

    def as_dict(self) -> dict[str, Any]:
        """The JSON for the store's index."""
        classes = None if self.classes is None else list(self.classes)
        return {"stride": self.stride, "max_side": self.max_side, "classes": classes, **self.teacher}


@dataclass
class AnnotationResult:
    """What a job did.

    files: how many the data set has.
    frames: how many were labelled now, by all processes.
    seconds: the time of this process, with decoding.
    left_out: path and reason of each bad file.
    missing: files without label maps for no known reason, for example because the processes do not share a disk.
        Only the main process knows `left_out` and `missing`.
    """

    files: int
    frames: int
    seconds: float
    left_out: list[tuple[str, str]]
    missing: list[str]


class _File(NamedTuple):
    key: str
    videos: tuple[Video, ...]  # one video, or its segments

    @property
    def path(self) -> Path:
        return self.videos[0].path


class _Chunk(NamedTuple):
    """Some decoded frames of a file. The last chunk of a file has `ends`, and `reason` if the file is bad."""

    group: int
    file: int  # its index in the group
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
    """Add the missing label maps of all files to the store `out`.

    Args:
        videos: of one data set.
        teacher: from `load_teacher`, or any object with `name`, `classes` and `__call__`.
        settings: stride, size and classes.
        out: the store's folder.
        batch_size: how many frames the teacher gets at once.
        workers: how many processes decode; 0: this process does.
        console: shows the progress.

    Raises:
        InputError: `out` cannot be written, or belongs to another teacher or other settings; the teacher is not valid,
            or lacks a class to keep.
        RuntimeError: the teacher failed, or its label maps are not valid.
    """
    keep_freed_memory()
    teacher = checked(teacher)
    classes, ids = _kept_classes(teacher, settings)
    files = _files_of(videos)
    if is_main_process():
        _open(out, teacher.name, classes, settings)
        _remove_temporary_files(out, files)
    files = _identified(files, out, console)
    # The main process makes the groups: another machine may see other file sizes.
    groups = share(_of_main_process(_groups_of(files)))
    job = _Job(out, groups, teacher, ids, batch_size)
    frames = _Frames(out, groups, settings, batch_size, _read_left_out(out / LEFT_OUT))
    started = time.perf_counter()
    with Progress(console if is_main_process() else Console(quiet=True)) as progress:
        expected = _count_frames(frames, progress)  # before the loader's processes start: they know the files then
        chunks = DataLoader(
            frames,
            batch_size=None,
            prefetch_factor=4 if workers else None,
            **loader_options(workers, die_with_parent),
        )
        _run(job, chunks, expected, progress)
    seconds = time.perf_counter() - started
    labelled = sum(gather([job.frames]))
    left_out = sorted(gather(job.left_out))
    missing: list[str] = []
    if is_main_process():
        bad = {path for path, _ in left_out}
        missing += [str(f.path) for f in files if str(f.path) not in bad and not file_of(out, f.key).is_file()]
        _write_left_out(out / LEFT_OUT, left_out)
    return AnnotationResult(len(files), labelled, seconds, left_out, missing)


def _count_frames(frames: "_Frames", progress: Progress) -> list[int]:
    """How many frames of each group are to be labelled, as far as the files' headers tell."""
    to_do = {}
    for number, group in enumerate(frames.groups):
        if any(str(group[file].path) not in frames.suspects for file in frames.missing(group)):
            to_do[number] = group
    task = progress.add_task("counting frames", sum(map(len, to_do.values())), "files", brief=True)

    def count(file: _File) -> int:
        try:
            return len(_frames_to_label(file, frames.settings.stride))
        except VideoError:
            return 0

    expected = [0] * len(frames.groups)
    with ThreadPoolExecutor(max_workers=cpus()) as pool:
        for number, group in to_do.items():
            expected[number] = sum(pool.map(count, group))
            task.advance(len(group))
    return expected


def _run(job: "_Job", chunks: DataLoader[_Chunk], expected: Sequence[int], progress: Progress) -> None:
    """Label all chunks. The display counts frames, because videos differ in length."""
    task = progress.add_task("annotating", sum(expected), "frames", shared=SharedProgress())
    before = [0] * len(expected)  # by group: the frames that the display has counted
    with closing(job.run(chunks)) as steps:  # after Ctrl-C it removes its unfinished files
        for group, ended in steps:
            now = expected[group] if ended else min(expected[group], job.frames_of[group])
            task.advance(now - before[group])
            before[group] = now
            if speed := task.speed():
                task.notes = [f"{speed:.1f} frames/s"]


class _Frames(IterableDataset[_Chunk]):
    """Decodes the files of all groups that are not complete. Each group is decoded by one loader process.

    suspects: paths of the files that were bad in the last call.
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
            missing = self.missing(files)
            # Where all missing files are bad, there is nothing to annotate: only report them again.
            begun = len(missing) < len(files) or any(str(file.path) in self.suspects for file in files)
            reasons = {number: _why_bad(files[number]) for number in missing} if begun else {}
            again = any(number not in reasons or reasons[number] is None for number in missing)
            for number, file in enumerate(files):
                if again:
                    with reading(file.path):
                        yield from self._chunks(group, number, file)
                else:
                    yield _end(group, number, reasons.get(number))

    def missing(self, files: Sequence[_File]) -> list[int]:
        """The indices of the files without label maps."""
        return [number for number, file in enumerate(files) if not file_of(self.out, file.key).is_file()]

    def _chunks(self, group: int, number: int, file: _File) -> Iterator[_Chunk]:
        indices: list[int] = []
        frames: list[np.ndarray] = []
        try:
            wanted = _frames_to_label(file, self.settings.stride)
            short_side = _short_side(file.path, self.settings.max_side)
            decoded = iterate_frames(file.path, short_side, wanted, deinterlace="auto")
            for index, frame_HW3 in zip(wanted, decoded, strict=True):
                indices.append(index)
                frames.append(frame_HW3)
                if len(frames) == self.chunk_frames:
                    yield _chunk(group, number, indices, frames)
                    indices, frames = [], []
        except VideoError as error:
            yield _end(group, number, error.reason)
            return
        if frames:
            yield _chunk(group, number, indices, frames)
        yield _end(group, number, None)


class _Job:
    """Collects the chunks of each group into batches for the teacher, and writes the label maps of each file.

    left_out: path and reason of each bad file so far.
    frames: how many the teacher has labelled.
    frames_of: the same, by group.
    """

    def __init__(
        self, out: Path, groups: Sequence[Sequence[_File]], teacher: Teacher, ids: np.ndarray, batch_size: int
    ) -> None:
        self.out, self.groups, self.teacher, self.ids, self.batch_size = out, groups, teacher, ids, batch_size
        self.left_out: list[tuple[str, str]] = []
        self.frames = 0
        self.frames_of = [0] * len(groups)
        # By group: the file's index, the frame's index and the frame, of all frames that wait for the teacher.
        self._waiting: dict[int, list[tuple[int, int, np.ndarray]]] = defaultdict(list)
        self._writers: dict[tuple[int, int], LabelMapWriter] = {}
        # By group: the index of each file that has ended, and why it is bad.
        self._ended: dict[int, dict[int, str | None]] = defaultdict(dict)

    def run(self, chunks: DataLoader[_Chunk]) -> Generator[tuple[int, bool]]:
        """Label all chunks; yield after each one its group, and whether that is finished."""
        try:
            for chunk in patiently(chunks, PATIENCE):
                yield chunk.group, self._add(chunk)
        finally:
            for writer in self._writers.values():
                writer.discard()

    def _add(self, chunk: _Chunk) -> bool:
        """Label as many full batches as there are, and finish the group where this was its last chunk.

        Returns whether it was.
        """
        waiting = self._waiting[chunk.group]
        frames_THW3 = chunk.frames_THW3.numpy()
        waiting += [(chunk.file, index, frame) for index, frame in zip(chunk.frame_indices, frames_THW3, strict=True)]
        while len(waiting) >= self.batch_size:
            self._label_batch(chunk.group)
        if not chunk.ends:
            return False
        ended = self._ended[chunk.group]
        ended[chunk.file] = chunk.reason
        if len(ended) < len(self.groups[chunk.group]):
            return False
        while waiting:
            self._label_batch(chunk.group)
        self._finish(chunk.group)
        return True

    def _label_batch(self, group: int) -> None:
        """Give the teacher the next frames of one size, at most a batch."""
        waiting = self._waiting[group]
        size = waiting[0][2].shape
        count = 1
        while count < min(len(waiting), self.batch_size) and waiting[count][2].shape == size:
            count += 1
        batch, self._waiting[group][:] = waiting[:count], waiting[count:]
        label_maps_THW = self.ids[self.teacher(np.stack([frame for _, _, frame in batch]))]
        self.frames += count
        self.frames_of[group] += count
        for (number, index, _), label_map_HW in zip(batch, label_maps_THW, strict=True):
            if (group, number) not in self._writers:
                self._writers[group, number] = LabelMapWriter(self.out, self.groups[group][number].key)
            self._writers[group, number].add(index, label_map_HW)

    def _finish(self, group: int) -> None:
        """Write the label maps of a group's good files."""
        for number, reason in self._ended.pop(group).items():
            file, writer = self.groups[group][number], self._writers.get((group, number))
            if reason is not None:
                self.left_out.append((str(file.path), reason))
                if writer is not None:
                    writer.discard()
            elif writer is not None:
                writer.finish()
            elif not file_of(self.out, file.key).is_file():  # a segment shorter than the stride has no frame to label
                LabelMapWriter(self.out, file.key).finish()
            self._writers.pop((group, number), None)
        del self._waiting[group]


def _files_of(videos: Sequence[Video]) -> list[_File]:
    """Each file once, with all its segments, sorted by key."""
    by_key: dict[str, list[Video]] = defaultdict(list)
    for video in videos:
        by_key[video.label_map or video.name].append(video)
    return [_File(key, tuple(by_key[key])) for key in sorted(by_key)]


def _identified(files: Sequence[_File], out: Path, console: Console) -> list[_File]:
    """The files with the keys that they have in the store, which then knows their contents.

    A file that was annotated under another name keeps that name's key, unless another file has this name now.
    """
    known = LabelStore.open(out).read_contents() if is_main_process() else {}
    done = {file.key for file in files if file_of(out, file.key).is_file()}
    unknown = _of_main_process([file.path for file in files if file.key not in done or file.key not in known])
    contents = contents_of(unknown, console)
    if is_main_process():
        own_keys = {file.key for file in files}
        others = (key for key in sorted(known, reverse=True) if key not in own_keys and file_of(out, key).is_file())
        moved = {known[key]: key for key in others}  # of several keys the first
        keys = [file.key if file.key in done else moved.get(contents.get(file.path, ""), file.key) for file in files]
        known |= {
            file.key: contents[file.path]
            for file, key in zip(files, keys, strict=True)
            if key == file.key and file.path in contents
        }
        LabelStore.open(out).write_contents(known)
        if count := sum(key not in own_keys for key in keys):
            say(console, f"{out} has the label maps of {count_of(count, 'file')} under other names already")
        renamed = [file._replace(key=key) for file, key in zip(files, keys, strict=True)]
        files = sorted(renamed, key=lambda file: file.key)
    return _of_main_process(list(files))


def _of_main_process(value: T) -> T:
    """The value that the main process has, for all processes."""
    values: list[T] = gather([value] if is_main_process() else [])
    return values[0]


def _groups_of(files: Sequence[_File]) -> list[list[_File]]:
    """Consecutive files in groups. Equal files give equal groups, whatever is annotated already."""
    groups: list[list[_File]] = []
    bytes_left = 0
    for file in files:
        size = file.path.stat().st_size if file.path.is_file() else 0
        if not groups or size > bytes_left or len(groups[-1]) == GROUP_FILES:
            groups.append([])
            bytes_left = GROUP_BYTES
        groups[-1].append(file)
        bytes_left -= size
    return groups


def _frames_to_label(file: _File, stride: int) -> list[int]:
    """The indices of the frames to label, for all segments together.

    VideoError: a segment has no frames, or the file cannot be read.
    """
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


def _why_bad(file: _File) -> str | None:
    """The reason why a file is bad; None: it is good."""
    try:
        with reading(file.path):
            check(file.path)
            _frames_to_label(file, stride=1)
    except VideoError as error:
        return error.reason
    return None


def _chunk(group: int, number: int, indices: list[int], frames: list[np.ndarray]) -> _Chunk:
    chunk = _Chunk(group, number, indices, torch.from_numpy(np.stack(frames)))
    share_memory(chunk)
    return chunk


def _end(group: int, number: int, reason: str | None) -> _Chunk:
    return _Chunk(group, number, [], torch.empty(0), ends=True, reason=reason)


def _kept_classes(teacher: Teacher, settings: Settings) -> tuple[tuple[str, ...], np.ndarray]:
    """The store's classes, and for each id of the teacher the id in the store (256,)."""
    ids = np.arange(256, dtype=np.uint8)
    if settings.classes is None:
        return teacher.classes, ids
    unknown = [name for name in settings.classes if name not in teacher.classes[1:]]
    if unknown or not settings.classes:
        raise InputError(
            f"--classes {','.join(settings.classes)}: {teacher.name} has no class {', '.join(unknown) or repr('')}. "
            f"Give some of {', '.join(teacher.classes[1:])}."
        )
    classes = (teacher.classes[0], *dict.fromkeys(settings.classes))
    ids[: len(teacher.classes)] = [classes.index(name) if name in classes else 0 for name in teacher.classes]
    return classes, ids


def _open(out: Path, teacher: str, classes: tuple[str, ...], settings: Settings) -> None:
    """Create the store, or check that an existing one has the same settings and can be written."""
    try:
        if (out / "labels.json").exists():
            store = LabelStore.open(out)
            ours, theirs = settings.as_dict(), store.settings
            differences = [(name, theirs.get(name), ours.get(name)) for name in [*ours, *theirs]]
            differences += [("teacher", store.teacher, teacher), ("classes", store.classes, classes)]
            for name, before, now in differences:
                if before != now:
                    raise InputError(
                        f"--out {out} was made with {name} {before!s:.80}, not {now!s:.80}. "
                        "Repeat the first call to resume it, or give another --out."
                    )
            probe_file = temporary_name(out / "labels.json")
            probe_file.touch()
            probe_file.unlink()
        elif out.is_dir() and not all(path.name.startswith(".") for path in out.iterdir()):
            raise InputError(f"--out {out} is not empty and has no label maps. Give a new folder.")
        else:
            create(out, teacher, classes, settings.as_dict())
    except OSError as error:
        raise InputError(f"--out {out} cannot be written ({error.strerror}). Give a folder that can be.") from error


def _remove_temporary_files(out: Path, files: Sequence[_File]) -> None:
    """Remove the unfinished files of a process that was killed."""
    for folder in {out, *(file_of(out, file.key).parent for file in files)}:
        for path in folder.glob(".*"):
            if is_temporary(path):
                path.unlink()


def _read_left_out(path: Path) -> set[str]:
    """The paths that the last call left out. A damaged list counts as empty, since it only saves time."""
    if not path.is_file():
        return set()
    with path.open(newline="", encoding="utf-8") as file, suppress(KeyError, TypeError, ValueError, csv.Error):
        return {unguarded(row["path"]) for row in csv.DictReader(file)}
    return set()


def _write_left_out(path: Path, left_out: list[tuple[str, str]]) -> None:
    if not left_out:
        path.unlink(missing_ok=True)
        return
    write_rows(path, ("path", "reason"), left_out)
