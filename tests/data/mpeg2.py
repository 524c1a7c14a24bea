"""Writes MPEG-2 video of field pictures, which FFmpeg can decode but not encode (ISO/IEC 13818-2, section 6.2).

Each field is of one grey: only the DC coefficients of blocks are coded, so pixels are known exactly.
"""

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av

SIZE = 64  # of a frame, px: whole macroblocks, also in a field
_SIZES_OF_LUMA = (
    "100",
    "00",
    "01",
    "101",
    "110",
    "1110",
    "11110",
    "111110",
    "1111110",
)  # of DC differences, table B.12
_NO_CHROMA, _END = "00", "10"  # a DC difference of 0 (table B.13), the end of a block (table B.14)


def write_fields(path: Path, greys: Sequence[tuple[int, int]]) -> Path:
    """Write a video of key frames at 25 per second, given the luma (16..235) of each frame's top and bottom field."""
    stream = _code(0xB3, f"{SIZE:012b}{SIZE:012b}", "0001", "0011", "1" * 18, "1", f"{112:010b}", "000")
    stream += _code(0xB5, "0001", f"{0x48:08b}", "0", "01", "0000", "0" * 12, "1", "0" * 8, "0", "00", "00000")
    for number, fields in enumerate(greys):
        for structure, grey in zip(("01", "10"), fields, strict=True):  # top field, bottom field
            stream += _code(0x00, f"{number:010b}", "001", "1" * 16, "0")
            stream += _code(0xB5, "1000", "1" * 16, "00", structure, "0000000000", "0")
            for row in range(SIZE // 32):
                stream += _code(row + 1, "00001", "0", _row(grey))
    path.write_bytes(stream + bytes.fromhex("000001b7"))
    return path


def write_container(path: Path, greys: Sequence[tuple[int, int]], packets_per_frame: int) -> Path:
    """`write_fields` in a container of the path's kind, each frame in one packet or in two."""
    plain = write_fields(path.with_suffix(".m2v"), greys)
    stream = plain.read_bytes()
    pictures = [place for place in range(len(stream)) if stream.startswith(b"\x00\x00\x01\x00", place)]
    fields_per_packet = 2 // packets_per_frame
    starts = [0, *pictures[fields_per_packet::fields_per_packet], len(stream)]
    with av.open(str(plain)) as source, av.open(str(path), "w") as target:
        track = target.add_stream_from_template(source.streams.video[0])
        for number, (start, end) in enumerate(pairwise(starts)):
            packet = av.Packet(stream[start:end])
            packet.stream, packet.time_base = track, Fraction(1, 25 * packets_per_frame)
            packet.pts = packet.dts = number
            packet.is_keyframe = number % packets_per_frame == 0
            target.mux(packet)
    return path


def _row(grey: int) -> str:
    """The bits of a row of intra macroblocks. Only the first block differs from the one before, or from middle grey."""
    difference = grey - 128
    length = abs(difference).bit_length()
    value = difference if difference > 0 else difference + 2**length - 1
    first = _SIZES_OF_LUMA[length] + (f"{value:0{length}b}" if length else "") + _END
    same = _SIZES_OF_LUMA[0] + _END
    chroma = 2 * (_NO_CHROMA + _END)
    return "".join("11" + (first if column == 0 else same) + 3 * same + chroma for column in range(SIZE // 16))


def _code(number: int, *bits: str) -> bytes:
    """A start code and what follows it, filled up to whole bytes with zeros."""
    joined = "".join(bits)
    joined += "0" * (-len(joined) % 8)
    return b"\x00\x00\x01" + bytes([number]) + int(joined, 2).to_bytes(len(joined) // 8, "big")
