"""The frames and clips that a teacher gets, decoded by loader processes.

Legend of shape suffixes: T frames or B clips, N frames of a clip, H, W pixels.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from airstreams.data.clips import frame_range
from airstreams.data.listing import Video
from airstreams.data.loader_processes import share_memory
from airstreams.data.patience import reading
from airstreams.data.video import check, iterate_frames, probe
from airstreams.data.video_files import VideoFiles
from airstreams.errors import VideoError


class File(NamedTuple):
    """A video file of a data set."""

    key: str
    videos: tuple[Video, ...]  # one video, or its segments

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.videos[0].path


class Chunk(NamedTuple):
    """Some inputs for the teacher from a file. The last chunk of a file has `ends`, and `reason` if the file is bad."""

    group: int
    file: int  # its index in the group
    frame_indices: list[int]  # the frame that each input stands for
    inputs: torch.Tensor  # uint8, frames (T, H, W, 3) or clips (B, N, H, W, 3)
    ends: bool = False
    reason: str | None = None


class Sampling(NamedTuple):
    """Which frames of a file the teacher gets.

    stride: every n-th frame.
    max_side: px; larger frames are reduced to this size. None: frames keep their size.
    clip_frames: N, the frames of a clip. None: the teacher gets single frames.
    """

    stride: int
    max_side: int | None
    clip_frames: int | None = None

    @property
    def frames_per_input(self) -> int:
        """How many frames the teacher gets in one input."""
        return self.clip_frames or 1

    def inputs_of(self, file: File) -> dict[int, list[int]]:
        """The frames of each input, by the frame that the input stands for, both ascending.

        Clips follow each other through each segment. Each stands for its first frame. The last clip of a segment is
        moved back to end with it, so it may share frames with the one before. A segment that is shorter than a clip
        repeats its last frame.

        VideoError: a segment has no frames, or the file cannot be read.
        """
        inputs: dict[int, list[int]] = {}
        for video in file.videos:
            part = frame_range(video)
            if self.clip_frames is None:
                first = -(-part.first // self.stride) * self.stride
                inputs |= {frame: [frame] for frame in range(first, part.last + 1, self.stride)}
            else:
                inputs |= self._clips(part.first, part.last)
        return dict(sorted(inputs.items()))

    def _clips(self, first: int, last: int) -> dict[int, list[int]]:
        steps = [self.stride * step for step in range(self.frames_per_input)]
        latest = max(first, last - steps[-1])  # start of a clip
        starts = range(first, last + 1, self.frames_per_input * self.stride)
        return {start: [min(min(start, latest) + step, last) for step in steps] for start in starts}

    def decode(self, file: File, inputs: Mapping[int, list[int]]) -> Iterator[tuple[int, np.ndarray]]:
        """Decode some of `inputs_of(file)`, in order: the frame that each stands for, and its frames.

        They are a frame (H, W, 3) or a clip (N, H, W, 3). VideoError: the file is bad.
        """
        waiting = list(inputs.items())
        needed = sorted({frame for _, frames in waiting for frame in frames})
        # By input: the first frame that it or a later one needs.
        oldest = list(accumulate((frames[0] for _, frames in reversed(waiting)), min))[::-1]
        kept: dict[int, np.ndarray] = {}
        done = 0
        decoded = iterate_frames(file.path, self._short_side(file), needed, deinterlace="auto")
        for index, frame_HW3 in zip(needed, decoded, strict=True):
            kept[index] = frame_HW3
            while done < len(waiting) and waiting[done][1][-1] <= index:
                stands_for, frames = waiting[done]
                yield stands_for, kept[index] if self.clip_frames is None else np.stack([kept[i] for i in frames])
                done += 1
                kept = {i: kept[i] for i in kept if done < len(oldest) and i >= oldest[done]}

    def _short_side(self, file: File) -> int | None:
        info = probe(file.path)
        if self.max_side is None or max(info.width, info.height) <= self.max_side:
            return None
        return max(1, min(info.width, info.height) * self.max_side // max(info.width, info.height))


class Frames(IterableDataset[Chunk]):
    """Decodes the files of all groups that are not complete. Each group is decoded by one loader process.

    suspects: paths of the files that were bad in the last call.
    """

    def __init__(
        self,
        store: VideoFiles,
        groups: Sequence[Sequence[File]],
        sampling: Sampling,
        chunk_inputs: int,
        suspects: set[str],
    ) -> None:
        self.store, self.groups, self.sampling, self.chunk_inputs = store, groups, sampling, chunk_inputs
        self.suspects = suspects

    def __iter__(self) -> Iterator[Chunk]:
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

    def missing(self, files: Sequence[File]) -> list[int]:
        """The indices of the files without targets."""
        return [number for number, file in enumerate(files) if not self.store.has(file.key)]

    def _chunks(self, group: int, number: int, file: File) -> Iterator[Chunk]:
        indices: list[int] = []
        inputs: list[np.ndarray] = []
        try:
            for index, array in self.sampling.decode(file, self.sampling.inputs_of(file)):
                indices.append(index)
                inputs.append(array)
                if len(inputs) == self.chunk_inputs:
                    yield _chunk(group, number, indices, inputs)
                    indices, inputs = [], []
        except VideoError as error:
            yield _end(group, number, error.reason)
            return
        if inputs:
            yield _chunk(group, number, indices, inputs)
        yield _end(group, number, None)


def _why_bad(file: File) -> str | None:
    """The reason why a file is bad; None: it is good."""
    try:
        with reading(file.path):
            check(file.path)
            for video in file.videos:
                frame_range(video)
    except VideoError as error:
        return error.reason
    return None


def _chunk(group: int, number: int, indices: list[int], inputs: list[np.ndarray]) -> Chunk:
    chunk = Chunk(group, number, indices, torch.from_numpy(np.stack(inputs)))
    share_memory(chunk)
    return chunk


def _end(group: int, number: int, reason: str | None) -> Chunk:
    return Chunk(group, number, [], torch.empty(0), ends=True, reason=reason)
