"""CSV files as people have them: any separator, any case, other columns, and wrong cells all at once."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from airstreams.data.clips import frame_range
from airstreams.data.csv_list import read_csv, write_csv
from airstreams.data.listing import Video
from airstreams.data.sources import open_source
from airstreams.errors import InputError, VideoError


@pytest.fixture
def folder(tmp_path):
    for name in ("v/a.mp4", "v/b.mp4", "v/c.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def write(folder: Path, text: str, encoding: str = "utf-8") -> str:
    (folder / "list.csv").write_bytes(text.encode(encoding))
    return str(folder / "list.csv")


def refusal(data: str) -> str:
    with pytest.raises(InputError) as caught:
        open_source(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("path;label;split;start\nv/a.mp4;x;train;1,5\nv/b.mp4;y;train;\nv/c.mp4;y;test;\n", "utf-8-sig"),
        ("sep=;\r\nPATH;Label ;SPLIT;Start\r\nv/a.mp4;x;TRAIN;1.5\r\nv/b.mp4;y;train;\r\nv/c.mp4;y;Test;\r\n", "utf-8"),
        ("path\tlabel\tsplit\tstart\nv/a.mp4\tx\ttrain\t1,5\nv/b.mp4\ty\ttrain\t\nv/c.mp4\ty\ttest\t\n", "utf-16"),
        ('"File Name","class","Subset","start_s"\n"v/a.mp4", "x", "Training",1.5\nv/b.mp4,y,train,\n'
         "v/c.mp4,y,testing,\n", "utf-8"),
        (",path,label,split,start\n0,v/a.mp4,x,train,1.5\n1,v/b.mp4,y,train,\n2,v/c.mp4,y,test,\n", "utf-8"),
        ("Unnamed: 0,path,label,split,start,,\n0,v/a.mp4,x,train,1.5,,\n1,v/b.mp4,y,train,,,\n2,v/c.mp4,y,test,,,,\n",
         "utf-8"),
    ],
    ids=["semicolons", "excel", "tabs", "names", "pandas", "empty columns"],
)  # fmt: skip
def test_tables_of_other_programs_are_read(folder, text, encoding):
    source = open_source(write(folder, text, encoding))
    assert source.warnings == ()
    assert [(video.name, video.labels, video.split) for video in source.videos] == [
        ("v/a.mp4#t=1.5,", ("x",), "train"),
        ("v/b.mp4", ("y",), "train"),
        ("v/c.mp4", ("y",), "test"),
    ]


def test_several_labels_are_read_beside_semicolons(folder):
    source = open_source(write(folder, 'path;label\nv/a.mp4;"x;y"\nv/b.mp4;"y; z"\nv/c.mp4;z\n'))
    assert [video.labels for video in source.videos] == [("x", "y"), ("y", "z"), ("z",)]
    assert "line 2: 3 cells" in refusal(write(folder, "path;label\nv/a.mp4;x;y\nv/b.mp4;y\n"))


def test_unknown_columns_are_ignored_and_named(folder):
    source = open_source(write(folder, "path,label,fps,start_time,splt,\nv/a.mp4,x,3,1,,u\nv/b.mp4,y,4,,,\n"))
    assert [video.name for video in source.videos] == ["v/a.mp4", "v/b.mp4"]
    (note,) = source.warnings
    for words in ("fps, start_time, splt, number 6", "Rename start_time to start", "Rename splt to split"):
        assert words in note


def test_two_columns_of_one_meaning_are_refused(folder):
    assert "video, file" in refusal(write(folder, "video,file,label\nv/a.mp4,v/b.mp4,x\n"))
    source = open_source(write(folder, "path,file,label\nv/a.mp4,q,x\nv/b.mp4,q,y\n"))  # the name itself goes first
    assert [video.name for video in source.videos] == ["v/a.mp4", "v/b.mp4"]
    assert "lable to label" in refusal(write(folder, "path,lable\nv/a.mp4,x\n"))


def test_all_wrong_cells_are_listed_at_once(folder):
    rows = [
        'v/a.mp4,x,eval,1:30,2',
        '"v/a\nb.mp4",x,train,,',
        "https://films.org/a.mp4,x,train,,",
        "s3://bucket/a.mp4,x,train,,",
        r"v\a.mp4,x,train,,",
        r"C:\v\a.mp4,x,train,,",
        "v/a.mp4,x,train",
        ",x,train,,",
        "v/a.mp4,,test,,",
        "v/b.mp4,x,train,3,2",
        *["v/c.mp4,x,train,-1,"] * 3,
    ]  # fmt: skip
    text = refusal(write(folder, "\n".join(["path,label,split,start,end", *rows])))
    assert "14 wrong cells" in text
    assert "and 4 more" in text
    for words in (
        "line 2: the split is 'eval'", "line 2: the start is '1:30'", "line 3: the path 'v/a\\nb.mp4'",
        "line 5: the path https://films.org", "line 6: the path s3://", r"line 7: the path v\a.mp4 has backslashes",
        r"line 8: the path C:\v\a.mp4", "line 9: 3 cells", "line 10: the path", "line 11: the label",
    ):  # fmt: skip
        assert words in text
    assert "line 12" not in text


def test_missing_files_are_explained(folder, monkeypatch):
    (folder / "lists").mkdir()
    (folder / "work").mkdir()
    monkeypatch.chdir(folder / "work")
    lists = folder / "lists"
    data = write(lists, "path,label\nv/a.mp4,x\nv/b.mp4,y\n")
    assert f"--root {folder}" in refusal(data)
    assert [video.path for video in open_source(f"{data}?root={folder}").videos] == [
        folder / "v/a.mp4",
        folder / "v/b.mp4",
    ]
    assert [video.name for video in open_source(f"{data}?root=..").videos] == ["v/a.mp4", "v/b.mp4"]
    assert "absent" in refusal(f"{data}?root={folder}/absent")
    assert "folder" in refusal(f"{folder}?root={folder}")
    (warning,) = open_source(data, include_missing=True).warnings
    assert f"--root {folder}" in warning
    assert "--root DIR" in refusal(write(lists, "path,label\nq/a.mp4,x\nq/b.mp4,y\n"))
    assert f"a.mp4 is in {folder / 'v'}" in refusal(write(folder / "v", "path,label\n/mnt/a.mp4,x\n/mnt/b.mp4,y\n"))
    text = refusal(write(folder, "path,label\nv/a.mp4,x\nv/B.MP4,y\nv/c,y\n"))
    assert "2 of 3 rows" in text
    assert "has b.mp4 instead of B.MP4" in text


def test_probable_mistakes_in_labels_are_warned_of(folder):
    (comma,) = open_source(write(folder, 'path,label\nv/a.mp4,"clap, indoor"\nv/b.mp4,run\n')).warnings
    assert "'clap, indoor'" in comma
    assert "clap; indoor" in comma
    (single,) = open_source(write(folder, "path,label\nv/a.mp4,sit\nv/b.mp4,sit; then stand\nv/c.mp4,run\n")).warnings
    assert "'sit; then stand' (line 3)" in single
    meant = write(folder, "path,label\nv/a.mp4,sit;run\nv/b.mp4,sit;stand\nv/c.mp4,run\n")
    assert open_source(meant).warnings == ()
    assert open_source(write(folder, "path,label\nv/a.mp4,sit;\nv/b.mp4,\n")).multi_label


def test_labels_that_differ_only_by_a_blank_or_in_case_are_warned_of(folder):
    source = open_source(write(folder, "path,label\nv/a.mp4,clap\nv/b.mp4,clap \nv/c.mp4,run \n"))
    assert source.classes == ("clap", "run")
    (blank,) = source.warnings  # a blank in all cells of a label makes no difference
    for words in ("'clap'", "'clap '", "line 3"):
        assert words in blank
    (case,) = open_source(write(folder, "path,label\nv/a.mp4,clap\nv/b.mp4,Clap\n")).warnings
    assert "clap" in case
    assert "Clap" in case


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b'[{"path": "a.mp4"}]', "JSON"),
        (b"PAR1\x15\x04", "Parquet"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"<!DOCTYPE html>", "HTML"),
        (b"path,label\nv/a.mp4,x\0\n", "NUL"),
        ("path;label\nv/a.mp4;Läufe".encode("latin-1"), "line 2 is not UTF-8"),
        (b'path,label\nv/a.mp4,"x\n', "line 2 cannot be split"),
    ],
)
def test_files_of_another_kind_are_named(folder, content, kind):
    (folder / "list.csv").write_bytes(content)
    assert kind in refusal(str(folder / "list.csv"))


def test_archives_and_sheets_are_named(folder):
    with zipfile.ZipFile(folder / "videos.zip", "w") as file:
        file.writestr("a.mp4", "")
    assert "zip archive" in refusal(str(folder / "videos.zip"))


def test_a_start_after_the_end_is_explained():
    video = Video(Path("a.mp4"), "a", ("x",), start=90.0)
    with pytest.raises(VideoError, match=r"90.0 s lies after .* 1.00 s"):
        frame_range(video, np.array([0.0, 0.5, 1.0]))


def test_a_name_of_5000_letters_concerns_its_own_row_only(tmp_path):
    (tmp_path / "a.mp4").touch()
    path = tmp_path / "list.csv"
    path.write_text(f"path,label\na.mp4,x\n{'b' * 5000}.mp4,y\n")
    assert len(read_csv(str(path), path, include_missing=True).videos) == 2
    assert len(open_source(path, include_missing=True).videos) == 2
    with pytest.raises(InputError, match="line 3"):
        read_csv(str(path), path)


def test_escaped_formulas_are_read_back(tmp_path):
    (tmp_path / "-a.mp4").touch()
    path = tmp_path / "list.csv"
    path.write_text("path,label\n'-a.mp4,'=x\n")
    (video,) = read_csv(str(path), path).videos
    assert (video.path.name, video.labels) == ("-a.mp4", ("=x",))
    write_csv(tmp_path / "again.csv", [video], multi_label=False)
    assert "'-a.mp4,'=x" in (tmp_path / "again.csv").read_text()
