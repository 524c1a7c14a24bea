"""Label maps from scores, and loading and checking teachers."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from airstreams.data.video import read_frames
from airstreams.errors import InputError
from airstreams.teachers.drawing import label_map, pixel_map
from airstreams.teachers.teacher import load_teacher

CPU = torch.device("cpu")
FRAMES_THW3 = np.zeros((2, 4, 6, 3), np.uint8)


def drawn_pixel_by_pixel(masks, scores, classes, score_threshold, unsure_from):
    """A slow `label_map`, pixel by pixel."""
    labels = np.zeros(masks.shape[1:], np.uint8)
    for y, x in np.ndindex(labels.shape):
        here = [i for i in range(len(masks)) if masks[i, y, x]]
        sure = [i for i in here if scores[i] >= score_threshold]
        if sure:
            labels[y, x] = classes[min(sure, key=lambda i: (-scores[i], i))]
        elif unsure_from is not None and any(scores[i] >= unsure_from for i in here):
            labels[y, x] = 255
    return labels


@pytest.mark.parametrize("unsure_from", [None, 0.0, 0.3])
@pytest.mark.parametrize("instances", [0, 1, 5, 20])
def test_label_map_agrees_with_a_slow_reference(instances, unsure_from):
    random = np.random.default_rng(instances)
    for _ in range(20):
        masks = random.random((instances, 5, 4)) < 0.4
        scores = random.choice([0.1, 0.3, 0.5, 0.7, 0.9], instances)  # few values, so that there are ties
        classes = random.integers(1, 6, instances)
        expected = drawn_pixel_by_pixel(masks, scores, classes, 0.5, unsure_from)
        labels = label_map(masks, scores, classes, 0.5, unsure_from)
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, expected)


def test_of_equal_scores_the_first_instance_is_on_top():
    masks = np.ones((2, 1, 1), bool)
    assert label_map(masks, np.array([0.8, 0.8]), np.array([3, 7])) == 3


def test_unsure_instances_do_not_hide_sure_ones():
    masks = np.array([[[True, True, False]], [[False, True, True]]])
    labels = label_map(masks, np.array([0.9, 0.4]), np.array([1, 2]), 0.5, unsure_from=0.3)
    assert labels.tolist() == [[1, 1, 255]]


@pytest.mark.parametrize(
    ("thresholds", "expected"),
    [
        ({}, [1, 2, 3, 4]),
        ({"score_threshold": 0.5}, [0, 0, 3, 4]),
        ({"unsure_from": 0.3}, [0, 255, 3, 4]),
        ({"score_threshold": 0.8, "unsure_from": 0.0}, [255, 255, 255, 4]),
    ],
)
def test_thresholds_apply_to_pixels(thresholds, expected):
    labels = pixel_map(np.array([[1, 2, 3, 4]]), np.array([[0.2, 0.3, 0.5, 0.9]]), **thresholds)
    assert labels.dtype == np.uint8
    assert labels.tolist() == [expected]


def written(folder, text):
    file = folder / "own.py"
    file.write_text("import numpy as np\n" + text)
    return file


OWN = """
class Own:
    classes = ["background", "thing"]
    def __init__(self, score_threshold=0.5):
        self.score_threshold = score_threshold
    def __call__(self, frames):
        return np.full(frames.shape[:3], 255 * (self.score_threshold > 0.6), np.uint8)
"""


def test_a_custom_teacher_gets_the_options(tmp_path):
    spec = f"{written(tmp_path, OWN)}:Own"
    plain = load_teacher(spec, {}, CPU)
    assert (plain.name, plain.classes) == (spec, ("background", "thing"))
    np.testing.assert_array_equal(plain(FRAMES_THW3), np.zeros((2, 4, 6), np.uint8))
    np.testing.assert_array_equal(load_teacher(spec, {"score_threshold": 0.7}, CPU)(FRAMES_THW3), 255)


def test_a_custom_teacher_may_have_a_name(tmp_path):
    file = written(tmp_path, OWN + "    name = 'mine'\n")
    assert load_teacher(f"{file}:Own", {}, CPU).name == "mine"


LATE = """
class Own:
    def __init__(self):
        from beside_a_teacher import CLASSES
        self.classes = CLASSES
    def __call__(self, frames): return np.zeros(frames.shape[:3], np.uint8)
"""


@pytest.mark.parametrize("where", ["other folder", "same folder"])
@pytest.mark.parametrize("text", ["from beside_a_teacher import CLASSES\n" + OWN + "    classes = CLASSES", LATE])
def test_a_custom_teacher_may_import_its_neighbours(tmp_path, monkeypatch, where, text):
    (tmp_path / "beside_a_teacher.py").write_text("CLASSES = ('background', 'helped')")
    file = written(tmp_path, text)
    if where == "same folder":
        monkeypatch.chdir(tmp_path)
        file = Path(file.name)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for _ in range(2):
        assert load_teacher(f"{file}:Own", {}, CPU).classes == ("background", "helped")
    assert sys.path.count(str(tmp_path)) == 1
    del sys.modules["beside_a_teacher"]


@pytest.mark.parametrize(
    ("factory", "text", "options", "message"),
    [
        ("load", "x = 1", {}, "'load'"),
        ("lod", "def load(): pass", {}, "'lod'.*: load"),
        ("x", "x = 1", {}, "'x'"),
        ("load", "def load(: pass", {}, r"own\.py .*SyntaxError"),
        ("load", "import no_such_package", {}, r"own\.py .*ModuleNotFoundError: No module named"),
        ("load", "def load(): pass", {"unsure_from": 0.1}, "--unsure-from"),
        ("load", "def load(score_threshold): pass", {"score_threshold": 0.4, "unsure_from": 0.1}, "--unsure-from"),
        ("load", "def load(path): pass", {}, "'path'"),
        ("load", "def load():\n    raise OSError('weights\\nare gone')", {}, "OSError: weights are gone"),
        ("load", "def load(): return np.zeros", {}, "`classes`"),
        ("Own", "class Own:\n    classes = ('background',)", {}, "__call__"),
        ("Own", OWN + "    classes = 'background'", {}, "classes 'background'"),
        ("Own", OWN + "    classes = (0, 1)", {}, r"classes \(0, 1\)"),
        ("Own", OWN + "    classes = ()", {}, "0 classes"),
        ("Own", OWN + "    classes = ['background'] * 256", {}, "256 classes"),
        ("Own", OWN + "    classes = ['person', 'car']", {}, "'person'"),
    ],
)
def test_invalid_custom_teachers_are_refused(tmp_path, factory, text, options, message):
    with pytest.raises(InputError, match=message) as raised:
        load_teacher(f"{written(tmp_path, text)}:{factory}", options, CPU)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("spec", ["mask-rcnn", "", "own.py", ":load", "own.txt:load"])
def test_unknown_teachers_are_refused(spec):
    with pytest.raises(InputError, match=r"maskrcnn, hf:MODEL, onnx:FILE or FILE\.py:FACTORY"):
        load_teacher(spec, {}, CPU)


def test_a_missing_teacher_file_is_refused():
    with pytest.raises(InputError, match=r"no/such\.py"):
        load_teacher("no/such.py:load", {}, CPU)


@pytest.mark.parametrize(
    "options",
    [
        {"score_threshold": 1.5},
        {"unsure_from": -0.1},
        {"unsure_from": float("nan")},
        {"unsure_from": 0.5},
        {"score_threshold": 0.3, "unsure_from": 0.4},
    ],
)
def test_invalid_thresholds_are_refused(tmp_path, options):
    with pytest.raises(InputError, match=r"unsure_from|score_threshold"):
        load_teacher(f"{written(tmp_path, OWN)}:Own", options, CPU)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("[[0]]", "a list"),
        ("np.zeros(frames.shape[:3])", r"float64 \(2, 4, 6\).*uint8 \(2, 4, 6\)"),
        ("np.zeros(frames.shape[1:3], np.uint8)", r"uint8 \(4, 6\)"),
        ("np.full(frames.shape[:3], 2, np.uint8)", "class id 2"),
    ],
)
def test_invalid_label_maps_are_refused(tmp_path, returned, message):
    text = f"class Own:\n    classes = ('background', 'thing')\n    def __call__(self, frames): return {returned}"
    spec = f"{written(tmp_path, text)}:Own"
    with pytest.raises(RuntimeError, match=message) as raised:
        load_teacher(spec, {}, CPU)(FRAMES_THW3)
    assert spec in str(raised.value)


def test_a_real_mask_rcnn_finds_the_person(test_data):
    file = test_data.parent / "teachers" / "maskrcnn2go.py"
    if not file.is_file():
        pytest.skip(f"{file} does not exist")
    clip = "golf/Anna_Rawson_Driver_Practice_golf_f_nm_np1_ri_bad_0"
    indices = [0, 4, 8]
    frames_THW3 = read_frames(test_data / "jhmdb" / "videos" / f"{clip}.mp4", indices)
    teacher = load_teacher(f"{file}:load", {"score_threshold": 0.6}, CPU)
    person_THW = teacher(frames_THW3) == teacher.classes.index("person")
    drawn_THW = np.load(test_data / "jhmdb" / "masks" / f"{clip}.npz")["mask"][indices] > 0
    assert (person_THW & drawn_THW).sum() / (person_THW | drawn_THW).sum() > 0.6
