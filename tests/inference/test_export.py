"""An exported file gives the model's answers without airstreams."""

import json
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import torch

import airstreams
from airstreams.cli import main
from airstreams.config import FlowConfig
from airstreams.errors import InputError
from airstreams.inference import export as exporting
from airstreams.inference.export import ABOUT, export
from airstreams.models.airstreams import build
from airstreams.runs import saved_model as saved_models
from airstreams.runs.saved_model import SavedModel
from airstreams.towers import Block, Layer
from tests.training.runs import EVERY_LAYER

SMALL_TOWER = [
    Block(16, [Layer("conv2d", stride=4)]),
    *(Block(16, [Layer("conv2d")]) for _ in range(3)),
]  # quick to export


def of_onnx(path):
    """The scores by ONNX's runtime, and the JSON in the file."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.get_outputs()
    assert output.name == "probabilities"
    return (
        lambda clips: torch.from_numpy(session.run(["probabilities"], {"frames": clips.numpy()})[0]),
        json.loads(session.get_modelmeta().custom_metadata_map[ABOUT]),
    )


def random_run(config, run, multi_label=False):
    """Save a model of three classes with random weights."""
    torch.manual_seed(0)
    model = build(config.model, 3, 4).eval()
    saved = SavedModel(config, ("a", "b", "c"), ("0", "1", "2", "3"), multi_label, 25.0, model)
    saved_models.save(saved, run)
    return saved


def of_torch(path):
    about = {ABOUT: ""}
    program = torch.export.load(path, extra_files=about)
    return program.module(), json.loads(about[ABOUT])


@pytest.mark.parametrize(
    ("name", "streams", "flow", "tower", "multi_label", "answer"),
    [
        ("m.onnx", ["flow"], FlowConfig(iterations=1, warps=1), EVERY_LAYER, True, "merged"),
        ("m.pt2", ["flow", "semantic"], FlowConfig(kind="difference"), SMALL_TOWER, False, "mean"),
    ],
    ids=["onnx", "pt2"],
)
def test_the_file_gives_the_models_probabilities(
    tiny, tmp_path, capsys, name, streams, flow, tower, multi_label, answer
):
    """That it answers a video as predict does is shown by docs/python.md, which its own test runs."""
    run, out = tmp_path / "run", tmp_path / "new" / name
    model = replace(tiny.model, streams=streams, flow=flow, tower=tower, answer=answer)
    saved = random_run(replace(tiny, model=model), run, multi_label)
    assert main(["export", str(run), "--out", str(out), "--json"]) == 0
    captured = capsys.readouterr()
    steps = [line.split()[1] for line in captured.err.splitlines() if line.startswith("export: ")]
    assert steps == ["reading", "capturing", "writing", "verifying"]
    printed = json.loads(captured.out)
    assert (printed["frames"], printed["classes"]) == ([None, 4, 64, 64, 3], 3)
    assert printed["largest_difference"] < 1e-5
    assert [path.name for path in out.parent.iterdir()] == [name]
    content = out.read_bytes()
    if name == "m.pt2":
        with zipfile.ZipFile(out) as archive:
            content = b"".join(archive.read(entry) for entry in archive.namelist())
    assert str(Path(airstreams.__file__).parent).encode() not in content  # no folder of this machine
    scores, about = of_onnx(out) if name == "m.onnx" else of_torch(out)
    for batch in (1, 5):
        clips = torch.randint(0, 256, (batch, 4, 64, 64, 3), dtype=torch.uint8)
        with torch.no_grad():
            logits = saved.model(clips.permute(0, 4, 1, 2, 3), saved.config.answer_heads).logits
        assert list(logits) == (["flow", "merged"] if answer == "mean" else ["flow"])
        mean = sum(logits.values()) / len(logits)
        expected = mean.sigmoid() if multi_label else mean.softmax(dim=1)
        torch.testing.assert_close(scores(clips), expected, atol=1e-5, rtol=0)
    assert (about["classes"], about["multi_label"]) == (["a", "b", "c"], multi_label)
    assert (about["training_frame_rate"], about["torch"]) == (25.0, torch.__version__)


def test_what_cannot_be_exported_is_refused_and_leaves_no_file(tiny, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"model\.json"):
        export(tmp_path, tmp_path / "m.pt2")
    random_run(replace(tiny, model=replace(tiny.model, streams=["rgb"], tower=SMALL_TOWER)), tmp_path)
    for out, words in (("m.pt", "NAME.onnx"), ("model.json/m.pt2", "model.json")):
        with pytest.raises(InputError, match=words):
            export(tmp_path, tmp_path / out)
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install onnx onnxscript"):
        export(tmp_path, tmp_path / "m.onnx")
    (tmp_path / "folder.pt2").mkdir()
    with pytest.raises(InputError, match=r"folder\.pt2"):
        export(tmp_path, tmp_path / "folder.pt2")
    (tmp_path / "folder.pt2").rmdir()
    write = exporting._write_program

    def write_another(*arguments):
        scores = write(*arguments)
        return lambda clips: scores(clips.flip(-1))  # BGR

    monkeypatch.setattr(exporting, "_write_program", write_another)
    with pytest.raises(RuntimeError, match="differ from the model's"):
        export(tmp_path, tmp_path / "m.pt2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


STREAM = """
import torch
from airstreams.representations import Representation

class Flicker(torch.nn.Module):
    channels = 3
    def forward(self, clip):
        return Representation({made}, None)
"""


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ("clip * 2 if clip.shape[2] > 3 else clip", None),
        ("clip * 2 if clip.mean() > 0.5 else clip", r"torch\.export .* stream flicker"),
        ("clip + torch.rand_like(clip)", "random"),
    ],
)
def test_a_custom_stream_is_exported_if_torch_supports_it(tiny, tmp_path, monkeypatch, made, words):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "flickers", raising=False)
    (tmp_path / "flickers.py").write_text(STREAM.format(made=made))
    custom = {"flicker": "flickers:Flicker"}
    model = replace(tiny.model, streams=["flicker"], representations=custom, tower=SMALL_TOWER)
    random_run(replace(tiny, model=model), tmp_path)
    if words is None:
        assert export(tmp_path, tmp_path / "m.pt2") is not None
        return
    with pytest.raises(RuntimeError, match=words):
        export(tmp_path, tmp_path / "m.pt2")
    assert not (tmp_path / "m.pt2").exists()
