"""Matroska and WebM (RFC 9559): nested elements. Each begins with its id and its size, both of variable length.

A live recording has a segment of unknown size, and may have clusters of unknown size.
"""

import zlib
from dataclasses import dataclass
from typing import BinaryIO

from airstreams.data.containers.ending import Ending
from airstreams.errors import VideoError

_SEGMENT, _CLUSTER, _CRC32 = 0x18538067, 0x1F43B675, 0xBF
_BLOCKS = (0xA3, 0xA0)  # SimpleBlock and BlockGroup
# Elements of a cluster: Timestamp, SilentTracks, Position, PrevSize, EncryptedBlock; CRC-32 and Void may be anywhere.
_OF_CLUSTER = {*_BLOCKS, 0xE7, 0x5854, 0xA7, 0xAB, 0xAF, _CRC32, 0xEC}
_PIECE = 1 << 20


@dataclass(frozen=True)
class _Element:
    """An element's id, where it begins, where its content begins, and where it ends (None: unknown)."""

    id: int
    offset: int
    content: int
    end: int | None


def ending(file: BinaryIO, length: int) -> Ending:
    """Where the sound part ends. VideoError: truncated, or an element in the middle is damaged."""
    offset, open_ended, segments = 0, False, 0
    while offset < length and (element := _element(file, offset, length)) is not None:
        if element.id == _SEGMENT:
            segments += 1
            open_ended = element.end is None
            if element.end is not None and element.end > length:
                raise VideoError("truncated: the file ends within its segment")
            end, stopped = _walk_segment(file, element.content, length if element.end is None else element.end)
            if stopped:
                return Ending(end=end, open_ended=True)
            offset = end
        elif element.end is None or element.end > length:
            break
        else:
            offset = element.end
    if offset < length and not _is_padding(file, offset, length):
        if not segments:
            raise VideoError("truncated: the file ends within its header")
        return Ending(end=offset, open_ended=True)
    return Ending(open_ended=open_ended)


def _walk_segment(file: BinaryIO, offset: int, end: int) -> tuple[int, bool]:
    """Where the last whole element of a segment ends, and whether more bytes follow in the file."""
    while offset < end:
        element = _element(file, offset, end)
        if element is None:
            if _is_padding(file, offset, end):
                return end, False
            if end - offset < 12:  # a header that is cut
                return offset, True
            raise VideoError(f"unreadable: damaged at byte {offset}")
        if element.id == _CLUSTER:
            reached = _walk_cluster(file, element, end)
            if reached is None:  # cut
                return _last_block(file, element, end), True
            _compare_checksum(file, element, reached)
            offset = reached
        elif element.end is None:
            return offset, False  # the header of another file
        elif element.end > end:
            return offset, True
        else:
            offset = element.end
    return offset, False


def _walk_cluster(file: BinaryIO, cluster: _Element, end: int) -> int | None:
    """Where a cluster ends; None: the file ends within it. VideoError: its elements do not fill it."""
    limit = end if cluster.end is None else cluster.end
    offset = cluster.content
    while offset < min(limit, end):
        element = _element(file, offset, end)
        if element is None and end - offset < 12:
            return None
        if cluster.end is None and (element is None or element.id not in _OF_CLUSTER):
            return offset
        if element is None or element.end is None or (element.end > limit <= end):
            raise VideoError(f"unreadable: damaged at byte {offset}")
        if element.end > end:
            return None
        offset = element.end
    return offset if cluster.end is None or cluster.end <= end else None


def _last_block(file: BinaryIO, cluster: _Element, end: int) -> int:
    """Where the last whole element of a cluster that is cut ends; where the cluster begins if it has no whole block."""
    offset, last = cluster.content, cluster.offset
    while (element := _element(file, offset, end)) is not None and element.end is not None and element.end <= end:
        offset = element.end
        if element.id in _BLOCKS:
            last = offset
    return last


def _compare_checksum(file: BinaryIO, cluster: _Element, end: int) -> None:
    """VideoError: the cluster has a CRC-32 as its first element, and it differs from the content's."""
    first = _element(file, cluster.content, end)
    if first is None or first.id != _CRC32 or first.end is None or first.end - first.content != 4:
        return
    file.seek(first.content)
    stored, found, left = int.from_bytes(file.read(4), "little"), 0, end - first.end
    while left > 0 and (piece := file.read(min(left, _PIECE))):
        found, left = zlib.crc32(piece, found), left - len(piece)
    if found != stored:
        raise VideoError(f"unreadable: the checksum of the cluster at byte {cluster.offset} differs")


def _element(file: BinaryIO, offset: int, limit: int) -> _Element | None:
    """The element that begins at an offset; None where none begins, or its header is cut."""
    file.seek(offset)
    head = file.read(min(12, limit - offset))
    if not head or head[0] < 16:  # an id has at most 4 bytes
        return None
    id_bytes = 9 - head[0].bit_length()
    if len(head) <= id_bytes or not head[id_bytes]:
        return None
    size_bytes = 9 - head[id_bytes].bit_length()
    if len(head) < id_bytes + size_bytes:
        return None
    value = int.from_bytes(head[id_bytes : id_bytes + size_bytes]) & ((1 << 7 * size_bytes) - 1)
    content = offset + id_bytes + size_bytes
    unknown = value == (1 << 7 * size_bytes) - 1
    return _Element(int.from_bytes(head[:id_bytes]), offset, content, None if unknown else content + value)


def _is_padding(file: BinaryIO, offset: int, end: int) -> bool:
    """Whether there are only zeros (some recorders reserve space)."""
    file.seek(offset)
    while offset < end:
        piece = file.read(min(_PIECE, end - offset))
        if not piece:
            break
        if any(piece):
            return False
        offset += len(piece)
    return True
