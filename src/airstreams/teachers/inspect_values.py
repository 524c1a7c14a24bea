"""What a teacher says in values: their distribution over a whole store, samples to look at, and a score by masks.

Threads read the files and keep only sums. `inspect.py` does the same for label maps.
"""

import os
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from airstreams.console import Progress
from airstreams.data.label_maps import read_array, resized
from airstreams.data.listing import Video
from airstreams.data.value_store import ValueStore
from airstreams.errors import InputError, VideoError
from airstreams.teachers.inspect import SAMPLES, Bad, frame_to_draw, in_parallel

PERSON = "person"


@dataclass
class ValueCounts:
    """Sums over the values of some videos.

    bytes: the size of the files.
    places: the places of all labelled frames, with and without a value: pixels, people's points, or vectors.
    known, total, squares, low, high: (C,) by name: the places with a value, sums over them, and their range.
    """

    names: int
    videos: int = 0
    frames: int = 0
    bytes: int = 0
    places: int = 0
    known: np.ndarray = field(init=False)
    total: np.ndarray = field(init=False)
    squares: np.ndarray = field(init=False)
    low: np.ndarray = field(init=False)
    high: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.known, self.total, self.squares = np.zeros((3, self.names))
        self.low, self.high = np.full(self.names, np.inf), np.full(self.names, -np.inf)

    def add(self, values_MCX: np.ndarray) -> None:
        """Add the values (M, C, places) of M frames."""
        known = ~np.isnan(values_MCX)
        values = np.where(known, values_MCX, 0).astype(np.float64)
        self.frames += len(values_MCX)
        self.places += known.shape[0] * known.shape[2]
        self.known += known.sum(axis=(0, 2))
        self.total += values.sum(axis=(0, 2))
        self.squares += (values**2).sum(axis=(0, 2))
        self.low = np.minimum(self.low, np.where(known, values, np.inf).min(axis=(0, 2), initial=np.inf))
        self.high = np.maximum(self.high, np.where(known, values, -np.inf).max(axis=(0, 2), initial=-np.inf))

    def __iadd__(self, other: "ValueCounts") -> "ValueCounts":
        for name in ("videos", "frames", "bytes", "places", "known", "total", "squares"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.low, self.high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        return self

    def by_name(self, names: Sequence[str]) -> dict[str, "ValueShare"]:
        """The distribution of each map, point or feature that has a value somewhere."""
        found = {}
        for place, name in enumerate(names):
            if count := self.known[place]:
                mean = self.total[place] / count
                deviation = float(np.sqrt(max(0.0, self.squares[place] / count - mean**2)))
                low, high = float(self.low[place]), float(self.high[place])
                found[name] = ValueShare(count / self.places, float(mean), deviation, low, high)
        return found


@dataclass(frozen=True)
class ValueShare:
    """The share of places with a value, in 0..1, and the values' mean, standard deviation and range."""

    known: float
    mean: float
    deviation: float
    low: float
    high: float


class ValueSample(NamedTuple):
    """The row of one frame, and the frame itself where it is known."""

    title: str
    row: np.ndarray
    frame: np.ndarray | None


class _Counted(NamedTuple):
    key: str
    counts: ValueCounts
    frame: int | None


class ValueScore(NamedTuple):
    """How well values about people match masks drawn by people.

    on_people: of the visible points, weighted by visibility, the share that lies in a mask; None for maps.
    person_iou: intersection over union of the map person from 0.5 up; None for points.
    videos, frames: how many were scored.
    """

    on_people: float | None
    person_iou: float | None
    videos: int
    frames: int


def count_values(
    store: ValueStore, progress: Progress, may_be_sample: Collection[str] | None = None
) -> tuple[ValueCounts, list[tuple[str, int]], dict[Path, str]]:
    """Read every value of a store once.

    Args:
        store: the values.
        progress: gets a task.
        may_be_sample: the keys of the videos to choose from; None: all.

    Returns:
        The sums over all readable files; key and frame index of some videos, one frame each; the broken files, each
        with the reason.
    """

    def count_one(key: str) -> _Counted | Bad:
        path = store.file_of(key)
        counts = ValueCounts(len(store.names), videos=1)
        try:
            counts.bytes = path.stat().st_size
            frames: list[int] = []
            for some, rows in store.chunks(key):
                frames += some.tolist()
                counts.add(_by_name(store, rows))
        except (VideoError, OSError) as error:
            return Bad(path, error.reason if isinstance(error, VideoError) else str(error))
        return _Counted(key, counts, frames[len(frames) // 2] if frames else None)

    keys = list(store.keys())
    total = ValueCounts(len(store.names))
    bad: dict[Path, str] = {}
    best: list[tuple[int, str, int]] = []
    for found in progress.track(in_parallel(count_one, keys), len(keys), "reading targets", "files"):
        if isinstance(found, Bad):
            bad[found.path] = found.reason
            continue
        total += found.counts
        if found.frame is not None and (may_be_sample is None or found.key in may_be_sample):
            best = sorted([*best, (zlib.crc32(os.fsencode(found.key)), found.key, found.frame)])[:SAMPLES]
    return total, sorted((key, frame) for _, key, frame in best), bad


def read_value_samples(
    store: ValueStore, samples: Sequence[tuple[str, int]], paths: Mapping[str, Path]
) -> tuple[list[ValueSample], dict[Path, str]]:
    """Read the values of each sample, and its frame where `paths` has the key. Returns also the broken videos."""
    found = []
    bad: dict[Path, str] = {}
    for key, index in samples:
        rows = store.read(key, [index])
        assert rows is not None
        frame_HW3 = frame_to_draw(paths.get(key), index, bad)
        found.append(ValueSample(f"{key}, frame {index}", rows[0], frame_HW3))
    return found, bad


def score_values(store: ValueStore, videos: Sequence[Video]) -> ValueScore:
    """Compare points, or a map person, with masks drawn by people, on the labelled frames of videos that have both.

    InputError: no video has a mask, or the values are of another kind.
    """
    if store.kind != "points" and not (store.kind == "maps" and PERSON in store.names):
        raise InputError(f"{store.root}: only points and a map {PERSON} can be scored by masks. Leave --truth out.")
    with_masks = [video for video in videos if video.mask is not None and video.label_map is not None]
    if not with_masks:
        raise InputError("These videos have no masks drawn by people. Give data that has some, such as J-HMDB.")
    good = every = 0.0
    scored = frames = 0
    for video in with_masks:
        if video.label_map is None or video.mask is None or not store.has(video.label_map):
            continue
        mask_THW = read_array(video.mask, "mask") != 0
        scored += 1
        for some, rows in store.chunks(video.label_map):
            within = some < len(mask_THW)
            frames += int(within.sum())
            for row, mask_HW in zip(rows[within], mask_THW[some[within]], strict=True):
                compare = _points_in if store.kind == "points" else _overlap
                one_good, one_every = compare(store, row, mask_HW)
                good, every = good + one_good, every + one_every
    share = good / every if every else None
    if store.kind == "points":
        return ValueScore(share, None, scored, frames)
    return ValueScore(None, share, scored, frames)


def _points_in(store: ValueStore, row_MP3: np.ndarray, mask_HW: np.ndarray) -> tuple[float, float]:
    """The visibility of all points in a mask, and of all points."""
    x, y, visible = row_MP3[row_MP3[..., 2] > 0].T
    H, W = mask_HW.shape
    rows, columns = np.clip((y * H).astype(int), 0, H - 1), np.clip((x * W).astype(int), 0, W - 1)
    return float(visible[mask_HW[rows, columns]].sum()), float(visible.sum())


def _overlap(store: ValueStore, row_Chw: np.ndarray, mask_HW: np.ndarray) -> tuple[float, float]:
    """Intersection and union of the map person and a mask, in px."""
    person_HW = resized(row_Chw[store.names.index(PERSON)], mask_HW.shape) >= 0.5
    return float((person_HW & mask_HW).sum()), float((person_HW | mask_HW).sum())


def _by_name(store: ValueStore, rows: np.ndarray) -> np.ndarray:
    """Rows (M, ...) as (M, C, places). Of points the visibility: their places have no mean of interest."""
    if store.kind == "points":
        return rows[..., 2].transpose(0, 2, 1)
    return rows.reshape(*rows.shape[:2], -1)
