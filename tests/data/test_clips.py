from pathlib import Path

import pytest

from airstreams.data.clips import active_labels
from airstreams.data.listing import Action, Video

VIDEO = Video(
    Path("a.mp4"),
    "a.mp4",
    ("sit", "eat", "wave", "stand"),
    actions=(
        Action("sit", 1.0, 4.0),
        Action("eat", 2.0, 3.0),
        Action("wave", 5.0, 5.0),
        Action("sit", 6.0, 8.0),
        Action("stand", 9.0, 99.0),
    ),
)


@pytest.mark.parametrize(
    ("start_s", "end_s", "labels"),
    [
        (0.0, 0.99, ()),
        (0.0, 1.0, ("sit",)),  # begins with the clip's last frame
        (4.0, 4.5, ("sit",)),  # ends with the clip's first frame
        (4.01, 4.5, ()),
        (2.4, 2.6, ("sit", "eat")),  # both are active throughout
        (3.5, 3.5, ("sit",)),  # a clip of one frame
        (4.5, 5.5, ("wave",)),  # an action without duration, within the clip
        (5.0, 5.0, ("wave",)),
        (5.01, 5.99, ()),
        (3.5, 6.5, ("sit", "wave")),  # the same action twice gives one label
        (0.0, 8.0, ("sit", "eat", "wave")),
        (9.5, 12.0, ("stand",)),  # ends long after the video
    ],
)
def test_labels_active_at_any_moment_of_the_clip_count(start_s, end_s, labels):
    assert active_labels(VIDEO, start_s, end_s) == labels


def test_labels_without_actions_are_active_throughout():
    assert active_labels(Video(Path("b.mp4"), "b.mp4", ("sit", "eat")), 3.0, 4.0) == ("sit", "eat")
    assert active_labels(Video(Path("c.mp4"), "c.mp4", ()), 3.0, 4.0) == ()
