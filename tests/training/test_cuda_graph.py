"""A captured CUDA graph computes what the pass itself computes. Tests that need a card skip without one."""

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

from airstreams.data.dataset import TrainingClips
from airstreams.errors import VideoError
from airstreams.training.cuda_graph import WARM_UP, CapturedPass, can_be_captured
from airstreams.training.loop import train
from airstreams.training.losses import PassInputs
from tests.training.runs import epochs

needs_a_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")


@needs_a_card
def test_training_with_a_graph_gives_the_same_bits(source, tiny, tmp_path, monkeypatch):
    replays: list[None] = []
    draws: list[str] = []
    replay, draw = torch.cuda.CUDAGraph.replay, TrainingClips._draw

    def unreadable_once(clips, video, is_labelled, rng):
        draws.append(video.name)
        if len(draws) == 30:  # in the eighth step, which then has one clip less
            raise VideoError("unreadable")
        return draw(clips, video, is_labelled, rng)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: replays.append(replay(graph)))
    monkeypatch.setattr(TrainingClips, "_draw", unreadable_once)
    weights, logs = [], []
    for captured in (False, True):
        draws.clear()
        training = replace(tiny.training, device="cuda", deterministic=True, epochs=3, cuda_graph=captured)
        config = replace(tiny, model=replace(tiny.model, dropout=0.5), training=training)
        train(source, config, tmp_path / str(captured), False, Console(quiet=True))
        weights.append(load_file(tmp_path / str(captured) / "model.safetensors"))
        logs.append([entry["train"] for entry in epochs(tmp_path / str(captured))])
    assert len(replays) == (7 - WARM_UP) + (18 - 8 - WARM_UP)
    for name, expected in weights[0].items():
        assert torch.equal(weights[1][name], expected), name
    for one, other in zip(*logs, strict=True):
        assert (one["losses"], one["gradient_norms"]) == (other["losses"], other["gradient_norms"])
        assert (one["clips"], one["left_out"]) == (other["clips"], other["left_out"])


@needs_a_card
def test_another_kind_of_pass_runs_directly_until_a_new_capture():
    torch.manual_seed(0)
    layer = nn.Linear(3, 2, device="cuda")
    graph = CapturedPass(layer.parameters())
    inside = []

    def one_pass(inputs):
        rows, scale = inputs.clip_B3THW, inputs.teachers.get("semantic")
        inside.append(len(rows))
        loss = layer(rows if scale is None else rows * scale).square().sum()
        loss.backward()
        return {"loss": loss.detach()}

    for number, scaled in ((4, False), (2, False), *[(4, False)] * 5, (2, False), (4, True), *[(2, False)] * 4):
        rows = torch.randn(number, 3, device="cuda")
        scale = torch.rand((), device="cuda") if scaled else None
        teachers = {} if scale is None else {"semantic": scale}
        loss = graph(one_pass, PassInputs(rows, rows, teachers, rows, rows, {}))["loss"]
        with torch.no_grad():  # an autograd graph that is still alive would prevent the capture
            seen = rows if scale is None else rows * scale
            expected = layer(seen)
            torch.testing.assert_close(loss, expected.square().sum())
            torch.testing.assert_close(layer.weight.grad, 2 * expected.T @ seen)
        layer.zero_grad()
    assert inside == [4, 2, 4, 4, 4, 2, 4, 2, 2, 2]  # the fifth and the last were captures


@needs_a_card
def test_a_failed_capture_names_the_key_and_the_cause():
    waits = (
        "import torch\n"
        "from airstreams.training.cuda_graph import CapturedPass, PassInputs\n"
        "graph = CapturedPass([])\n"
        "one = torch.ones((), device='cuda')\n"
        "for _ in range(5):\n"
        "    graph(lambda inputs: {'loss': one * inputs.weight.item()}, PassInputs(one, one, {}, one, one, {}))\n"
    )
    ended = subprocess.run([sys.executable, "-c", waits], capture_output=True, text=True)
    assert ended.returncode == 1
    (message,) = [line for line in ended.stderr.splitlines() if "InputError:" in line]
    assert "training.cuda_graph:" in message
    assert "capturing" in message  # the cause, and not that there was an error before


@pytest.mark.parametrize(
    ("expected", "device", "processes", "training", "custom"),
    [
        (True, "cuda", 1, {}, False),
        (False, "cpu", 1, {}, False),
        (False, "cuda", 2, {}, False),
        (False, "cuda", 1, {"accumulate": 2}, False),
        (False, "cuda", 1, {"cuda_graph": False}, False),
        (False, "cuda", 1, {}, True),
    ],
)
def test_only_identical_passes_are_captured(tiny, expected, device, processes, training, custom):
    streams = {"streams": ["rgb", "edges"], "representations": {"edges": "edges.py:Edges"}} if custom else {}
    config = replace(tiny, training=replace(tiny.training, **training), model=replace(tiny.model, **streams))
    accelerator = SimpleNamespace(device=torch.device(device), num_processes=processes)
    assert can_be_captured(config, accelerator) is expected


def test_nothing_is_captured_on_amd_cards(tiny, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert not can_be_captured(tiny, SimpleNamespace(device=torch.device("cuda"), num_processes=1))
