"""What a teacher saw: class counts over a whole store, samples to look at, and a score against masks drawn by people.

Threads read the files and keep only sums, so memory does not grow with the store. The disk may list files in any order,
so the samples are chosen by a checksum of their names: equal stores give equal samples, spread over the whole store. A
broken file is left out and reported with its reason.

Legend of shape suffixes: M label maps at a time, T frames, H, W pixels.
"""

import os
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from airstreams.console import Progress
from airstreams.data.label_maps import NO_LABEL, LabelStore, file_of, read_array, resized
from airstreams.data.listing import Video
from airstreams.data.video import read_frames
from airstreams.errors import InputError, VideoError
from airstreams.machine import cpus

SAMPLES = 12
SHORT_SIDE = 240  # px, of the frame of a sample
FILES_AHEAD = 512

T = TypeVar("T")
R = TypeVar("R")


def _zeros() -> np.ndarray:
    return np.zeros(NO_LABEL + 1, np.int64)


@dataclass
class LabelCounts:
    """Sums over the label maps of some videos.

    frames: how many are labelled.
    frames_with_instance: how many have a pixel with a label that is not background.
    bytes: the size of the files.
    pixels: (256,), for each class id how many pixels have it.
    frames_with: (256,), for each class id how many frames have it.
    """

    videos: int = 0
    frames: int = 0
    frames_with_instance: int = 0
    bytes: int = 0
    pixels: np.ndarray = field(default_factory=_zeros)
    frames_with: np.ndarray = field(default_factory=_zeros)

    def __iadd__(self, other: "LabelCounts") -> "LabelCounts":
        for name in vars(self):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self

    def shares(self, classes: Sequence[str]) -> "StoreShares":
        """The counts as shares; 0 where no frame is labelled.

        classes: the store's.
        """
        all_pixels, all_frames = max(1, int(self.pixels.sum())), max(1, self.frames)
        occurring = [int(label) for label in np.argsort(-self.pixels, kind="stable") if self.pixels[label]]
        return StoreShares(
            classes={
                classes[label]: ClassShare(
                    pixels=int(self.pixels[label]) / all_pixels, frames=int(self.frames_with[label]) / all_frames
                )
                for label in occurring
                if label != NO_LABEL
            },
            videos=self.videos,
            frames=self.frames,
            frames_with_instance=self.frames_with_instance / all_frames,
            pixels_without_label=int(self.pixels[NO_LABEL]) / all_pixels,
            bytes=self.bytes,
            raw_share=self.bytes / all_pixels,
        )


@dataclass(frozen=True)
class ClassShare:
    """The share of the pixels that a class covers, and of the frames that have it, in 0..1."""

    pixels: float
    frames: float


@dataclass(frozen=True)
class StoreShares:
    """What a store contains. All shares are in 0..1, of its labelled frames and their pixels.

    classes: those that occur, the one with most pixels first.
    videos, frames: how many are labelled.
    frames_with_instance: share of the frames with any class but the background.
    pixels_without_label: share of the pixels that are 255.
    bytes: the size of the files.
    raw_share: that size as a share of one byte per pixel.
    """

    classes: dict[str, ClassShare]
    videos: int
    frames: int
    frames_with_instance: float
    pixels_without_label: float
    bytes: int
    raw_share: float


@dataclass(frozen=True)
class LabelledFrame:
    """A frame for the contact sheet.

    Attributes:
        title: text above it. Only the end of a long title is shown.
        label_map: (H, W), the teacher's class ids, 255 where it gave no label.
        frame: uint8 RGB of any size; None where the frame is not known.
    """

    title: str
    label_map: np.ndarray
    frame: np.ndarray | None = None


class StoreCount(NamedTuple):
    """What `count_labels` found.

    counts: sums over all readable files.
    samples: key and frame index of some videos, one frame each.
    bad: the broken files, each with the reason.
    """

    counts: LabelCounts
    samples: list[tuple[str, int]]
    bad: dict[Path, str]


class MaskScore(NamedTuple):
    """How well the teacher's class "person" matches masks drawn by people.

    person_iou: intersection over union over all pixels of all scored frames; None where there is no person.
    person_iou_mean: the mean over the videos of their intersection over union.
    videos, frames: how many were scored.
    videos_with_masks: how many the data has.
    bad: the broken files, each with the reason.
    """

    person_iou: float | None
    person_iou_mean: float | None
    videos: int
    frames: int
    videos_with_masks: int
    bad: dict[Path, str]

    def as_dict(self) -> dict[str, Any]:
        """The JSON of the score, without the broken files."""
        return {name: value for name, value in self._asdict().items() if name != "bad"}


class Bad(NamedTuple):
    """A broken file, and why."""

    path: Path
    reason: str


class _Counted(NamedTuple):
    key: str
    counts: LabelCounts
    frame: int | None  # a sample; None where no frame is labelled


def count_labels(store: LabelStore, progress: Progress, may_be_sample: Collection[str] | None = None) -> StoreCount:
    """Read every label map of a store once, count its classes and choose samples.

    Args:
        store: the label maps.
        progress: gets a task.
        may_be_sample: the keys of the videos to choose from; None: all. Videos with instances are preferred.
    """

    def count_one(key: str) -> _Counted | Bad:
        path = file_of(store.root, key)
        try:
            return _count_file(store, key, path)
        except VideoError as error:
            return Bad(path, error.reason)
        except OSError as error:
            return Bad(path, str(error))

    keys = list(store.keys())
    total = LabelCounts()
    bad: dict[Path, str] = {}
    best: list[tuple[bool, int, str, int]] = []
    for found in progress.track(in_parallel(count_one, keys), len(keys), "reading label maps", "files"):
        if isinstance(found, Bad):
            bad[found.path] = found.reason
            continue
        total += found.counts
        if found.frame is not None and (may_be_sample is None or found.key in may_be_sample):
            order = zlib.crc32(os.fsencode(found.key))
            best = sorted([*best, (not found.counts.frames_with_instance, order, found.key, found.frame)])[:SAMPLES]
    return StoreCount(total, sorted((key, frame) for *_, key, frame in best), bad)


def score_against_masks(store: LabelStore, videos: Sequence[Video], progress: Progress) -> MaskScore:
    """Compare the class "person" with masks drawn by people, on the labelled frames of videos that have both.

    Pixels without label count as *not a person*. Label maps are resized to the masks.

    InputError: no video has a mask, or the store has no class "person".
    """
    with_masks = [video for video in videos if video.mask is not None and video.label_map is not None]
    if not with_masks:
        raise InputError("These videos have no masks drawn by people. Give data that has some, such as J-HMDB.")
    if "person" not in store.classes:
        raise InputError(f"{store.root} has no class person. Give label maps with this class.")
    person = store.classes.index("person")

    def compare(video: Video) -> tuple[int, int, int] | Bad:
        assert video.mask is not None
        assert video.label_map is not None
        path = video.mask
        try:
            mask_THW = read_array(path, "mask")
            if mask_THW.ndim != 3:
                raise VideoError(f"the mask has shape {mask_THW.shape}, not (frames, height, width)", path)
            path = file_of(store.root, video.label_map)
            return _overlap(store, video.label_map, person, mask_THW != 0)
        except VideoError as error:
            return Bad(path, error.reason)

    labelled = [video for video in with_masks if video.label_map is not None and store.has(video.label_map)]
    bad: dict[Path, str] = {}
    both = either = frames = scored = 0
    ious = []
    for found in progress.track(in_parallel(compare, labelled), len(labelled), "comparing with masks"):
        if isinstance(found, Bad):
            bad[found.path] = found.reason
            continue
        both, either, frames = both + found[0], either + found[1], frames + found[2]
        scored += found[2] > 0
        if found[1]:
            ious.append(found[0] / found[1])
    iou, mean = (both / either, float(np.mean(ious))) if ious else (None, None)
    return MaskScore(iou, mean, scored, frames, len(with_masks), bad)


def read_samples(
    store: LabelStore, samples: Sequence[tuple[str, int]], paths: Mapping[str, Path]
) -> tuple[list[LabelledFrame], dict[Path, str]]:
    """Read the label map of each sample, and its frame where `paths` has the key.

    Args:
        store: the label maps.
        samples: key and frame index.
        paths: key to video file.

    Returns:
        The samples, and the broken videos with the reasons.
    """
    frames = []
    bad: dict[Path, str] = {}
    for key, index in samples:
        label_maps_1HW = store.read(key, [index])
        assert label_maps_1HW is not None
        frame_HW3 = frame_to_draw(paths.get(key), index, bad)
        frames.append(LabelledFrame(f"{key}, frame {index}", label_maps_1HW[0], frame_HW3))
    return frames, bad


def _count_file(store: LabelStore, key: str, path: Path) -> _Counted:
    counts = LabelCounts(videos=1, bytes=path.stat().st_size)
    frames: list[int] = []
    with_instance: list[int] = []
    for some, maps_MHW in store.chunks(key):
        for frame, label_map_HW in zip(some.tolist(), maps_MHW, strict=True):
            pixels = np.bincount(label_map_HW.ravel(), minlength=NO_LABEL + 1)
            counts.pixels += pixels
            counts.frames_with += pixels > 0
            frames.append(frame)
            if pixels[1:NO_LABEL].any():
                with_instance.append(frame)
    counts.frames, counts.frames_with_instance = len(frames), len(with_instance)
    candidates = with_instance or frames
    return _Counted(key, counts, candidates[len(candidates) // 2] if candidates else None)


def _overlap(store: LabelStore, key: str, person: int, mask_THW: np.ndarray) -> tuple[int, int, int]:
    """Intersection and union of person and mask, in pixels, and the number of frames with label map and mask."""
    both = either = frames = 0
    for some, maps_MHW in store.chunks(key):
        masked = some < len(mask_THW)
        mask_MHW = mask_THW[some[masked]]
        person_MHW = resized(maps_MHW[masked], mask_THW.shape[1:]) == person
        both += int((person_MHW & mask_MHW).sum())
        either += int((person_MHW | mask_MHW).sum())
        frames += len(mask_MHW)
    return both, either, frames


def in_parallel(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Like `map`, in threads. It reads at most `FILES_AHEAD` items ahead."""
    remaining = iter(items)
    with ThreadPoolExecutor(max_workers=cpus()) as pool:
        while batch := list(islice(remaining, FILES_AHEAD)):
            yield from pool.map(function, batch)


def frame_to_draw(path: Path | None, index: int, bad: dict[Path, str]) -> np.ndarray | None:
    """A frame as the teacher saw it, uint8 (H, W, 3), or None without a video. A broken one enters `bad` with why."""
    if path is None:
        return None
    try:
        return read_frames(path, [index], SHORT_SIDE, deinterlace="auto")[0]
    except (VideoError, InputError) as error:
        bad[path] = error.reason if isinstance(error, VideoError) else str(error)
        return None
