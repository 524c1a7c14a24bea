"""Warnings about a list of videos, and how copies and clips of one recording are grouped."""

from dataclasses import replace
from pathlib import Path

import pytest

from airstreams.config import Config, DataConfig
from airstreams.data.listing import Alike, Video, make_source
from airstreams.data.source_warnings import training_warnings
from airstreams.data.sources import open_source
from airstreams.data.splits import automatic_split
from airstreams.errors import InputError


def write(root, **contents):
    """Write files that are no videos, since they are never decoded here. `a__b` is b.mp4 in the folder a."""
    for name, content in contents.items():
        path = root / f"{name.replace('__', '/')}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def test_copies_are_warned_of_and_stay_in_one_split(tmp_path):
    long = bytes(range(256)) * 1000
    others = {f"{label}__{number}": bytes([number + 1]) * 9 for label in ("clap", "wave") for number in range(20)}
    write(tmp_path, **others, clap__copy=long, clap__once_more=long, clap__other_begin=b"x" + long[1:], wave__x=long)
    source = open_source(str(tmp_path))
    (warning,) = source.warnings
    assert "different labels" in warning
    assert "clap/0.mp4 and wave/0.mp4" in warning
    copies = ["clap/copy.mp4", "clap/once_more.mp4", "wave/x.mp4"]
    for seed in range(20):
        split = automatic_split(source.videos, seed)
        assert len({split[name] for name in copies}) == 1
        assert all(split[f"clap/{number}.mp4"] == split[f"wave/{number}.mp4"] for number in range(20))
    assert {video.name for video in source.videos if video.group == "copies of clap/copy.mp4"} == {*copies}
    (tmp_path / "wave" / "x.mp4").unlink()
    for number in range(20):
        (tmp_path / f"wave/{number}.mp4").write_bytes(bytes([number + 1]) * 10)
    (warning,) = open_source(str(tmp_path)).warnings
    assert "different labels" not in warning
    assert "clap/copy.mp4 and clap/once_more.mp4" in warning


def test_copies_join_the_groups_of_their_originals(tmp_path):
    names = [f"{label}__v_{label}_g{group:02}_c01" for label in ("Biking", "Diving") for group in range(1, 9)]
    write(tmp_path, **{name: name.encode() for name in names})
    write(tmp_path, Biking__v_Biking_g01_c02=b"twice", Biking__v_Biking_g06_c02=b"twice")
    source = open_source(str(tmp_path))
    joined = [f"Biking/v_Biking_g{group}_c{clip}.mp4" for group in ("01", "06") for clip in ("01", "02")]
    assert {video.name for video in source.videos if video.group == "v_Biking_g01"} == {*joined}
    for seed in range(20):
        split = automatic_split(source.videos, seed)
        assert len({split[name] for name in joined}) == 1

    rows = ["path,label,split,group", "a.mp4,clap,train,first", "b.mp4,clap,test,second", "c.mp4,wave,train,first"]
    (write(tmp_path / "list", a=b"one", b=b"one", c=b"two") / "list.csv").write_text("\n".join(rows))
    copies, shared = open_source(str(tmp_path / "list/list.csv")).warnings
    assert "a.mp4 and b.mp4" in copies
    assert "more than one split: the group first." in shared


def test_segments_of_copies_stay_in_one_split(tmp_path):
    write(tmp_path, a=b"one", b=b"one", c=b"two")
    rows = [
        "path,label,start,end",
        "a.mp4,clap,0,1",
        "a.mp4,wave,1,2",
        "b.mp4,clap,0,1",
        "b.mp4,wave,1,2",
        "c.mp4,clap,,",
    ]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    source = open_source(str(tmp_path / "list.csv"))
    (warning,) = source.warnings
    assert "different labels" not in warning  # the segments of both files have the same labels
    assert "a.mp4#t=0.0,1.0 and b.mp4#t=0.0,1.0" in warning
    assert [video.group for video in source.videos] == ["copies of a.mp4#t=0.0,1.0"] * 4 + [None]


def test_copies_in_several_splits_are_warned_of(tmp_path):
    write(tmp_path, train__clap__a=b"one", train__wave__b=b"two", test__clap__c=b"one", test__wave__d=b"three")
    copies, shared = open_source(str(tmp_path)).warnings
    assert "test/clap/c.mp4 and train/clap/a.mp4" in copies
    assert "more than one split: the group copies of test/clap/c.mp4" in shared


def test_clips_of_one_ucf_101_recording_stay_in_one_split(tmp_path):
    names = [f"{label}__v_{label}_g{group:02}_c{clip:02}" for label in ("Biking", "Diving") for group in range(1, 9)
             for clip in range(1, 5)]  # fmt: skip
    write(tmp_path, **{name: name.encode() for name in names})
    source = open_source(str(tmp_path))
    (warning,) = source.warnings
    assert "UCF-101" in warning
    split = automatic_split(source.videos, 0)
    recordings: dict[str, set[str]] = {}
    for name, use in split.items():
        recordings.setdefault(name[:-8], set()).add(use)
    assert len(recordings) == 16
    assert all(len(uses) == 1 for uses in recordings.values())

    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    for label in ("Biking", "Diving"):
        (tmp_path / label).rename(tmp_path / "train" / label)
    write(tmp_path, test__Biking__v_Biking_g01_c05=b"leaks", test__Diving__v_Diving_g09_c01=b"does not")
    (warning,) = open_source(str(tmp_path)).warnings
    assert "more than one split: the group v_Biking_g01." in warning


def test_similar_class_names_are_warned_of(tmp_path):
    write(tmp_path, Run__a=b"1", run__b=b"22", high_jump__c=b"333", **{"high jump__d": b"4444"}, walk__e=b"55555")
    others = ("C", "C++", "C#", "-1", "+1", "1", "1.5 kg", "15 kg", "step 1", "step 11")
    write(tmp_path, **{f"{name}__x": bytes(6 + number) for number, name in enumerate(others)})
    (warning,) = open_source(str(tmp_path)).warnings
    assert ": Run and run, high jump and high_jump." in warning


def test_a_folder_one_level_too_high_is_warned_of(tmp_path):
    write(tmp_path, day1__clap__a=b"1", day1__wave__b=b"22", day2__clap__c=b"333", day2__x__deep__d=b"4444")
    (warning,) = open_source(str(tmp_path)).warnings
    assert "day1, day2" in warning
    assert "clap" in warning
    write(tmp_path, day2__e=b"55555")
    assert open_source(str(tmp_path)).warnings == ()
    write(tmp_path / "one", UCF__clap__a=b"1", UCF__wave__b=b"22")
    with pytest.raises(InputError, match=r"class UCF; .* give .*one/UCF "):
        open_source(str(tmp_path / "one"))


def test_an_automatic_split_does_not_depend_on_the_folder(tmp_path, monkeypatch):
    for root in ("a", "z"):
        films = {f"{label}__{number}": f"{label}{number}".encode() for label in ("clap", "wave") for number in range(9)}
        write(tmp_path / root, **films, clap__x=b"copied", clap__y=b"copied")
    monkeypatch.chdir(tmp_path)
    drawn = [automatic_split(open_source(data).videos, 0) for data in ("a", "z", str(tmp_path / "z"))]
    assert drawn[0] == drawn[1] == drawn[2]


def listed(rows, **more):
    """A source with splits: rows of (label, split, number of videos)."""
    videos = [
        Video(Path(f"{label}-{split}-{number}"), f"{label}-{split}-{number}", (label,), split)
        for label, split, count in rows
        for number in range(count)
    ]
    return replace(make_source("data", videos, multi_label=False), **more)


@pytest.mark.parametrize(
    ("rows", "config", "told"),
    [
        ([("a", "train", 5), ("b", "train", 4), ("a", "test", 1), ("b", "test", 1)], {}, []),
        (
            [("a", "train", 5), ("b", "train", 3), ("a", "test", 1), ("b", "test", 1)],
            {},
            ["fewer than 5 videos: b (4)"],
        ),
        ([("a", "train", 50), ("b", "train", 5), ("a", "test", 1), ("b", "test", 1)], {}, []),
        ([("a", "train", 51), ("b", "train", 5), ("a", "test", 1), ("b", "test", 1)], {}, ["--data.balanced true"]),
        ([("a", "train", 51), ("b", "train", 5), ("a", "test", 1), ("b", "test", 1)], {"balanced": True}, []),
        ([("a", "train", 5), ("b", "train", 5), ("a", "test", 1)], {}, ["one split only: b (train)"]),
        ([("a", "train", 5), ("b", "train", 5)], {}, []),
        ([("turn_Left", "train", 5), ("up", "train", 5)], {}, ["--data.flip false"]),
        ([("TurnRight", "train", 5), ("up", "train", 5)], {"flip": False}, []),
        ([("bright", "train", 5), ("leftover", "train", 5)], {}, []),
        ([("nach rechts", "train", 5), ("up", "train", 5)], {}, ["nach rechts"]),
    ],
)
def test_traps_of_a_training_are_warned_of(rows, config, told):
    found = training_warnings(listed(rows), Config(data=DataConfig(**config)), drawn=False)
    assert len(found) == len(told)
    for words, warning in zip(told, found, strict=True):
        assert words in warning


def test_a_group_of_over_half_of_the_videos_is_warned_of():
    source = listed([("a", "train", 5), ("b", "train", 5), ("a", "test", 5), ("b", "test", 5)])
    videos = tuple(
        replace(video, group="x" if "a" in video.labels or "0" in video.name else None) for video in source.videos
    )
    (warning,) = training_warnings(replace(source, videos=videos), Config(), drawn=True)
    assert "12 of 20" in warning
    assert training_warnings(replace(source, videos=videos[:10]), Config(), drawn=False) == []


def test_alike_videos_in_several_splits_are_warned_of():
    rows = [("a", "train", 6), ("b", "train", 6), ("a", "test", 6), ("b", "test", 6)]
    pairs = [(f"{label}-test-{number}", f"{label}-train-{number}") for label in "ab" for number in range(4)]
    within = Alike(("a-train-4", "a-train-5"), "names")
    source = listed(rows, alike=(within, *(Alike(names, "frames") for names in pairs)))
    (warning,) = training_warnings(source, Config(), drawn=True)
    assert "8 of 12" in warning
    assert "a-test-0 and a-train-0 (frames)" in warning
    assert "5 more" in warning
    assert "--group-by auto" in warning
    (given,) = training_warnings(source, Config(), drawn=False)
    assert "--group-by" not in given
    (own,) = training_warnings(replace(source, own_groups=True), Config(), drawn=True)
    assert "column group" in own
    assert training_warnings(replace(source, alike=(within,)), Config(), drawn=True) == []
    absent = (Alike(("walk/absent.mp4", within.names[0]), "names"),)  # a trial trains on a part of a source's videos
    assert training_warnings(replace(source, alike=absent), Config(), drawn=True) == []
