"""Writes interlaced H.264 whose frames are stored as two fields, a packet for each. No encoder of FFmpeg does."""

import re
from fractions import Fraction

import av
import numpy as np

FRAMES, SIZE = 24, 64
KEY_FRAMES_APART = 8


def bits(*fields):
    """Each is an unsigned number in the code of Exp-Golomb, or a pair: the number, and how many bits it takes."""
    text = ""
    for field in fields:
        if isinstance(field, tuple):
            text += format(field[0], f"0{field[1]}b")
        else:
            code = format(field + 1, "b")
            text += "0" * (len(code) - 1) + code
    return text


def in_bytes(text):
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8)


def unit(header, payload):
    """A unit of H.264, with a start code before it, and without start codes in its payload."""
    return b"\0\0\0\1" + bytes([header]) + re.sub(rb"\0\0(?=[\0-\3])", b"\0\0\3", payload)


def parameter_sets(width, height):
    """Main profile, fields, CAVLC, no deblocking. 4 bits of a frame's number, and 8 of its place in the order."""
    flag = (1, 1)
    no = (0, 1)
    sequence = bits(
        (77, 8), (0, 8), (30, 8), 0, 0, 0, 4, 1, no, width // 16 - 1, height // 32 - 1, no, no, flag, no, no
    )
    picture = bits(0, 0, no, no, 0, 1, 0, no, (0, 2), 0, 0, 0, flag, no, no)
    return unit(0x67, in_bytes(sequence + "1")) + unit(0x68, in_bytes(picture + "1"))


def field(rows_HW, number, bottom):
    """One field, stored without compression (I_PCM)."""
    first = number == 0 and not bottom
    text = bits(0, 7, 0, (number % 16, 4), (1, 1), (bottom, 1))
    text += bits(0) if first else ""
    text += bits((number % KEY_FRAMES_APART * 2 + bottom, 8))
    text += bits((0, 1), (0, 1)) if first else bits((0, 1))
    text += bits(0, 1)
    data = b""
    for top in range(0, rows_HW.shape[0], 16):
        for left in range(0, rows_HW.shape[1], 16):
            block = rows_HW[top : top + 16, left : left + 16]
            data += in_bytes(text + bits(25)) + block.tobytes() + bytes([128]) * 128  # grey
            text = ""
    return data + b"\x80"


def write(path, images):
    """Write grey pictures, uint8 (H, W), with a packet for each field. Each group of frames begins anew."""
    head = parameter_sets(*images[0].shape[::-1])
    packets = []
    for number, image in enumerate(images):
        within = number % KEY_FRAMES_APART
        for bottom in (0, 1):
            is_key = within == 0 and not bottom
            content = unit(0x65 if is_key else 0x61, field(image[bottom::2], within, bottom))
            packets.append((head + content if is_key else content, is_key))
    raw = path.with_suffix(".h264")
    raw.write_bytes(b"".join(content for content, _ in packets))
    with av.open(str(raw)) as source, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for count, (content, is_key) in enumerate(packets):
            packet = av.Packet(content)
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 60), is_key
            packet.pts = packet.dts = count
            out.mux(packet)
    return path


def moment(number):
    """A bright hill, 2 px farther to the right at each field: the picture at the time of field `number`."""
    place = np.arange(2 * SIZE) - 20 - 2 * number
    return np.tile(np.round(40 + 150 * np.exp(-((place / 6) ** 2))), (SIZE, 1)).astype(np.uint8)


def in_rgb(grey_HW):
    return (grey_HW.astype(float) - 16) * 255 / 219


def moving(path, frames=FRAMES):
    """A film of the hill whose frames have the second field in their odd lines."""
    images = [moment(2 * number) for number in range(frames)]
    for number, image in enumerate(images):
        image[1::2] = moment(2 * number + 1)[1::2]
    return write(path, images)
