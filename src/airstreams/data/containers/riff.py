"""AVI: a RIFF file, which is a sequence of chunks. Each begins with its name and its size, and has an even length.

A file of over 2 GB has several RIFF chunks. A recorder that was stopped leaves a size of 0.
"""

from typing import BinaryIO

from airstreams.data.containers.ending import Ending
from airstreams.errors import VideoError

_UNKNOWN = (0, 0xFFFFFFFF)


def ending(file: BinaryIO, length: int) -> Ending:
    """Where the sound part ends. VideoError: truncated."""
    offset = 0
    while offset + 12 <= length:
        name, size = _chunk(file, offset)
        if name != b"RIFF":  # what follows the video
            break
        if size in _UNKNOWN:
            return Ending(end=_last_chunk(file, offset + 12, length), open_ended=True)
        end = offset + 8 + size
        if end - 8 > length:  # some writers count the eight bytes of this header too
            raise VideoError("truncated: the file ends within its 'RIFF' chunk")
        _refuse_cut_list(file, offset + 12, min(end, length), length)
        offset = end + size % 2
    return Ending()


def _refuse_cut_list(file: BinaryIO, offset: int, end: int, length: int) -> None:
    """VideoError: the file ends within a chunk of a RIFF chunk."""
    while offset + 8 <= end:
        name, size = _chunk(file, offset)
        if not _is_name(name):  # padding
            return
        offset += 8 + size + size % 2
        if offset - size % 2 > length:
            raise VideoError(f"truncated: the file ends within its {name.decode('latin-1')!r} chunk")


def _last_chunk(file: BinaryIO, offset: int, length: int) -> int:
    """Where the last whole chunk ends in a file whose lists have no size yet."""
    while offset + 8 <= length:
        name, size = _chunk(file, offset)
        if name == b"LIST" and (size in _UNKNOWN or offset + 8 + size > length):
            offset += 12
            continue
        if not _is_name(name) or offset + 8 + size > length:
            break
        offset += 8 + size + size % 2
    return min(offset, length)


def _is_name(name: bytes) -> bool:
    return all(32 <= letter < 127 for letter in name)


def _chunk(file: BinaryIO, offset: int) -> tuple[bytes, int]:
    file.seek(offset)
    head = file.read(8)
    return head[:4], int.from_bytes(head[4:8], "little")
