"""What a data source is, once it has been listed: videos with class names. No file is opened here.

The types stand apart from `sources.py`, which fills them from a folder or a CSV file, so that the published data sets
in `benchmarks/` can fill them too without a circle of imports. Class names stay text until the data set turns
them into numbers: it costs a look-up a video, and no list of integers can be read against the wrong list of names.
"""

import math
import re
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from itertools import accumulate
from pathlib import Path, PurePosixPath

from airstreams.data.label_maps import LabelStore
from airstreams.errors import InputError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Action:
    """A label that holds from `start` to `end` only, both inclusive, in s from the video's first frame."""

    label: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Video:
    """One video, or one segment of it, with what people said about it."""

    path: Path
    """The file."""
    name: str
    """Unique within the source and independent of where it lies: shown to people, key of the splits."""
    labels: tuple[str, ...]
    """Class names of the whole video, by which it is scored: exactly one, except in a multi-label source, where a video
    without actions has none."""
    split: str | None = None
    """"train", "val" or "test"; None where the source has no splits."""
    start: float | None = None
    """Seconds after the first frame; None is the beginning."""
    end: float | None = None
    """Seconds after the first frame, exclusive; None is the end."""
    group: str | None = None
    """What it was cut from, or who is seen: see `groups_of`."""
    label_map: str | None = None
    """Key of the video's label maps in any label store; several segments of one file share it."""
    mask: Path | None = None
    """A mask drawn by people, for scoring only: npz with `mask` uint8 (T, H, W)."""
    actions: tuple[Action, ...] = ()
    """When the labels hold, the same one perhaps several times; empty means throughout."""

    @property
    def location(self) -> str:
        """The file, and which part of it, for people."""
        _, mark, part = self.name.partition("#t=")
        return f"{self.path}{mark}{part}"


@dataclass(frozen=True)
class Source:
    """A listed data set. `classes` are sorted, `videos` are sorted by name; `name` is DATA as it was given."""

    name: str
    classes: tuple[str, ...]
    videos: tuple[Video, ...]
    multi_label: bool = False
    label_store: LabelStore | None = None
    remarks: tuple[str, ...] = ()
    """What people should know of the listing, a line each, such as what was passed over."""

    @property
    def metric(self) -> str:
        """The figure that says how good a model is on it."""
        return "map" if self.multi_label else "top1"

    @property
    def has_splits(self) -> bool:
        """Whether the videos say which split they belong to."""
        return any(video.split is not None for video in self.videos)

    def split(self, name: str) -> tuple[Video, ...]:
        """The videos of the split "train", "val" or "test". InputError when there are none."""
        if name not in SPLITS:
            raise InputError(f"no split is called {name!r}; expected {', '.join(SPLITS)}; give one of them")
        videos = tuple(video for video in self.videos if video.split == name)
        if not videos:
            counts = Counter(video.split for video in self.videos if video.split is not None)
            given = ", ".join(f"{split} ({counts[split]})" for split in SPLITS if counts[split]) or "none"
            raise InputError(
                f"{self.name} has no videos in the split {name!r}; its splits with their videos: {given}; ask for one "
                "of these, or give data that has some there"
            )
        return videos


def overlapping(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """Those of the videos of these names that show something of the others: the same file, or parts of it in common."""
    parts: dict[str, list[tuple[float, float]]] = {}
    for file, start, end in map(_part_of, others):
        parts.setdefault(file, []).append((start, end))
    starts: dict[str, list[float]] = {}
    latest_ends: dict[str, list[float]] = {}  # of the parts up to each one, by their starts
    for file, times in parts.items():
        times.sort()
        starts[file] = [start for start, _ in times]
        latest_ends[file] = list(accumulate((end for _, end in times), max))

    def overlaps(name: str) -> bool:
        file, start, end = _part_of(name)
        begun = bisect_left(starts.get(file, []), end)  # so many begin before its end
        return begun > 0 and latest_ends[file][begun - 1] > start

    return [name for name in names if overlaps(name)]


def _part_of(name: str) -> tuple[str, float, float]:
    seconds = r"(\d+(?:\.\d+)?(?:e[+-]\d+)?)?"  # as Python writes a float, or nothing
    found = re.fullmatch(rf"(.*)#t={seconds},{seconds}", name)
    return (found[1], float(found[2] or 0.0), float(found[3] or math.inf)) if found else (name, 0.0, math.inf)


def groups_of(videos: Iterable[Video]) -> dict[str, str]:
    """Each video's group by its name: those with one `group`, file or name, and so all that hang together by others.

    No group stands on both sides of an automatic split, and one is drawn as a whole for intervals.
    """
    root: dict[tuple[int, str], tuple[int, str]] = {}

    def find(node: tuple[int, str]) -> tuple[int, str]:
        while root.setdefault(node, node) != node:
            root[node] = root[root[node]]
            node = root[node]
        return node

    names = []
    for video in videos:
        names.append(video.name)
        for node in [(1, str(video.path)), *([(0, video.group)] if video.group else [])]:
            first, second = sorted((find(node), find((2, video.name))))
            root[second] = first  # a group's name, if there is one: that does not depend on where the files lie
    return {name: find((2, name))[1] for name in names}


def listed(data: str, videos: Iterable[Video], multi_label: bool) -> Source:
    """A source of these videos and of the classes that occur among them."""
    in_order = tuple(sorted(videos, key=lambda video: video.name))
    return Source(data, tuple(sorted({label for video in in_order for label in video.labels})), in_order, multi_label)


def require_consistent(source: Source) -> None:
    """Raise InputError for the first video that is not what `Video` and `Source` say: one made in Python may be so."""
    classes, names, splits = set(source.classes), set[str](), SPLITS if source.has_splits else (None,)
    for video in source.videos:
        labels, wrong = video.labels, None
        if not isinstance(labels, tuple):
            wrong = f"labels is {labels!r:.80}, expected a tuple of class names; write (NAME,)"
        elif video.name in names:
            wrong = "two videos have this name, expected one; give each its own"
        elif strange := [label for label in labels if label not in classes]:
            wrong = f"its label {strange[0]!r} is none of the source's classes; add it there, or take it away"
        elif len(labels) != 1 and not source.multi_label:
            wrong = f"got {len(labels)} labels, expected one; give one, or make the source with multi_label=True"
        elif video.split not in splits:
            wrong = f"its split is {video.split!r}, expected {', '.join(SPLITS)}, or None for all videos; give one"
        elif strange := [action.label for action in video.actions if action.label not in labels]:
            wrong = f"an action is {strange[0]!r}, none of its labels ({', '.join(labels) or 'none'}); add it there"
        if wrong:
            raise InputError(f"{source.name}: {video.name}: {wrong}")
        names.add(video.name)


def labels_digest(videos: Iterable[Video]) -> str:
    """A checksum of what people said of these videos."""
    said = [(video.name, video.labels, video.start, video.end, video.actions) for video in videos]
    return sha256(repr(said).encode()).hexdigest()


def composed(name: str) -> str:
    """A name with its accents in one piece with their letters, however the system that wrote it keeps them. What lies
    beside a video, such as its label maps, is found by the name as it stands on the disk.
    """
    return unicodedata.normalize("NFC", name)


def without_suffix(name: str) -> str:
    """A video's name as the key of its label maps."""
    return PurePosixPath(name).with_suffix("").as_posix()


def some(names: list[str]) -> str:
    """The first of many names, for a complaint."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "none"
