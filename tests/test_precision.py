"""Networks in bfloat16 on a CPU: their answers, their gradients, and how long a run keeps its precision."""

import csv
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import airstreams
from airstreams.cli import main
from airstreams.config import ModelConfig
from airstreams.data.sources import open_source
from airstreams.errors import InputError, Stopped
from airstreams.models.airstreams import build
from airstreams.models.backbones.i3d import SameConv
from airstreams.models.cpu_bfloat16 import PaddingConv3d
from airstreams.models.tower import SpatialConv, TemporalConv
from airstreams.runs import saved_model as saved_models
from airstreams.runs.checkpoint import load_state
from airstreams.towers import Layer
from airstreams.training import setup
from airstreams.training.loop import train
from tests.training.runs import epochs, of_one_stream

QUIET = Console(quiet=True)
CPU = torch.device("cpu")


def poison_the_heap():
    """Fill freed memory with NaN, so that a kernel that reads uninitialised memory gives itself away."""
    blocks = [torch.full((1 << power,), float("nan")) for power in range(4, 20) for _ in range(10)]
    del blocks


CONVOLUTIONS = {
    "I3D": lambda: SameConv(16, 24, (3, 3, 3), (1, 1, 1), bias=False),
    "I3D's first": lambda: SameConv(16, 24, (7, 7, 7), (2, 2, 2), bias=False),
    "torchvision": lambda: PaddingConv3d(16, 24, 3, padding=1),
    "torchvision, strided": lambda: PaddingConv3d(16, 24, 3, stride=2, padding=1),
    "torchvision, along time": lambda: PaddingConv3d(16, 24, (3, 1, 1), padding=(1, 0, 0)),
    "of frames": lambda: SpatialConv(16, 24, Layer("conv2d")),
    "along time": lambda: TemporalConv(16, 24, Layer("conv1d")),
}


@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize("convolution", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_gradients_in_bfloat16_are_those_in_float32(convolution, frames):
    require_equal_gradients(convolution(), torch.randn(2, 16, frames, 4, 4))


def require_equal_gradients(layer, clip):
    clip = clip.bfloat16().float().contiguous(memory_format=torch.channels_last_3d)
    gradients = []
    for in_bfloat16 in (True, False):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bfloat16):
            out = layer(clip)
        direction = torch.linspace(-1, 1, out.numel()).view_as(out).bfloat16()
        poison_the_heap()
        out.backward(direction.to(out.dtype))
        gradients.append(layer.weight.grad.clone())
    assert (gradients[0] - gradients[1]).norm() < 0.02 * gradients[1].norm()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_gradients_of_strided_convolutions_in_bfloat16_are_those_in_float32(size):
    require_equal_gradients(SpatialConv(16, 24, Layer("conv2d", stride=2)), torch.randn(2, 16, 4, size, size))


@pytest.mark.parametrize("backbone", ["airstreams", "i3d"])
def test_answers_in_bfloat16_are_those_in_float32(backbone):
    torch.manual_seed(0)
    width = 0.25 if backbone == "airstreams" else 1.0
    model = build(ModelConfig(streams=["rgb", "flow"], backbone=backbone, width=width), 4, 0).eval()
    clip = torch.rand(2, 3, 4, 64, 64)
    answers = {}
    for precision in ("float32", "bfloat16"):
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            answers[precision] = model(clip).logits["merged"].float().softmax(dim=1)
    assert not torch.equal(*answers.values())
    assert (answers["float32"] - answers["bfloat16"]).abs().max() < 0.02


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_predict_gives_the_scores_of_evaluate(run, synthetic, precision):
    source = open_source(str(synthetic / "videos"))
    evaluation = airstreams.evaluate(run, source, device="cpu", precision=precision)
    assert evaluation.metrics.precision == precision
    recogniser = airstreams.load(run, "cpu", precision=precision)
    with evaluation.folder.scores.open() as file:
        scores = {row["name"]: row for row in csv.DictReader(file)}
    tolerance = 1e-6 if precision == "float32" else 1e-4
    for video in evaluation.videos:
        for name, probability in recogniser.predict(video.path).probabilities.items():
            assert probability == pytest.approx(float(scores[video.name][name]), abs=tolerance)


def test_auto_takes_float32_for_small_models_and_the_config_decides_otherwise(run, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert saved_models.load(run).precision == "float32"
    assert saved_models.load(run, precision="bfloat16").precision == "bfloat16"
    assert ModelConfig().is_full_size
    assert ModelConfig(backbone="i3d").is_full_size
    assert not ModelConfig(width=0.5).is_full_size


@pytest.fixture(scope="module")
def in_bfloat16(tiny):
    return replace(
        of_one_stream(tiny, precision="bfloat16", validate_every=1, save_every=1),
        model=replace(tiny.model, streams=["rgb"], width=0.125),
    )


@pytest.fixture(scope="module")
def whole_run(in_bfloat16, source, tmp_path_factory):
    path = tmp_path_factory.mktemp("bfloat16") / "run"
    train(source, in_bfloat16, path, resume=False, console=QUIET)
    return path


def test_a_resumed_training_in_bfloat16_equals_an_uninterrupted_one(in_bfloat16, source, whole_run, tmp_path):
    def stop(done, total):
        if done == 4:
            raise Stopped("mid-epoch")

    with pytest.raises(Stopped):
        train(source, in_bfloat16, tmp_path / "run", resume=False, console=QUIET, after_step=stop)
    assert load_state(tmp_path / "run")[0].epoch_step == 3
    train(source, in_bfloat16, tmp_path / "run", resume=True, console=QUIET)
    weights, expected = (load_file(path / "model.safetensors") for path in (tmp_path / "run", whole_run))
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    assert epochs(whole_run)[0]["train"]["precision"] == "bfloat16"


def test_a_run_keeps_its_precision(in_bfloat16, whole_run, tmp_path, monkeypatch):
    state, _ = load_state(whole_run)
    folder, console = setup.RunFolder(whole_run), Console(record=True, quiet=True)

    def resumed(asked, state):
        config = replace(in_bfloat16, training=replace(in_bfloat16.training, precision=asked))
        return setup._precision(config, state, folder, CPU, console)

    assert resumed("auto", state) == resumed("bfloat16", state) == "bfloat16"
    with pytest.raises(InputError, match=r"training\.precision"):
        resumed("float32", state)
    older = replace(state, precision=None)  # of versions up to 0.2
    assert resumed("auto", older) == "float32"
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    assert resumed("auto", state) == "bfloat16"  # emulated
    assert saved_models.load(whole_run).precision == "float32"


def test_an_unknown_precision_is_rejected(run, capsys):
    assert main(["predict", str(run), "video.mp4", "--precision", "float16"]) == 2
    assert "--precision" in capsys.readouterr().err
    assert main(["train", str(run), "--out", "new", "--precision", "float16"]) == 2
    assert "precision" in capsys.readouterr().err
