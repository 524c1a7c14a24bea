"""A vote of several teachers, or of label maps that exist already."""

import json
from collections import Counter

import numpy as np
import pytest
import torch

from airstreams.data.label_maps import LabelStore, create, save
from airstreams.data.sources import open_source
from airstreams.errors import InputError
from airstreams.teachers.ensemble import vote
from airstreams.teachers.teacher import load_teacher

TEACHERS = """
import numpy as np

class Bright:
    name = "bright"
    classes = ("background", "light", "red")
    limit = 20
    def __call__(self, frames_THW3):
        return (frames_THW3.min(axis=3) > self.limit).astype(np.uint8)

class Brighter(Bright):
    name = "brighter"
    limit = 120

class Red:
    name = "red"
    classes = ("other", "red")
    def __call__(self, frames_THW3):
        return (frames_THW3[..., 0] > 100).astype(np.uint8)
"""


@pytest.fixture
def teachers(tmp_path):
    (tmp_path / "votes.py").write_text(TEACHERS)
    return f"{tmp_path}/votes.py"


def slow_vote(column, votes):
    """The vote in one pixel, as docs/labels.md states it."""
    named = Counter(number for number in column if number not in (0, 255))
    best = min(named, key=lambda number: (-named[number], number), default=0)
    if best and named[best] >= votes:
        return best
    return 255 if named[best] + column.count(255) >= votes else 0


@pytest.mark.parametrize("votes", [1, 2, 3, 5])
def test_a_vote_agrees_with_a_slow_reference(votes):
    maps_ETHW = np.random.default_rng(votes).choice([0, 1, 2, 3, 255], (5, 2, 20, 30), p=[0.4, 0.2, 0.1, 0.1, 0.2])
    maps_ETHW = maps_ETHW.astype(np.uint8)
    voted = vote(list(maps_ETHW), votes)
    assert voted.dtype == np.uint8
    expected = [slow_vote(column, votes) for column in maps_ETHW.reshape(5, -1).T.tolist()]
    assert voted.ravel().tolist() == expected
    assert set(expected) >= {0, 1, 255} if votes < 5 else set(expected) >= {0, 255}


def test_teachers_vote_by_the_names_of_their_classes(teachers):
    members = [f"{teachers}:{name}" for name in ("Bright", "Red", "Brighter")]
    frames = np.array([[[[0, 0, 0], [50, 50, 50], [150, 150, 150], [150, 0, 0]]]], np.uint8)
    options = {"votes": 1}
    first = load_teacher(f"ensemble:{','.join(members)}", options, torch.device("cpu"))
    assert first.name == "ensemble:bright,red,brighter"
    assert first.classes == ("background", "light", "red")
    assert first(frames).tolist() == [[[0, 1, 1, 2]]]
    most = load_teacher(f"ensemble:{','.join(members)}", {}, torch.device("cpu"))
    assert most(frames).tolist() == [[[0, 0, 1, 0]]]


@pytest.mark.parametrize(
    ("spec", "options", "expected"),
    [
        ("ensemble:maskrcnn", {}, "ensemble:maskrcnn"),
        ("ensemble:maskrcnn,,x", {}, "two members"),
        ("ensemble:a,b", {"votes": 3}, "--votes 3"),
        ("ensemble:a,b", {"votes": 0}, "--votes 0"),
        ("ensemble:nothing,b", {}, "nothing"),
        ("maskrcnn", {"votes": 2}, "--votes"),
    ],
)
def test_wrong_votes_are_refused(spec, options, expected):
    with pytest.raises(InputError, match=expected):
        load_teacher(spec, options, torch.device("cpu"))


def keys_of(data):
    return [video.label_map for video in open_source(str(data)).videos if video.label_map is not None]


def test_a_vote_of_label_stores_equals_that_of_their_teachers(teachers, synthetic, call, tmp_path):
    data = synthetic / "videos" / "test"
    names = ("Bright", "Red", "Brighter")
    for name in names:
        assert (
            call("annotate", data, "--teacher", f"{teachers}:{name}", "--out", tmp_path / name, "--workers", 0)[0] == 0
        )
    of_teachers = "ensemble:" + ",".join(f"{teachers}:{name}" for name in names)
    of_stores = "ensemble:" + ",".join(str(tmp_path / name) for name in names)
    for spec, out in ((of_teachers, "live"), (of_stores, "stored")):
        options = ["--teacher", spec, "--votes", 2, "--workers", 0, "--out", tmp_path / out, "--stride", 2, "--json"]
        for frames in (32, 0):  # the second call has nothing left to do
            status, printed, _ = call("annotate", data, *options)
            found = json.loads(printed)
            assert (status, found["labelled"], found["frames"]) == (0, 8, frames)
    live, stored = (LabelStore.open(tmp_path / out) for out in ("live", "stored"))
    assert live.classes == stored.classes == ("background", "light", "red")
    assert stored.knows_contents
    seen = set()
    for key in keys_of(data):
        places = [0, 2, 4, 6]
        assert live.labelled_frames(key).tolist() == stored.labelled_frames(key).tolist() == places
        of_live, of_stored = live.read(key, places), stored.read(key, places)
        assert of_live is not None
        assert of_stored is not None
        np.testing.assert_array_equal(of_live, of_stored, key)
        seen |= {int(number) for number in np.unique(of_live)}
    assert 1 in seen
    status, _, said = call("annotate", data, "--teacher", of_stores, "--out", tmp_path / "stored", "--votes", 3)
    assert status == 2
    assert "stored" in said


def test_label_stores_of_other_sizes_vote_and_gaps_are_reported(synthetic, call, tmp_path):
    data = synthetic / "videos" / "test"
    keys = keys_of(data)
    for number, side in enumerate((2, 4)):
        create(tmp_path / f"{number}", f"t{number}", ["background", "thing", "left", "right"], {}, [("left", "right")])
        for key in keys[number:]:
            save(tmp_path / f"{number}", key, np.full((2, side, side), 1, np.uint8), [0, 3])
    spec = f"ensemble:{tmp_path / '0'},{tmp_path / '1'}"
    status, printed, _ = call("annotate", data, "--teacher", spec, "--out", tmp_path / "v", "--json")
    assert status == 1
    (left_out,) = json.loads(printed)["left_out"]
    assert left_out["path"] == f"{data / keys[0]}.mp4"
    assert LabelStore.open(tmp_path / "v").mirrored == (("left", "right"),)
    maps_NHW = LabelStore.open(tmp_path / "v").read(keys[1], [0, 3])
    assert maps_NHW is not None
    assert (maps_NHW == np.ones((2, 4, 4))).all()
    for words in (["--max-side", 64], ["--classes", "thing"]):
        assert call("annotate", data, "--teacher", spec, "--out", tmp_path / "w", *words)[0] == 2
    mixed = f"ensemble:{tmp_path / '0'},maskrcnn"
    assert call("annotate", data, "--teacher", mixed, "--out", tmp_path / "w")[0] == 2
