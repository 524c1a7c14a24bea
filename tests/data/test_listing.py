import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airstreams.data.listing import Action, Source, Video, listed, require_consistent
from airstreams.errors import InputError

A, B = Video(Path("a.mp4"), "a", ("jump",)), Video(Path("b.mp4"), "b", ("run",))
SEVERAL = Source("mine", ("jump", "run"), (replace(A, labels=("jump", "run")), replace(B, labels=())), multi_label=True)
TEXT: Any = "jump"
LIST: Any = ["jump"]
TIMED = replace(A, labels=("jump", "run"), actions=(Action("run", 0.0, 1.0), Action("jump", 0.5, 2.0)))


@pytest.mark.parametrize(
    "source",
    [listed("mine", [A, B], multi_label=False), SEVERAL, replace(SEVERAL, videos=(TIMED, B))],
)
def test_what_is_consistent_passes(source):
    require_consistent(source)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (listed("mine", [replace(A, labels=TEXT), B], False), "mine: a: labels is 'jump', expected a tuple"),
        (listed("mine", [replace(A, labels=LIST), B], False), r"mine: a: labels is \['jump'\], expected a tuple"),
        (listed("mine", [A, replace(B, name="a")], False), "mine: a: two videos have this name"),
        (Source("mine", ("run",), (B, A)), "mine: a: its label 'jump' is none of the source's classes"),
        (replace(SEVERAL, multi_label=False), "mine: a: got 2 labels, expected one"),
        (listed("mine", [A, replace(B, labels=())], False), "mine: b: got 0 labels, expected one"),
        (listed("mine", [replace(TIMED, labels=("run",))], True), "mine: a: an action is 'jump', none of its labels"),
    ],
)
def test_the_first_video_that_is_not_is_named_in_a_line(source, told):
    with pytest.raises(InputError, match=told) as raised:
        require_consistent(source)
    assert "\n" not in str(raised.value)


def test_many_videos_of_many_classes_are_gone_through_quickly():
    videos = tuple(Video(Path("a.mp4"), str(number), (f"class {number % 5000}",)) for number in range(100_000))
    started = time.process_time()
    require_consistent(Source("mine", tuple(f"class {number}" for number in range(5000)), videos))
    assert time.process_time() - started < 2  # a look through all names or classes for each video takes minutes
