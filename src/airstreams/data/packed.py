"""A long list of videos that processes share. Reading an ordinary list in a forked process copies its memory.

Python counts the references to each object in the object itself, so that even reading writes. The videos are therefore
kept as one string of bytes, which holds each as JSON.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from airstreams.data.listing import Action, Video


class PackedVideos(Sequence[Video]):
    """A list that cannot change. Each access makes a new object, equal to the one that was given."""

    def __init__(self, videos: Iterable[Video]) -> None:
        parts = [_packed(video) for video in videos]
        self._ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        self._bytes = b"".join(parts)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Video: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Video]: ...
    def __getitem__(self, index: int | slice) -> Video | Sequence[Video]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]  # negative indices, and IndexError
        begin = int(self._ends[place - 1]) if place else 0
        return _unpacked(self._bytes[begin : int(self._ends[place])])


def _packed(video: Video) -> bytes:
    values: dict[str, Any] = {name: getattr(video, name) for name in Video.__slots__}
    values["path"] = str(video.path)
    values["mask"] = None if video.mask is None else str(video.mask)
    values["actions"] = [(action.label, action.start, action.end) for action in video.actions]
    return json.dumps(list(values.values())).encode()


def _unpacked(packed: bytes) -> Video:
    values = dict(zip(Video.__slots__, json.loads(packed), strict=True))
    values["path"] = Path(values["path"])
    values["mask"] = None if values["mask"] is None else Path(values["mask"])
    values["labels"] = tuple(values["labels"])
    values["actions"] = tuple(Action(*action) for action in values["actions"])
    return Video(**values)
