"""Colours and shapes of files whose right pixels are known."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from airstreams.data.video import iterate_frames, probe, read_frames

RGB = np.array([200.0, 40.0, 60.0])
# The weights of red and blue in brightness, by standard.
WEIGHTS = {"BT.601": (0.299, 0.114), "BT.709": (0.2126, 0.0722)}


def yuv_of(standard):
    """The colour as stored, in the limited range."""
    red, blue = WEIGHTS[standard]
    y = float(RGB @ [red, 1 - red - blue, blue])
    u, v = (RGB[2] - y) / (2 - 2 * blue), (RGB[0] - y) / (2 - 2 * red)
    return [round(16 + y * 219 / 255), round(128 + u * 224 / 255), round(128 + v * 224 / 255)]


def write(path, standard, width, height, colorspace=None):
    if "libx264" not in av.codecs_available:
        pytest.skip("this build of PyAV has no encoder libx264")
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=30, options={"qp": "0", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p"
        if colorspace is not None:
            stream.codec_context.colorspace = colorspace
        for number in range(2):
            planes = [np.full((height, width), value, np.uint8) for value in yuv_of(standard)]
            frame = av.VideoFrame.from_ndarray(np.stack(planes), format="yuv444p")
            frame.pts, frame.time_base = number, Fraction(1, 30)
            if colorspace is not None:
                frame.colorspace = colorspace
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("standard", "width", "height", "colorspace"),
    [
        ("BT.709", 1280, 32, None),
        ("BT.709", 32, 578, None),
        ("BT.601", 1278, 32, None),
        ("BT.601", 32, 576, None),
        ("BT.709", 32, 32, 1),
        ("BT.601", 1280, 32, 6),
    ],
)
def test_untagged_hd_is_read_as_bt_709_and_smaller_video_as_bt_601(tmp_path, standard, width, height, colorspace):
    path = write(tmp_path / "a.mp4", standard, width, height, colorspace)
    for short_side in (None, 16):
        assert np.abs(read_frames(path, [1], short_side)[0].astype(float) - RGB).max() <= 3


def shape_of(path, aspect, turned=False):
    """The size of a file with bars of 8 px, 64 x 48 as stored, by `probe`; and the width and number of its bars."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mjpeg", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        stream.sample_aspect_ratio = aspect
        bars = np.zeros((48, 64, 3), np.uint8)
        bars[:, np.arange(64) % 16 < 8] = 255
        for number in range(2):
            frame = av.VideoFrame.from_ndarray(bars, format="rgb24").reformat(format="yuvj420p")
            frame.pts, frame.time_base = number, Fraction(1, 30)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    if turned:
        data = bytearray(path.read_bytes())
        struct.pack_into(">5i", data, data.index(b"tkhd") + 44, 0, 1 << 16, 0, -1 << 16, 0)
        path.write_bytes(data)
    info = probe(path)
    picture = read_frames(path, [0])[0].astype(int)
    assert picture.shape == (info.height, info.width, 3)
    line = picture[:, 1, 0] if turned else picture[1, :, 0]
    edges = np.flatnonzero(np.diff(line > 128))
    assert len(edges) == 7
    return info.width, info.height, round(float(np.diff(edges).mean()))


def test_pixels_are_stretched_to_squares(tmp_path):
    assert shape_of(tmp_path / "wide.mp4", Fraction(2, 1)) == (128, 48, 16)
    assert shape_of(tmp_path / "narrow.mp4", Fraction(1, 2)) == (32, 48, 4)
    assert shape_of(tmp_path / "turned.mp4", Fraction(2, 1), turned=True) == (48, 128, 16)
    assert shape_of(tmp_path / "rounded.mp4", Fraction(200, 199)) == (64, 48, 8)
    assert shape_of(tmp_path / "wrong.mkv", Fraction(1, 100)) == (64, 48, 8)
    assert read_frames(tmp_path / "wide.mp4", [0], short_side=24).shape == (1, 24, 64, 3)


# Brightness in cd/m2, as stored in PQ and in HLG (ITU-R BT.2408 table 1, and BT.2100), and in usual video, whose white
# is 203 cd/m2: the darker half as it is, brighter parts compressed (BT.2390).
GREYS = [
    (0, 0.0, 0.0, 0),
    (26, 0.38, 0.38, 255 * (26 / 203) ** (1 / 2.4)),
    (203, 0.58, 0.75, 255 * 0.79 ** (1 / 2.4)),
    (1000, 0.7518, 1.0, 255),
]


def write_hdr(path, transfer, rgb):
    """A file of one colour, in stored values of 0..1, of BT.2020."""
    r, g, b = rgb
    y = 0.2627 * r + 0.678 * g + 0.0593 * b
    values = [round(64 + 876 * y), round(512 + 896 * (b - y) / 1.8814), round(512 + 896 * (r - y) / 1.4746)]
    with av.open(str(path), "w") as out:
        stream = out.add_stream("ffv1", rate=30)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p10le"
        context = stream.codec_context
        context.color_trc, context.color_primaries, context.colorspace, context.color_range = transfer, 9, 9, 1
        for number in range(2):
            planes = np.repeat(np.array(values, np.uint16), (32, 8, 8))[:, None].repeat(32, axis=1)
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p10le")
            frame.pts, frame.time_base = number, Fraction(1, 30)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("transfer", [16, 18])
@pytest.mark.parametrize("grey", GREYS, ids=lambda grey: f"{grey[0]}")
def test_hdr_greys_become_those_of_usual_video(tmp_path, transfer, grey):
    _, pq, hlg, right = grey
    path = write_hdr(tmp_path / "hdr.mkv", transfer, [pq if transfer == 16 else hlg] * 3)
    assert probe(path).encoding.hdr
    for short_side in (None, 16):
        picture = read_frames(path, [1], short_side)[0].astype(float)
        assert np.abs(picture - right).max() <= 3
    assert np.array_equal(next(iterate_frames(path, 16)), read_frames(path, [0], 16)[0])


def test_hdr_colours_are_mapped_from_bt_2020_to_bt_709(tmp_path):
    # The red of BT.709 at 50 cd/m2, in the primaries of BT.2020 (ITU-R BT.2087).
    light = 50 * np.array([0.6274, 0.0691, 0.0164])
    m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
    power = (light / 10000) ** m1
    path = write_hdr(tmp_path / "red.mkv", 16, ((c1 + c2 * power) / (1 + c3 * power)) ** m2)
    red, green, blue = read_frames(path, [0])[0, 0, 0].tolist()
    assert red == pytest.approx(255 * (50 / 203) ** (1 / 2.4), abs=3)
    assert max(green, blue) <= 16  # where black is near, a step of a stored value is many of these
