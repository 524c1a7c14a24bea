"""Statistics of files that are rendered with one odd property each."""

from fractions import Fraction

import av
import numpy as np
import pytest
from rich.console import Console

from airstreams.console import Progress
from airstreams.data.check import check_videos
from airstreams.data.listing import Video
from airstreams.data.statistics import FileFacts, Spread, summarise
from airstreams.data.video import check


def render(path, codec="libx264", frames=30, times=None, size=(64, 48), options=None, **settings):
    """Write a video of 30 frames per second; `times` in 1/30 s, `settings` of the codec."""
    if codec not in av.codecs_available:
        pytest.skip(f"this build of PyAV has no encoder {codec}")
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=30, options=options or {})
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 30)
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        for number in range(frames):
            picture = np.full((size[1], size[0], 3), number * 7 % 256, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            frame.color_trc = settings.get("color_trc", frame.color_trc)
            frame.pts, frame.time_base = (number if times is None else times[number]), Fraction(1, 30)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def facts(path) -> FileFacts:
    return FileFacts.of(check(path))


def test_a_plain_file_has_no_odd_property(tmp_path):
    assert facts(render(tmp_path / "a.mp4", options={"g": "10"})) == FileFacts(
        frames=30, duration=1.0, frame_rate=30.0, width=64, height=48, codec="h264", key_frames_apart=10,
        pixel_aspect=1.0, interlaced=False, hdr=False, uneven=False,
    )  # fmt: skip


def test_the_largest_distance_of_key_frames_is_found(tmp_path):
    rare = {"g": "25", "keyint_min": "25", "sc_threshold": "0"}
    assert facts(render(tmp_path / "a.mkv", options=rare)).key_frames_apart == 25
    assert facts(render(tmp_path / "a.mp4", options=rare, frames=60)).key_frame_gap == pytest.approx(25 / 30)
    assert facts(render(tmp_path / "a.avi", "mpeg4", options={"g": "5"})).key_frames_apart == 30  # it cannot seek


@pytest.mark.parametrize(
    ("times", "uneven"),
    [
        (range(0, 60, 2), False),
        ([0, 1, 3, 4, 6, 7, 9, 10], True),  # every other interval is twice as long
        ([*range(15), *range(16, 31)], False),  # one frame is lost among 30
        ([0, 1, 2, 3, *range(60, 300)], True),  # a pause
        ([0], False),
    ],
)
def test_uneven_frame_times_are_found(tmp_path, times, uneven):
    assert facts(render(tmp_path / "a.mp4", frames=len(times), times=times)).uneven == uneven


def test_interlaced_hdr_and_non_square_pixels_are_found(tmp_path):
    assert facts(render(tmp_path / "fields.mp4", options={"x264-params": "tff=1"})).interlaced
    assert facts(render(tmp_path / "fields.mpg", "mpeg2video", options={"flags": "+ildct+ilme"})).interlaced
    for transfer in (16, 18):
        path = tmp_path / f"{transfer}.mp4"
        assert facts(render(path, color_trc=transfer, color_primaries=9, colorspace=9)).hdr
    wide = render(tmp_path / "wide.mp4", sample_aspect_ratio=Fraction(16, 15))
    assert facts(wide).pixel_aspect == pytest.approx(16 / 15)


def test_a_mixed_data_set_is_summarised(tmp_path):
    files = [
        render(tmp_path / "a.mp4"),
        render(tmp_path / "b.mp4", frames=60),
        render(tmp_path / "fields.mp4", options={"x264-params": "tff=1"}, size=(96, 64)),
        render(tmp_path / "slow.mp4", frames=130, options={"g": "250", "sc_threshold": "0"}),
        render(tmp_path / "half.mp4", times=range(0, 60, 2)),
    ]
    videos = [Video(path, path.name, ("x",)) for path in files]
    videos.append(Video(files[1], "b.mp4#t=1.0,9.0", ("x",), start=1.0, end=9.0))
    good, bad, found = check_videos(videos, Progress(Console(quiet=True)))
    assert not bad
    summary = summarise(good, found)
    assert summary is not None
    assert summary.files == 5
    assert (summary.duration.min, summary.duration.median) == (1.0, 1.5)
    assert summary.duration.max == pytest.approx(130 / 30)
    assert summary.frames == Spread(30, 30, 130)
    assert summary.frame_rate == Spread(15.0, 30.0, 30.0)
    assert summary.resolutions == {"64x48": 4, "96x64": 1}
    assert summary.frame_rates == {"30": 4, "15": 1}
    assert {remark.key: remark.videos for remark in summary.remarks} == {
        "other_frame_rates": ("half.mp4",),
        "far_key_frames": ("slow.mp4",),
        "interlaced": ("fields.mp4",),
        "ends_past_the_video": ("b.mp4#t=1.0,9.0",),
    }
    content = summary.as_dict()
    assert content["duration"]["min"] == 1.0
    assert content["remarks"]["interlaced"] == {"files": 1, "examples": ["fields.mp4"]}
    for remark in summary.remarks:
        assert remark.videos[0] in remark.sentence(5)
        assert "\n" not in remark.sentence(5)
    assert "up to 130 more" in summary.remarks[1].advice


def test_no_good_videos_have_no_statistics():
    assert summarise([], {}) is None
