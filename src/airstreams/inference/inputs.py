"""From the words of a call of `predict` to a list of videos: files, folders, CSV files, patterns, and stdin."""

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from airstreams.data.csv_list import read_paths
from airstreams.data.listing import Video, shortlist
from airstreams.data.sources import videos_below
from airstreams.errors import InputError
from airstreams.files import is_file, is_folder
from airstreams.plural import count_of

STDIN = "-"


@dataclass(frozen=True)
class Listed:
    """What a call names.

    videos: each once, in the order of the call; inside a folder, sorted. `name` is the path as it was given, with the
        segment as `#t=START,END`.
    notes: what was left aside, as sentences.
    """

    videos: list[Video]
    notes: list[str]


def list_videos(words: Sequence[str], stdin: BinaryIO, root: Path | None = None) -> Listed:
    """List the videos of a call. No video is opened.

    Args:
        words: files, folders, CSV files, patterns such as `clips/*.mp4`, or `-` for paths from `stdin`.
        stdin: one path a line, or paths with a NUL after each (`find -print0`).
        root: the folder that the paths in CSV files are relative to; None: the folder of each file.

    Raises:
        InputError: the root is no folder or no CSV file is given with it, a pattern or a folder gives no video, a CSV
            file is wrong, or none of the files exists.
    """
    if root is not None and not root.is_dir():
        raise InputError(
            f"--root {root}: not a folder. Give the folder that the paths in the CSV file are relative to."
        )
    skipped: Counter[str] = Counter()
    csv_files = 0
    notes: list[str] = []
    videos: dict[str, Video] = {}
    total = 0
    for word in words:
        given = _paths_of(stdin) if word == STDIN else [word]
        for path in given:
            csv_files += _is_csv(path)
            for video in _expanded(path, root, skipped, notes):
                total += 1
                videos.setdefault(video.name, video)
    if not videos:
        raise InputError("stdin has no paths. Give one a line.")
    if not any(_exists(video.path) for video in videos.values()):
        missing = "no such file" if len(videos) == 1 else f"none of the {len(videos)} files exists"
        fix = "Give video files on this machine, relative to the current folder."
        if csv_files:
            fix = "Give the folder that the CSV file's paths are relative to as --root DIR."
        raise InputError(f"{missing}: {shortlist(list(videos))}. {fix}")
    if root is not None and not csv_files:
        raise InputError(f"--root {root}: no CSV file is given, and only CSV files take --root. Leave it out.")
    if skipped:
        kinds = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in skipped.most_common(5))
        notes.append(f"{count_of(skipped.total(), 'file')} skipped, since the suffix is no video's: {kinds}.")
    if total > len(videos):
        notes.append(f"{count_of(total - len(videos), 'path')} given more than once: each video is predicted once.")
    return Listed(list(videos.values()), notes)


def _paths_of(stdin: BinaryIO) -> list[str]:
    content = stdin.read()
    lines = content.split(b"\0") if b"\0" in content else content.splitlines()
    return [os.fsdecode(line) for line in lines if line.strip()]


def _is_csv(word: str) -> bool:
    return word.lower().endswith(".csv") and is_file(Path(word))


def _expanded(word: str, root: Path | None, skipped: Counter[str], notes: list[str]) -> Iterator[Video]:
    path = Path(word)
    if is_folder(path):
        found = sorted(videos_below(path, skipped))
        if not found:
            raise InputError(f"{word}: the folder holds no videos. Give a folder with files such as .mp4 or .avi.")
        yield from (_video(str(video)) for video in found)
    elif _is_csv(word):
        videos, ignored = read_paths(path, root)
        notes += ignored
        for video in videos:
            yield _video(str(video.path), video.start, video.end)
    elif glob.has_magic(word) and not _exists(path):
        matches = sorted(glob.glob(word, recursive=True))  # noqa: PTH207 (Path.glob takes no absolute pattern)
        if not matches:
            raise InputError(f"{word}: no file matches the pattern. Check it with `ls`.")
        for match in matches:
            yield from _expanded(match, root, skipped, notes)
    else:
        yield _video(word)


def _exists(path: Path) -> bool:
    with suppress(OSError, ValueError):  # a name that no file can have
        return path.exists()
    return False


def _video(path: str, start: float | None = None, end: float | None = None) -> Video:
    times = ("" if time is None else f"{time}" for time in (start, end))
    segment = "" if start is None and end is None else f"#t={','.join(times)}"
    return Video(path=Path(path), name=path + segment, labels=(), start=start, end=end)
