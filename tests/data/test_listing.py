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
def test_consistent_sources_are_accepted(source):
    require_consistent(source)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (make_source("mine", [replace(A, labels=TEXT), B], False), "mine: a: labels is 'jump'"),
        (make_source("mine", [replace(A, labels=LIST), B], False), r"mine: a: labels is \['jump'\]"),
        (make_source("mine", [A, replace(B, name="a")], False), "mine: a: .* name"),
        (Source("mine", ("run",), (B, A)), "mine: a: .*'jump'"),
        (replace(SEVERAL, multi_label=False), "mine: a: got 2 labels"),
        (make_source("mine", [A, replace(B, labels=())], False), "mine: b: got 0 labels"),
        (
            make_source("mine", [replace(A, split="valid"), B], False),
            "mine: a: .*split is 'valid'",
        ),
        (make_source("mine", [replace(A, split="val"), B], False), "mine: b: .*split is None"),
        (
            make_source("mine", [replace(TIMED, labels=("run",))], True),
            "mine: a: an action is 'jump'",
        ),
    ],
)
def test_inconsistent_videos_are_named(source, expected):
    with pytest.raises(InputError, match=expected) as raised:
        require_consistent(source)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("data", "short"),
    [
        ("/home/me/list.csv?root=/mnt/videos", "list.csv"),
        ("videos/", "videos/"),
        ("/home/anna/videos", "videos"),
        ("/home/anna/list.csv", "list.csv"),
        ("jhmdb:data/jhmdb?split=1", "jhmdb:data/jhmdb?split=1"),
        ("jhmdb:/data/jhmdb?split=1", "jhmdb:jhmdb?split=1"),
        ("hmdb51:/data/hmdb", "hmdb51:hmdb"),
        ("/", "/"),
    ],
)
def test_the_short_name_has_no_folders_of_an_absolute_path(data, short):
    assert make_source(data, [A], multi_label=False).short_name == short


def test_a_source_is_made_from_an_iterator():
    assert make_source("mine", iter([B, A]), multi_label=False) == Source("mine", ("jump", "run"), (A, B))
