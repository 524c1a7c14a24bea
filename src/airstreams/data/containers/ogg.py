"""Ogg (RFC 3533): a sequence of pages. Each has a checksum, and says whether its stream begins or ends with it."""

import zlib
from typing import BinaryIO

from airstreams.data.containers.ending import Ending
from airstreams.errors import VideoError

_HEADER = 27
_BEGINS, _ENDS = 2, 4  # bits of a page's flags
_REVERSED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


def ending(file: BinaryIO, length: int) -> Ending:
    """Where the sound part ends. VideoError: a page in the middle is damaged."""
    offset = 0
    begun, ended = set[bytes](), set[bytes]()
    while offset < length:
        file.seek(offset)
        head = file.read(_HEADER)
        sizes = file.read(head[26]) if len(head) == _HEADER else b""
        body = file.read(sum(sizes))
        end = offset + len(head) + len(sizes) + sum(sizes)
        if len(head) < _HEADER or len(sizes) < head[26] or end > length:
            return Ending(end=offset, open_ended=True)
        if head[:4] != b"OggS" or _checksum(head[:22] + bytes(4) + head[26:] + sizes + body) != head[22:26]:
            if not any(head):  # padding
                return Ending(end=offset, open_ended=begun != ended)
            raise VideoError(f"unreadable: the page at byte {offset} is damaged")
        if head[5] & _BEGINS:
            begun.add(head[14:18])
        if head[5] & _ENDS:
            ended.add(head[14:18])
        offset = end
    return Ending(open_ended=begun != ended)


def _checksum(page: bytes) -> bytes:
    """The checksum that a page stores, computed on a page with zeros in its place.

    It has the polynomial of `zlib.crc32`, but takes the bits of a byte in the other order, and starts from 0.
    """
    reflected = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return reflected.to_bytes(4).translate(_REVERSED)
