"""Warnings about a list of videos: what looks wrong but may be intended. Nothing is refused here."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path, PurePosixPath

from airstreams.config import Config
from airstreams.data.listing import Source, Video, groups_of, overlapping, shortlist

_FEWEST_VIDEOS = 5  # of a class
_LARGEST_RATIO = 10  # between the sizes of two classes
_PAIRS = 3  # that a warning names
_SIDES = frozenset(
    (
        "left", "right", "clockwise", "counterclockwise", "anticlockwise", "links", "rechts", "gauche", "droite",
        "izquierda", "derecha", "sinistra", "destra",
    )
)  # fmt: skip
"""Words in class names that mirroring turns into another class."""
_COMPARED_BYTES = 65536  # at the beginning and at the end of files of one size

Copies = list[list[Video]]
"""Files with the same content: for each file its videos, one or several segments."""


def group_copies(source: Source) -> Source:
    """Put all videos of a file and its copies into one group, and add a warning.

    An automatic split never divides a group, so a copy of a training video cannot become a test video.
    """
    copies = _find_copies(source.all_videos)
    if not copies:
        return source
    source = source.with_all_videos(_in_one_group(source.all_videos, copies))
    unlabelled = {video.name for video in source.unlabelled}
    return replace(source, warnings=(*source.warnings, _copies_warning(copies, unlabelled)))


def _find_copies(videos: Sequence[Video]) -> list[Copies]:
    """All files that have copies. Only files of equal size are opened."""
    of_size: dict[int, dict[Path, list[Video]]] = defaultdict(lambda: defaultdict(list))
    for video in videos:
        with suppress(OSError):  # whoever opens the file reports the error
            of_size[video.path.stat().st_size][video.path].append(video)
    of_content: dict[tuple[int, bytes], Copies] = defaultdict(list)
    for size, files in of_size.items():
        if len(files) > 1 and size:
            for path, videos_of_file in files.items():
                with suppress(OSError):
                    of_content[size, _digest_of_ends(path)].append(videos_of_file)
    return [files for files in of_content.values() if len(files) > 1]


def _digest_of_ends(path: Path) -> bytes:
    """A digest of a file's beginning and end. A digest of the whole file would take as long as to read the data."""
    with path.open("rb") as file:
        begin = file.read(_COMPARED_BYTES)
        file.seek(max(0, path.stat().st_size - _COMPARED_BYTES))
        return sha256(begin + file.read()).digest()


def _in_one_group(videos: Sequence[Video], copies: Sequence[Copies]) -> tuple[Video, ...]:
    original = {file[0].path: files[0][0].path for files in copies for file in files}
    # With the path of the original, a copy also joins the original's group, and so do the videos of its own group.
    joined = groups_of(replace(video, path=original.get(video.path, video.path)) for video in videos)
    group_of = {joined[files[0][0].name]: files[0][0].group or f"copies of {files[0][0].name}" for files in copies}
    return tuple(replace(video, group=group_of.get(joined[video.name], video.group)) for video in videos)


def _copies_warning(copies: Sequence[Copies], unlabelled: AbstractSet[str]) -> str:
    pairs = shortlist([f"{files[0][0].name} and {files[1][0].name}" for files in copies])
    marks = [
        {
            frozenset((video.start, video.end, video.labels) for video in file)
            for file in files
            if unlabelled.isdisjoint(video.name for video in file)
        }
        for files in copies
    ]
    if any(len(of_files) > 1 for of_files in marks):
        return f"copies of one file with different labels or times: {pairs}. Correct the labels, or delete the copies."
    return f"copies of one file: {pairs}. Delete the copies, or keep them: an automatic split does not divide them."


def shared_between_splits(videos: Sequence[Video]) -> list[str]:
    """A warning of groups and videos in more than one split: the model is then scored on what it was trained on."""
    splits_of: dict[str, set[str]] = defaultdict(set)
    for video in videos:
        if video.group and video.split:
            splits_of[video.group].add(video.split)
    shared = [f"the group {group}" for group, splits in splits_of.items() if len(splits) > 1]
    trained_on = [video.name for video in videos if video.split == "train"]
    shared += overlapping([video.name for video in videos if video.split in ("val", "test")], trained_on)
    if not shared:
        return []
    return [
        f"in more than one split: {shortlist(shared)}. Move them into one split, or metrics will be too high, "
        "since the model is scored on what it was trained on."
    ]


def similar_class_names(classes: Iterable[str]) -> list[str]:
    """A warning of class names that differ only in case, blanks, hyphens or underscores."""
    spellings: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        spellings[spelling(name)].append(name)
    similar = [
        # A blank at the end is visible in quotes only.
        " and ".join(names if all(name.isprintable() and name == name.strip() for name in names) else map(repr, names))
        for names in spellings.values()
        if len(names) > 1
    ]
    if not similar:
        return []
    return [f"classes with similar names: {shortlist(similar)}. Give them one name if they are one class."]


def spelling(name: str) -> str:
    """A name without what people do not mean by it: case, outer and invisible signs, and what joins its words."""
    visible = "".join(sign for sign in unicodedata.normalize("NFKC", name) if unicodedata.category(sign) != "Cf")
    return re.sub(r"(?<=[^\W\d_])[\s_-]+(?=[^\W\d_])", "", visible.casefold().strip())  # between letters


def folder_level(videos: Sequence[Video]) -> list[str]:
    """A warning where several class folders contain folders of one name, as if they were the classes."""
    outer: set[str] = set()
    owners: dict[str, set[str]] = defaultdict(set)
    for video in videos:
        first, *further = PurePosixPath(video.name).parts
        if len(further) == 1:
            return []
        outer.add(first)
        owners[further[0]].add(first)
    shared = sorted(name for name, classes in owners.items() if len(classes) > 1)
    if not shared:
        return []
    return [
        f"the classes are {shortlist(sorted(outer))}, and several of these folders contain {shortlist(shared)}. If the "
        "inner folders are the classes, put those of one name together, or list the videos in a CSV file."
    ]


def training_warnings(source: Source, config: Config, drawn: bool) -> list[str]:
    """Warnings about data with splits that a training with this config would run into.

    drawn: the splits were drawn, and not given with the data.
    """
    training = [video for video in source.videos if video.split == "train"]
    found = [
        _alike_across_splits(source, drawn),
        _unlabelled_like_held_out(source),
        _large_group(source.videos) if drawn else None,
        _small_classes(source.videos),
        _classes_in_one_split(source.videos),
        None if config.data.balanced else _imbalance(training),
        _sides_in_class_names(source.classes) if config.data.flip else None,
    ]
    return [warning for warning in found if warning is not None]


def _alike_across_splits(source: Source, drawn: bool) -> str | None:
    """A warning of validation and test videos that look like training videos."""
    split_of = {video.name: video.split for video in source.videos}
    group_of = groups_of(source.videos)
    pairs: dict[str, str] = {}
    for alike in source.alike or ():
        names = [name for name in alike.names if name in split_of]  # a trial's source has only some of the videos
        training = [name for name in names if split_of[name] == "train"]
        for name in names:
            # Groups in several splits have a warning of their own, unless they were made of these videos.
            apart = [other for other in training if source.grouped_by == "auto" or group_of[other] != group_of[name]]
            if split_of[name] in ("val", "test") and apart:
                pairs.setdefault(name, f"{name} and {apart[0]} ({alike.by})")
    if not pairs:
        return None
    held_out = sum(video.split in ("val", "test") for video in source.videos)
    if not drawn:
        fix = "Move each pair into one split."
    elif source.own_groups:
        fix = "Give both the same text in the column group."
    else:
        fix = "Give --group-by auto to keep such videos in one split."
    named = "; ".join(list(pairs.values())[:_PAIRS])
    more = f"; and {len(pairs) - _PAIRS} more" if len(pairs) > _PAIRS else ""
    return (
        f"{len(pairs)} of {held_out} validation and test videos {'of the automatic split ' if drawn else ''}look like "
        f"training videos, by names or frames: "
        f"{named}{more}. Metrics will be too high if they show one recording. {fix}"
    )


def _unlabelled_like_held_out(source: Source) -> str | None:
    """A warning of unlabelled videos that show what validation or test videos show: a group, a file, or by likeness."""
    split_of = {video.name: video.split for video in source.videos}
    held_out = [video.name for video in source.videos if video.split in ("val", "test")]
    group_of = groups_of(source.all_videos)
    in_group = {group_of[name]: name for name in held_out}
    pairs = {
        video.name: f"{video.name} and {in_group[group]} (group)"
        for video in source.unlabelled
        if (group := group_of[video.name]) in in_group
    }
    unlabelled = {video.name for video in source.unlabelled}
    for alike in source.unlabelled_alike:
        scored = [name for name in alike.names if split_of.get(name) in ("val", "test")]
        for name in alike.names if scored else ():
            if name in unlabelled:
                pairs.setdefault(name, f"{name} and {scored[0]} ({alike.by})")
    if not pairs:
        return None
    named = "; ".join(list(pairs.values())[:_PAIRS])
    more = f"; and {len(pairs) - _PAIRS} more" if len(pairs) > _PAIRS else ""
    return (
        f"{len(pairs)} of {len(source.unlabelled)} unlabelled videos look like validation or test videos: {named}"
        f"{more}. Training sees all unlabelled videos, so metrics may be too high. Remove these from DATA."
    )


def _large_group(videos: Sequence[Video]) -> str | None:
    """A warning of a group that holds over half of the videos, as chains of alike videos may."""
    group_of = groups_of(videos)
    ((largest, size),) = Counter(group_of.values()).most_common(1)
    if 2 * size <= len(videos):
        return None
    first = next(name for name, group in group_of.items() if group == largest)
    return (
        f"one group has {size} of {len(videos)} videos, such as {first}, so no split can come near its fraction. "
        "Give --group-by an expression that divides this group."
    )


def _small_classes(videos: Sequence[Video]) -> str | None:
    sizes = Counter(label for video in videos for label in video.labels)
    small = [f"{name} ({size})" for name, size in sorted(sizes.items()) if size < _FEWEST_VIDEOS]
    if not small:
        return None
    return (
        f"classes with fewer than {_FEWEST_VIDEOS} videos: {shortlist(small)}. A metric of so few videos says little. "
        "Add videos, or leave these classes out."
    )


def _imbalance(videos: Sequence[Video]) -> str | None:
    sizes = Counter(label for video in videos for label in video.labels)
    if not sizes:
        return None
    (large, most), (small, fewest) = sizes.most_common()[0], sizes.most_common()[-1]
    if most <= _LARGEST_RATIO * fewest:
        return None
    return (
        f"{large} has {most} training videos and {small} has {fewest}: over {_LARGEST_RATIO} to 1. Give "
        "--data.balanced true to draw all classes equally often."
    )


def _classes_in_one_split(videos: Sequence[Video]) -> str | None:
    splits_of: dict[str, set[str]] = defaultdict(set)
    for video in videos:
        for label in video.labels:
            splits_of[label].add(video.split or "")
    lonely = [f"{label} ({min(splits)})" for label, splits in sorted(splits_of.items()) if len(splits) == 1]
    if not lonely or len({video.split for video in videos}) == 1:
        return None
    return (
        f"classes in one split only: {shortlist(lonely)}. No metric can be given for them. Add videos of other "
        "recordings, or move some into another split."
    )


def _sides_in_class_names(classes: Iterable[str]) -> str | None:
    """A warning of class names with a word of `_SIDES`, also inside `TurnLeft`."""
    split = {name: re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).casefold()) for name in classes}
    sided = [name for name, words in split.items() if not _SIDES.isdisjoint(words)]
    if not sided:
        return None
    return (
        f"class names with a side: {shortlist(sided)}. Half of the training clips are mirrored, which swaps left and "
        "right. Give --data.flip false if these classes differ in the side."
    )
