"""`data.group_by`: groups by an expression or by likeness, beside those that the data has."""

import io

import pytest
from rich.console import Console

from airstreams.config import Config, DataConfig
from airstreams.data import grouping
from airstreams.data.grouping import with_groups
from airstreams.data.sources import open_source
from airstreams.data.splits import automatic_split
from airstreams.errors import InputError

QUIET = Console(quiet=True)


def write(root, *names):
    """Files that are no videos; each has its own content."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def groups(source):
    return {video.name: video.group for video in source.videos}


def test_an_expression_gives_the_group_and_other_videos_stay_alone(tmp_path):
    write(tmp_path, "clap/a_x_1.mp4", "clap/a_y_2.mp4", "clap/b_1.mp4", "wave/a_1.mp4", "wave/Ünal [1].mp4")
    said = io.StringIO()
    source = with_groups(open_source(tmp_path), r"/([a-z])_", Console(file=said, width=200))
    assert groups(source) == {
        "clap/a_x_1.mp4": "a",
        "clap/a_y_2.mp4": "a",
        "clap/b_1.mp4": "b",
        "wave/a_1.mp4": "a",
        "wave/Ünal [1].mp4": None,
    }
    assert "1 of 5" in said.getvalue()
    assert "wave/Ünal [1]" in said.getvalue()
    whole_match = with_groups(open_source(tmp_path), r"clap/.", QUIET)
    assert {group for group in groups(whole_match).values() if group} == {"clap/a", "clap/b"}
    for seed in range(10):
        split = automatic_split(source.videos, seed)
        assert len({split[name] for name, group in groups(source).items() if group == "a"}) == 1


def test_an_expression_that_matches_nothing_is_refused(tmp_path):
    source = open_source(write(tmp_path, "clap/a.mp4", "wave/b.mp4"))
    with pytest.raises(InputError, match=r"--group-by .*none of the 2 videos.*clap/a"):
        with_groups(source, r"(\d+)", QUIET)
    assert groups(with_groups(source, r"(\d+)", QUIET, strict=False)) == groups(source)


@pytest.mark.parametrize("expression", ["([^/", "*", "(?P<x"])
def test_a_wrong_expression_is_refused(expression):
    with pytest.raises(InputError, match=r"data\.group_by"):
        Config(data=DataConfig(group_by=expression))


def test_the_groups_of_a_csv_file_win(tmp_path):
    write(tmp_path, "tape_1.mp4", "tape_2.mp4", "other.mp4")
    rows = ["path,label,group", "tape_1.mp4,clap,alice", "tape_2.mp4,clap,bob", "other.mp4,wave,"]
    (tmp_path / "own.csv").write_text("\n".join(rows))
    (tmp_path / "none.csv").write_text("\n".join(row.rpartition(",")[0] for row in rows))
    said = io.StringIO()
    own = open_source(tmp_path / "own.csv")
    assert groups(with_groups(own, "tape", Console(file=said, width=200))) == groups(own)
    assert "--group-by has no effect" in said.getvalue()
    assert groups(with_groups(open_source(tmp_path / "none.csv"), "tape", QUIET)) == {
        "tape_1.mp4": "tape",
        "tape_2.mp4": "tape",
        "other.mp4": None,
    }


def test_copies_join_the_groups_of_an_expression(tmp_path):
    write(tmp_path, "clap/a_1.mp4", "clap/a_2.mp4", "clap/b_1.mp4", "wave/c_1.mp4", "wave/d_1.mp4")
    (tmp_path / "clap/b_1.mp4").write_text("clap/a_1.mp4")
    found = groups(with_groups(open_source(tmp_path), r"/(.)_", QUIET))
    assert len({found[f"clap/{name}.mp4"] for name in ("a_1", "a_2", "b_1")}) == 1
    assert found["wave/c_1.mp4"] != found["wave/d_1.mp4"]


def test_groups_in_several_given_splits_are_warned_of(tmp_path):
    write(tmp_path, "train/clap/a_1.mp4", "train/wave/b_1.mp4", "test/clap/a_2.mp4", "test/wave/c_1.mp4")
    source = with_groups(open_source(tmp_path), r"/(.)_", QUIET)
    (warning,) = source.warnings
    assert "the group a" in warning


def test_auto_keeps_siblings_together(tmp_path):
    names = [
        f"{label}/{film}_{number}.mp4"
        for label in ("clap", "wave")
        for film in ("uno", "due", "tre")
        for number in "12"
    ]
    source = with_groups(open_source(write(tmp_path, *names)), "auto", QUIET)
    assert source.alike is not None
    for seed in range(10):
        split = automatic_split(source.videos, seed)
        assert all(split[name] == split[name.replace("_1", "_2")] for name in names)
    assert with_groups(source, "auto", QUIET) is source  # not looked for twice


def test_an_expression_that_takes_for_ever_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(grouping, "_LIMIT_S", 0.5)
    source = open_source(write(tmp_path, f"clap/{'a' * 60}.mp4", "wave/b.mp4"))
    with pytest.raises(InputError, match="--group-by"):
        with_groups(source, r"/(a+)+!", QUIET)
