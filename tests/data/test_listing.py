from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airstreams.data.listing import Action, Source, Video, make_source, require_consistent
from airstreams.errors import InputError

A, B = Video(Path("a.mp4"), "a", ("jump",)), Video(Path("b.mp4"), "b", ("run",))
SEVERAL = Source("mine", ("jump", "run"), (replace(A, labels=("jump", "run")), replace(B, labels=())), multi_label=True)
TEXT: Any = "jump"
LIST: Any = ["jump"]
TIMED = replace(A, labels=("jump", "run"), actions=(Action("run", 0.0, 1.0), Action("jump", 0.5, 2.0)))


@pytest.mark.parametrize(
    "source",
    [
        make_source("mine", [A, B], multi_label=False),
        make_source("mine", [replace(A, split="train"), replace(B, split="test")], multi_label=False),
        SEVERAL,
        replace(SEVERAL, videos=(TIMED, B)),
    ],
)
def test_what_is_consistent_passes(source):
    require_consistent(source)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (make_source("mine", [replace(A, labels=TEXT), B], False), "mine: a: labels is 'jump', expected a tuple"),
        (make_source("mine", [replace(A, labels=LIST), B], False), r"mine: a: labels is \['jump'\], expected a tuple"),
        (make_source("mine", [A, replace(B, name="a")], False), "mine: a: two videos have this name"),
        (Source("mine", ("run",), (B, A)), "mine: a: its label 'jump' is none of the source's classes"),
        (replace(SEVERAL, multi_label=False), "mine: a: got 2 labels, expected one"),
        (make_source("mine", [A, replace(B, labels=())], False), "mine: b: got 0 labels, expected one"),
        (
            make_source("mine", [replace(A, split="valid"), B], False),
            "mine: a: its split is 'valid', expected",
        ),
        (make_source("mine", [replace(A, split="val"), B], False), "mine: b: its split is None"),
        (
            make_source("mine", [replace(TIMED, labels=("run",))], True),
            "mine: a: an action is 'jump', none of its labels",
        ),
    ],
)
def test_the_first_video_that_is_not_is_named_in_a_line(source, told):
    with pytest.raises(InputError, match=told) as raised:
        require_consistent(source)
    assert "\n" not in str(raised.value)


def test_videos_may_come_one_by_one():
    assert make_source("mine", iter([B, A]), multi_label=False) == Source("mine", ("jump", "run"), (A, B))
