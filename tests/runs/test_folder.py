"""The run folder: its lists of videos survive the file, and damaged ones are rejected."""

from dataclasses import replace

import pytest

from airstreams.data.sources import open_source
from airstreams.data.splits import automatic_split, with_splits
from airstreams.errors import InputError
from airstreams.runs.folder import RunFolder
from airstreams.runs.known_videos import KnownVideo


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_splits_are_read_as_they_were_written(tmp_path):
    touch(tmp_path / "d", *(f'{label}/{i}, "ä".mp4' for label in ("clap", " wave") for i in range(10)))
    source = open_source(str(tmp_path / "d"))
    split = with_splits(source, automatic_split(source.videos, seed=0))
    assert [len(split.split(name)) for name in ("train", "val", "test")] == [14, 2, 4]
    run = RunFolder(tmp_path / "run")
    run.write_splits(split)
    assert run.splits.read_text(encoding="utf-8").startswith("name,split,label,content\n")
    assert with_splits(source, run.read_splits()) == split
    assert list(run.path.iterdir()) == [run.splits]
    run.write_splits(replace(split, videos=tuple(replace(video, content=video.name[:9]) for video in split.videos)))
    assert all(video.content == video.name[:9] for video in run.read_videos())


def test_the_labels_of_training_videos_are_known(tmp_path):
    run = RunFolder(tmp_path)
    assert run.training_labels() == []
    run.splits.write_text("name,split,label\na,train,clap\nb,val,clap\nc,train,jump\nd,train,jump;clap\n")
    assert run.training_labels() == ["clap", "jump", "jump;clap"]
    run.left_out.write_text("name,reason\nc,damaged\n")
    assert run.training_labels() == ["clap", "jump;clap"]
    run.splits.write_text("name,split\na,train\n")  # of version 0.2
    assert run.training_labels() == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read"),
        ("video,split\na,train\n", "no column 'name'"),
        ("name,split\na,dev\n", "line 2: the split is 'dev'"),
        ("name,split\na,\n", "line 2: the split is ''"),
        ("name,split\na,train\na,test\n", "line 3: a is listed twice"),
    ],
)
def test_a_damaged_list_of_splits_is_rejected(tmp_path, text, words):
    run = RunFolder(tmp_path)
    if text is not None:
        run.splits.write_text(text)
    with pytest.raises(InputError, match=words):
        run.read_splits()


def test_a_model_was_trained_on_the_training_videos_of_its_run_and_of_those_before(tmp_path):
    run = RunFolder(tmp_path)
    assert run.trained_on() == []
    run.splits.write_text("name,split\na,train\nb,val\nc,test\n")
    assert {video.name for video in run.trained_on()} == {"a"}
    run.write_trained_before([KnownVideo("c", "train"), KnownVideo("d", "train")])
    assert {video.name for video in run.trained_on()} == {"a", "c", "d"}
    run.write_trained_before([KnownVideo("c", "train", "12"), KnownVideo("d", "train")])
    assert run.trained_on()[1:] == [KnownVideo("c", "train", "12"), KnownVideo("d", "train")]
    run.write_trained_before(())
    assert not run.trained_before.exists()


def test_the_folder_of_other_data_has_its_name_and_is_no_split(tmp_path, monkeypatch):
    run = RunFolder(tmp_path / "run")
    touch(tmp_path, "a/[x] ö, z.csv", "b/[x] ö, z.csv", "b/test/clap/a.mp4")
    folders = {
        run.evaluation("test", data).path.name
        for data in (str(tmp_path / "a/[x] ö, z.csv"), str(tmp_path / "b/[x] ö, z.csv"), str(tmp_path / "b/test"))
    }
    assert sorted(name[:-14] for name in folders) == ["test", "x-ö-z.csv", "x-ö-z.csv"]
    assert len(folders) == 3
    assert not run.evaluation("test", str(tmp_path / "b/test")).is_own_split
    monkeypatch.chdir(tmp_path / "b")
    assert run.evaluation("test", "test").path.name in folders
    with_root = run.evaluation("test", "[x] ö, z.csv?root=test").path.name
    assert with_root.startswith("x-ö-z.csv-")
    assert with_root not in folders
    for data in (".", "/", "jhmdb:x/jhmdb?split=1", "a\0b", "?"):
        assert run.evaluation("val", data).path.parent == run.path / "evaluation"
