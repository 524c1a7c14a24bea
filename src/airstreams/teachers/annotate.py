"""The job behind `airstreams annotate`: a teacher's targets for every video of a data set.

Loader processes decode ahead. The teacher runs in this process, in batches that mix frames or clips of several videos,
because videos can be shorter than a batch.

An interrupted job that is resumed gives the same store, byte for byte. A model's last bits can depend on the other
frames of its batch, so consecutive files form groups, and no batch mixes groups. A group that was interrupted is
annotated again as a whole, in the same batches. The price: up to `GROUP_FILES` short files are annotated twice after an
interruption.

Under `torchrun` each process takes a share of the groups, so no two processes write one file.
"""

import csv
import time
from collections import defaultdict
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from rich.console import Console
from torch.utils.data import DataLoader

from airstreams.console import Progress, say
from airstreams.data.content import contents_of
from airstreams.data.label_maps import LabelMapWriter
from airstreams.data.listing import Video
from airstreams.data.loader_processes import die_with_parent, loader_options
from airstreams.data.patience import patiently
from airstreams.data.value_store import ValueWriter
from airstreams.data.video_files import VideoFiles
from airstreams.distributed import SharedProgress, gather, is_main_process, share
from airstreams.errors import VideoError
from airstreams.files import is_temporary, unguarded, write_rows
from airstreams.machine import cpus, keep_freed_memory
from airstreams.plural import count_of
from airstreams.teachers.frames import Chunk, File, Frames, Sampling
from airstreams.teachers.open_store import OpenStore, Settings, open_store
from airstreams.teachers.teacher import Teacher, checked

T = TypeVar("T")

GROUP_FILES = 16
GROUP_BYTES = 20_000_000  # of video files; a larger file is a group of its own
PATIENCE = 3600.0  # s to wait for a loader's process; a long file without an index takes minutes to count
LEFT_OUT = "left_out.csv"


@dataclass
class AnnotationResult:
    """What a job did.

    files: how many the data set has.
    frames: how many were labelled now, by all processes.
    seconds: the time of this process, with decoding.
    left_out: path and reason of each bad file.
    missing: files without targets for no known reason, for example because the processes do not share a disk.
        Only the main process knows `left_out` and `missing`.
    """

    files: int
    frames: int
    seconds: float
    left_out: list[tuple[str, str]]
    missing: list[str]


def annotate(
    videos: Sequence[Video],
    teacher: Teacher,
    settings: Settings,
    out: Path,
    batch_size: int,
    workers: int,
    console: Console,
) -> AnnotationResult:
    """Add the missing targets of all files to the store `out`.

    Args:
        videos: of one data set.
        teacher: from `load_teacher`, or any object with `name`, `__call__`, and `classes` or `target`.
        settings: see there.
        out: the store's folder.
        batch_size: how many frames the teacher gets at once.
        workers: how many processes decode; 0: this process does.
        console: shows the progress.

    Raises:
        InputError: `out` cannot be written, or belongs to another teacher or other settings; the teacher is not valid,
            or lacks a class to keep; too few videos are good for learning a projection of features.
        RuntimeError: the teacher failed, or its answers are not valid.
    """
    keep_freed_memory()
    teacher = checked(teacher)
    files = _files_of(videos)
    clip_frames = teacher.target.clip_frames if teacher.target.kind == "clip" else None
    sampling = Sampling(settings.stride, settings.max_side, clip_frames)
    store = _of_main_process(
        open_store(out, teacher, settings, files, sampling, console) if is_main_process() else None
    )
    assert store is not None  # the main process has it
    store = replace(store, files=replace(store.files, root=out))  # each process has its own path to it
    if is_main_process():
        _remove_temporary_files(store.files, files)
    files = _identified(files, store.files, console)
    # The main process makes the groups: another machine may see other file sizes.
    groups = share(_of_main_process(_groups_of(files)))
    batch_inputs = max(1, batch_size // sampling.frames_per_input)
    job = _Job(store, groups, teacher, batch_inputs, sampling.frames_per_input)
    frames = Frames(store.files, groups, sampling, batch_inputs, _read_left_out(out / LEFT_OUT))
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
        missing += [str(f.path) for f in files if str(f.path) not in bad and not store.files.has(f.key)]
        _write_left_out(out / LEFT_OUT, left_out)
    return AnnotationResult(len(files), labelled, seconds, left_out, missing)


def _count_frames(frames: Frames, progress: Progress) -> list[int]:
    """How many frames of each group the teacher gets, as far as the files' headers tell."""
    to_do = {}
    for number, group in enumerate(frames.groups):
        if any(str(group[file].path) not in frames.suspects for file in frames.missing(group)):
            to_do[number] = group
    task = progress.add_task("counting frames", sum(map(len, to_do.values())), "files", brief=True)

    def count(file: File) -> int:
        try:
            return len(frames.sampling.inputs_of(file)) * frames.sampling.frames_per_input
        except VideoError:
            return 0

    expected = [0] * len(frames.groups)
    with ThreadPoolExecutor(max_workers=cpus()) as pool:
        for number, group in to_do.items():
            expected[number] = sum(pool.map(count, group))
            task.advance(len(group))
    return expected


def _run(job: "_Job", chunks: DataLoader[Chunk], expected: Sequence[int], progress: Progress) -> None:
    """Annotate all chunks. The display counts frames, because videos differ in length."""
    task = progress.add_task("annotating", sum(expected), "frames", shared=SharedProgress())
    before = [0] * len(expected)  # by group: the frames that the display has counted
    with closing(job.run(chunks)) as steps:  # after Ctrl-C it removes its unfinished files
        for group, ended in steps:
            now = expected[group] if ended else min(expected[group], job.frames_of[group])
            task.advance(now - before[group])
            before[group] = now
            if speed := task.speed():
                task.notes = [f"{speed:.1f} frames/s"]


class _Job:
    """Collects the chunks of each group into batches for the teacher, and writes the targets of each file.

    left_out: path and reason of each bad file so far.
    frames: how many the teacher got.
    frames_of: the same, by group.
    """

    def __init__(
        self,
        store: OpenStore,
        groups: Sequence[Sequence[File]],
        teacher: Teacher,
        batch_inputs: int,
        frames_per_input: int,
    ) -> None:
        self.store, self.groups, self.teacher = store, groups, teacher
        self.batch_inputs, self.frames_per_input = batch_inputs, frames_per_input
        self.left_out: list[tuple[str, str]] = []
        self.frames = 0
        self.frames_of = [0] * len(groups)
        # By group: the file's index, the frame's index and the input, of all inputs that wait for the teacher.
        self._waiting: dict[int, list[tuple[int, int, np.ndarray]]] = defaultdict(list)
        self._writers: dict[tuple[int, int], LabelMapWriter | ValueWriter] = {}
        # By group: the index of each file that has ended, and why it is bad.
        self._ended: dict[int, dict[int, str | None]] = defaultdict(dict)

    def run(self, chunks: DataLoader[Chunk]) -> Generator[tuple[int, bool]]:
        """Annotate all chunks; yield after each one its group, and whether that is finished."""
        try:
            for chunk in patiently(chunks, PATIENCE):
                yield chunk.group, self._add(chunk)
        finally:
            for writer in self._writers.values():
                writer.discard()

    def _add(self, chunk: Chunk) -> bool:
        """Annotate as many full batches as there are, and finish the group where this was its last chunk.

        Returns whether it was.
        """
        waiting = self._waiting[chunk.group]
        inputs = chunk.inputs.numpy()
        waiting += [(chunk.file, index, one) for index, one in zip(chunk.frame_indices, inputs, strict=True)]
        while len(waiting) >= self.batch_inputs:
            self._annotate_batch(chunk.group)
        if not chunk.ends:
            return False
        ended = self._ended[chunk.group]
        ended[chunk.file] = chunk.reason
        if len(ended) < len(self.groups[chunk.group]):
            return False
        while waiting:
            self._annotate_batch(chunk.group)
        self._finish(chunk.group)
        return True

    def _annotate_batch(self, group: int) -> None:
        """Give the teacher the next inputs of one size, at most a batch."""
        waiting = self._waiting[group]
        size = waiting[0][2].shape
        count = 1
        while count < min(len(waiting), self.batch_inputs) and waiting[count][2].shape == size:
            count += 1
        batch, self._waiting[group][:] = waiting[:count], waiting[count:]
        rows = self.store.rows(self.teacher(np.stack([one for _, _, one in batch])))
        self.frames += count * self.frames_per_input
        self.frames_of[group] += count * self.frames_per_input
        for (number, index, _), row in zip(batch, rows, strict=True):
            if (group, number) not in self._writers:
                self._writers[group, number] = self.store.files.writer(self.groups[group][number].key)
            try:
                self._writers[group, number].add(index, row)
            except ValueError as error:  # the teacher's rows of one video have several sizes
                raise RuntimeError(f"The teacher {self.teacher.name} failed: {error}") from error

    def _finish(self, group: int) -> None:
        """Write the targets of a group's good files."""
        for number, reason in self._ended.pop(group).items():
            file, writer = self.groups[group][number], self._writers.get((group, number))
            if reason is not None:
                self.left_out.append((str(file.path), reason))
                if writer is not None:
                    writer.discard()
            elif writer is not None:
                writer.finish()
            elif not self.store.files.has(file.key):  # a segment shorter than the stride has no frame to annotate
                self.store.files.writer(file.key).finish()
            self._writers.pop((group, number), None)
        del self._waiting[group]


def _files_of(videos: Sequence[Video]) -> list[File]:
    """Each file once, with all its segments, sorted by key."""
    by_key: dict[str, list[Video]] = defaultdict(list)
    for video in videos:
        by_key[video.label_map or video.name].append(video)
    return [File(key, tuple(by_key[key])) for key in sorted(by_key)]


def _identified(files: Sequence[File], store: VideoFiles, console: Console) -> list[File]:
    """The files with the keys that they have in the store, which then knows their contents.

    A file that was annotated under another name keeps that name's key, unless another file has this name now.
    """
    known = store.read_contents() if is_main_process() else {}
    done = {file.key for file in files if store.has(file.key)}
    unknown = _of_main_process([file.path for file in files if file.key not in done or file.key not in known])
    contents = contents_of(unknown, console)
    if is_main_process():
        own_keys = {file.key for file in files}
        others = (key for key in sorted(known, reverse=True) if key not in own_keys and store.has(key))
        moved = {known[key]: key for key in others}  # of several keys the first
        keys = [file.key if file.key in done else moved.get(contents.get(file.path, ""), file.key) for file in files]
        known |= {
            file.key: contents[file.path]
            for file, key in zip(files, keys, strict=True)
            if key == file.key and file.path in contents
        }
        store.write_contents(known)
        if count := sum(key not in own_keys for key in keys):
            say(console, f"{store.root} has {count_of(count, 'file')} under other names already")
        renamed = [file._replace(key=key) for file, key in zip(files, keys, strict=True)]
        files = sorted(renamed, key=lambda file: file.key)
    return _of_main_process(list(files))


def _of_main_process(value: T) -> T:
    """The value that the main process has, for all processes."""
    values: list[T] = gather([value] if is_main_process() else [])
    return values[0]


def _groups_of(files: Sequence[File]) -> list[list[File]]:
    """Consecutive files in groups. Equal files give equal groups, whatever is annotated already."""
    groups: list[list[File]] = []
    bytes_left = 0
    for file in files:
        size = file.path.stat().st_size if file.path.is_file() else 0
        if not groups or size > bytes_left or len(groups[-1]) == GROUP_FILES:
            groups.append([])
            bytes_left = GROUP_BYTES
        groups[-1].append(file)
        bytes_left -= size
    return groups


def _remove_temporary_files(store: VideoFiles, files: Sequence[File]) -> None:
    """Remove the unfinished files of a process that was killed."""
    for folder in {store.root, *(store.file_of(file.key).parent for file in files)}:
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
