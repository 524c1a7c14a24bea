"""MP4 and MOV (ISO/IEC 14496-12): a sequence of boxes. Each begins with its size and its name."""

from typing import BinaryIO

from airstreams.data.containers.ending import Ending
from airstreams.errors import VideoError


def ending(file: BinaryIO, length: int) -> Ending:
    """Where the sound part ends.

    A file of fragments (pairs of `moof` and `mdat`) may have been stopped: its last incomplete fragment is left out.

    VideoError: truncated.
    """
    offset = 0
    fragment: int | None = None  # where the last fragment begins
    closed = True
    while offset + 8 <= length:
        file.seek(offset)
        head = file.read(16)
        size, name = int.from_bytes(head[:4]), head[4:8]
        if size == 1:  # the size is in the eight bytes after the name
            size = int.from_bytes(head[8:16])
        if size < 8 or not _is_name(name):  # 0: the box extends to the end. Or this is padding, not a box.
            return Ending(open_ended=not closed)
        if name == b"moof":
            fragment, closed = offset, False
        elif name == b"mfra":  # the index of fragments, which is written last
            closed = True
        if offset + size > length:
            return _cut(name, offset, fragment)
        offset += size
    file.seek(offset)
    if any(file.read()):  # less than the header of a box
        return _cut(b"", offset, fragment)
    return Ending(open_ended=not closed)


def _cut(name: bytes, offset: int, fragment: int | None) -> Ending:
    if fragment is None:
        where = f"its {name.decode('latin-1')!r} box" if name else "the header of a box"
        raise VideoError(f"truncated: the file ends within {where}")
    return Ending(end=fragment if name == b"mdat" else offset, open_ended=True)


def _is_name(name: bytes) -> bool:
    """Four letters of the alphabet that names of boxes use; QuickTime's may begin with a copyright sign."""
    return all(32 <= letter < 127 or letter == 0xA9 for letter in name)
