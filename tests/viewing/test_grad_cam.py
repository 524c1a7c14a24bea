"""The pictures of where a model looks have a row per map, and a plot over time for long videos."""

import io
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from airstreams.data.listing import Video
from airstreams.data.synthetic import encode
from airstreams.runs import saved_model as saved_models
from airstreams.runs.folder import EvaluationFolder
from airstreams.viewing.grad_cam import overlaid, picture_of, shown_answers, write_grad_cams
from airstreams.viewing.mistakes import Answer


@pytest.fixture(scope="module")
def saved(trained):
    found = saved_models.load(trained)
    evaluation = replace(found.config.evaluation, window=1.0)
    return replace(found, config=replace(found.config, evaluation=evaluation))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A short video, one of three windows, and one that is gone, by name."""
    folder = tmp_path_factory.mktemp("looked at")
    rng = np.random.default_rng(0)
    for name, frames in (("short", 8), ("long", 36)):
        encode(folder / f"{name}.mp4", rng.integers(256, size=(frames, 64, 64, 3), dtype=np.uint8), 12)
    return {name: Video(folder / f"{name}.mp4", name, ("disc_left",)) for name in ("short", "long", "gone")}


def shapes_of(folder, answers, saved, videos):
    write_grad_cams(folder, answers, saved, videos, Console(quiet=True))
    return [imread(picture_of(folder, answer.name)).shape for answer in answers]


def test_a_picture_has_a_row_for_each_map(saved, videos, tmp_path):
    right, wrong = (Answer("short", "disc_left", predicted, 0.9) for predicted in ("disc_left", "square_up"))
    streams = len(saved.config.model.streams)
    [(height, width, _)] = shapes_of(EvaluationFolder(tmp_path), [right], saved, videos)
    assert width < height < 2 * width
    assert (streams + 2) * width / 4 < height  # the frames, the merged tower and the streams
    [(with_true_class, _, _)] = shapes_of(EvaluationFolder(tmp_path), [wrong], saved, videos)
    assert with_true_class - height > width / 4  # one more row


def test_a_long_video_has_a_plot_over_time(saved, videos, tmp_path):
    answers = [Answer(name, "disc_left", "disc_left", 0.9) for name in ("short", "long")]
    (short, _, _), (long, width, _) = shapes_of(EvaluationFolder(tmp_path), answers, saved, videos)
    assert long - short > width / 4


def test_a_video_that_is_gone_is_named_and_older_pictures_are_deleted(saved, videos, tmp_path):
    folder, output = EvaluationFolder(tmp_path), io.StringIO()
    shapes_of(folder, [Answer("short", "disc_left", "disc_left", 0.9)], saved, videos)
    gone = Answer("gone", "disc_left", "disc_left", 0.8)
    write_grad_cams(folder, [gone], saved, videos, Console(file=output, width=200))
    assert "gone" in output.getvalue()
    assert [*folder.grad_cam.iterdir()] == []


def test_the_most_confident_mistakes_and_right_answers_of_four_classes_are_shown():
    mistakes = [Answer(f"wrong {number}", "a", "b", 0.9) for number in range(6)]
    right = [Answer(f"right {number}", label, label, 0.9) for number, label in enumerate("aabbcdef")]
    names = [answer.name for answer in shown_answers(mistakes, right)]
    assert names == ["wrong 0", "wrong 1", "wrong 2", "wrong 3", "right 0", "right 2", "right 4", "right 5"]


def test_a_frame_without_a_map_stays_as_it_is():
    frames_NHW3 = np.full((1, 2, 2, 3), 0.5)
    map_NHW = np.zeros((1, 2, 2))
    map_NHW[0, 0, 0] = 1
    over_NHW3 = overlaid(frames_NHW3, map_NHW)
    assert np.allclose(over_NHW3[0, 1], 0.5)
    assert over_NHW3[0, 0, 0, 0] > 0.8  # bright yellow
