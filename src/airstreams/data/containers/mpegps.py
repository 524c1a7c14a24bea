"""MPEG program streams (ISO/IEC 13818-1, 11172-1; .mpg, .vob): packs and packets, which begin with a start code."""

from typing import BinaryIO

from airstreams.data.containers.ending import Ending

_END, _PACK = 0xB9, 0xBA


def ending(file: BinaryIO, length: int) -> Ending:
    """Where the sound part ends.

    A picture extends over several packets. After a cut, the last whole packet may hold a part of one.
    """
    offset = 0
    while offset < length:
        file.seek(offset)
        head = file.read(14)
        if len(head) >= 4 and not any(head):  # padding
            break
        if len(head) >= 4 and (head[:3] != b"\0\0\1" or head[3] < _END):
            return Ending(open_ended=True)  # not aligned: FFmpeg searches the next start code, as after a lost sector
        if len(head) >= 4 and head[3] == _END:
            offset += 4
            continue
        size = _size(head)
        if size is None or offset + size > length:
            return Ending(end=offset, open_ended=True, last_picture_whole=False)
        offset += size
    return Ending(open_ended=True)


def _size(head: bytes) -> int | None:
    """The length of a pack's header or of a packet, in bytes; None: it is cut."""
    if len(head) < 6:
        return None
    if head[3] != _PACK:
        return 6 + int.from_bytes(head[4:6])
    if head[4] >> 4 == 2:  # MPEG-1
        return 12
    return 14 + (head[13] & 7) if len(head) == 14 else None
