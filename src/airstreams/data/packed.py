"""A long list that processes share. Reading an ordinary list in a forked process copies its memory, page by page.

Python counts the references to each object in the object itself, so that even reading writes. The entries are therefore
kept as bytes in two arrays.
"""

import pickle
from collections.abc import Iterable, Sequence
from typing import TypeVar, overload

import numpy as np

T = TypeVar("T")


class PackedList(Sequence[T]):
    """A list that cannot change. Each access makes a new object, equal to the one that was given."""

    def __init__(self, items: Iterable[T]) -> None:
        parts = [pickle.dumps(item, pickle.HIGHEST_PROTOCOL) for item in items]
        self._ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        self._bytes = b"".join(parts)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]  # negative indices, and IndexError
        begin = int(self._ends[place - 1]) if place else 0
        item: T = pickle.loads(self._bytes[begin : int(self._ends[place])])
        return item
