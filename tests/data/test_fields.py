"""Interlaced video whose right pixels are known."""

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
from tests.data import mpeg2
from tests.data.fields import FRAMES, KEY_FRAMES_APART, SIZE, in_rgb, moment, moving, write


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


@pytest.mark.parametrize("packets_per_frame", [1, 2])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_two_fields_of_mpeg_2_are_one_frame(tmp_path, suffix, packets_per_frame):
    greys = [(40 + 10 * number, 200 - 10 * number) for number in range(12)]
    path = mpeg2.write_container(tmp_path / f"fields{suffix}", greys, packets_per_frame)
    info = check(path)
    assert (info.frames, info.encoding.interlaced) == (12, True)
    assert info.times == pytest.approx(np.arange(12) / 25, abs=0.001)
    right = (np.array(greys) - 16) * 255 / 219  # luma to RGB, BT.601
    for indices in ([11], [7, 0, 3], range(12)):
        frames = read_frames(path, indices)
        for field in (0, 1):
            expected = np.broadcast_to(right[list(indices), field, None, None, None], frames[:, field::2].shape)
            assert np.abs(frames[:, field::2] - expected).max() <= 1


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
