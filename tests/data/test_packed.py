from pathlib import Path

import pytest

from airstreams.data.listing import Action, Video
from airstreams.data.packed import PackedList


def test_a_packed_list_gives_equal_entries():
    videos = [
        Video(Path("a.mp4"), "a", ("run", "jump"), "train", start=1.5, actions=(Action("run", 0.0, 2.0),)),
        Video(Path("ü/b c.mp4"), "b", ()),
        Video(Path("c.mp4"), "c", ("run",), group="film"),
    ]
    packed = PackedList(videos)
    assert len(packed) == 3
    assert list(packed) == videos
    assert packed[-1] == videos[-1]
    assert packed[1:] == videos[1:]
    assert list(PackedList([])) == []
    for index in (3, -4):
        with pytest.raises(IndexError):
            packed[index]
