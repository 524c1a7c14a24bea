"""Videos of moving noise: each frame is the same stationary noise everywhere, and only the motion shows the mask."""

import filecmp
from dataclasses import replace

import av
import numpy as np
import pytest

from airstreams.data.time_blind import (
    FINE,
    SHAPES,
    Noise,
    NoiseVideo,
    make_video,
    object_mask,
    render,
    shape_mask,
    shapes,
    word_mask,
    words,
)
from airstreams.data.video import read_frames
from airstreams.errors import InputError

SMALL = Noise(size=32, frames=2)


def half(size: int) -> np.ndarray:
    """The left half of the picture."""
    mask = np.zeros((size * FINE, size * FINE), bool)
    mask[:, : size * FINE // 2] = True
    return mask


def test_noise_moves_one_way_inside_and_the_other_way_outside() -> None:
    noise = Noise(size=64, frames=4, speed=(2, 2), directions=(0, 0))
    video = make_video(half(64), noise, np.random.default_rng(0))
    grey = video.frames[..., 0]
    reach = 4  # px that the filter reaches
    # The same white values through the same filter: equal, not only similar.
    assert np.array_equal(grey[1, :, 2 : 32 - reach], grey[0, :, : 30 - reach])
    assert np.array_equal(grey[1, :, 32 + reach : 62], grey[0, :, 34 + reach : 64])
    assert (video.flow[:, :, :32] == [2, 0]).all()
    assert (video.flow[:, :, 32:] == [-2, 0]).all()


def test_motion_of_a_part_of_a_pixel_adds_up() -> None:
    noise = Noise(size=32, frames=5, speed=(0.5, 0.5), directions=(90, 90))
    video = make_video(np.ones((128, 128), bool), noise, np.random.default_rng(0))
    grey = video.frames[..., 0]
    assert np.array_equal(grey[2, 1:], grey[0, :-1])
    assert np.array_equal(grey[4, 2:], grey[0, :-2])
    assert not np.array_equal(grey[1], grey[0])
    assert (video.flow == [0, 0.5]).all()


def test_a_frame_has_the_same_noise_inside_outside_and_at_the_edge() -> None:
    rng = np.random.default_rng(0)
    frames = np.stack([make_video(half(32), SMALL, rng).frames[1, ..., 0].astype(float) for _ in range(300)])
    columns = frames.mean(axis=(0, 1)), frames.std(axis=(0, 1))
    steps = np.abs(np.diff(frames, axis=2)).mean(axis=(0, 1))
    second = np.abs(frames[:, :, 2:] - frames[:, :, :-2]).mean(axis=(0, 1))
    # One value for each column, from 9,600 pixels of which about 800 are independent. The edge is in the middle.
    for values, deviation in ((columns[0], 1.0), (columns[1], 0.7), (steps, 0.5), (second, 0.7)):
        assert np.abs(values - values.mean()).max() < 4 * deviation
        assert abs(values[: len(values) // 2].mean() - values[len(values) // 2 :].mean()) < 4 * deviation / 3
        middle = len(values) // 2
        assert abs(values[middle - 1 : middle + 1].mean() - values.mean()) < 4 * deviation


def cells(picture: np.ndarray) -> np.ndarray:
    """Means over cells of 4 by 4 px, as a row."""
    side = picture.shape[0] // 4
    return picture[: side * 4, : side * 4].reshape(side, 4, side, 4).mean(axis=(1, 3)).ravel()


def of_one_frame(video: NoiseVideo) -> np.ndarray:
    """Values and local contrast of the first frame."""
    grey = video.frames[0, ..., 0] / 127.5 - 1
    contrast = np.abs(np.diff(grey, axis=0, append=0)) + np.abs(np.diff(grey, axis=1, append=0))
    return np.concatenate([grey.ravel(), cells(grey**2), cells(contrast)])


def of_two_frames(video: NoiseVideo) -> np.ndarray:
    """How well each place of the second frame continues the motion inside the mask."""
    first, second = video.frames[:, ..., 0].astype(float) / 127.5 - 1
    return cells(np.abs(second - np.roll(first, 2, axis=1)))


def accuracy(features: list[np.ndarray], labels: np.ndarray, train: int) -> float:
    """Of a ridge classifier on the rest of the videos, which it was not fitted to."""
    x = np.stack(features)
    x = (x - x[:train].mean(axis=0)) / (x[:train].std(axis=0) + 1e-9)
    target = np.eye(len(SHAPES))[labels[:train]] - 1 / len(SHAPES)
    gram = x[:train] @ x[:train].T + 100.0 * np.eye(train)
    scores = x[train:] @ (x[:train].T @ np.linalg.solve(gram, target))
    return float((scores.argmax(axis=1) == labels[train:]).mean())


def test_a_classifier_of_frames_stays_at_chance() -> None:
    noise = replace(SMALL, speed=(2, 2), directions=(0, 0))
    rng = np.random.default_rng(0)
    labels = np.arange(640) % len(SHAPES)
    kinds = list(SHAPES)
    videos = [make_video(shape_mask(kinds[label], False, 32, rng), noise, rng) for label in labels]
    chance, tested = 1 / len(SHAPES), 240
    deviation = (chance * (1 - chance) / tested) ** 0.5
    assert abs(accuracy([*map(of_one_frame, videos)], labels, 400) - chance) < 4 * deviation
    # The same classifier sees the shape in the motion, so it could have seen it in the frame.
    assert accuracy([*map(of_two_frames, videos)], labels, 400) > 0.4


def test_rendered_videos_depend_only_on_seed_and_name(tmp_path) -> None:
    classes = shapes(["disc", "bar"])
    render(tmp_path / "one", classes, {"train": 2, "test": 1}, SMALL, seed=3, workers=1)
    render(tmp_path / "two", classes, {"train": 3}, SMALL, seed=3, workers=2)
    render(tmp_path / "two", classes, {"test": 1}, SMALL, seed=3, workers=1)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.mp4"))
    assert len(files) == 6
    assert all(filecmp.cmp(tmp_path / "one" / file, tmp_path / "two" / file, shallow=False) for file in files)
    assert not filecmp.cmp(tmp_path / "one" / files[0], tmp_path / "one" / files[1], shallow=False)
    with pytest.raises(InputError, match=r"settings\.json"):
        render(tmp_path / "one", classes, {"train": 2}, SMALL, seed=4)


def test_each_frame_is_coded_by_itself(tmp_path) -> None:
    render(tmp_path, shapes(["ring"]), {"test": 1}, replace(SMALL, frames=6, crf=10), workers=1)
    (path,) = tmp_path.rglob("*.mp4")
    with av.open(str(path)) as container:
        assert [packet.is_keyframe for packet in container.demux(video=0) if packet.size] == [True] * 6
    rng = np.random.default_rng([0, *b"test/ring/00000"])
    video = make_video(shape_mask("ring", True, 32, rng), replace(SMALL, frames=6, crf=10), rng)
    stored = read_frames(path, range(6)).astype(float)
    assert np.abs(stored - video.frames).mean() < 4


@pytest.mark.parametrize("kind", SHAPES)
def test_a_shape_lies_wholly_in_the_picture(kind) -> None:
    for seed in range(5):
        mask = shape_mask(kind, True, 32, np.random.default_rng(seed))
        assert 0.04 < mask.mean() < 0.5
        assert not np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).any()


def test_words_and_objects_make_masks() -> None:
    rng = np.random.default_rng(0)
    wide, narrow = word_mask("moving", 64, rng), word_mask("go", 64, rng)
    assert np.ptp(wide.nonzero()[1]) > 2.5 * np.ptp(wide.nonzero()[0])  # six letters, one line
    assert np.ptp(narrow.nonzero()[1]) < 2.5 * np.ptp(narrow.nonzero()[0])
    assert set(words(["go", "stop"])) == {"go", "stop"}
    label_map = np.zeros((20, 30), np.uint8)
    label_map[5:15, 10:14] = 7
    mask = object_mask([label_map], 7, 32, rng)
    rows, columns = mask.nonzero()
    assert np.ptp(rows) / np.ptp(columns) == pytest.approx(10 / 4, rel=0.05)
    with pytest.raises(InputError, match="class 8"):
        object_mask([label_map], 8, 32, rng)


@pytest.mark.parametrize(
    ("key", "value"),
    [("size", 33), ("frames", 1), ("speed", (2, 1)), ("directions", (90, 0)), ("grain", 0), ("crf", 52)],
)
def test_impossible_noise_is_refused(key, value) -> None:
    with pytest.raises(InputError, match=key):
        replace(Noise(), **{key: value})


def test_an_unknown_shape_and_a_wrong_mask_are_refused() -> None:
    with pytest.raises(InputError, match="shape"):
        shape_mask("blob", True, 32, np.random.default_rng(0))
    with pytest.raises(InputError, match="mask"):
        make_video(np.zeros((32, 32), bool), SMALL, np.random.default_rng(0))
