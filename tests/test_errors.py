"""How errors read, and that they survive the way between two processes."""

import pickle
from pathlib import Path

from airstreams.errors import VideoError, one_line


def test_a_video_error_names_its_file_and_keeps_its_reason():
    path = Path("videos/a.mp4")
    for error in (VideoError("empty file", path), VideoError("empty file", str(path))):
        assert (str(error), error.reason, error.path) == (f"{path}: empty file", "empty file", path)
    alone = VideoError("empty file")
    assert (str(alone), alone.reason, alone.path) == ("empty file", "empty file", None)


def test_a_video_error_survives_pickling():
    for error in (VideoError("empty file"), VideoError("empty file", "a.mp4")):
        copy = pickle.loads(pickle.dumps(error))
        assert (str(copy), copy.reason, copy.path) == (str(error), error.reason, error.path)


def test_text_of_other_programs_stays_on_one_line():
    assert one_line("two\nlines \x1b[31mred") == "two lines \\x1b[31mred"
