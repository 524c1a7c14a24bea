import subprocess
import sys
from dataclasses import replace

from rich.console import Console

from airstreams.console import Progress
from airstreams.data.check import check_videos
from airstreams.data.sources import open_source


def test_bad_files_are_listed_and_good_ones_keep_their_order(tmp_path, synthetic):
    good = open_source(str(synthetic / "videos")).split("test")
    whole = good[0].path.read_bytes()
    contents = {"empty.mp4": b"", "text.mp4": b"Not a film at all.\n" * 50, "half.mp4": whole[: len(whole) // 2]}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    broken = [replace(good[0], name=name, path=tmp_path / name) for name in (*contents, "absent.mp4")]
    mixed = [video for pair in zip(good, broken, strict=False) for video in pair] + list(good[len(broken) :])

    found, bad, _ = check_videos(mixed, Progress(console=Console(quiet=True)))
    assert found == list(good)
    assert [item.video for item in bad] == broken
    for item, expected in zip(bad, ("empty", "not a video", "truncated", "does not exist"), strict=True):
        assert expected in item.reason, item
        assert "\n" not in item.reason


def test_a_segment_outside_its_video_is_bad(synthetic):
    video = open_source(str(synthetic / "videos")).videos[0]
    inside, outside = replace(video, start=0.0, end=0.1), replace(video, start=5.0)
    good, bad, _ = check_videos([inside, outside], Progress(Console(quiet=True)))
    assert good == [inside]
    assert [item.video for item in bad] == [outside]
    assert "5.0 s" in bad[0].reason
    assert str(video.path) not in bad[0].reason


def test_checking_does_not_import_torch():
    code = "import sys, airstreams.data.check, airstreams.data.sources; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_real_videos_are_good(test_data):
    source = open_source(f"jhmdb:{test_data / 'jhmdb'}?split=1")
    good, bad, _ = check_videos(source.videos, Progress(console=Console(quiet=True)))
    assert bad == []
    assert len(good) == len(source.videos) == 928
