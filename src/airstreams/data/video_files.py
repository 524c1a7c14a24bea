"""A folder with one file for each video that a teacher has seen, by the video's key.

Label maps (`label_maps.py`) and all other targets (`value_store.py`) are kept in this way: annotation is easy to resume
and to run in parallel. The key is the video's name when it was annotated. `contents.csv` has the content of each video
(`content.py`), so that its targets are found after it was moved or renamed.
"""

import functools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np

from airstreams.errors import InputError, VideoError
from airstreams.files import is_file, read_rows, write_rows


@dataclass(frozen=True)
class VideoFiles(ABC):
    """The files of many videos. Cheap to pickle: it holds no open file and no array."""

    root: Path
    suffix: ClassVar[str]

    def file_of(self, key: str) -> Path:
        """The path of a video's file."""
        return path_of(self.root, key, self.suffix)

    def keys(self) -> Iterator[str]:
        """The keys of the videos that have a file, found while the folder is walked, in no order.

        Names that begin with a dot are skipped: they are temporary files.
        """
        folders = [self.root]
        while folders:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        folders.append(Path(entry.path))
                    elif entry.name.endswith(self.suffix):
                        yield _key_of(self.root, Path(entry.path))

    @property
    def _contents(self) -> Path:
        return self.root / "contents.csv"

    @property
    def knows_contents(self) -> bool:
        """Whether the store knows the contents of its videos."""
        return self._contents.is_file()

    def read_contents(self) -> dict[str, str]:
        """The content of each video by its key; empty for a store that does not know them. InputError: damaged."""
        if not self.knows_contents:
            return {}
        rows = read_rows(self._contents, required=("key", "content"))
        return {row["key"]: row["content"] for _, row in rows}

    def write_contents(self, contents: Mapping[str, str]) -> None:
        """Write the content of each video by its key."""
        write_rows(self._contents, ("key", "content"), sorted(contents.items()))

    def has(self, key: str) -> bool:
        """Whether a video has a file."""
        return is_file(self.file_of(key))

    def labelled_frames(self, key: str) -> np.ndarray:
        """The indices of the labelled frames, int64 (N,), ascending, read-only; empty where there are none.

        They are remembered, since training reads them in every epoch. VideoError: the file is broken.
        """
        path = self.file_of(key)
        if not is_file(path):
            return np.empty(0, np.int64)
        # The modification time is part of the cache's key, so a file that was annotated again is read again.
        return _remembered(self.read_frame_indices, str(path), path.stat().st_mtime_ns)

    @staticmethod
    @abstractmethod
    def read_frame_indices(path: Path) -> np.ndarray:
        """The labelled frames of a file, int64 (N,), ascending. VideoError: the file is broken."""


def select_frames(
    indices: Sequence[int] | np.ndarray,
    frames: np.ndarray,
    read: Callable[[np.ndarray], np.ndarray | None],
    absent: float,
) -> np.ndarray | None:
    """Assemble the arrays (N, ...) of the frames `indices`.

    Args:
        indices: (N,), in any order.
        frames: the labelled frames, ascending.
        read: returns the arrays (M, ...) at some positions (M,) in `frames`, or None.
        absent: the value of all places of a frame without an array.

    Returns:
        None where `read` returns None.
    """
    wanted = np.asarray(indices, np.int64)
    labelled = np.isin(wanted, frames)
    found = read(np.searchsorted(frames, wanted[labelled]))
    if found is None:
        return None
    chosen = np.full((len(wanted), *found.shape[1:]), absent, found.dtype)
    chosen[labelled] = found
    return chosen


def path_of(root: Path, key: str, suffix: str) -> Path:
    """The path of a video's file in a folder."""
    # A CSV file may name videos outside its folder. Their files still go into the store.
    inside = {"/": "%2F", "//": "%2F", "..": "%2E%2E"}
    *folders, name = (inside.get(part, part) for part in PurePosixPath(key).parts)
    return root.joinpath(*folders, f"{name}{suffix}")


def _key_of(root: Path, path: Path) -> str:
    """The inverse of `path_of`."""
    outside = {"%2F": "/", "%2E%2E": ".."}
    return str(PurePosixPath(*(outside.get(part, part) for part in path.relative_to(root).with_suffix("").parts)))


@functools.cache
def _remembered(read: Callable[[Path], np.ndarray], path: str, modified_ns: int) -> np.ndarray:
    return read(Path(path))


def checked_frames(path: Path, stored: np.ndarray) -> np.ndarray:
    """The frame indices of a file, int64 and read-only. VideoError: they are not ascending whole numbers."""
    frames = stored.astype(np.int64)
    if not np.issubdtype(stored.dtype, np.integer) or frames.ndim != 1 or not is_ascending(frames):
        raise VideoError("broken targets: frame_indices is not a list of ascending whole numbers", path)
    frames.flags.writeable = False
    return frames


def mirrored_pairs(about: Path, given: Any, names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Pairs of names that change places in a mirrored picture. InputError: they are not pairs of these names.

    about: the file that has them, for the message.
    """
    pairs = [tuple(pair) if isinstance(pair, (list, tuple)) else (pair,) for pair in given or ()]
    each = [name for pair in pairs for name in pair]
    known = all(isinstance(name, str) and name in names for name in each)
    if not known or any(len(pair) != 2 for pair in pairs) or len(set(each)) < len(each):
        raise InputError(
            f"{about}: mirrored is {given!r:.200}. Make it a list of pairs of names, such as [left hand, right hand], "
            "each name once."
        )
    return tuple(pairs)


def is_ascending(frames: np.ndarray) -> bool:
    """Whether numbers are frame indices in ascending order."""
    return bool((frames >= 0).all() and (np.diff(frames) > 0).all())
