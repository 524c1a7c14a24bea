"""Flash video: a sequence of tags. Each begins with its kind and its size, and is followed by its whole length."""

import struct
from typing import BinaryIO

from airstreams.data.containers.ending import Ending
from airstreams.errors import VideoError

_HEADER, _TAG, _AFTER = 9, 11, 4  # bytes of the file's header, of a tag's header, and of the length after a tag
_SCRIPT = 18  # the kind of the tag with the file's properties


def ending(file: BinaryIO, length: int) -> Ending:
    """Where the sound part ends. VideoError: truncated, or a tag in the middle is damaged."""
    file.seek(0)
    head = file.read(_HEADER)
    offset = int.from_bytes(head[5:9]) + _AFTER
    declared: float | None = None
    while offset < length:
        file.seek(offset)
        tag = file.read(_TAG)
        end = offset + _TAG + int.from_bytes(tag[1:4])
        if len(tag) < _TAG or end > length:
            if declared:
                raise VideoError("truncated: the file ends within a tag")
            return Ending(end=offset, open_ended=True)
        if tag[0] == _SCRIPT and declared is None:
            script = file.read(end - offset - _TAG)
            declared = _number(script, b"duration")
            if _number(script, b"filesize") > length:
                raise VideoError("truncated: the file is shorter than its header says")
        file.seek(end)
        after = file.read(_AFTER)
        if len(after) == _AFTER and int.from_bytes(after) not in (end - offset, 0):
            if not any(tag):  # padding
                return Ending(end=offset, open_ended=not declared)
            raise VideoError(f"unreadable: damaged at byte {offset}")
        offset = end + _AFTER
    return Ending(open_ended=not declared)


def _number(script: bytes, name: bytes) -> float:
    """A number among the properties, which are in the format AMF 0; 0: there is none."""
    mark = len(name).to_bytes(2) + name + b"\0"
    begin = script.find(mark)
    value = script[begin + len(mark) : begin + len(mark) + 8]
    return 0.0 if begin < 0 or len(value) < 8 else float(struct.unpack(">d", value)[0])
