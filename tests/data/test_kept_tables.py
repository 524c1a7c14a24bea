"""Frame times on disk: what was counted once is not counted again, unless the file has changed."""

import numpy as np
import pytest
from rich.console import Console

from airstreams.data import frame_table
from airstreams.data.frame_table import counted_tables, forget_tables, remember_tables
from airstreams.data.kept_tables import read_tables, write_tables
from airstreams.data.listing import Video, make_source
from airstreams.data.video import probe, read_frames
from airstreams.runs.folder import RunFolder
from airstreams.training.data import prepare_videos
from tests.data.fields import moving


@pytest.fixture
def no_counting(monkeypatch):
    """A function that forbids counting from then on."""

    def refuse(*arguments):
        raise AssertionError("counted again")

    return lambda: monkeypatch.setattr(frame_table, "_table_by_counting", refuse)


def test_tables_are_as_before_and_nothing_is_counted_again(tmp_path, no_counting):
    files = [moving(tmp_path / name) for name in ("a.mp4", "b.ts")]
    files.append(tmp_path / "joined \udce9.ts")  # a name that is not UTF-8
    files[-1].write_bytes(files[1].read_bytes() * 2)
    forget_tables()
    before = [(probe(path), read_frames(path, [20, 3])) for path in files]
    assert len(counted_tables()) == 3
    write_tables(tmp_path / "times.npz", counted_tables())
    forget_tables()
    remember_tables(read_tables(tmp_path / "times.npz"))
    no_counting()
    for path, (info, frames) in zip(files, before, strict=True):
        again = probe(path)
        assert vars(again) | {"times": None} == vars(info) | {"times": None}
        assert np.array_equal(again.times, info.times)
        assert np.array_equal(read_frames(path, [20, 3]), frames)


def test_a_changed_file_is_counted_again(tmp_path):
    path = moving(tmp_path / "a.ts")
    forget_tables()
    frames = probe(path).frames
    write_tables(tmp_path / "times.npz", counted_tables())
    moving(path, frames // 2)
    forget_tables()
    remember_tables(read_tables(tmp_path / "times.npz"))
    assert probe(path).frames == frames // 2


def test_a_missing_or_damaged_file_of_tables_is_ignored(tmp_path):
    assert read_tables(tmp_path / "none.npz") == {}
    moving(tmp_path / "a.ts")
    forget_tables()
    probe(tmp_path / "a.ts")
    write_tables(tmp_path / "times.npz", counted_tables())
    data = (tmp_path / "times.npz").read_bytes()
    for damaged in (b"", data[: len(data) // 2], data.replace(b"rows", b"cows")):
        (tmp_path / "times.npz").write_bytes(damaged)
        assert read_tables(tmp_path / "times.npz") == {}


def test_a_training_that_goes_on_counts_nothing(tmp_path, tiny, no_counting):
    video = Video(moving(tmp_path / "a.ts"), "a", ("up",), split="train")
    source = make_source("made", [video], multi_label=False)
    folder = RunFolder(tmp_path / "run")
    folder.write_left_out([])
    forget_tables()
    prepare_videos(source, tiny, folder, False, Console(quiet=True))
    write_tables(folder.frame_tables, counted_tables())
    forget_tables()
    no_counting()
    assert prepare_videos(source, tiny, folder, True, Console(quiet=True)).train == [video]
    assert len(read_frames(video.path, [3])) == 1
