"""docs/new-stream.md runs as it stands, its stream learns, and what cannot be a stream is refused in one line."""

import importlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import airstreams
from airstreams.cli import main
from airstreams.config import Config, ModelConfig
from airstreams.errors import InputError
from airstreams.models import saved as saved_models
from airstreams.models.airstreams import build
from airstreams.models.transfer import take_over
from airstreams.recipe import from_dict, load_config

PAGE = (Path(__file__).parents[1] / "docs" / "new-stream.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory):
    """The folder in which a reader has followed the page to its end, and what the commands said."""
    folder = tmp_path_factory.mktemp("tutorial")
    for language, name in (("python", "my_streams.py"), ("yaml", "edges.yaml")):
        assert f"`{name}`:\n\n```{language}" in PAGE
        (block,) = blocks(language)
        (folder / name).write_text(block)
    # -P: the folder is found by the page's PYTHONPATH or not at all.
    commands = [f"python() {{ '{sys.executable}' -P \"$@\"; }}", 'airstreams() { python -m airstreams "$@"; }']
    package = str(Path(airstreams.__file__).parents[1])
    done = subprocess.run(
        ["bash", "-euc", "\n".join([*commands, *blocks("sh")])],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": package, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def kernels(model):
    return model.representations["edges"].slopes.weight


@pytest.fixture
def edges(tutorial, monkeypatch):
    """The page's class, importable as the page names it."""
    monkeypatch.syspath_prepend(tutorial[0])
    yield importlib.import_module("my_streams").Edges
    del sys.modules["my_streams"]


def clip(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def complaint(streams, representations, **further):
    with pytest.raises(InputError) as raised, torch.device("meta"):
        build(from_dict({"model": {"streams": streams, "representations": representations}, **further}).model, 4, 5)
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_the_page_trains_evaluates_and_predicts(tutorial):
    folder, said = tutorial
    assert "trained: runs/edges" in said
    figures = json.loads((folder / "runs/edges/evaluation/test/figures.json").read_text())
    assert figures["videos"] == 8
    assert list(figures["streams"]) == ["rgb", "edges", "merged"]
    assert figures["streams"]["edges"]["top1"] is not None  # its head has learnt, by `further`
    assert re.search(r"000\.mp4: \w+_\w+ [\d.]+%", said)
    last = json.loads((folder / "runs/edges/metrics.jsonl").read_text().splitlines()[-1])
    assert last["train"]["gradient_norms"]["edges.representation"] > 0


def test_the_kernels_measure_slopes_and_have_learnt(tutorial, edges):
    ramp_1311HW = (0.03 * torch.arange(64.0)[None] - 0.02 * torch.arange(64.0)[:, None]).expand(1, 3, 1, 64, 64)
    seen = edges()(ramp_1311HW).tower_input[0, :, 0, 8:-8, 8:-8]
    expected = torch.tensor([0.03, -0.02, (0.03**2 + 0.02**2 + 1e-6) ** 0.5])
    torch.testing.assert_close(seen, expected[:, None, None].expand_as(seen), rtol=1e-4, atol=1e-5)
    trained = saved_models.load(tutorial[0] / "runs/edges").model
    assert isinstance(trained.representations["edges"], edges)
    assert not torch.allclose(kernels(trained), edges().slopes.weight, atol=1e-4)


@pytest.mark.parametrize("head", ["edges", "merged"])
def test_each_loss_above_the_stream_reaches_its_kernels(edges, tutorial, head):
    model = build(load_config(tutorial[0] / "edges.yaml").model, 4, 5)
    model(clip(2, 3, 3, 64, 64), [head]).logits[head].square().sum().backward()
    assert (kernels(model).grad.abs().sum(dim=(1, 2, 3)) > 0).all()


def test_the_stream_can_be_the_only_one(edges):
    config = Config(model=ModelConfig(streams=["edges"], representations={"edges": "my_streams:Edges"}, width=0.125))
    assert config.active_loss_weights() == {"edges": 1.0}
    model = build(config.model, 4, 5).eval()
    assert model(clip(1, 3, 2, 64, 80)).logits["edges"].shape == (1, 4)


@pytest.mark.parametrize("what", ["edges.yaml", "runs/edges"])
def test_its_cost_is_that_of_its_convolutions(edges, tutorial, what, capsys):
    assert main(["info", str(tutorial[0] / what), "--json"]) == 0
    part = json.loads(capsys.readouterr().out)["multiply_adds"]["parts"]["edges.representation"]
    assert part == {"parameters": 2 * 25, "inference": 4 * 64 * 64 * 2 * 25, "training": 4 * 64 * 64 * 2 * 25}


def test_another_run_starts_from_it(edges, tutorial):
    saved = saved_models.load(tutorial[0] / "runs/edges")
    model = build(replace(saved.config.model, streams=["edges", "flow"]), 2, 5)
    transfer = take_over(model, ("a", "b"), saved.segment_classes, saved)
    assert transfer.parts["edges.representation"] == "taken"
    assert torch.equal(kernels(model), kernels(saved.model))


def test_a_loaded_model_says_which_module_it_misses(tutorial):
    with pytest.raises(InputError, match=r"my_streams:Edges cannot be imported .*PYTHONPATH") as raised:
        airstreams.load(tutorial[0] / "runs/edges")
    assert "\n" not in str(raised.value)


def test_what_cannot_be_built_is_refused_before_the_videos_are_read(synthetic, tmp_path, capsys):
    options = ["--model.streams", "[rgb,edges]", "--model.representations.edges", "no_such_module:Edges"]
    assert main(["train", str(synthetic / "videos"), "--out", str(tmp_path / "run"), *options]) == 2
    err = capsys.readouterr().err
    assert err.startswith("airstreams: model.representations.edges: no_such_module:Edges cannot be imported")
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


CLASSES = """
from torch import nn
number = 3
def function(): return nn.Identity()
class Plain: channels = 3
class NoChannels(nn.Module): pass
class ManyChannels(nn.Module): channels = [1, 2]
class Asks(nn.Module):
    def __init__(self, size): super().__init__()
class Fails(nn.Module):
    def __init__(self): raise FileNotFoundError("weights.pt\\nis not there")
"""


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("no_such_module:Edges", ("cannot be imported", "No module named 'no_such_module'", "pip install")),
        ("broken_streams:Edges", ("cannot be imported", "SyntaxError")),
        ("odd_streams:Nothing", ("is not in", "odd_streams.py", "subclass of torch.nn.Module")),
        ("odd_streams:number", ("no torch.nn.Module",)),
        ("odd_streams:function", ("no torch.nn.Module",)),
        ("odd_streams:Plain", ("no torch.nn.Module",)),
        ("odd_streams:NoChannels", ("channels", "None")),
        ("odd_streams:ManyChannels", ("channels", "[1, 2]")),
        ("odd_streams:Asks", ("cannot be made", "size")),
        ("odd_streams:Fails", ("cannot be made", "weights.pt is not there")),
        ("odd_streams", ("MODULE:CLASS",)),
        ("odd_streams.py:Plain:more", ("MODULE:CLASS",)),
    ],
)
def test_a_class_that_cannot_be_used_is_named(place, told, tmp_path, monkeypatch):
    (tmp_path / "odd_streams.py").write_text(CLASSES)
    (tmp_path / "broken_streams.py").write_text("class Edges(\n")
    monkeypatch.syspath_prepend(tmp_path)
    message = complaint(["rgb", "edges"], {"edges": place})
    assert f"model.representations.edges: {'got ' if 'MODULE:CLASS' in told else ''}{place}" in message
    assert all(words in message for words in told), message


@pytest.mark.parametrize(
    "name", ["rgb", "semantic", "merged", "merged2", "interm", "total", "two words", "a.b", "type"]
)
def test_a_name_that_is_taken_is_refused(name, edges):
    assert name in complaint(["rgb", name], {name: "my_streams:Edges"})


def test_a_stream_without_a_class_and_a_weight_without_a_stream_are_refused():
    message = complaint(["rgb", "egdes"], {"edges": "my_streams:Edges"})
    assert message.startswith("model.streams: got egdes, expected rgb, flow")
    message = complaint(["rgb"], {"edges": "my_streams:Edges"}, loss_weights={"further": {"egdes": 1.0}})
    assert message == "loss_weights.further: got egdes, expected further streams' names: rgb2, rgb3, edges"
    message = complaint(["rgb"], {"edges": "my_streams:Edges"}, loss_weights={"further": {"edges": -1.0}})
    assert "loss_weights.further.edges" in message


def test_gradients_are_not_stopped_but_frozen():
    with pytest.raises(InputError, match=r"model\.stop_gradient: got edges, .*training\.freeze"):
        ModelConfig(streams=["edges"], representations={"edges": "my_streams:Edges"}, stop_gradient=["edges"])


RETURNS = """
import torch
from torch import nn
from airstreams.models.representations import Representation
class Tensor(nn.Module):
    channels = 3
    def forward(self, clip): return clip
class Small(nn.Module):
    channels = 3
    def forward(self, clip): return Representation(clip[..., ::2], None)
class Volume(nn.Module):
    channels = 2
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv3d(3, 2, 3, padding=1)
    def forward(self, clip): return Representation(self.convolution(clip), None)
"""


@pytest.mark.parametrize(("name", "told"), [("Tensor", "forward gave Tensor"), ("Small", "(2, 3, 3, 64, 32)")])
def test_what_a_class_returns_is_checked(name, told, tmp_path, monkeypatch):
    (tmp_path / "returns.py").write_text(RETURNS)
    monkeypatch.syspath_prepend(tmp_path)
    model = build(ModelConfig(streams=["mine"], representations={"mine": f"returns:{name}"}, width=0.125), 4, 5)
    with pytest.raises(InputError) as raised:
        model(clip(2, 3, 3, 64, 64))
    assert f"returns:{name}" in str(raised.value)
    assert told in str(raised.value)
    assert "tower_input of (2, 3, 3, 64, 64)" in str(raised.value)


def test_layers_over_volumes_are_fine(tmp_path, monkeypatch):
    """Their weights cannot lie channels last as the towers' do."""
    (tmp_path / "volumes.py").write_text(RETURNS)
    monkeypatch.syspath_prepend(tmp_path)
    config = ModelConfig(streams=["mine", "rgb"], representations={"mine": "volumes:Volume"}, width=0.125)
    assert build(config, 4, 5)(clip(2, 3, 3, 64, 64)).logits["merged"].isfinite().all()
