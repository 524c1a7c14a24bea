"""What looks wrong in a list of videos, though it may be meant so: it is told, and nothing is refused."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path, PurePosixPath

from airstreams.data.listing import Source, Video, groups_of, overlapping, some

_ENDS = 65536  # bytes at either end of two files of one size by which they are told apart


def with_copies_in_groups(source: Source) -> Source:
    """The source with copies of one file in a group, so that no automatic split shares them out; a remark tells so."""
    of_size: dict[int, dict[Path, list[Video]]] = defaultdict(lambda: defaultdict(list))
    for video in source.videos:
        with suppress(OSError):  # it is told where the file is opened
            of_size[video.path.stat().st_size][video.path].append(video)
    of_content: dict[tuple[int, bytes], list[list[Video]]] = defaultdict(list)
    for size, files in of_size.items():
        if len(files) > 1 and size:
            for path, videos in files.items():
                with suppress(OSError):
                    of_content[size, _ends(path)].append(videos)
    copies = [files for files in of_content.values() if len(files) > 1]
    if not copies:
        return source
    remark = f"copies of one file: {some([f'{files[0][0].name} and {files[1][0].name}' for files in copies])}"
    said = [{frozenset((video.start, video.end, video.labels) for video in file) for file in files} for files in copies]
    if any(len(labels) > 1 for labels in said):
        remark = f"beware: with different labels, perhaps: {remark}"
    original = {file[0].path: files[0][0].path for files in copies for file in files}
    # As if they were one file: then they join their groups, and these all of their videos.
    joined = groups_of(replace(video, path=original.get(video.path, video.path)) for video in source.videos)
    group_of = {joined[files[0][0].name]: files[0][0].group or f"copies of {files[0][0].name}" for files in copies}
    grouped = tuple(replace(video, group=group_of.get(joined[video.name], video.group)) for video in source.videos)
    return replace(source, videos=grouped, remarks=(*source.remarks, remark))


def _ends(path: Path) -> bytes:
    """A digest of a file's beginning and end: of all of it would take as long as to read the data."""
    with path.open("rb") as file:
        begin = file.read(_ENDS)
        file.seek(max(0, path.stat().st_size - _ENDS))
        return sha256(begin + file.read()).digest()


def leaks(videos: Sequence[Video]) -> list[str]:
    """What stands in more than one split, so that a model is scored by what it has learnt from."""
    splits_of: dict[str, set[str]] = defaultdict(set)
    for video in videos:
        if video.group and video.split:
            splits_of[video.group].add(video.split)
    shared = [f"the group {group}" for group, splits in splits_of.items() if len(splits) > 1]
    learnt_from = [video.name for video in videos if video.split == "train"]
    shared += overlapping([video.name for video in videos if video.split in ("val", "test")], learnt_from)
    return [f"beware: in more than one split, and so scored by what was learnt: {some(shared)}"] if shared else []


def nearly_one_class(classes: Iterable[str]) -> list[str]:
    """Classes whose names are perhaps one, written in different ways."""
    spellings: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        spellings[re.sub(r"(?<=[^\W\d_])[\s_-]+(?=[^\W\d_])", "", name.casefold())].append(name)  # between letters
    doubtful = [" and ".join(names) for names in spellings.values() if len(names) > 1]
    return [f"beware: these are different classes: {some(doubtful)}"] if doubtful else []


def one_level_too_high(videos: Sequence[Video]) -> list[str]:
    """A folder of class folders where the folders in these bear the same names, as if they were the classes."""
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
        f"the classes are {some(sorted(outer))}; if they are to be {some(shared)}, which are folders in several of "
        "these, put those of one name together, or list the videos in a CSV file"
    ]
