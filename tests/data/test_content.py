"""The content of a video file: the same for copies under any name, in any container; another after encoding again."""

import shutil

import av
import numpy as np
import pytest
from rich.console import Console

from airstreams.data import content
from airstreams.data.content import content_of, with_contents
from airstreams.data.sources import open_source
from airstreams.errors import VideoError

QUIET = Console(quiet=True)


def encode(path, codec="libx264", gop=12, frames=10, pixels="yuv420p"):
    """A noisy video, whose H.264 and HEVC have B-frames."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 96, 64, pixels, gop
        for number in range(frames):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(noise, number, 1), format="rgb24")))
        file.mux(stream.encode())
    return path


def copied_stream(path, to):
    """What `ffmpeg -c copy` does."""
    with av.open(str(path)) as file, av.open(str(to), "w") as out:
        stream = out.add_stream_from_template(file.streams.video[0])
        for packet in file.demux(file.streams.video[0]):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    return to


@pytest.mark.parametrize(
    ("codec", "first", "others"),
    [
        ("libx264", "mp4", ("mkv", "mov", "ts")),
        ("libx265", "mp4", ("mkv", "ts")),
        ("libvpx-vp9", "webm", ("mp4",)),
        ("mpeg4", "avi", ("mp4", "ts")),
        ("mjpeg", "avi", ("mp4", "mkv")),
    ],
)
def test_another_container_keeps_the_content(tmp_path, codec, first, others):
    video = encode(tmp_path / f"a.{first}", codec, pixels="yuvj420p" if codec == "mjpeg" else "yuv420p")
    for other in others:
        moved = copied_stream(video, tmp_path / f"b.{other}")
        assert content_of(moved) == content_of(video)
        if other == "ts":
            assert content_of(copied_stream(moved, tmp_path / "back.mp4")) == content_of(video)


def test_a_copy_keeps_the_content_and_other_pictures_change_it(tmp_path):
    video = encode(tmp_path / "a.mp4")
    assert content_of(shutil.copy(video, tmp_path / "[ö], b")) == content_of(video)
    encoded_again, shorter = encode(tmp_path / "b.mp4", gop=5), encode(tmp_path / "c.mp4", frames=9)
    assert len({content_of(path) for path in (video, encoded_again, shorter)}) == 3
    before = content_of(video)
    shutil.copy(shorter, video)
    assert content_of(video) == content_of(shorter) != before


def test_a_file_that_cannot_be_read_has_no_content(videos, tmp_path):
    (videos / "test" / "disc_up" / "000.mp4").write_text("Not a film at all.")
    with pytest.raises(VideoError):
        content_of(videos / "test" / "disc_up" / "000.mp4")
    with pytest.raises(VideoError, match="does not exist"):
        content_of(tmp_path / "missing.mp4")
    source = with_contents(open_source(str(videos)), QUIET, "test")
    found = {video.name: video.content for video in source.videos}
    assert found["test/disc_up/000.mp4"] is None
    assert len({content for content in found.values() if content}) == 7
    assert not any(content for name, content in found.items() if name.startswith("train"))


def test_progress_is_shown_only_where_it_takes_a_while(videos, monkeypatch):
    shown = []

    class Recorder(content.Progress):
        def add_task(self, description, total, *options, **more_options):
            shown.append((description, total))
            return super().add_task(description, total, *options, **more_options)

    source = open_source(str(videos))
    monkeypatch.setattr(content, "Progress", Recorder)
    with_contents(source, QUIET)
    assert shown == []
    monkeypatch.setattr(content, "SHOW_PROGRESS_AFTER", 0.0)
    with_contents(source, QUIET)
    assert shown == [("identifying videos", 32)]
