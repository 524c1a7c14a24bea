import json

import av
import numpy as np
import pytest

from airstreams.data.synthetic import HOWS, SEGMENT_CLASSES, WHATS, make_clip, render
from airstreams.errors import InputError


def clip_of(what, how, seed, frames=8, size=64):
    return make_clip(what, how, frames, size, np.random.default_rng(seed))


def bilinear(picture_HW3, x_HW, y_HW):
    """An independent sampler: the picture at real-valued positions, which must be inside it."""
    left, top = np.floor(x_HW).astype(int), np.floor(y_HW).astype(int)
    right, bottom = (x_HW - left)[..., None], (y_HW - top)[..., None]
    upper = (1 - right) * picture_HW3[top, left] + right * picture_HW3[top, left + 1]
    lower = (1 - right) * picture_HW3[top + 1, left] + right * picture_HW3[top + 1, left + 1]
    return (1 - bottom) * upper + bottom * lower


def eroded(mask_HW, by):
    """Pixels whose whole neighbourhood of `by` px is in the mask, without a margin of `by` at the border."""
    height, width = mask_HW.shape
    inside = np.zeros_like(mask_HW)
    core = np.ones((height - 2 * by, width - 2 * by), bool)
    for dy in range(2 * by + 1):
        for dx in range(2 * by + 1):
            core &= mask_HW[dy : dy + core.shape[0], dx : dx + core.shape[1]]
    inside[by:-by, by:-by] = core
    return inside


def warping_errors(clip, t, error_x=0.0):
    """Mean absolute error, in levels of 255, of frame t rebuilt from the next: in object and background."""
    height, width = clip.label_map.shape[1:]
    y_HW, x_HW = np.mgrid[:height, :width].astype(float)
    x_HW, y_HW = x_HW + clip.flow[t, ..., 0] + error_x, y_HW + clip.flow[t, ..., 1]
    rebuilt = bilinear(clip.frames[t + 1].astype(float), x_HW.clip(0, width - 2), y_HW.clip(0, height - 2))
    difference_HW = np.abs(rebuilt - clip.frames[t]).mean(axis=2)
    is_object = clip.label_map[t] > 0
    background = (clip.label_map[t] == 0) & (clip.label_map[t + 1] == 0)
    return difference_HW[eroded(is_object, 3)].mean(), difference_HW[eroded(background, 5)].mean()


@pytest.mark.parametrize("what", WHATS)
@pytest.mark.parametrize("how", HOWS)
def test_flow_warps_the_next_frame_to_this_one(what, how):
    clip = clip_of(what, how, seed=7, size=96)
    for t in (0, 4):
        in_object, in_background = warping_errors(clip, t)
        # Interpolation and rounding give errors of one or two levels. A flow that is 0.7 px off gives far larger ones.
        assert in_object < 2
        assert in_background < 2
        object_off, background_off = warping_errors(clip, t, error_x=0.7)
        assert object_off > 2 * in_object
        assert background_off > 2 * in_background


def test_paths_have_the_directions_of_their_names():
    directions = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
    for how, direction in directions.items():
        clip = clip_of("disc", how, seed=1, size=128)
        y, x = np.nonzero(clip.label_map[0])
        later_y, later_x = np.nonzero(clip.label_map[-1])
        travelled = np.array([later_x.mean() - x.mean(), later_y.mean() - y.mean()])
        assert travelled @ direction > 13
        assert abs(travelled @ direction[::-1]) < 0.5
        # The sum of the object's flow is its path.
        steps = [clip.flow[t][clip.label_map[t] > 0].mean(axis=0) for t in range(7)]
        np.testing.assert_allclose(np.sum(steps, axis=0), travelled, atol=0.3)


def test_a_circle_is_one_full_turn():
    clip = clip_of("disc", "circle", seed=3, frames=17)
    steps = np.array([clip.flow[t][clip.label_map[t] > 0].mean(axis=0) for t in range(16)])
    np.testing.assert_allclose(steps.sum(axis=0), 0, atol=1e-4)
    lengths = np.linalg.norm(steps, axis=1)
    np.testing.assert_allclose(lengths, lengths[0], rtol=1e-4)
    turns = np.diff(np.unwrap(np.arctan2(steps[:, 1], steps[:, 0])))
    np.testing.assert_allclose(np.abs(turns), 2 * np.pi / 16, rtol=1e-3)
    assert len(set(np.sign(turns))) == 1


def test_circles_turn_both_ways():
    turns = []
    for seed in range(16):
        clip = clip_of("disc", "circle", seed)
        (x, y), (later_x, later_y) = (clip.flow[t][clip.label_map[t] > 0][0] for t in (0, 1))
        turns.append(np.sign(x * later_y - y * later_x))
    assert set(turns) == {-1, 1}


def test_speed_is_one_to_two_pixels_and_proportional_to_size():
    speeds = []
    for seed in range(30):
        small, large = (clip_of("disc", "right", seed, frames=2, size=size) for size in (64, 128))
        speeds.append(small.flow[0][small.label_map[0] > 0][0, 0])
        np.testing.assert_allclose(large.flow[0][large.label_map[0] > 0][0], (2 * speeds[-1], 0), rtol=1e-5)
        background = np.linalg.norm(small.flow[0][small.label_map[0] == 0][0])
        assert 0.05 * speeds[-1] < background < 0.45 * speeds[-1]
    assert min(speeds) >= 1
    assert max(speeds) <= 2
    assert np.std(speeds) > 0.15


@pytest.mark.slow
@pytest.mark.parametrize("what", WHATS)
def test_all_shapes_have_the_same_area(what):
    for seed in range(5):
        disc, other = (clip_of(shape, "right", seed, frames=3, size=192) for shape in ("disc", what))
        y, x = np.nonzero(disc.label_map[2])
        radius = (np.ptp(x) + np.ptp(y) + 2) / 4
        assert 0.16 * 192 - 1 <= radius <= 0.23 * 192 + 1
        np.testing.assert_allclose(len(x), np.pi * radius**2, rtol=0.02)
        assert set(np.unique(other.label_map)) == {0, SEGMENT_CLASSES.index(what)}
        areas = (other.label_map > 0).sum(axis=(1, 2))
        # On the fastest paths a corner may be outside the picture, and whole pixels are counted.
        np.testing.assert_allclose(areas, len(x), rtol=0.06)


def test_the_object_contrasts_with_the_background():
    for seed in range(20):
        clip = clip_of(WHATS[seed % 5], HOWS[seed % 4], seed)
        grey = clip.frames.mean(axis=3)
        assert abs(grey[clip.label_map > 0].mean() - grey[clip.label_map == 0].mean()) > 45


@pytest.mark.slow
@pytest.mark.parametrize("frames", [2, 16, 60])
def test_objects_stay_in_the_picture(frames):
    for seed, how in enumerate(HOWS):
        clip = clip_of("disc", how, seed, frames=frames, size=(64, 96))
        assert clip.frames.shape == (frames, 64, 96, 3)
        assert clip.flow.shape == (frames - 1, 64, 96, 2)
        areas = (clip.label_map > 0).sum(axis=(1, 2))
        assert areas.min() > 0.95 * areas.max()


def test_a_seed_determines_the_clip():
    first, again, other = (clip_of("ring", "up", seed) for seed in (5, 5, 6))
    for name in ("frames", "label_map", "flow"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert (first.frames != other.frames).mean() > 0.5


def test_a_seed_determines_the_files(tmp_path):
    for copy in "abc":
        render(tmp_path / copy, ("disc",), ("up", "left"), {"test": 2}, frames=8, size=64, seed=0)
    files = [sorted((tmp_path / copy).rglob("*.mp4")) for copy in "abc"]
    assert len(files[0]) == 4
    assert len({tuple(path.read_bytes() for path in found) for found in files}) == 1


def test_shape_and_motion_are_independent():
    # This is stronger than equal distributions: with equal seeds, only what the class names differs.
    for seed in range(3):
        of_shapes = [clip_of(what, "left", seed) for what in WHATS]
        steps = [clip.flow[0][clip.label_map[0] > 0][0] for clip in of_shapes]
        np.testing.assert_array_equal(steps, [steps[0]] * len(WHATS))
        of_paths = [clip_of("cross", how, seed) for how in HOWS]
        for clip in of_paths[1:]:
            background = (eroded(clip.label_map[3] == 0, 2)) & (eroded(of_paths[0].label_map[3] == 0, 2))
            np.testing.assert_array_equal(clip.frames[3][background], of_paths[0].frames[3][background])


def nearest_mean_accuracy(train_NF, train_N, test_NF, test_N):
    means = np.stack([train_NF[train_N == k].mean(axis=0) for k in (0, 1)])
    guesses = np.linalg.norm(test_NF[:, None] - means, axis=2).argmin(axis=1)
    return (guesses == test_N).mean()


def least_squares_accuracy(train_NF, train_N, test_NF, test_N):
    weights = np.linalg.solve(train_NF.T @ train_NF + 3 * np.eye(train_NF.shape[1]), train_NF.T @ (2 * train_N - 1))
    return ((test_NF @ weights > 0) == test_N).mean()


@pytest.mark.slow
def test_single_frames_do_not_reveal_the_direction():
    train_clips, test_clips = (
        [clip_of("disc", ("left", "right")[n % 2], seed + n, frames=16, size=32).frames for n in range(count)]
        for seed, count in ((0, 320), (5000, 200))
    )

    def samples(clips, index_of):
        features, labels = [], []
        for n, frames in enumerate(clips):
            grey = frames[index_of(n)].mean(axis=2)
            # The difference from the median grey shows the object, bright or dark. It is averaged in cells of 4x4.
            salience = np.abs(grey - np.median(grey)).reshape(8, 4, 8, 4).mean(axis=(1, 3)) / 64
            features.append([*salience.ravel(), 1.0])
            labels.append(n % 2)
        return np.array(features), np.array(labels)

    def any_of_16(n):
        return n // 2 % 16

    # Any frame of the clip gives chance level (standard deviation 0.035).
    any_frame = (*samples(train_clips, any_of_16), *samples(test_clips, any_of_16))
    assert 0.37 < nearest_mean_accuracy(*any_frame) < 0.63
    assert 0.37 < least_squares_accuracy(*any_frame) < 0.63
    # The classifiers work: in the first frame the object's position reveals the direction, and they find it.
    first_frame = (*samples(train_clips, lambda n: 0), *samples(test_clips, lambda n: 0))
    assert nearest_mean_accuracy(*first_frame) > 0.75
    assert least_squares_accuracy(*first_frame) > 0.75


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    root = tmp_path_factory.mktemp("synthetic")
    render(root, ["disc", "cross"], ["left", "circle"], {"train": 3, "test": 1}, 8, (48, 64), seed=4)
    return root


def test_render_writes_all_classes_with_their_ground_truth(rendered):
    classes = {"disc_left", "disc_circle", "cross_left", "cross_circle"}
    for split, count in (("train", 3), ("test", 1)):
        assert {folder.name for folder in (rendered / "videos" / split).iterdir()} == classes
        for name in classes:
            numbers = {f"{n:03d}" for n in range(count)}
            for kind, suffix in (("videos", ".mp4"), ("labels", ".npz"), ("flow", ".npz")):
                files = list((rendered / kind / split / name).iterdir())
                assert {file.stem for file in files} == numbers
                assert {file.suffix for file in files} == {suffix}
    index = json.loads((rendered / "labels" / "labels.json").read_text())
    assert index["teacher"] == "synthetic"
    assert index["classes"] == list(SEGMENT_CLASSES)
    assert index["settings"] == {"seed": 4, "frames": 8, "size": [48, 64], "fps": 30}


def decoded(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == 30
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])


def test_rendered_files_hold_the_clip(rendered):
    for name in ("train/disc_left/000", "train/cross_circle/002", "test/disc_circle/000"):
        what, how = name.split("/")[1].split("_")
        clip = make_clip(what, how, 8, (48, 64), np.random.default_rng([4, *name.encode()]))
        frames = decoded(rendered / "videos" / f"{name}.mp4")
        assert frames.shape == clip.frames.shape
        squared_error = ((frames.astype(float) - clip.frames) ** 2).mean(axis=(1, 2, 3))
        assert 10 * np.log10(255**2 / squared_error.max()) > 30

        with np.load(rendered / "labels" / f"{name}.npz") as stored:
            np.testing.assert_array_equal(stored["labels"], clip.label_map)
            assert stored["labels"].dtype == np.uint8
            np.testing.assert_array_equal(stored["frame_indices"], np.arange(8))
            assert stored["frame_indices"].dtype == np.int32
        flow = np.load(rendered / "flow" / f"{name}.npz")["flow"]
        assert flow.dtype == np.float16
        np.testing.assert_allclose(flow, clip.flow, atol=2e-3)


def test_rendering_again_keeps_files_and_restores_missing_ones(rendered, tmp_path):
    arguments = (["disc"], ["left"], {"train": 2}, 8, (48, 64), 4)
    render(tmp_path, *arguments)
    first, second = (tmp_path / "videos" / "train" / "disc_left" / f"{n:03d}.mp4" for n in range(2))
    # A video does not depend on the other videos and classes that are rendered with it.
    for video in (first, second):
        assert video.read_bytes() == (rendered / video.relative_to(tmp_path)).read_bytes()
    contents = second.read_bytes()
    first.write_bytes(b"kept")
    second.unlink()
    render(tmp_path, *arguments)
    assert first.read_bytes() == b"kept"
    assert second.read_bytes() == contents
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]


def test_a_folder_with_other_settings_is_refused(rendered):
    with pytest.raises(InputError, match=r"labels\.json.*got .*'seed': 5.*'seed': 4"):
        render(rendered, ["disc"], ["left"], {"train": 1}, 8, (48, 64), seed=5)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"whats": ["hexagon"]}, "'hexagon'.*disc, square"),
        ({"hows": ["sideways"]}, "'sideways'.*left, right"),
        ({"frames": 1}, "frames: got 1, .*at least 2"),
        ({"size": 8}, "size: got .*at least 16"),
        ({"size": 33}, "size: got .*even"),
    ],
)
def test_wrong_settings_are_refused_before_writing(tmp_path, changed, expected):
    settings = {"whats": ["disc"], "hows": ["left"], "frames": 4, "size": 32, **changed}
    with pytest.raises(InputError, match=expected):
        render(tmp_path / "new", videos_per_class={"train": 1}, seed=0, **settings)
    assert not (tmp_path / "new").exists()
