"""Annotation jobs with teachers of maps, points and features, against rules in numpy."""

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from airstreams.cli import main
from airstreams.data.label_maps import LabelStore
from airstreams.data.sources import open_source
from airstreams.data.value_store import ValueStore
from airstreams.data.video import read_frames
from airstreams.errors import InputError
from airstreams.teachers import annotate as job
from airstreams.teachers.target_spec import TargetSpec, left_right_pairs
from tests.pages import blocks, page
from tests.teachers.test_annotate import content, film

QUIET = Console(quiet=True)
LENGTHS = {"a": 10, "b": 7, "c": 3, "d": 4}
"""Frames of the videos."""


def brightness(frames):
    """(..., H, W, 3) to (..., 3, 4), the mean of each block of the film."""
    *leading, H, W, _ = frames.shape
    blocks = frames.astype(np.float64).mean(-1).reshape(*leading, 3, H // 3, 4, W // 4)
    return blocks.mean(axis=(-3, -1)) / 255


def maps(frames):
    grey = brightness(frames)
    return np.stack([grey, np.where(grey > 0.9, np.nan, -grey)], axis=1).astype(np.float32)


def points(frames):
    height = brightness(frames).mean(axis=2)  # (T, 3)
    return np.stack([height, 1 - height, np.ones_like(height)], axis=-1)[:, None].astype(np.float32)


def grid(frames):
    grey = brightness(frames)
    return np.stack([grey, 2 * grey, np.sin(9 * grey)], axis=1).astype(np.float32)


def clip(clips):
    grey = brightness(clips)  # (B, N, 3, 4)
    return np.concatenate([grey.mean(axis=(2, 3)), grey.mean(axis=(1, 2))], axis=1).astype(np.float32)


SPECS = {
    "maps": TargetSpec("maps", ("left glow", "right glow"), "lx", value_range=(-1, 1), negated=("left glow",)),
    "points": TargetSpec("points", ("nose", "left_knee", "right_knee")),
    "grid": TargetSpec("grid", components=2),
    "clip": TargetSpec("clip", clip_frames=4, components=3),
}
RULES = {"maps": maps, "points": points, "grid": grid, "clip": clip}


class Teacher:
    def __init__(self, kind, fails_at=None):
        self.name, self.target, self.rule = f"rule of {kind}", SPECS[kind], RULES[kind]
        self.fails_at, self.calls = fails_at, []

    def __call__(self, frames):
        self.calls.append(frames.shape)
        if len(self.calls) == self.fails_at:
            raise RuntimeError("out of light")
        # The last bits depend on the batch, as a network's may.
        return self.rule(frames) + np.float32(len(frames) * 1e-3)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    for seed, (name, frames) in enumerate(LENGTHS.items()):
        film(folder / "wave" / f"{name}.mp4", frames=frames, seed=seed)
    return folder


def annotate(films, teacher, out, batch_size=5, **settings):
    videos = open_source(str(films), for_training=False).videos
    return job.annotate(videos, teacher, job.Settings(**settings), out, batch_size, 0, QUIET)


@pytest.mark.parametrize("kind", ["maps", "points", "grid"])
def test_each_frame_gets_what_the_teacher_says(films, tmp_path, kind):
    teacher = Teacher(kind)
    result = annotate(films, teacher, tmp_path, batch_size=1, stride=2)
    assert (result.files, result.frames, result.missing) == (4, 5 + 4 + 2 + 2, [])
    store = ValueStore.open(tmp_path)
    assert (store.kind, store.teacher, store.settings["stride"]) == (kind, f"rule of {kind}", 2)
    for name, frames in LENGTHS.items():
        indices = list(range(0, frames, 2))
        assert store.labelled_frames(f"wave/{name}").tolist() == indices
        expected = RULES[kind](read_frames(films / "wave" / f"{name}.mp4", indices)) + np.float32(1e-3)
        projection = store.projection()
        if projection:
            expected = np.moveaxis(projection(np.moveaxis(expected, 1, -1)), -1, 1)
        tolerance = 1.01 / 254 if store.dtype == "uint8" else 1e-3
        np.testing.assert_allclose(np.asarray(store.read(f"wave/{name}", indices)), expected, rtol=1e-3, atol=tolerance)


def test_a_store_knows_how_its_values_are_mirrored_and_stored(films, tmp_path):
    annotate(films, Teacher("maps"), tmp_path / "maps", stride=4)
    store = ValueStore.open(tmp_path / "maps")
    assert (store.names, store.mirrored) == (("left glow", "right glow"), (("left glow", "right glow"),))
    assert (store.dtype, store.low, store.high, store.negated) == ("uint8", -1, 1, ("left glow",))
    assert store.settings["unit"] == "lx"
    annotate(films, Teacher("points"), tmp_path / "points", stride=4)
    assert ValueStore.open(tmp_path / "points").mirrored == (("left_knee", "right_knee"),)


def test_principal_components_are_learnt_from_a_sample(films, tmp_path):
    annotate(films, Teacher("grid"), tmp_path)
    store = ValueStore.open(tmp_path)
    assert store.names == ("component 1", "component 2")
    projection = store.projection()
    assert projection is not None
    np.testing.assert_allclose(projection.components @ projection.components.T, np.eye(2), atol=1e-9)
    sample = np.concatenate([grid(read_frames(films / "wave" / f"{n}.mp4", range(k))) for n, k in LENGTHS.items()])
    features = np.moveaxis(sample, 1, -1).reshape(-1, 3)
    variance = np.linalg.eigvalsh(np.cov(features.T))[::-1]
    kept = ((features - features.mean(0)) @ projection.components.T).var(axis=0, ddof=1)
    np.testing.assert_allclose(kept, variance[:2], rtol=1e-6)


def test_clips_follow_each_other_and_the_last_one_ends_with_the_video(films, tmp_path):
    teacher = Teacher("clip")
    assert annotate(films, teacher, tmp_path, batch_size=1).frames == 4 * (3 + 2 + 1 + 1)
    store = ValueStore.open(tmp_path)
    windows = {
        "a": {0: [0, 1, 2, 3], 4: [4, 5, 6, 7], 8: [6, 7, 8, 9]},
        "b": {0: [0, 1, 2, 3], 4: [3, 4, 5, 6]},
        "c": {0: [0, 1, 2, 2]},
        "d": {0: [0, 1, 2, 3]},
    }
    for name, clips in windows.items():
        assert store.labelled_frames(f"wave/{name}").tolist() == list(clips)
        frames = np.stack([read_frames(films / "wave" / f"{name}.mp4", indices) for indices in clips.values()])
        expected = store.projection()(clip(frames) + np.float32(1e-3))  # type: ignore[misc]
        np.testing.assert_allclose(np.asarray(store.read(f"wave/{name}", list(clips))), expected, rtol=1e-3, atol=1e-3)
    assert set(teacher.calls) == {(1, 4, 48, 64, 3)}


def test_a_clip_takes_every_nth_frame(films, tmp_path):
    annotate(films, Teacher("clip"), tmp_path, stride=2)
    store = ValueStore.open(tmp_path)
    assert store.labelled_frames("wave/a").tolist() == [0, 8]  # frames 0, 2, 4, 6 and 3, 5, 7, 9
    assert store.labelled_frames("wave/c").tolist() == [0]


@pytest.mark.parametrize(("kind", "fails_at"), [("grid", 2), ("grid", 27), ("clip", 9), ("points", 3), ("maps", 1)])
def test_an_interrupted_job_resumes_to_the_same_bytes(films, tmp_path, monkeypatch, kind, fails_at):
    monkeypatch.setattr(job, "GROUP_FILES", 2)
    batch = 8 if kind == "clip" else 5
    annotate(films, Teacher(kind), tmp_path / "whole", batch)
    with pytest.raises(RuntimeError, match="out of light"):
        annotate(films, Teacher(kind, fails_at), tmp_path / "broken", batch)
    assert content(tmp_path / "broken") != content(tmp_path / "whole")
    annotate(films, Teacher(kind), tmp_path / "broken", batch)
    assert content(tmp_path / "broken") == content(tmp_path / "whole")


def test_bad_videos_are_left_out(films, tmp_path):
    (tmp_path / "films" / "wave").mkdir(parents=True)
    (tmp_path / "films" / "wave" / "bad.mp4").write_bytes(b"no video")
    for name in LENGTHS:
        (tmp_path / "films" / "wave" / f"{name}.mp4").symlink_to(films / "wave" / f"{name}.mp4")
    result = annotate(tmp_path / "films", Teacher("clip"), tmp_path / "out")
    assert [path for path, _ in result.left_out] == [str(tmp_path / "films" / "wave" / "bad.mp4")]
    store = ValueStore.open(tmp_path / "out")
    assert [name for name in ("a", "b", "bad", "c", "d") if store.has(f"wave/{name}")] == list(LENGTHS)


def test_another_teacher_or_other_settings_are_refused(films, tmp_path):
    annotate(films, Teacher("maps"), tmp_path, stride=4)
    with pytest.raises(InputError, match="stride"):
        annotate(films, Teacher("maps"), tmp_path, stride=2)
    for kind in ("points", "grid"):
        with pytest.raises(InputError, match="kind"):
            annotate(films, Teacher(kind), tmp_path, stride=4)
    with pytest.raises(InputError, match="--classes"):
        annotate(films, Teacher("maps"), tmp_path / "other", classes=("left glow",))


def test_too_few_features_for_components_are_refused(tmp_path):
    film(tmp_path / "films" / "wave" / "a.mp4", frames=3)
    with pytest.raises(InputError, match="principal components"):
        annotate(tmp_path / "films", Teacher("clip"), tmp_path / "out")


@pytest.mark.parametrize(
    ("kind", "answer", "message"),
    [
        ("maps", lambda frames: np.zeros((len(frames), 3, 4, 4), np.float32), r"\(1, 3, 4, 4\).*maps"),
        ("maps", lambda frames: np.zeros((len(frames), 2, 4, 4), np.uint8), "uint8"),
        ("points", lambda frames: np.zeros((len(frames), 2, 3, 2), np.float32), r"\(1, 2, 3, 2\)"),
        ("points", lambda frames: np.full((len(frames), 1, 3, 3), np.inf, np.float32), "infinite"),
        ("clip", lambda frames: [[0.0]], "a list"),
    ],
)
def test_answers_of_a_wrong_shape_are_refused(films, tmp_path, kind, answer, message):
    teacher = Teacher(kind)
    teacher.__class__ = type("Wrong", (Teacher,), {"__call__": lambda self, frames: answer(frames)})
    with pytest.raises(RuntimeError, match=message):
        annotate(films, teacher, tmp_path, batch_size=1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "sounds"}, "'sounds'"),
        ({"kind": "maps"}, "names"),
        ({"kind": "grid", "names": ("a",)}, "no names"),
        ({"kind": "points", "names": ("a", "a")}, "twice"),
        ({"kind": "maps", "names": ("a",), "clip_frames": 2}, "clip_frames"),
        ({"kind": "classes", "names": ("person",)}, "'person'"),
    ],
)
def test_contradictions_in_a_target_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        TargetSpec(**values)


def test_left_and_right_are_told_by_the_names():
    names = ["nose", "right_knee", "left_knee", "L_Eye", "R_Eye", "Left-shoe", "Right-shoe", "leftHand", "rightHand"]
    assert left_right_pairs([*names, "left alone", "collar"]) == (
        ("left_knee", "right_knee"),
        ("L_Eye", "R_Eye"),
        ("Left-shoe", "Right-shoe"),
        ("leftHand", "rightHand"),
    )


def test_label_maps_know_left_and_right(films, tmp_path):
    class Hands:
        name = "hands"
        classes = ("background", "left hand", "right hand", "foot")

        def __call__(self, frames_THW3):
            return np.zeros(frames_THW3.shape[:3], np.uint8)

    annotate(films, Hands(), tmp_path / "all", stride=4)
    assert LabelStore.open(tmp_path / "all").mirrored == (("left hand", "right hand"),)
    annotate(films, Hands(), tmp_path / "some", stride=4, classes=("left hand", "foot"))
    assert LabelStore.open(tmp_path / "some").mirrored == ()


def test_the_teacher_in_the_docs_gives_brightness(films, tmp_path, monkeypatch):
    (code,) = blocks(page("teachers.md"), "python")
    (command,) = blocks(page("teachers.md"), "sh")
    monkeypatch.chdir(tmp_path)
    Path("my_teacher.py").write_text(code)
    Path("videos").symlink_to(films)
    assert main([*command.split()[1:], "--stride", "4", "--workers", "0"]) == 0
    store = ValueStore.open(Path("brightness"))
    assert (store.teacher, store.kind, store.dtype) == ("brightness-1", "maps", "uint8")
    expected = read_frames(films / "wave" / "a.mp4", [0, 4]).mean(3)[:, None] / 255
    np.testing.assert_allclose(np.asarray(store.read("wave/a", [0, 4])), expected, atol=1 / 254)
