"""Cut, damaged and joined files, written as `benchmarks/cut_files.py` writes them."""

import importlib.util
import random
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from airstreams.config import ClipConfig
from airstreams.data.clips import clip_indices, frame_range
from airstreams.data.listing import Video
from airstreams.data.statistics import FileFacts, summarise
from airstreams.data.video import check, forget_files, iterate_frames, probe, read_frames
from airstreams.errors import VideoError


def load_tool():
    path = Path(__file__).parents[2] / "benchmarks" / "cut_files.py"
    spec = importlib.util.spec_from_file_location("cut_files", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["cut_files"] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


tool = load_tool()
FRAMES = 20


def packets_of(path):
    """Time, position, size and key frame of each packet."""
    with av.open(str(path)) as container:
        found = [packet for packet in container.demux(video=0) if packet.size]
        return [(int(p.pts or 0), int(p.pos or 0), p.size, p.is_keyframe) for p in found]


def encoder_exists(kind):
    return kind.codec in av.codecs_available


def made(folder, name, images=None, frames=FRAMES):
    """A file of a kind, its bytes, and its frames by a plain loop."""
    kind = tool.WHOLE[name]
    if not encoder_exists(kind):
        pytest.skip(f"this build of PyAV has no encoder {kind.codec}")
    path = tool.render(folder / f"{name}{kind.suffix}", kind, tool.pictures(frames) if images is None else images)
    return path, path.read_bytes(), tool.frames_of(path)


@pytest.mark.parametrize("name", tool.CONTAINERS)
def test_a_cut_file_never_gives_a_wrong_frame(tmp_path, name):
    if not encoder_exists(tool.CONTAINERS[name]):
        pytest.skip("no encoder")
    for outcomes in tool.cut(name, tmp_path, frames=FRAMES, cuts=6, seed=1).values():
        assert sum(outcomes.values()) == 6
        assert outcomes["accepted, wrong"] == 0


@pytest.mark.parametrize("name", tool.WHOLE)
def test_a_whole_file_is_accepted_with_all_its_frames(tmp_path, name):
    if not encoder_exists(tool.WHOLE[name]):
        pytest.skip("no encoder")
    assert tool.whole(name, tmp_path, frames=FRAMES) == "sound"


@pytest.mark.parametrize("name", ["mp4", "mkv", "avi", "flv", "gif"])
def test_a_cut_finished_file_is_refused_by_every_function(tmp_path, name):
    path, data, _ = made(tmp_path, name)
    path.write_bytes(data[:-1])
    for function in (check, probe, lambda file: read_frames(file, [0]), lambda file: list(iterate_frames(file))):
        with pytest.raises(VideoError, match="truncated: ") as raised:
            function(path)
        assert raised.value.path == path


@pytest.mark.parametrize("name", ["mkv_live", "webm_live", "ts_h264_b", "ts_hevc", "mp4_fragments", "ogg_vp8"])
def test_a_stopped_recording_is_read_up_to_its_last_certain_frame(tmp_path, name):
    path, data, right = made(tmp_path, name)
    assert not check(path).stopped
    last = tool.frames_of(path).shape[0]
    path.write_bytes(data[: int(len(data) * 0.93)])
    forget_files()
    info = check(path)
    assert info.stopped
    assert FRAMES // 3 < info.frames < last
    assert np.array_equal(read_frames(path, range(info.frames)), right[: info.frames])
    assert np.array_equal(np.stack(list(iterate_frames(path))), right[: info.frames])
    statistics = summarise([Video(path, name, ("a",))], {path: FileFacts.of(info)})
    assert statistics is not None
    assert "stopped" in statistics.as_dict()["remarks"]


def test_frames_that_wait_for_a_lost_one_do_not_count(tmp_path):
    """Each cut falls between two packets, so that only the times of the last frames have a gap."""
    path, data, right = made(tmp_path, "mkv_live")
    packets = packets_of(path)
    shown = 0
    for count in range(1, FRAMES):
        path.write_bytes(data[: packets[count][1]])
        forget_files()
        frames = probe(path).frames
        known = {time for time, *_ in packets[:count]}
        certain = next(n for n, (time, *_) in enumerate(sorted(packets)) if time not in known)
        assert shown <= frames <= certain
        assert np.array_equal(read_frames(path, range(frames)), right[:frames])
        shown = frames
    assert shown >= FRAMES - 4


@pytest.mark.parametrize(("name", "message"), [("mkv", "checksum"), ("ogg_vp8", "page"), ("ts_hevc", "missing")])
def test_checksums_and_counters_show_damage_in_the_middle(tmp_path, name, message):
    path, data, _ = made(tmp_path, name)
    middle = len(data) // 2
    if name == "ts_hevc":  # a packet of the video (its number is 256) is lost, of those that continue a picture
        starts = range(0, len(data), 188)
        middle = [start for start in starts if data[start + 1 : start + 3] == b"\x01\0"][8]
        broken = data[:middle] + data[middle + 188 :]
    else:
        broken = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    path.write_bytes(broken)
    for function in (check, probe):
        with pytest.raises(VideoError, match=message):
            function(path)


def test_frames_that_depend_on_a_later_damaged_one_are_refused(tmp_path):
    path, data, right = made(tmp_path, "mp4", frames=24)
    latest, refused = -1, 0
    for time, position, size, _ in packets_of(path):
        if time < latest or not position:
            continue
        latest = time
        broken = bytearray(data)
        for offset in range(size // 3, size // 3 + 12):
            broken[position + offset] ^= 0xA5
        path.write_bytes(broken)
        forget_files()
        try:
            check(path)
        except VideoError:
            pass
        else:  # the decoder did not report the damage
            continue
        for index in range(24):
            try:
                frame = read_frames(path, [index])[0]
            except VideoError:
                refused += 1
                continue
            assert np.array_equal(frame, right[index])
    assert refused


def joined(path, *parts):
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


@pytest.mark.parametrize("name", ["ts_h264_b", "ts_hevc", "mpg"])
def test_joined_recordings_are_read_in_order_and_no_clip_crosses_a_joint(tmp_path, name):
    images = tool.pictures(2 * FRAMES)
    (tmp_path / "1").mkdir()
    first, _, first_frames = made(tmp_path, name, images[:FRAMES])
    second, _, second_frames = made(tmp_path / "1", name, images[FRAMES:])
    path = joined(tmp_path / f"joined{first.suffix}", first, second)
    info = check(path)
    right = np.concatenate([first_frames, second_frames])
    assert info.frames == 2 * FRAMES
    assert np.array_equal(read_frames(path, range(2 * FRAMES)), right)
    assert info.times == pytest.approx(np.arange(2 * FRAMES) / 30, abs=0.002)
    assert info.joints == (FRAMES,)
    assert not info.stopped
    for clip in (ClipConfig(frames=8, stride=2), ClipConfig(frames=8, rate=15.0)):
        for start in range(2 * FRAMES):
            indices = clip_indices(frame_range(Video(path, "a", ("a",))), start, clip)
            assert len(indices) == 8
            assert (indices < FRAMES).all() or (indices >= FRAMES).all()
    assert FileFacts.of(info).joined


def test_a_lost_group_of_pictures_makes_a_joint(tmp_path):
    path, data, right = made(tmp_path, "ts_h264")
    packets = packets_of(path)
    keys = [number for number, (*_, is_key) in enumerate(packets) if is_key]
    before, after = keys[1], keys[3]
    path.write_bytes(data[: packets[before][1]] + data[packets[after][1] :])
    info = check(path)
    assert info.joints == (before,)
    assert info.times == pytest.approx(np.arange(info.frames) / 30, abs=0.002)
    right = np.delete(right, range(before, after), axis=0)
    assert np.array_equal(read_frames(path, range(info.frames)), right)


def test_a_transport_stream_of_few_packets_is_no_crash(tmp_path):
    path, data, right = made(tmp_path, "ts_h264")
    for packets in range(1, 40):
        path.write_bytes(data[: 188 * packets])
        try:
            frames = probe(path).frames
            assert np.array_equal(read_frames(path, range(frames)), right[:frames])
        except VideoError:
            continue


def test_a_stopped_avi_is_read_without_its_index(tmp_path):
    path, data, right = made(tmp_path, "avi_mjpeg")
    stopped = bytearray(data[: data.index(b"idx1") - 100])
    for name, offset in ((b"RIFF", 4), (b"movi", -4)):  # a recorder fills these sizes in when it ends
        place = stopped.index(name) + offset
        stopped[place : place + 4] = bytes(4)
    path.write_bytes(stopped)
    info = check(path)
    assert info.stopped
    assert info.frames == FRAMES - 1
    assert np.array_equal(read_frames(path, range(info.frames)), right[: info.frames])


def test_the_default_track_is_read_then_the_largest(tmp_path):
    def write(path, sizes, default):
        with av.open(str(path), "w") as out:
            streams = [out.add_stream("mjpeg", rate=30) for _ in sizes]
            for count, (stream, (width, height)) in enumerate(zip(streams, sizes, strict=True)):
                stream.width, stream.height, stream.pix_fmt = width, height, "yuvj420p"
                stream.disposition = av.stream.Disposition(int(count == default))
            for number in range(5):
                for stream in streams:
                    image = np.full((stream.height, stream.width, 3), 100, np.uint8)
                    frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuvj420p")
                    frame.pts, frame.time_base = number, Fraction(1, 30)
                    out.mux(stream.encode(frame))
            for stream in streams:
                out.mux(stream.encode(None))
        return probe(path)

    sizes = [(32, 16), (64, 48), (48, 32)]
    assert write(tmp_path / "a.mkv", sizes, default=2).width == 48
    assert write(tmp_path / "b.mkv", sizes, default=0).width == 32
    assert write(tmp_path / "c.mov", sizes, default=1).width == 64


def test_a_file_that_is_padded_or_shorter_than_a_header_is_no_crash(tmp_path):
    draw = random.Random(0)
    for name in ("mp4", "mkv_live", "ts_h264", "avi", "flv", "gif", "mpg", "ogg_vp8"):
        path, data, _ = made(tmp_path, name)
        for length in range(0, 60, 7):
            path.write_bytes(data[:length] + bytes(draw.choice((0, 3))))
            with pytest.raises(VideoError):
                probe(path)
