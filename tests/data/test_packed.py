from pathlib import Path

import pytest

from airstreams.data.listing import Action, Video
from airstreams.data.packed import PackedVideos


def test_a_packed_list_gives_equal_entries():
    videos = [
        Video(Path("a.mp4"), "a", ("run", "jump"), "train", start=1.5, actions=(Action("run", 0.0, 2.0),)),
        Video(Path("ü/b c.mp4"), "b", ()),
        Video(Path("c.mp4"), "c", ("run",), group="film", mask=Path("m.npz"), content="0" * 32, end=0.1 + 0.2),
        Video(Path("\udcff.mp4"), "not UTF-8", ("run",)),
    ]
    packed = PackedVideos(videos)
    assert len(packed) == 4
    assert list(packed) == videos
    assert packed[-1] == videos[-1]
    assert packed[1:] == videos[1:]
    assert list(PackedVideos([])) == []
    for index in (4, -5):
        with pytest.raises(IndexError):
            packed[index]
