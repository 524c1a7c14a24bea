"""What a teacher saw: its label maps counted over a whole store, some to look at, and a score against people's masks.

Threads read the files, some hundreds ahead of the sums, and of each file only sums stay: memory does not grow with the
store. The disk names the files in any order, so which ones to look at is chosen by a checksum of their names: the same
ones for the same store, from all over it. A broken file counts for nothing and is told with its reason.

Legend: M label maps at a time, H, W pixels.
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
from rich.progress import Progress

from airstreams.data.label_maps import NO_LABEL, LabelStore, file_of, read_array, resized
from airstreams.data.listing import Video
from airstreams.data.video import read_frames
from airstreams.errors import InputError, VideoError
from airstreams.machine import cpus

SAMPLES = 12
SHORT_SIDE = 240  # px, of a frame to look at
FILES_AHEAD = 512

T = TypeVar("T")
R = TypeVar("R")


def _zeros() -> np.ndarray:
    return np.zeros(NO_LABEL + 1, np.int64)


@dataclass
class LabelCounts:
    """Sums over the label maps of some videos.

    bytes: of the files. pixels, frames_with: (256,), for each id how many pixels have it, and how many frames any.
    frames_with_instance: those with a pixel that has a label and is not background.
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

    def shares(self, classes: Sequence[str]) -> dict[str, Any]:
        """The counts as shares in 0..1, of the pixels and frames that the store labels; 0 where it labels none.

        Of `classes` those that occur, the one with most pixels first. `raw_share`: of one byte a pixel.
        """
        all_pixels, all_frames = max(1, int(self.pixels.sum())), max(1, self.frames)
        occurring = [int(label) for label in np.argsort(-self.pixels, kind="stable") if self.pixels[label]]
        return {
            "classes": {
                classes[label]: {
                    "pixels": int(self.pixels[label]) / all_pixels,
                    "frames": int(self.frames_with[label]) / all_frames,
                }
                for label in occurring
                if label != NO_LABEL
            },
            "videos": self.videos,
            "frames": self.frames,
            "frames_with_instance": self.frames_with_instance / all_frames,
            "pixels_without_label": int(self.pixels[NO_LABEL]) / all_pixels,
            "bytes": self.bytes,
            "raw_share": self.bytes / all_pixels,
        }


@dataclass(frozen=True)
class LabelledFrame:
    """A frame for the contact sheet.

    Attributes:
        title: stands over it; of a long one the end.
        label_map: (H, W), the teacher's class ids, 255 where it gave no label.
        frame: uint8, RGB, of any size; None where there is none to show.
    """

    title: str
    label_map: np.ndarray
    frame: np.ndarray | None = None


class StoreCount(NamedTuple):
    """What `count_labels` found: the sums, one (key, frame) of some videos each, and why files are broken."""

    counts: LabelCounts
    samples: list[tuple[str, int]]
    bad: dict[Path, str]


class MaskScore(NamedTuple):
    """How well the class "person" covers masks drawn by people.

    person_iou: intersection over union of all pixels of all frames scored; None where neither has any.
    person_iou_mean: the mean of the videos' own. videos, frames: how many were scored, of `videos_with_masks`.
    bad: the broken files' reasons.
    """

    person_iou: float | None
    person_iou_mean: float | None
    videos: int
    frames: int
    videos_with_masks: int
    bad: dict[Path, str]

    def metrics(self) -> dict[str, Any]:
        """All but the broken files."""
        return {name: value for name, value in self._asdict().items() if name != "bad"}


class _Bad(NamedTuple):
    path: Path
    reason: str


class _Counted(NamedTuple):
    key: str
    counts: LabelCounts
    frame: int | None  # one to look at


def count_labels(store: LabelStore, progress: Progress, to_show: Collection[str] | None = None) -> StoreCount:
    """Read all label maps of a store, each once.

    Args:
        to_show: keys of the videos that may be samples; None: all may. Those with an instance go before the others.
    """

    def look(key: str) -> _Counted | _Bad:
        path = file_of(store.root, key)
        try:
            return _count_file(store, key, path)
        except (VideoError, InputError, OSError) as error:
            return _Bad(path, error.reason if isinstance(error, VideoError) else str(error))

    total = LabelCounts()
    bad: dict[Path, str] = {}
    best: list[tuple[bool, int, str, int]] = []
    for found in progress.track(_in_parallel(look, store.keys()), description="reading label maps"):
        if isinstance(found, _Bad):
            bad[found.path] = found.reason
            continue
        total += found.counts
        if found.frame is not None and (to_show is None or found.key in to_show):
            chance = zlib.crc32(os.fsencode(found.key))
            best = sorted([*best, (not found.counts.frames_with_instance, chance, found.key, found.frame)])[:SAMPLES]
    return StoreCount(total, sorted((key, frame) for *_, key, frame in best), bad)


def score_against_masks(store: LabelStore, videos: Sequence[Video], progress: Progress) -> MaskScore:
    """Compare the class "person" with the masks of those of the videos that have both, on the frames labelled.

    A pixel without label counts as no person. A label map of another size is brought to the mask's.

    InputError: no video has a mask, or the store has no class "person".
    """
    with_masks = [video for video in videos if video.mask is not None and video.label_map is not None]
    if not with_masks:
        raise InputError("these videos come without masks drawn by people; expected data that brings some, as J-HMDB")
    if "person" not in store.classes:
        raise InputError(f"{store.root} has no class person, which the masks show; expected label maps of people")
    person = store.classes.index("person")

    def look(video: Video) -> tuple[int, int, int] | _Bad:
        assert video.mask is not None
        assert video.label_map is not None
        path = video.mask
        try:
            mask_THW = read_array(path, "mask")
            if mask_THW.ndim != 3:
                raise VideoError(f"mask is {mask_THW.shape}; expected (frames, height, width)", path)
            path = file_of(store.root, video.label_map)
            return _overlap(store, video.label_map, person, mask_THW != 0)
        except VideoError as error:
            return _Bad(path, error.reason)

    labelled = [video for video in with_masks if video.label_map is not None and store.has(video.label_map)]
    bad: dict[Path, str] = {}
    both = either = frames = scored = 0
    ious = []
    for found in progress.track(_in_parallel(look, labelled), len(labelled), description="comparing with masks"):
        if isinstance(found, _Bad):
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
    """The label map of each (key, frame), with the frame where `paths` has the key; and the broken videos' reasons."""
    shown = []
    bad: dict[Path, str] = {}
    for key, place in samples:
        maps_1HW = store.read(key, [place])
        assert maps_1HW is not None
        frame_HW3 = None
        if key in paths:
            try:
                frame_HW3 = read_frames(paths[key], [place], SHORT_SIDE)[0]
            except (VideoError, InputError) as error:
                bad[paths[key]] = error.reason if isinstance(error, VideoError) else str(error)
        shown.append(LabelledFrame(f"{key}, frame {place}", maps_1HW[0], frame_HW3))
    return shown, bad


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
    to_show = with_instance or frames
    return _Counted(key, counts, to_show[len(to_show) // 2] if to_show else None)


def _overlap(store: LabelStore, key: str, person: int, mask_THW: np.ndarray) -> tuple[int, int, int]:
    """Pixels that both or either takes for a person, and frames looked at: those labelled that have a mask."""
    both = either = frames = 0
    for some, maps_MHW in store.chunks(key):
        masked = some < len(mask_THW)
        mask_MHW = mask_THW[some[masked]]
        person_MHW = resized(maps_MHW[masked], mask_THW.shape[1:]) == person
        both += int((person_MHW & mask_MHW).sum())
        either += int((person_MHW | mask_MHW).sum())
        frames += len(mask_MHW)
    return both, either, frames


def _in_parallel(function: Callable[[T], R], things: Iterable[T]) -> Iterator[R]:
    """As `map`, by threads; takes from `things` only some ahead."""
    remaining = iter(things)
    with ThreadPoolExecutor(max_workers=cpus()) as pool:
        while batch := list(islice(remaining, FILES_AHEAD)):
            yield from pool.map(function, batch)
