"""Ground truth: every rendered frame shows its own number as a bar code that survives compression and reveals turns."""

import gc
import io
import os
import random
import shutil
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from PIL import Image

from airstreams.data.video import check, iterate_frames, probe, read_frames
from airstreams.errors import InputError, VideoError

FRAMES, WIDTH, HEIGHT = 60, 160, 96
BITS = 12


def picture(number, width=WIDTH, height=HEIGHT):
    """The number in binary between two white marks; below it the complement."""
    bits = [1, *((number >> bit) & 1 for bit in range(BITS - 2)), 1]
    image = np.zeros((height, width, 3), np.uint8)
    for column, bit in enumerate(bits):
        left, right = column * width // BITS, (column + 1) * width // BITS
        image[: height // 2, left:right] = 255 * bit
        image[height // 2 :, left:right] = 255 * (1 - bit)
    return image


def number_in(image):
    height, width = image.shape[:2]

    def bits(row):
        rows = image[row - height // 16 : row + height // 16 + 1]
        return [float(rows[:, (2 * column + 1) * width // (2 * BITS)].mean()) for column in range(BITS)]

    above, below = bits(height // 4), bits(3 * height // 4)
    assert all(
        (a > 128) != (b > 128) and min(abs(a - 128), abs(b - 128)) > 40 for a, b in zip(above, below, strict=True)
    )
    assert above[0] > 128, "upside down"
    assert above[-1] > 128, "upside down"
    return sum(1 << bit for bit, value in enumerate(above[1:-1]) if value > 128)


def numbers_in(images):
    return [number_in(image) for image in images]


def render(
    path, codec, images=None, times=None, tick=Fraction(1, 30), pixels="yuv420p", muxer=None, b_frames=None, **options
):
    """Write a video; `times` in ticks."""
    if codec not in av.codecs_available:
        pytest.skip(f"this build of PyAV has no encoder {codec}")
    images = [picture(number) for number in range(FRAMES)] if images is None else images
    with av.open(str(path), "w", options=muxer or {}) as out:
        stream = out.add_stream(
            codec, rate=30, options={key.replace("_", "-"): value for key, value in options.items()}
        )
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pixels
        stream.codec_context.time_base = tick
        if b_frames is not None:
            stream.codec_context.max_b_frames = b_frames
        for count, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pixels)
            frame.pts = count if times is None else times[count]
            frame.time_base = tick
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def decoded_in_order(path):
    """All frames by a plain loop from the beginning: the reference."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


X264_OPEN = {"x264_params": "open-gop=1:keyint=12:min-keyint=12:bframes=3:b-adapt=0:scenecut=0:b-pyramid=normal"}
X265_OPEN = {"x265_params": "open-gop=1:keyint=12:min-keyint=12:bframes=3:b-adapt=0:scenecut=0:log-level=none"}
X264 = {"g": "12", "bf": "3"}
VIDEOS: dict[str, tuple[str, dict]] = {
    "h264.mp4": ("libx264", X264),
    "h264_fragments.mp4": ("libx264", {**X264, "muxer": {"movflags": "frag_keyframe+empty_moov"}}),
    "h264_open_gop.mp4": ("libx264", X264_OPEN),
    "h264_open_gop.mkv": ("libx264", X264_OPEN),
    "h264_open_gop.ts": ("libx264", X264_OPEN),
    "h264_intra_refresh.mp4": ("libx264", {"x264_params": "intra-refresh=1:keyint=12:bframes=0"}),
    "h264.avi": ("libx264", X264),
    "h264.flv": ("libx264", X264),
    "hevc_open_gop.mp4": ("libx265", X265_OPEN),
    "hevc_open_gop.mkv": ("libx265", X265_OPEN),
    "mpeg4.avi": ("mpeg4", {"g": "12"}),
    "mpeg4_b.avi": ("mpeg4", {"g": "12", "b_frames": 2}),
    "mpeg4_b.mp4": ("mpeg4", {"g": "12", "b_frames": 2}),
    "mpeg2_b.mpg": ("mpeg2video", {"g": "12", "b_frames": 2}),
    "vp9.webm": ("libvpx-vp9", {"g": "20", "auto_alt_ref": "1", "lag_in_frames": "16", "cpu_used": "8"}),
    "vp8.webm": ("libvpx", {"g": "20", "auto_alt_ref": "1", "lag_in_frames": "16", "cpu_used": "8"}),
    "av1.mp4": ("libsvtav1", {"g": "20", "preset": "12", "svtav1_params": "enable-overlays=0"}),
    "mjpeg.avi": ("mjpeg", {"pixels": "yuvj420p"}),
    "mjpeg.mp4": ("mjpeg", {"pixels": "yuvj420p"}),
    "variable_rate.mkv": (
        "libx264",
        {**X264, "tick": Fraction(1, 1000), "times": [33 * i + 5 * (i % 7) + 400 * (i > 30) for i in range(FRAMES)]},
    ),
    "late_start.mkv": ("libx264", {**X264, "times": [i + 150 for i in range(FRAMES)]}),
    "late_start.mp4": ("libx264", {**X264, "times": [i + 150 for i in range(FRAMES)]}),
    "same_time_twice.mkv": ("mjpeg", {"pixels": "yuvj420p", "tick": Fraction(1, 1500)}),
}


@pytest.fixture(scope="session")
def video(tmp_path_factory):
    """The path of a rendered video, rendered on first use."""
    folder = tmp_path_factory.mktemp("videos")

    def path_of(name):
        codec, options = VIDEOS[name]
        path = folder / name
        return path if path.exists() else render(path, codec, **options)

    return path_of


@pytest.mark.parametrize("name", VIDEOS)
def test_frames_are_exact_in_every_container(video, name):
    path = video(name)
    assert check(path).frames == FRAMES
    linear = decoded_in_order(path)
    assert numbers_in(linear) == list(range(FRAMES))
    draw = random.Random(name)
    everything = list(range(FRAMES))
    asks = [everything, everything[::-1], everything[3::8], [59], [0], [31, 31, 2, 31]]
    asks += [[draw.randrange(FRAMES) for _ in range(size)] for size in (1, 1, 1, 2, 2, 5, 16)]
    asks += [list(range(start, start + 8)) for start in (draw.randrange(FRAMES - 8) for _ in range(6))]
    asks += [[index] for index in range(FRAMES)]
    for indices in asks:
        frames = read_frames(path, indices)
        assert numbers_in(frames) == indices
        assert all(np.array_equal(frame, linear[index]) for frame, index in zip(frames, indices, strict=True))


@pytest.mark.parametrize(
    "name", ["h264.mp4", "h264_open_gop.mkv", "hevc_open_gop.mp4", "mpeg4_b.avi", "mpeg2_b.mpg", "variable_rate.mkv"]
)
def test_iterate_frames_yields_the_wanted_frames_in_ascending_order(video, name):
    path = video(name)
    linear = decoded_in_order(path)
    for wanted in (range(0, FRAMES, 7), [41, 3, 3, 59, 0], [59], [], range(FRAMES), iter([12, 11])):
        indices = list(wanted)
        frames = list(iterate_frames(path, indices=iter(indices)))
        assert numbers_in(frames) == sorted(set(indices))
        assert all(np.array_equal(f, linear[index]) for f, index in zip(frames, sorted(set(indices)), strict=True))
    assert numbers_in(iterate_frames(path)) == list(range(FRAMES))
    small = list(iterate_frames(path, short_side=48, indices=[5, 50]))
    assert np.array_equal(small, read_frames(path, [5, 50], short_side=48))


def without_box(data, name):
    assert name in data
    return data.replace(name, b"free")


@pytest.mark.parametrize("name", ["h264.mp4", "h264_open_gop.mp4", "hevc_open_gop.mp4", "av1.mp4"])
def test_false_key_frame_flags_do_no_harm(video, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(
        without_box(video(name).read_bytes(), b"stss")
    )  # without the table of sync samples, all samples count as key frames
    linear = decoded_in_order(path)
    for index in range(1, FRAMES, 5):
        assert np.array_equal(read_frames(path, [index])[0], linear[index])
    assert numbers_in(read_frames(path, [50, 7, 33])) == [50, 7, 33]


def packets_of(path):
    with av.open(str(path)) as container:
        return [packet for packet in container.demux(video=0) if packet.size]


def without_first_packets(source, path, dropped):
    with av.open(str(source)) as container, av.open(str(path), "w") as out:
        stream = container.streams.video[0]
        copy = out.add_stream_from_template(stream)
        for packet in list(container.demux(stream))[dropped:]:
            if packet.size:
                packet.stream = copy
                out.mux(packet)
    return path


@pytest.mark.parametrize(
    "name",
    ["h264_open_gop.mkv", "hevc_open_gop.mkv", "h264_open_gop.ts", "mpeg2_b.mpg", "mpeg4_b.avi", "vp9.webm"],
)
def test_frames_before_the_first_key_frame_have_no_index(video, tmp_path, name):
    packets = packets_of(video(name))
    second_key = [count for count, packet in enumerate(packets) if packet.is_keyframe][1]
    left = 40 if name == "vp9.webm" else 48
    # First three packets that cannot be decoded, or none, then the key frame, then the frames that are shown before it.
    for dropped in (second_key - 3, second_key):
        path = without_first_packets(video(name), tmp_path / f"{dropped}_{name}", dropped)
        assert check(path).frames == left
        for indices in ([0], [39, 0, 20, 13, 12, 11, 10], list(range(left))):
            assert numbers_in(read_frames(path, indices)) == [index + FRAMES - left for index in indices]


def test_packets_without_a_picture_have_no_index(video, tmp_path):
    data = bytearray(video("vp8.webm").read_bytes())
    packet = bytes(packets_of(video("vp8.webm"))[30])
    data[data.index(packet)] &= ~0x10  # VP8's bit "show this frame"
    path = tmp_path / "hidden.webm"
    path.write_bytes(data)
    shown = [number for number in range(FRAMES) if number != 30]
    assert check(path).frames == 59
    assert numbers_in(read_frames(path, range(59))) == shown
    assert numbers_in(read_frames(path, [58, 29, 30])) == [59, 29, 31]


def test_times_that_contradict_the_frame_order_are_refused(video, tmp_path):
    path = tmp_path / "unordered.mp4"
    # Without these tables a frame is shown when it is decoded, which is wrong with B-frames.
    path.write_bytes(without_box(without_box(video("h264.mp4").read_bytes(), b"ctts"), b"edts"))
    assert reason(path).startswith("unreadable: frame ")
    for index in range(FRAMES):
        try:
            frames = read_frames(path, [index])
        except VideoError:
            continue
        assert numbers_in(frames) == [index]


@pytest.mark.parametrize("hidden", [5, 12, 17])
def test_frames_hidden_by_an_edit_list_have_no_index(video, tmp_path, hidden):
    data = bytearray(video("h264.mp4").read_bytes())
    entry = data.index(b"elst") + 12
    length, begin = struct.unpack_from(">Ii", data, entry)
    struct.pack_into(">Ii", data, entry, length - hidden * 1000 // 30, begin + hidden * 512)
    path = tmp_path / "edited.mp4"
    path.write_bytes(data)
    shown = numbers_in(decoded_in_order(path))
    assert shown[0] == hidden
    assert check(path).frames == len(shown)
    for indices in (list(range(len(shown))), [0], [1, 0], [30], [4, 20, 9]):
        assert numbers_in(read_frames(path, indices)) == [shown[index] for index in indices]


def turned(source, path, *matrix):
    """Patch a, b, c, d of the display matrix into an MP4's track header."""
    data = bytearray(source.read_bytes())
    a, b, c, d = (value << 16 for value in matrix)
    struct.pack_into(">9i", data, data.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


# The matrix that a player applies, and how frames must be stored so that it shows them upright.
TURNS = {
    90: ((0, 1, -1, 0), lambda image: np.rot90(image, 1)),
    180: ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
    270: ((0, -1, 1, 0), lambda image: np.rot90(image, 3)),
    "mirrored": ((-1, 0, 0, 1), lambda image: image[:, ::-1]),
    "transposed": ((0, 1, 1, 0), lambda image: image.transpose(1, 0, 2)),
}


@pytest.mark.parametrize("turn", TURNS)
def test_rotated_and_mirrored_frames_are_turned_upright(tmp_path, turn):
    matrix, stored = TURNS[turn]
    images = [np.ascontiguousarray(stored(picture(number))) for number in range(20)]
    path = turned(render(tmp_path / "stored.mp4", "libx264", images, **X264), tmp_path / "turned.mp4", *matrix)
    info = probe(path)
    assert (info.width, info.height) == (WIDTH, HEIGHT)
    frames = read_frames(path, [7, 19, 0])
    assert frames.shape == (3, HEIGHT, WIDTH, 3)
    assert numbers_in(frames) == [7, 19, 0]
    assert read_frames(path, [3], short_side=48).shape == (1, 48, 80, 3)
    if isinstance(turn, int):
        with av.open(str(path)) as container:
            frame = next(container.decode(video=0))
            assert np.array_equal(
                read_frames(path, [0])[0], np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
            )


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 1), (8, 3)])
def test_frames_are_turned_by_a_cameras_exif(tmp_path, orientation, turns):
    """Such a file has side data that PyAV may not know beside the display matrix."""
    path, entries = tmp_path / "camera.avi", Image.Exif()
    entries[0x0112], entries[0x010F] = orientation, "maker"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mjpeg", rate=30)
        stored = [np.rot90(picture(number), turns) for number in range(20)]
        stream.height, stream.width = stored[0].shape[:2]
        stream.pix_fmt = "yuvj420p"
        out.start_encoding()
        for number, image in enumerate(stored):
            file = io.BytesIO()
            Image.fromarray(image).save(file, "JPEG", exif=entries)
            packet = av.Packet(file.getvalue())
            packet.stream, packet.pts, packet.dts, packet.is_keyframe = stream, number, number, True
            out.mux(packet)
    check(path)
    assert numbers_in(read_frames(path, [7, 19, 0])) == [7, 19, 0]


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("name", ["short.mp4", "short.avi", "short.webm"])
def test_videos_of_one_and_three_frames_are_read(tmp_path, name, frames):
    codec = {"mp4": "libx264", "avi": "mpeg4", "webm": "libvpx-vp9"}[name.split(".")[1]]
    path = render(tmp_path / name, codec, [picture(number) for number in range(frames)])
    info = check(path)
    assert info.frames == frames
    assert info.duration == pytest.approx(0.1 if frames == 3 else 1, abs=0.003)
    assert numbers_in(read_frames(path, range(frames))) == list(range(frames))


@pytest.mark.parametrize(("name", "codec", "pixels"), [("a.mkv", "libx264", "yuv444p"), ("a.avi", "mjpeg", "yuvj420p")])
def test_odd_sizes_are_read(tmp_path, name, codec, pixels):
    path = render(tmp_path / name, codec, [picture(number, 161, 91) for number in range(20)], pixels=pixels)
    assert (probe(path).width, probe(path).height) == (161, 91)
    assert read_frames(path, [4]).shape == (1, 91, 161, 3)
    assert numbers_in(read_frames(path, [19, 4])) == [19, 4]
    assert read_frames(path, [4], short_side=45).shape == (1, 45, 80, 3)  # 161 * 45 / 91 = 79.6


def test_times_start_at_the_first_frame(video):
    expected = np.array(VIDEOS["variable_rate.mkv"][1]["times"]) / 1000
    info = probe(video("variable_rate.mkv"))
    assert info.times == pytest.approx(expected)
    assert info.fps == pytest.approx(59 / expected[-1])
    assert info.duration == pytest.approx(expected[-1] * 60 / 59)
    for name in ("late_start.mp4", "late_start.mkv", "h264.avi", "mpeg4_b.avi", "h264_open_gop.ts"):
        info = probe(video(name))
        assert info.times == pytest.approx(np.arange(FRAMES) / 30, abs=0.001)
        assert info.times.dtype == np.float64
        assert info.duration == pytest.approx(2, abs=0.002)


@pytest.mark.parametrize(("name", "codec", "pixels"), [("a.mp4", "libx264", "yuv420p"), ("a.avi", "mjpeg", "yuvj420p")])
def test_channels_are_red_green_blue(tmp_path, name, codec, pixels):
    image = np.zeros((64, 96, 3), np.uint8)
    for channel in range(3):
        image[:, 32 * channel : 32 * (channel + 1), channel] = 255
    frame = read_frames(render(tmp_path / name, codec, [image] * 3, pixels=pixels), [1])[0].astype(int)
    inside = np.s_[8:-8, [4, 16, 28, 36, 48, 60, 68, 80, 92]]
    assert np.abs(frame - image)[inside].max() < 24


def test_short_side_reduces_and_never_enlarges(video):
    path = video("h264.mp4")
    assert read_frames(path, [0], short_side=96).shape == (1, 96, 160, 3)
    assert read_frames(path, [0], short_side=200).shape == (1, 96, 160, 3)
    small, full = read_frames(path, [29, 42], short_side=24), read_frames(path, [29, 42])
    assert small.shape == (2, 24, 40, 3)
    assert numbers_in(small) == [29, 42]
    average = full.reshape(2, 24, 4, 40, 4, 3).mean((2, 4))
    assert np.abs(small - average).mean() < 2
    with pytest.raises(InputError, match="short_side: got 0"):
        read_frames(path, [0], short_side=0)


def test_all_frames_get_the_first_ones_size(tmp_path):
    parts = []
    for count, (width, height) in enumerate([(160, 96), (80, 48)]):
        images = [picture(10 * count + number, width, height) for number in range(5)]
        part = render(tmp_path / f"{count}.mkv", "mjpeg", images, pixels="yuvj420p")
        parts += [bytes(packet) for packet in packets_of(part)]
    with av.open(str(tmp_path / "0.mkv")) as template, av.open(str(tmp_path / "both.mkv"), "w") as out:
        stream = out.add_stream_from_template(template.streams.video[0])
        for count, part in enumerate(parts):
            packet = av.Packet(part)
            packet.stream, packet.time_base = stream, Fraction(1, 30)
            packet.pts = packet.dts = count
            packet.is_keyframe = True
            out.mux(packet)
    frames = read_frames(tmp_path / "both.mkv", range(10))
    assert frames.shape == (10, 96, 160, 3)
    assert numbers_in(frames) == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]


def test_an_index_out_of_range_is_refused(video):
    for name in ("h264.mp4", "mpeg4.avi"):
        for index in (-1, FRAMES):
            with pytest.raises(InputError, match=rf"{name}: got frame {index}, .* 0 to 59"):
                read_frames(video(name), [0, index])
        assert read_frames(video(name), []).shape == (0, HEIGHT, WIDTH, 3)
    with pytest.raises(VideoError, match=r"nowhere\.mp4: ") as raised:
        read_frames("nowhere.mp4", [0])
    assert (raised.value.path, raised.value.reason) == (Path("nowhere.mp4"), "does not exist")


def test_a_changed_file_is_probed_again(video, tmp_path):
    path = tmp_path / "a.mp4"
    shutil.copy(video("h264.mp4"), path)
    assert probe(path).frames == FRAMES
    assert probe(path) is probe(path)
    render(path, "libx264", [picture(number) for number in range(8)])
    assert probe(path).frames == 8


def test_file_names_are_not_taken_for_protocols_or_options(video, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("pipe:0.mp4", "-i.mp4", "clap!#%d(1)@2.mp4", "ünï.mp4"):
        shutil.copy(video("h264.mp4"), name)
        assert numbers_in(read_frames(name, [9])) == [9]


def test_tags_that_are_not_utf_8_are_accepted(tmp_path):
    path = tmp_path / "old.avi"
    with av.open(str(path), "w") as out:
        out.metadata["title"] = "caf__"
        stream = out.add_stream("mjpeg", rate=30)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        out.mux(stream.encode(av.VideoFrame.from_ndarray(picture(5), format="rgb24").reformat(format="yuvj420p")))
        out.mux(stream.encode(None))
    path.write_bytes(path.read_bytes().replace(b"caf__", b"caf\xe9\xff"))
    assert numbers_in(read_frames(path, [0])) == [5]


def damaged(source, path, number):
    """Damage the middle of the packet that shows frame `number`."""
    packets = sorted(packets_of(source), key=lambda packet: packet.pts or 0)
    position, size = packets[number].pos, packets[number].size
    data = bytearray(source.read_bytes())
    for offset in range(size // 4, size // 4 + 20):
        data[position + offset] ^= 0xA5
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["h264.mp4", "mpeg4.avi", "av1.mp4"])
def test_a_damaged_frame_is_refused_and_never_replaced(video, tmp_path, name):
    spoilt = 40 if name == "av1.mp4" else 36  # a key frame: always large enough to break
    path = damaged(video(name), tmp_path / name, spoilt)
    assert reason(path).startswith((f"unreadable: frame {spoilt} of 60", "unreadable: Invalid data"))
    with pytest.raises(VideoError, match=name):
        read_frames(path, [spoilt])
    right = 0
    for index in range(FRAMES):
        try:
            frames = read_frames(path, [index])
        except VideoError:
            continue
        assert numbers_in(frames) == [index]
        right += 1
    assert right >= 30
    if name == "h264.mp4":
        assert numbers_in(read_frames(path, [20, 50, 2])) == [20, 50, 2]


def test_iterate_frames_checks_the_whole_file(video, tmp_path):
    path = damaged(video("h264.mp4"), tmp_path / "broken.mp4", 36)
    for wanted in ([], [2], [2, 50], None):
        with pytest.raises(VideoError, match=rf"^{path}: unreadable: frame 36 of 60"):
            list(iterate_frames(path, indices=wanted))
    frames = iterate_frames(path, indices=[2, 20, 50])
    assert numbers_in([next(frames), next(frames)]) == [2, 20]
    with pytest.raises(VideoError, match="frame 36 of 60"):
        next(frames)


def cut(source, path, fraction):
    data = source.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    return path


def reason(path):
    """Why `check` refuses a file."""
    with pytest.raises(VideoError) as raised:
        check(path)
    assert raised.value.path == path
    assert str(raised.value) == f"{path}: {raised.value.reason}"
    return raised.value.reason


@pytest.fixture
def whole(video, tmp_path):
    """The path of a video that will be cut."""

    def path_of(name):
        if name == "faststart.mp4":
            return render(tmp_path / name, "libx264", muxer={"movflags": "+faststart"}, **X264)
        return video(name)

    return path_of


@pytest.mark.parametrize("fraction", [0.02, 0.3, 0.7, 0.85])
@pytest.mark.parametrize(
    "name", ["h264.mp4", "faststart.mp4", "mpeg4.avi", "mpeg4_b.avi", "mjpeg.avi", "h264_open_gop.mkv", "vp9.webm"]
)
def test_cut_files_are_reported_as_truncated(whole, tmp_path, name, fraction):
    source = whole(name)
    check(source)
    assert reason(cut(source, tmp_path / f"cut_{name}", fraction)).startswith("truncated: ")


@pytest.mark.parametrize("name", ["faststart.mp4", "mpeg4.avi", "mjpeg.avi"])
def test_cuts_between_packets_and_in_the_last_one_are_found(whole, tmp_path, name):
    source, path = whole(name), tmp_path / f"cut_{name}"
    packets = packets_of(source)
    last = packets[-1]
    header = 8 if name.endswith("avi") else 0  # of a packet, before its position
    for length in (packets[40].pos - header, last.pos + last.size * 3 // 4):
        path.write_bytes(source.read_bytes()[:length])
        assert reason(path).startswith("truncated: ")
    with pytest.raises(VideoError, match=path.name):
        read_frames(path, [FRAMES - 1])


def test_other_files_are_refused_with_a_reason(tmp_path):
    assert reason(tmp_path / "missing.mp4") == "does not exist"
    assert reason(tmp_path) == "a folder, not a video; give the files in it"
    (tmp_path / "empty.mp4").touch()
    assert reason(tmp_path / "empty.mp4") == "empty file"
    for name in ("text.mp4", "text.avi"):
        (tmp_path / name).write_text("not a video, for all its name\n" * 100)
        assert reason(tmp_path / name).startswith("not a video: ")
    for name in ("notes.txt", "read.nfo"):  # FFmpeg opens them as a video of their letters
        (tmp_path / name).write_text("not a video, for all its letters\n" * 100)
        assert reason(tmp_path / name) == "not a video: a picture, a text or a playlist"
    for name in ("photo.jpg", "photo.png", "photo.webp"):
        Image.fromarray(picture(0)).save(tmp_path / name)
        assert reason(tmp_path / name) == "not a video: a picture, a text or a playlist"
    (tmp_path / "zeros.mp4").write_bytes(bytes(10_000))
    assert reason(tmp_path / "zeros.mp4").startswith("not a video: ")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused_without_blocking(tmp_path):
    os.mkfifo(tmp_path / "video.mp4")
    for read in (check, probe):
        with pytest.raises(VideoError, match="not a file"):
            read(tmp_path / "video.mp4")


def test_probe_leaves_no_picture_in_memory(video):
    """A reference cycle would keep the picture until Python's garbage collector runs, which is rare."""
    gc.collect()
    gc.disable()
    try:
        probe(shutil.copy(video("h264.mp4"), video("h264.mp4").with_name("copy.mp4")))
        assert not [thing for thing in gc.get_objects() if type(thing) is VideoFrame]
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("name", "codec"), [("sound.mp4", "aac"), ("sound.mkv", "aac"), ("sound.wav", "pcm_s16le"), ("cover.mp4", "aac")]
)
def test_sound_alone_has_no_video_stream(tmp_path, name, codec):
    with av.open(str(tmp_path / name), "w") as out:
        stream = out.add_stream(codec, rate=16000, layout="mono")
        if name == "cover.mp4":
            cover = out.add_stream("mjpeg", rate=1)
            cover.width, cover.height, cover.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
            cover.disposition = av.stream.Disposition.attached_pic
            image = av.VideoFrame.from_ndarray(picture(0), format="rgb24").reformat(format="yuvj420p")
            out.mux(cover.encode(image) + cover.encode(None))
        for start in range(0, 16384, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    assert reason(tmp_path / name) == "no video stream"


def test_an_unknown_codec_is_refused(video, tmp_path):
    path = tmp_path / "unknown.mp4"
    path.write_bytes(video("h264.mp4").read_bytes().replace(b"avc1", b"zzz1"))
    assert reason(path) == "unreadable: no decoder for its codec"


def test_real_videos_are_read_exactly():
    root = os.environ.get("AIRSTREAMS_TEST_DATA")
    if not root:
        pytest.skip("AIRSTREAMS_TEST_DATA is not set: there are no real videos to read")
    paths = sorted(Path(root, "jhmdb", "videos").glob("*/*.mp4"))[::25]
    assert len(paths) > 30
    draw = random.Random(0)
    for path in paths:
        info = check(path)
        linear = decoded_in_order(path)
        assert info.frames == len(linear)
        indices = [draw.randrange(info.frames) for _ in range(6)]
        assert np.array_equal(read_frames(path, indices), np.stack([linear[index] for index in indices]))
