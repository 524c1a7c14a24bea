"""MPEG transport streams (ISO/IEC 13818-1; .ts, .m2ts): packets of 188 bytes, or of 192 or 204 with an addition.

Each packet has the number of its stream (PID) and a counter. A picture is a PES packet: it begins in a packet of its
own and fills those that follow. The rest of its last packet is stuffed.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from airstreams.data.containers.ending import Ending
from airstreams.errors import VideoError

_SYNC = 0x47
_SIZES = {188: 0, 192: 4, 204: 0}  # bytes of a packet: where its sync byte is
_BLOCK = 8 << 20
_SEARCHED = 1 << 20  # bytes that are searched for the next packet
_IN_A_ROW = 4  # so many sync bytes in a row show where packets are


@dataclass(frozen=True, eq=False)
class _Packets:
    """The packets of one stream, in the order of the file.

    Attributes:
        position: where each begins, in bytes.
        begins: whether a PES packet begins with it.
        counter: 0 to 15.
        payload: bytes of content.
        stuffed: whether it holds stuffing, as the last one of a PES packet does.
        restarts: whether it announces that the counter jumps.
        failed: whether the receiver marked it as damaged.
        declared: the length of the PES packet that begins; 0: unknown.
    """

    position: np.ndarray
    begins: np.ndarray
    counter: np.ndarray
    payload: np.ndarray
    stuffed: np.ndarray
    restarts: np.ndarray
    failed: np.ndarray
    declared: np.ndarray


def ending(file: BinaryIO, length: int, pid: int) -> Ending:
    """Where the sound part ends, and where recordings are joined.

    Recordings are joined where the counter jumps between two whole PES packets.

    VideoError: a packet in the middle is lost or damaged.
    """
    packets, aligned_until = _packets_of(file, pid)
    first = np.flatnonzero(packets.begins)
    if not len(first):
        return Ending(open_ended=True)
    if packets.failed.any():
        raise VideoError(f"unreadable: the packet at byte {packets.position[packets.failed.argmax()]} is damaged")
    whole = _whole(packets, first)
    # Packets without content do not count.
    content = np.flatnonzero(packets.payload > 0)
    expected = (packets.counter[content[:-1]] + 1) & 15
    jumps = content[1:][(packets.counter[content[1:]] != expected) & ~packets.restarts[content[1:]]]
    jumps = jumps[jumps > first[0]]
    for jump in jumps:
        if not packets.begins[jump] or not whole[np.searchsorted(first, jump) - 1]:
            raise VideoError(f"unreadable: packets are missing before byte {packets.position[jump]}")
    short = np.flatnonzero(~whole[:-1] & (packets.declared[first[:-1]] > 0))
    if len(short):
        raise VideoError(f"unreadable: packets are missing after byte {packets.position[first[short[0]]]}")
    joints = tuple(int(position) for position in packets.position[jumps])
    end = int(packets.position[first[-1]]) if not whole[-1] else None
    if end is None and 0 < length - aligned_until < min(_SIZES):  # a packet that is cut
        end = aligned_until
    return Ending(end=end, open_ended=True, joints=joints)


def _whole(packets: _Packets, first: np.ndarray) -> np.ndarray:
    """Whether each PES packet is whole: it has its declared length, or else its last packet is stuffed."""
    last = np.append(first[1:], len(packets.begins)) - 1
    sums = np.add.reduceat(packets.payload, first)
    declared = packets.declared[first]
    stuffed = np.logical_or.reduceat(packets.stuffed, first) & packets.stuffed[last]
    return np.where(declared > 0, sums >= declared, stuffed)


def _packets_of(file: BinaryIO, pid: int) -> tuple[_Packets, int]:
    """The packets of one stream, and where the last packet of the file ends."""
    parts = [_select(np.empty((0, min(_SIZES)), np.uint8), np.empty(0, np.int64), pid)]
    offset, size = _find_packets(file, 0, _SIZES)
    reached = offset
    while size:
        file.seek(offset)
        data = np.frombuffer(file.read(_BLOCK // size * size), np.uint8)
        rows = data[: len(data) // size * size].reshape(-1, size)
        in_sync = rows[:, _SIZES[size]] == _SYNC
        aligned = len(rows) if in_sync.all() else int(in_sync.argmin())
        parts.append(_select(rows[:aligned, _SIZES[size] :], offset + size * np.arange(aligned), pid))
        offset += aligned * size
        reached = offset
        if aligned < len(rows):  # bytes are lost: search the next packet
            offset, size = _find_packets(file, offset + 1, (size,))
        elif len(data) < _BLOCK // size * size:
            break
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _Packets.__annotations__}
    return _Packets(**joined), reached


def _find_packets(file: BinaryIO, offset: int, sizes: Iterable[int]) -> tuple[int, int]:
    """Where the next packet begins, and its size; size 0: there is none."""
    found = list[tuple[int, int]]()
    file.seek(offset)
    sync = np.frombuffer(file.read(_SEARCHED), np.uint8) == _SYNC
    for size in sizes:
        length = len(sync) - (_IN_A_ROW - 1) * size
        if length > 0:
            row = np.logical_and.reduce([sync[count * size :][:length] for count in range(_IN_A_ROW)])
            if row.any():
                found.append((offset + max(0, int(row.argmax()) - _SIZES[size]), size))
    return min(found, default=(offset, 0))


def _select(rows: np.ndarray, position: np.ndarray, pid: int) -> _Packets:
    """The packets of one stream among all; `rows`: uint8 (N, at least 188)."""
    own = np.flatnonzero((rows[:, 1].astype(np.uint16) & 31) << 8 | rows[:, 2] == pid)
    rows = rows[own, :188].astype(np.int32)  # with room for sums
    begins = (rows[:, 1] & 0x40) > 0
    adapted = (rows[:, 3] & 0x20) > 0
    length = np.where(adapted, rows[:, 4], -1)  # of the adaptation field, after its first byte
    flags = np.where(length > 0, rows[:, 5], 0)
    payload = np.where(rows[:, 3] & 0x10, 183 - length, 0)
    start = np.clip(4 + 1 + length, 0, 182)[:, None] + np.arange(6)
    head = np.take_along_axis(rows, start, axis=1)
    is_pes = begins & (head[:, 0] == 0) & (head[:, 1] == 0) & (head[:, 2] == 1)
    size = head[:, 4] << 8 | head[:, 5]
    return _Packets(
        position=position[own],
        begins=begins,
        counter=rows[:, 3] & 15,
        payload=np.maximum(payload, 0),
        stuffed=adapted & ((length == 0) | (length > _used(rows, flags))),
        restarts=(flags & 0x80) > 0,
        failed=((rows[:, 1] & 0x80) > 0) | (payload < 0),
        declared=np.where(is_pes & (size > 0), size + 6, 0),
    )


def _used(rows: np.ndarray, flags: np.ndarray) -> np.ndarray:
    """The length of an adaptation field without its stuffing, after its first byte."""
    used = 1 + 6 * ((flags & 0x10) > 0) + 6 * ((flags & 0x08) > 0) + ((flags & 0x04) > 0)
    for flag in (0x02, 0x01):  # private data, then the extension: each begins with its length
        at = np.minimum(5 + used, 187)[:, None]
        used = used + np.where(flags & flag, 1 + np.take_along_axis(rows, at, axis=1)[:, 0], 0)
    return used
