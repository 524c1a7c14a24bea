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


def test_the_command_writes_one_file_and_prints_its_shapes(tiny, tmp_path, capsys):
    """That the file answers a video as predict does is shown by docs/python.md, which its own test runs."""
    random_run(replace(tiny, model=replace(tiny.model, streams=["semantic"])), tmp_path)
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "new" / "m.pt2"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["frames"], said["classes"]) == ([None, 4, 64, 64, 3], 3)
    assert said["largest_difference"] < 1e-5
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["m.pt2"]


@pytest.mark.parametrize(
    ("name", "flow", "multi_label"),
    [
        ("m.onnx", FlowConfig(iterations=1, warps=1), True),
        ("m.pt2", FlowConfig(kind="difference"), False),
    ],
    ids=str,
)
def test_the_file_gives_the_models_probabilities(tiny, tmp_path, name, flow, multi_label):
    config = replace(tiny, model=replace(tiny.model, streams=["flow"], flow=flow))
    saved = random_run(config, tmp_path, multi_label)
    difference = export(tmp_path, tmp_path / name)
    assert difference is not None
    assert difference < 1e-5
    content = (tmp_path / name).read_bytes()
    if name == "m.pt2":
        with zipfile.ZipFile(tmp_path / name) as archive:
            content = b"".join(archive.read(entry) for entry in archive.namelist())
    assert str(Path(airstreams.__file__).parent).encode() not in content  # no folder of this machine
    scores, about = of_onnx(tmp_path / name) if name == "m.onnx" else of_torch(tmp_path / name)
    for batch in (1, 5):
        clips = torch.randint(0, 256, (batch, 4, 64, 64, 3), dtype=torch.uint8)
        with torch.no_grad():
            logits = saved.model(clips.permute(0, 4, 1, 2, 3)).logits["flow"]
        expected = logits.sigmoid() if multi_label else logits.softmax(dim=1)
        torch.testing.assert_close(scores(clips), expected, atol=1e-5, rtol=0)
    assert (about["classes"], about["multi_label"]) == (["a", "b", "c"], multi_label)
    assert (about["training_frame_rate"], about["torch"]) == (25.0, torch.__version__)


def test_what_cannot_be_exported_is_refused_and_leaves_no_file(tiny, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"no model\.json in it"):
        export(tmp_path, tmp_path / "m.pt2")
    random_run(replace(tiny, model=replace(tiny.model, streams=["rgb"])), tmp_path)
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
    model = replace(tiny.model, streams=["flicker"], representations={"flicker": "flickers:Flicker"})
    random_run(replace(tiny, model=model), tmp_path)
    if words is None:
        assert export(tmp_path, tmp_path / "m.pt2") is not None
        return
    with pytest.raises(RuntimeError, match=words):
        export(tmp_path, tmp_path / "m.pt2")
    assert not (tmp_path / "m.pt2").exists()
