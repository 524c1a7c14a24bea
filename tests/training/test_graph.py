"""A pass that is recorded as a CUDA graph is the pass itself. What needs a card skips without one."""

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

from airstreams.training.graph import WARM_UP, PassGraph, can_be_recorded
from airstreams.training.loop import train

needs_a_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")


@needs_a_card
def test_a_training_by_a_graph_is_the_one_without_to_the_last_bit(source, tiny, tmp_path, monkeypatch):
    replays: list[None] = []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: replays.append(replay(graph)))
    weights = []
    for by_graph in (False, True):
        training = replace(tiny.training, device="cuda", deterministic=True, epochs=3, ema=0.9, cuda_graph=by_graph)
        config = replace(tiny, model=replace(tiny.model, dropout=0.5), training=training)
        train(source, config, tmp_path / str(by_graph), False, Console(quiet=True))
        weights.append(load_file(tmp_path / str(by_graph) / "model.safetensors"))
    assert len(replays) == 3 * 6 - WARM_UP
    for name, expected in weights[0].items():
        assert torch.equal(weights[1][name], expected), name


@needs_a_card
def test_passes_of_another_kind_are_not_recorded():
    torch.manual_seed(0)
    layer = nn.Linear(3, 2, device="cuda")
    graph = PassGraph(layer.parameters())
    inside = []

    def one_pass(rows, scale):
        inside.append(len(rows))
        loss = layer(rows if scale is None else rows * scale).square().sum()
        loss.backward()
        return {"loss": loss.detach()}

    for number, scaled in ((4, False), (2, False), *[(4, False)] * 5, (2, False), (4, True), *[(4, False)] * 3):
        rows = torch.randn(number, 3, device="cuda")
        scale = torch.rand((), device="cuda") if scaled else None
        loss = graph(one_pass, (rows, scale))["loss"]
        with torch.no_grad():  # a graph of autograd that is still there would keep the pass from being recorded
            seen = rows if scale is None else rows * scale
            expected = layer(seen)
            torch.testing.assert_close(loss, expected.square().sum())
            torch.testing.assert_close(layer.weight.grad, 2 * expected.T @ seen)
        layer.zero_grad()
    assert inside == [4, 2, 4, 4, 4, 2, 4]  # of which the fifth was recorded


@needs_a_card
def test_what_cannot_be_recorded_is_told():
    waits = (
        "import torch\n"
        "from airstreams.training.graph import PassGraph\n"
        "graph = PassGraph([])\n"
        "for _ in range(5):\n"
        "    graph(lambda x: {'loss': x * x.item()}, (torch.ones((), device='cuda'),))\n"
    )
    ended = subprocess.run([sys.executable, "-c", waits], capture_output=True, text=True)
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert "InputError: training.cuda_graph: a step could not be recorded (" in last
    assert last.endswith("); give --training.cuda_graph false")


@pytest.mark.parametrize(
    ("expected", "device", "processes", "training", "further"),
    [
        (True, "cuda", 1, {}, False),
        (False, "cpu", 1, {}, False),
        (False, "cuda", 2, {}, False),
        (False, "cuda", 1, {"accumulate": 2}, False),
        (False, "cuda", 1, {"compile": True}, False),
        (False, "cuda", 1, {"cuda_graph": False}, False),
        (False, "cuda", 1, {}, True),
    ],
)
def test_passes_that_are_not_all_alike_are_not_recorded(tiny, expected, device, processes, training, further):
    streams = {"streams": ["rgb", "edges"], "representations": {"edges": "edges.py:Edges"}} if further else {}
    config = replace(tiny, training=replace(tiny.training, **training), model=replace(tiny.model, **streams))
    accelerator = SimpleNamespace(device=torch.device(device), num_processes=processes)
    assert can_be_recorded(config, accelerator) is expected
