"""Small ONNX graphs as teachers, against numpy, and a real one."""

import json
import sys

import numpy as np
import pytest
import torch
import yaml

from airstreams.data.video import read_frames
from airstreams.errors import InputError
from airstreams.teachers.teacher import load_teacher
from tests.pages import blocks, page

CPU = torch.device("cpu")
NAMES = ["background", "red", "green", "blue"]
BRIGHTNESS = np.array([[0.0, 0.0, 0.0], [6.0, 0.0, 0.0], [0.0, 6.0, 0.0], [0.0, 0.0, 6.0]], np.float32)
"""Logits of the four classes, as sums of a pixel's red, green and blue in 0..1."""


@pytest.fixture(scope="module")
def onnx():
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    return pytest.importorskip("onnx", reason="onnx, which writes the files of these tests, is not installed")


@pytest.fixture
def exported(onnx, tmp_path):
    """Writes an ONNX file with the given nodes, from `frames` to `out`."""

    def export(nodes, out, frames=("N", 3, "H", "W"), takes=onnx.TensorProto.FLOAT, classes=NAMES, weights=()):
        helper = onnx.helper
        graph = helper.make_graph(
            [helper.make_node(*node[:3], **node[3]) for node in nodes],
            "teacher",
            [helper.make_tensor_value_info("frames", takes, frames)],
            [helper.make_tensor_value_info("out", *out)],
            [onnx.numpy_helper.from_array(array, name) for name, array in weights],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        if classes is not None:
            helper.set_model_props(model, {"classes": json.dumps(classes)})
        file = tmp_path / "teacher.onnx"
        onnx.save(model, file)
        return f"onnx:{file}"

    return export


def colours(exported, pool=1, **kwargs):
    """A network with a logit per colour, at 1/pool of the frame's resolution."""
    nodes = [
        ("AveragePool", ["frames"], ["pooled"], {"kernel_shape": [pool, pool], "strides": [pool, pool]}),
        ("Conv", ["pooled", "weight"], ["out"], {}),
    ]
    return exported(nodes, (1, ("N", 4, "h", "w")), weights=[("weight", BRIGHTNESS[..., None, None])], **kwargs)


def ids_by_colour(onnx, exported, ids=6, **kwargs):
    """A network with class ids: 1 + the index of the strongest of red, green and blue. `ids`: their type."""
    nodes = [
        ("ArgMax", ["frames"], ["strongest"], {"axis": 1, "keepdims": 0}),
        ("Add", ["strongest", "one"], ["counted"], {}),
        ("Cast", ["counted"], ["out"], {"to": ids}),
    ]
    return exported(nodes, (ids, ("N", "H", "W")), weights=[("one", np.int64(1))], **kwargs)


def frames_of(count, height=6, width=10):
    return np.random.default_rng(1).integers(0, 256, (count, height, width, 3), np.uint8)


def probabilities_of(frames_THW3):
    exponentials = np.exp(frames_THW3.astype(np.float64) / 255 @ BRIGHTNESS.T)
    return exponentials / exponentials.sum(-1, keepdims=True)


def test_logits_become_the_most_probable_class(exported):
    frames_THW3 = frames_of(3)
    teacher = load_teacher(colours(exported), {}, CPU)
    assert teacher.classes == tuple(NAMES)
    assert teacher.name.startswith("onnx:")
    np.testing.assert_array_equal(teacher(frames_THW3), probabilities_of(frames_THW3).argmax(-1))


def test_thresholds_apply_to_the_softmax(exported):
    frames_THW3 = frames_of(3)
    probabilities = probabilities_of(frames_THW3)
    best = probabilities.max(-1)
    expected = np.where(best >= 0.8, probabilities.argmax(-1), np.where(best >= 0.5, 255, 0))
    assert set(np.unique(expected)) == {0, 1, 2, 3, 255}
    teacher = load_teacher(colours(exported), {"score_threshold": 0.8, "unsure_from": 0.5}, CPU)
    np.testing.assert_array_equal(teacher(frames_THW3), expected)


def test_coarse_logits_are_resized_to_the_frame(exported):
    frames_THW3 = np.zeros((1, 16, 24, 3), np.uint8)
    frames_THW3[:, :, :8, 0] = 255
    frames_THW3[:, 8:, 8:, 2] = 255
    labels_HW = load_teacher(colours(exported, pool=4), {}, CPU)(frames_THW3)[0]
    assert (labels_HW[:, :6] == NAMES.index("red")).all()
    assert (labels_HW[10:, 10:] == NAMES.index("blue")).all()
    assert (labels_HW[:6, 10:] == NAMES.index("background")).all()


@pytest.mark.parametrize("type_name", ["UINT8", "INT32", "INT64"])
def test_ids_may_have_any_integer_type(onnx, exported, type_name):
    frames_THW3 = frames_of(2)
    spec = ids_by_colour(onnx, exported, getattr(onnx.TensorProto, type_name), takes=onnx.TensorProto.UINT8)
    np.testing.assert_array_equal(load_teacher(spec, {}, CPU)(frames_THW3), 1 + frames_THW3.argmax(-1))


@pytest.mark.parametrize("count", [1, 4, 5])
def test_a_fixed_batch_size_is_filled_up(onnx, exported, count):
    frames_THW3 = frames_of(count)
    labels_THW = load_teacher(ids_by_colour(onnx, exported, frames=(2, 3, "H", "W")), {}, CPU)(frames_THW3)
    np.testing.assert_array_equal(labels_THW, 1 + frames_THW3.argmax(-1))


@pytest.mark.parametrize("kind", ["ids", "logits"])
def test_frames_are_resized_to_a_fixed_size_and_back(onnx, exported, kind):
    frames_THW3 = np.zeros((2, 40, 60, 3), np.uint8)
    frames_THW3[:, :, :30, 1] = 255
    frames_THW3[:, :, 30:, 2] = 255
    fixed = {"frames": ("N", 3, 20, 20)}
    spec = ids_by_colour(onnx, exported, **fixed) if kind == "ids" else colours(exported, **fixed)
    labels_THW = load_teacher(spec, {}, CPU)(frames_THW3)
    assert labels_THW.shape == (2, 40, 60)
    assert (labels_THW[:, :, :27] == NAMES.index("green")).all()
    assert (labels_THW[:, :, 33:] == NAMES.index("blue")).all()


def test_ids_out_of_range_are_refused(exported):
    nodes = [
        ("ArgMax", ["frames"], ["strongest"], {"axis": 1, "keepdims": 0}),
        ("Sub", ["strongest", "one"], ["out"], {}),
    ]
    spec = exported(nodes, (7, ("N", "H", "W")), weights=[("one", np.int64(1))])
    with pytest.raises(RuntimeError, match="class ids from -1"):
        load_teacher(spec, {}, CPU)(frames_of(1))


def test_a_file_without_class_names_is_refused(exported):
    with pytest.raises(InputError, match=r"set_model_props\(model, {'classes'"):
        load_teacher(colours(exported, classes=None), {}, CPU)


def test_class_0_must_be_background(exported):
    with pytest.raises(InputError, match=r"'red'.*background"):
        load_teacher(colours(exported, classes=["red", "green", "blue"]), {}, CPU)


@pytest.mark.parametrize("frames", [("N", 1, "H", "W"), ("N", "H", "W")])
def test_a_file_without_rgb_input_is_refused(exported, frames):
    spec = exported([("Identity", ["frames"], ["out"], {})], (1, frames), frames=frames)
    with pytest.raises(InputError, match=r"Nx.*one input"):
        load_teacher(spec, {}, CPU)


def test_a_file_without_label_map_output_is_refused(exported):
    nodes = [("ReduceMean", ["frames"], ["out"], {"keepdims": 0})]
    with pytest.raises(InputError, match="one input"):
        load_teacher(exported(nodes, (1, ())), {}, CPU)


def test_broken_and_missing_files_are_named(onnx, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a graph")
    with pytest.raises(InputError, match=r"broken\.onnx") as raised:
        load_teacher(f"onnx:{broken}", {}, CPU)
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match=r"missing\.onnx"):
        load_teacher(f"onnx:{tmp_path / 'missing.onnx'}", {}, CPU)


def test_onnxruntime_without_cuda_runs_on_the_cpu_with_a_warning(onnx, exported):
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.warns(UserWarning, match="onnxruntime-gpu"):
        teacher = load_teacher(colours(exported), {}, torch.device("cuda"))
    np.testing.assert_array_equal(teacher(frames_of(1)), probabilities_of(frames_of(1)).argmax(-1))


def test_a_missing_onnxruntime_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"pip install onnxruntime"):
        load_teacher("onnx:teacher.onnx", {}, CPU)


# Files with a description


@pytest.fixture
def described(exported, tmp_path):
    """Writes an ONNX file that gives its input in another layout, with a YAML file beside it."""

    def write(frames, out, description, nodes=(("Identity", ["frames"], ["out"], {}),), **kwargs):
        spec = exported(list(nodes), (1, out), frames=frames, classes=None, **kwargs)
        (tmp_path / "teacher.yaml").write_text(yaml.safe_dump(description))
        return spec

    return write


HWC, CHW = ("N", "H", "W", 3), ("N", 3, "H", "W")
SCALING = {"mean": [0.5, 0.25, 0.0], "deviation": 0.5}


@pytest.mark.parametrize(("layout", "channels"), [(HWC, "last"), (CHW, "first")])
@pytest.mark.parametrize("activation", ["none", "sigmoid", "softmax"])
def test_maps_are_scaled_and_activated(described, layout, channels, activation):
    output = {"channels": channels, "activation": activation}
    names = ["left glow", "right glow", "glow"]
    spec = described(layout, layout, {"kind": "maps", "names": names, "input": SCALING, "output": output})
    teacher = load_teacher(spec, {}, CPU)
    assert (teacher.target.kind, teacher.target.names) == ("maps", tuple(names))
    assert teacher.target.value_range == (None if activation == "none" else (0, 1))
    frames_THW3 = frames_of(2)
    expected = (frames_THW3 / 255 - [0.5, 0.25, 0.0]) / 0.5
    if activation == "sigmoid":
        expected = 1 / (1 + np.exp(-expected))
    if activation == "softmax":
        expected = np.exp(expected) / np.exp(expected).sum(-1, keepdims=True)
    np.testing.assert_allclose(teacher(frames_THW3), expected.transpose(0, 3, 1, 2), atol=1e-5)


def test_large_maps_are_reduced(described):
    spec = described(CHW, CHW, {"kind": "maps", "names": ["red", "green", "blue"], "range": [0, 1]})
    frames_THW3 = np.zeros((1, 200, 320, 3), np.uint8)
    frames_THW3[:, :, 160:, 1] = 255
    maps = load_teacher(spec, {}, CPU)(frames_THW3)
    assert maps.shape == (1, 3, 100, 160)
    np.testing.assert_allclose(maps[0, 1, :, [0, 40, 120, 159]].mean(1), [0, 0, 1, 1], atol=1e-3)


@pytest.mark.parametrize(("unit", "size"), [("unit", None), ("px", None), ("px", [4, 5])])
def test_points_are_read_in_their_unit(described, unit, size):
    """The network gives its first row of pixels as points."""
    nodes: list[tuple] = [
        ("Slice", ["frames", "zero", "one", "axis"], ["row"], {}),
        ("Squeeze", ["row", "axis"], ["out"], {}),
    ]
    weights = [("zero", np.array([0])), ("one", np.array([1])), ("axis", np.array([1]))]
    description = {"kind": "points", "names": list("abcde"), "output": {"points": unit}}
    if size:
        description["input"] = {"size": size}
    spec = described(HWC, ("N", "W", 3), description, nodes, weights=weights)
    frames_THW3 = frames_of(2, height=4 if size else 6, width=5)
    width, height = (1, 1) if unit == "unit" else (5, 4 if size else 6)
    expected = frames_THW3[:, 0] / 255 / [width, height, 1]
    np.testing.assert_allclose(load_teacher(spec, {}, CPU)(frames_THW3)[:, 0], expected, atol=1e-6)


@pytest.mark.parametrize("layout", [("N", "T", 3, "H", "W"), ("N", 3, "T", "H", "W"), ("N", "T", "H", "W", 3)])
def test_clips_give_features(described, layout):
    axes = [place for place, size in enumerate(layout) if size in ("T", "H", "W")]
    nodes = [("ReduceMean", ["frames", "axes"], ["out"], {"keepdims": 0})]
    description = {"kind": "clip", "input": {"frames": 4, **SCALING}, "components": 2}
    spec = described(layout, ("N", 3), description, nodes, weights=[("axes", np.array(axes))])
    teacher = load_teacher(spec, {}, CPU)
    assert (teacher.target.kind, teacher.target.clip_frames, teacher.target.components) == ("clip", 4, 2)
    clips = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 5, 3), np.uint8)
    expected = (clips.mean(axis=(1, 2, 3)) / 255 - [0.5, 0.25, 0.0]) / 0.5
    np.testing.assert_allclose(teacher(clips), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"names": ["a"]}, "kind"),
        ({"kind": "maps"}, "names"),
        ({"kind": "maps", "names": ["a"], "size": [3, 4]}, "size"),
        ({"kind": "maps", "names": ["a"], "input": {"siez": [3, 4]}}, "input.siez"),
        ({"kind": "maps", "names": ["a"], "input": {"size": 3}}, "wrong type"),
        ({"kind": "maps", "names": ["a"], "output": {"channels": "middle"}}, "output.channels"),
        ({"kind": "maps", "names": ["a"], "output": {"name": "nothing"}}, "output.name"),
        ({"kind": "maps", "names": ["a"], "range": [1, 0]}, "range"),
        ({"kind": "classes", "names": ["a", "b", "c"]}, "background"),
        ([1], "mapping"),
    ],
)
def test_wrong_descriptions_are_refused(described, description, message):
    with pytest.raises(InputError, match=message) as raised:
        load_teacher(described(CHW, CHW, description), {}, CPU)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["classes", "maps"])
def test_the_described_body_parts_are_those_of_the_real_network(onnx, test_data, tmp_path, kind):
    folder = test_data.parent / "teachers"
    if not (folder / "bodypix_x050_s8.onnx").is_file():
        pytest.skip(f"{folder} has no bodypix_x050_s8.onnx")
    (text,) = blocks(page("teachers.md"), "yaml")
    (tmp_path / "parts.yaml").write_text(text.replace("kind: classes", f"kind: {kind}"))
    (tmp_path / "parts.onnx").symlink_to(folder / "bodypix_x050_s8.onnx")
    teacher = load_teacher(f"onnx:{tmp_path / 'parts.onnx'}", {}, CPU)
    reference = load_teacher(f"{folder / 'bodypix.py'}:load", {}, CPU)
    clip = "golf/Anna_Rawson_Driver_Practice_golf_f_nm_np1_ri_bad_0"
    frames_THW3 = read_frames(test_data / "jhmdb" / "videos" / f"{clip}.mp4", [0, 8])
    if kind == "classes":
        assert teacher.classes == reference.classes
        assert len(teacher.target.pairs) == 11
        assert (teacher(frames_THW3) == reference(frames_THW3)).mean() > 0.999
        assert len(np.unique(teacher(frames_THW3))) > 5
    else:
        person, parts = reference._teacher.soft(frames_THW3)
        np.testing.assert_allclose(teacher(frames_THW3), person[:, None] * parts, atol=1e-4)
