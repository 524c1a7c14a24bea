"""Interlaced video whose right pixels are known. Its frames are stored as two fields, a packet for each.

No encoder of FFmpeg writes such files.
"""

import re
from fractions import Fraction

import av
import numpy as np
import pytest
from rich.console import Console

from airstreams.config import Config
from airstreams.console import Progress
from airstreams.data.cache import FrameCache
from airstreams.data.dataset import VideoViews
from airstreams.data.listing import Video
from airstreams.data.video import check, iterate_frames, probe, read_frames

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


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_two_fields_are_one_frame(tmp_path, suffix):
    draw = np.random.default_rng(0)
    images = [draw.integers(30, 220, (SIZE, SIZE)).astype(np.uint8) for _ in range(FRAMES)]
    path = write(tmp_path / f"fields{suffix}", images)
    with av.open(str(path)) as container:
        assert len([packet for packet in container.demux(video=0) if packet.size]) == 2 * FRAMES
    with av.open(str(path)) as container:
        decoded = list(container.decode(video=0))
    assert all(np.array_equal(frame.to_ndarray()[:SIZE], image) for frame, image in zip(decoded, images, strict=True))
    right = [frame.to_ndarray(format="rgb24") for frame in decoded]
    info = check(path)
    assert info.frames == FRAMES
    assert info.encoding.interlaced
    assert info.times == pytest.approx(np.arange(FRAMES) / 30, abs=0.001)
    assert info.encoding.key_frames_apart == (FRAMES if suffix == ".ts" else KEY_FRAMES_APART)
    for indices in ([23], [9, 0, 17], range(FRAMES)):
        assert np.array_equal(read_frames(path, indices), [right[index] for index in indices])
    assert np.array_equal(list(iterate_frames(path)), right)
    assert probe(path).frames == FRAMES


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


@pytest.mark.parametrize("suffix", [".mp4", ".ts"])
def test_deinterlaced_frames_show_the_moment_of_their_first_field(tmp_path, suffix):
    path = moving(tmp_path / f"fields{suffix}")
    frames = read_frames(path, range(FRAMES), deinterlace="auto")[..., 0]
    for number, frame in enumerate(frames):
        error = np.abs(frame - in_rgb(moment(2 * number)))
        assert error[::2].max() <= 1  # the first field stays as it is
        within = slice(2, -4) if number == 0 else slice(None)  # no frame before the first one helps at its borders
        assert error[within].max() <= 1
    combs = read_frames(path, [5])[0, ..., 0]
    assert np.abs(combs - in_rgb(moment(10))).max() > 20
    assert probe(path).frames == FRAMES


@pytest.mark.parametrize("suffix", [".mp4", ".ts"])
def test_deinterlaced_frames_do_not_depend_on_where_reading_began(tmp_path, suffix):
    path = moving(tmp_path / f"fields{suffix}")
    in_order = list(iterate_frames(path, deinterlace="auto"))
    assert len(in_order) == FRAMES
    for indices in (*([index] for index in range(FRAMES)), [17, 3, 9, 3], range(KEY_FRAMES_APART, FRAMES, 3)):
        assert np.array_equal(read_frames(path, indices, deinterlace="auto"), [in_order[index] for index in indices])


def test_deinterlacing_does_not_mix_recordings_that_were_joined(tmp_path):
    first, second = moving(tmp_path / "a.ts"), moving(tmp_path / "b.ts", 20)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    (joint,) = probe(joined).joints
    alone = list(iterate_frames(second, deinterlace="auto"))
    assert np.array_equal(list(iterate_frames(joined, deinterlace="auto"))[joint:], alone)
    assert np.array_equal(read_frames(joined, [joint, joint - 1], deinterlace="auto")[0], alone[0])


def test_views_and_the_cache_deinterlace_by_the_config(tmp_path):
    path, config, video = moving(tmp_path / "fields.mp4"), Config(), Video(tmp_path / "fields.mp4", "fields", ("a",))
    deinterlaced = VideoViews([video], config).read(video).clips
    config.data.deinterlace = "off"
    assert not np.array_equal(VideoViews([video], config).read(video).clips, deinterlaced)
    for deinterlace in ("auto", "off"):
        cache = FrameCache(tmp_path / "cache", 10**9, SIZE, deinterlace)
        with Progress(console=Console(quiet=True)) as progress:
            cache.prepare([video], None, progress)
        assert cache.holds(path)
        assert np.array_equal(cache.read_frames(path, [7, 2]), read_frames(path, [7, 2], SIZE, deinterlace))
