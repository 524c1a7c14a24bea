"""A run finds its videos again by their content, or by their names where it does not know it."""

from dataclasses import replace
from pathlib import Path

import pytest

from airstreams.data.listing import Video
from airstreams.runs.known_videos import KnownVideo, KnownVideos

RUN = KnownVideos(
    [
        KnownVideo("a.mp4", "train", "AA"),
        KnownVideo("b.mp4", "test", "BB"),
        KnownVideo("c.mp4#t=,2.0", "train", "CC"),
        KnownVideo("c.mp4#t=3.0,", "test", "CC"),
        KnownVideo("broken.mp4", "test"),
        KnownVideo("v.mp4", "val", "VV"),
    ]
)


def video(name, content=None):
    return Video(Path(name), name, ("jump",), content=content)


@pytest.mark.parametrize(
    ("name", "content", "trained_on", "split"),
    [
        ("x/other.mkv", "AA", True, "train"),
        ("x/other.mkv#t=1.0,2.0", "AA", True, "train"),  # a part of a training video
        ("b.mp4", "AA", True, "train"),  # renamed to the name of a test video
        ("a.mp4", "new", False, None),  # another video of the same name
        ("a.mp4", None, True, "train"),  # a file that cannot be read has its name only
        ("renamed.mp4", "BB", False, "test"),
        ("renamed.mp4#t=3.0,", "CC", False, "test"),
        ("renamed.mp4#t=1.0,4.0", "CC", True, "train"),  # overlaps both
        ("renamed.mp4#t=2.0,3.0", "CC", False, None),  # between the two; the end is excluded
        ("renamed.mp4", "VV", False, "val"),
        ("broken.mp4", "repaired", False, "test"),
    ],
)
def test_videos_are_found_by_content_before_name(name, content, trained_on, split):
    given = video(name, content)
    learned = KnownVideos(known for known in RUN if known.split == "train")
    assert bool(learned.overlapping([given])) is trained_on
    assert RUN.splits_of([given]) == ({name: split} if split else {})


def test_copies_get_the_split_of_their_name_or_of_training():
    run = KnownVideos([KnownVideo("a.mp4", "train", "AA"), KnownVideo("copy.mp4", "test", "AA")])
    assert run.splits_of([video("a.mp4", "AA"), video("copy.mp4", "AA"), video("other.mp4", "AA")]) == {
        "a.mp4": "train",
        "copy.mp4": "test",
        "other.mp4": "train",
    }
    assert KnownVideos([KnownVideo("a.mp4", "train", "AA")]).overlapping([video("copy.mp4", "AA")])


OWN = [video("1.mp4", "BB"), video("2.mp4#t=3.0,", "CC")]


@pytest.mark.parametrize(
    ("videos", "own"),
    [
        (OWN, True),  # all but the file that the run could not read
        ([*OWN, video("broken.mp4")], True),
        (OWN[:1], False),
        ([*OWN, video("new.mp4", "new")], False),
        ([*OWN, video("4.mp4", "AA")], False),  # a training video
        ([*OWN, video("copy.mp4", "BB")], False),  # counts twice
        ([video("b.mp4"), OWN[1]], True),  # damaged since then
        ([video("b.mp4", "new"), OWN[1]], False),
    ],
)
def test_a_split_is_the_runs_own_if_it_has_all_of_its_videos_and_no_others(videos, own):
    assert RUN.are_split(videos, "test") is own
    assert not RUN.are_split(videos, "val")


def test_names_decide_for_runs_without_contents():
    old = KnownVideos([KnownVideo("a.mp4", "train"), KnownVideo("b.mp4", "test"), KnownVideo("c.mp4", "test")])
    both = [video("b.mp4", "BB"), video("c.mp4", "CC")]
    assert old.are_split(both, "test")
    assert not old.are_split(both[:1], "test")
    assert not old.are_split([video("x.mp4", "BB"), both[1]], "test")
    assert old.overlapping([video("a.mp4", "AA"), video("x.mp4", "AA")]) == [video("a.mp4", "AA")]


def test_other_labels_make_other_data():
    known = KnownVideos([KnownVideo("b.mp4", "test", "BB", "jump"), KnownVideo("d.mp4", "test", "DD", "run;jump")])
    own = [video("x/b.mkv", "BB"), Video(Path("d.mp4"), "d.mp4", ("jump", "run"), content="DD")]
    assert known.are_split(own, "test")
    assert known.relabelled(own) == []
    wrong = [replace(own[0], labels=("run",)), own[1]]
    assert not known.are_split(wrong, "test")
    assert known.relabelled(wrong) == [(wrong[0], "jump")]
