"""The types of a data source: videos with class names, splits and groups. No file is opened here.

`sources.py` makes them from a folder or a CSV file, `benchmarks/` from a published data set. Labels are class names
until `dataset.py` turns them into indices, so indices can never be read with the wrong list of names.
"""

import math
import re
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import accumulate
from pathlib import Path, PurePath, PurePosixPath
from typing import Literal

from airstreams.config import SUPERVISED
from airstreams.data.label_maps import LabelStore
from airstreams.errors import InputError, did_you_mean

SPLITS = ("train", "val", "test")
UNLABELLED = "_unlabelled"
"""The folder of training videos without a label, and their label in lists."""
CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
"""Line breaks and other signs that no name may have: lists and messages have one name a line."""


@dataclass(frozen=True)
class Action:
    """A label that is active from `start` to `end` only, both inclusive, in s from the video's first frame."""

    label: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Video:
    """One video, or one segment of it, with its annotations."""

    path: Path
    """The file."""
    name: str
    """Unique within the source and independent of the data's folder: shown to people, and the key of the splits."""
    labels: tuple[str, ...]
    """Class names of the whole video, which is scored by them. Exactly one, except in a multi-label source, where a
    video may have several or none. An unlabelled video has none."""
    split: str | None = None
    """"train", "val" or "test"; None where the source has no splits."""
    start: float | None = None
    """Seconds after the first frame; None is the beginning."""
    end: float | None = None
    """Seconds after the first frame, exclusive; None is the end."""
    group: str | None = None
    """The recording, film or person that it shows: see `groups_of`."""
    label_map: str | None = None
    """Key of the video's label maps in any label store; several segments of one file share it."""
    mask: Path | None = None
    """A mask drawn by a person, for scoring only: npz with `mask` uint8 (T, H, W)."""
    actions: tuple[Action, ...] = ()
    """When each label is active; a label may have several actions. Empty: all labels are active throughout."""
    content: str | None = None
    """The identity of the file's content, see `content.py`; None: not known, or the file cannot be read."""

    @property
    def location(self) -> str:
        """The file and the segment, to be shown to people."""
        _, mark, part = self.name.partition("#t=")
        return f"{self.path}{mark}{part}"


@dataclass(frozen=True, slots=True)
class Alike:
    """Videos that look like one recording: see `similar.py`.

    names: of two videos or more.
    by: what they have in common, their file names or their frames.
    """

    names: tuple[str, ...]
    by: Literal["names", "frames"]


@dataclass(frozen=True)
class TargetFolder:
    """The folder of a teacher's targets for one stream.

    keys: a video's key in it by the video's name, where it is another one than `Video.label_map`.
    store: the store in the folder, if it is open already.
    """

    path: Path
    keys: Mapping[str, str | None] = field(default_factory=dict)
    store: LabelStore | None = None


@dataclass(frozen=True)
class Source:
    """A data set's videos, sorted by name, and its classes, sorted. `name` is DATA as it was given."""

    name: str
    classes: tuple[str, ...]
    videos: tuple[Video, ...]
    multi_label: bool = False
    label_store: LabelStore | None = None
    """The label maps for the stream semantic."""
    targets: Mapping[str, TargetFolder] = field(default_factory=dict)
    """The targets for other streams, by stream. `target_folders` has all."""
    warnings: tuple[str, ...] = ()
    """What looks wrong in the data, such as skipped files: sentences that callers print as warnings."""
    own_groups: bool = False
    """Whether the groups were made by people: a CSV file's column, or a published list. `data.group_by` keeps them."""
    grouped_by: str | None = None
    """The value of `data.group_by` that the groups of the videos contain already."""
    alike: tuple[Alike, ...] | None = None
    """Videos that look like one recording; None: nobody has looked for them."""
    unlabelled: tuple[Video, ...] = ()
    """Training videos whose class is not known, sorted by name. They have no labels and the split "train", also where
    `videos` have no splits. Only losses on teachers' targets learn from them."""
    unlabelled_alike: tuple[Alike, ...] = ()
    """Sets of videos that look like one recording, each with some unlabelled and some labelled videos."""

    @property
    def metric(self) -> str:
        """The name of the data set's main metric."""
        return "map" if self.multi_label else "top1"

    @property
    def all_videos(self) -> tuple[Video, ...]:
        """The labelled videos, and after them the unlabelled ones."""
        return (*self.videos, *self.unlabelled)

    def with_all_videos(self, videos: Sequence[Video]) -> "Source":
        """The source with other videos in the place of `all_videos`, in their order."""
        labelled = len(self.videos)
        return replace(self, videos=tuple(videos[:labelled]), unlabelled=tuple(videos[labelled:]))

    @property
    def has_splits(self) -> bool:
        """Whether the labelled videos have splits."""
        return any(video.split is not None for video in self.videos)

    @property
    def short_name(self) -> str:
        """DATA without a root and the folders of an absolute path, which tell only where one person keeps it."""
        name, _, _ = self.name.partition("?root=")
        if PurePath(name).is_absolute():
            return PurePath(name).name or name
        benchmark, colon, place = name.partition(":")
        if not PurePath(place).is_absolute():
            return name
        root, mark, options = place.partition("?")
        return f"{benchmark}{colon}{PurePath(root).name}{mark}{options}"

    @property
    def name_sum(self) -> str:
        """A checksum of DATA as it was given. It tells apart two that have the same short name."""
        return sha256(self.name.encode(errors="surrogateescape")).hexdigest()[:16]

    @property
    def target_folders(self) -> dict[str, TargetFolder]:
        """The targets of every stream that has some: the label store has those of semantic."""
        store = self.label_store
        of_labels = {} if store is None else {SUPERVISED[0]: TargetFolder(store.root, store=store)}
        return of_labels | dict(self.targets)

    def with_target_keys(self, stream: str, keys: Mapping[str, str | None]) -> "Source":
        """The source with the videos' keys in the store of a stream, by the videos' names."""
        if stream == SUPERVISED[0]:
            return self.with_all_videos(
                [replace(video, label_map=keys.get(video.name, video.label_map)) for video in self.all_videos]
            )
        return replace(self, targets={**self.targets, stream: replace(self.targets[stream], keys=keys)})

    def split(self, name: str) -> tuple[Video, ...]:
        """The videos of the split "train", "val" or "test". InputError: there are none."""
        if name not in SPLITS:
            similar = did_you_mean(name, SPLITS)
            raise InputError(f"there is no split {name!r}.{similar} Give one of {', '.join(SPLITS)}.")
        videos = tuple(video for video in self.videos if video.split == name)
        if not videos:
            counts = Counter(video.split for video in self.videos if video.split is not None)
            given = ", ".join(f"{split} ({counts[split]})" for split in SPLITS if counts[split]) or "none"
            raise InputError(
                f"{self.name} has no videos in the split {name!r}; it has {given}; give one of these splits, or data "
                f"with videos in {name!r}"
            )
        return videos


def overlapping(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """The names of `names` whose video overlaps one of `others`: the same file, or segments that share a moment."""
    parts: dict[str, list[tuple[float, float]]] = {}
    for file, start, end in map(_part_of, others):
        parts.setdefault(file, []).append((start, end))
    starts: dict[str, list[float]] = {}
    latest_ends: dict[str, list[float]] = {}  # the latest end among the segments up to each one, sorted by start
    for file, times in parts.items():
        times.sort()
        starts[file] = [start for start, _ in times]
        latest_ends[file] = list(accumulate((end for _, end in times), max))

    def overlaps(name: str) -> bool:
        file, start, end = _part_of(name)
        begun = bisect_left(starts.get(file, []), end)  # number of segments that begin before its end
        return begun > 0 and latest_ends[file][begun - 1] > start

    return [name for name in names if overlaps(name)]


_SECONDS = r"(\d+(?:\.\d+)?(?:e[+-]\d+)?)?"  # as Python writes a float, or nothing
_SEGMENT = re.compile(rf"#t={_SECONDS},{_SECONDS}\Z")


def segment_of(name: str) -> str:
    """The end of a video's name that says which segment of the file it is, such as "#t=1.5,4.0"; "" for all of it."""
    found = _SEGMENT.search(name)
    return found[0] if found else ""


def _part_of(name: str) -> tuple[str, float, float]:
    found = _SEGMENT.search(name)
    if found is None:
        return name, 0.0, math.inf
    return name[: found.start()], float(found[1] or 0.0), float(found[2] or math.inf)


def groups_of(videos: Iterable[Video], together: Iterable[Sequence[str]] = ()) -> dict[str, str]:
    """The group of each video, by the video's name.

    Videos that share a `group`, a file or a name are in one group, and so are videos connected through other videos.
    An automatic split never divides a group, and intervals resample whole groups.

    together: names of videos that are in one group for another reason.
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
            root[second] = first  # a `group` sorts before a path, so the result does not depend on the data's folder
    for first_name, *others in together:
        for other in others:
            first, second = sorted((find((2, first_name)), find((2, other))))
            root[second] = first
    return {name: find((2, name))[1] for name in names}


def make_source(data: str, videos: Iterable[Video], multi_label: bool, unlabelled: Iterable[Video] = ()) -> Source:
    """A source of these videos. Its classes are the labels that occur."""
    in_order = tuple(sorted(videos, key=lambda video: video.name))
    classes = tuple(sorted({label for video in in_order for label in video.labels}))
    rest = tuple(sorted(unlabelled, key=lambda video: video.name))
    return Source(data, classes, in_order, multi_label, unlabelled=rest)


def require_consistent(source: Source) -> None:
    """Raise InputError for the first video that breaks a rule of `Video` or `Source`, as one made in Python may."""
    classes, names, splits = set(source.classes), set[str](), SPLITS if source.has_splits else (None,)
    for video in source.videos:
        labels, wrong = video.labels, None
        if not isinstance(labels, tuple):
            wrong = f"labels is {labels!r:.80}, expected a tuple of class names; write (NAME,)"
        elif video.name in names:
            wrong = "two videos have this name, expected one; give each its own name"
        elif strange := [label for label in labels if label not in classes]:
            wrong = f"its label {strange[0]!r} is none of the source's classes; add the class, or remove the label"
        elif len(labels) != 1 and not source.multi_label:
            wrong = f"got {len(labels)} labels, expected one; give one label, or make the source with multi_label=True"
        elif video.split not in splits:
            wrong = f"its split is {video.split!r}, expected {', '.join(SPLITS)}, or None for all videos; set it"
        elif strange := [action.label for action in video.actions if action.label not in labels]:
            wrong = f"an action is {strange[0]!r}, none of its labels ({', '.join(labels) or 'none'}); add the label"
        if wrong:
            raise InputError(f"{source.name}: {video.name}: {wrong}")
        names.add(video.name)
    for video in source.unlabelled:
        if video.name in names:
            raise InputError(f"{source.name}: {video.name}: two videos have this name. Give each its own name.")
        if video.labels or video.split != "train":
            raise InputError(
                f"{source.name}: {video.name}: it is unlabelled, but has labels or another split than train. Give it "
                "no labels and the split train, or move it to the labelled videos."
            )
        names.add(video.name)


def require_label_maps(source: Source, unless_contents: bool = False) -> None:
    """Raise InputError if the source's label store has none of its videos.

    unless_contents: accept a store that knows the contents of its videos, as these may have other names.
    """
    store = source.label_store
    keys = [video.label_map for video in source.all_videos if video.label_map is not None]
    if store is None or any(store.has(key) for key in keys) or (unless_contents and store.knows_contents):
        return
    example = f"; expected files such as {keys[0]}.npz" if keys else ""
    raise InputError(
        f"{store.root} has no label maps for any of the {len(source.all_videos)} videos of {source.name}{example}; "
        "give the folder with the label maps of these videos"
    )


def labels_digest(videos: Iterable[Video]) -> str:
    """A checksum of the videos' names, labels, segments and actions."""
    annotations = [(video.name, video.labels, video.start, video.end, video.actions) for video in videos]
    return sha256(repr(annotations).encode()).hexdigest()


def to_nfc(name: str) -> str:
    """A name in Unicode's form NFC, so that names from different systems compare equal.

    Label maps are found by the name as it is on the disk, not by this one.
    """
    return unicodedata.normalize("NFC", name)


def without_suffix(name: str) -> str:
    """The key of a video's label maps: its name without suffix."""
    return PurePosixPath(name).with_suffix("").as_posix()


def shortlist(names: list[str]) -> str:
    """The first five names as one text, for a message."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "none"
