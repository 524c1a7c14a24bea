"""GIF 89a: blocks up to a trailer. An extension or a picture is a chain of blocks of at most 255 bytes."""

from typing import BinaryIO

from airstreams.data.containers.ending import Ending
from airstreams.errors import VideoError

_EXTENSION, _PICTURE, _TRAILER = 0x21, 0x2C, 0x3B


def ending(file: BinaryIO, length: int) -> Ending:
    """The whole file. VideoError: truncated, or a block in the middle is damaged."""
    file.seek(0)
    head = file.read(13)
    offset = 13 + _colours(head[10:11])
    while offset < length:
        file.seek(offset)
        kind = file.read(1)[0]
        if kind == _TRAILER:
            return Ending()
        if kind == _EXTENSION:
            offset = _after_chain(file, offset + 2, length)
        elif kind == _PICTURE:
            descriptor = file.read(9)
            offset = _after_chain(file, offset + 11 + _colours(descriptor[8:9]), length)
        elif kind == 0:  # some writers leave an empty block
            offset += 1
        else:
            raise VideoError(f"unreadable: damaged at byte {offset}")
    raise VideoError("truncated: the file ends before its trailer")


def _colours(flags: bytes) -> int:
    """The length of a table of colours, in bytes."""
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0


def _after_chain(file: BinaryIO, offset: int, length: int) -> int:
    """Where a chain of blocks ends. An empty block ends it."""
    while offset < length:
        file.seek(offset)
        size = file.read(1)[0]
        offset += 1 + size
        if not size:
            return offset
    raise VideoError("truncated: the file ends before its trailer")
