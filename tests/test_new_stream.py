"""The commands of docs/new-stream.md run, its stream learns, and unusable streams are refused in one line."""

import copy
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

import airstreams
from airstreams.cli import main
from airstreams.config import ClipConfig, Config, LossWeights, ModelConfig, TrainingConfig
from airstreams.errors import InputError
from airstreams.models.airstreams import build
from airstreams.recipe import from_dict, load_config
from airstreams.representations.custom import try_out
from airstreams.runs import saved_model as saved_models
from airstreams.training import loop, setup
from airstreams.training.learner import freeze, set_training_mode
from airstreams.training.transfer import take_over
from tests.pages import blocks, page
from tests.python import python_words

PAGE = page("new-stream.md")


def write_the_pages(name, folder):
    """Write the file that the page shows under this name."""
    (content,) = re.findall(rf"`{name}`.*?:\n\n```\w+\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    (folder / name).write_text(content)


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory):
    """The folder after all commands of the page, and their output."""
    folder = tmp_path_factory.mktemp("tutorial")
    for name in ("my_streams.py", "edges.yaml", "shape_streams.py", "shapes.yaml"):
        write_the_pages(name, folder)
    # Python finds the folder only by the PYTHONPATH of the page.
    python = shlex.join(python_words())
    commands = [f'python() {{ {python} "$@"; }}', 'airstreams() { python -m airstreams "$@"; }']
    package = str(Path(airstreams.__file__).parents[1])
    done = subprocess.run(
        ["bash", "-euc", "\n".join([*commands, *blocks(PAGE, "sh")])],
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
    """The class of the page, importable under the page's name."""
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
    folder, output = tutorial
    assert "trained: runs/edges" in output
    figures = json.loads((folder / "runs/edges/evaluation/test/figures.json").read_text())
    assert figures["videos"] == 8
    assert list(figures["streams"]) == ["rgb", "edges", "merged"]
    assert figures["streams"]["edges"]["top1"] is not None  # `loss_weights.custom` trained its head
    assert re.search(r"000\.mp4: \w+_\w+ [\d.]+%", output)
    last = json.loads((folder / "runs/edges/metrics.jsonl").read_text().splitlines()[-1])
    assert last["train"]["gradient_norms"]["edges.representation"] > 0


def test_the_page_trains_a_stream_with_a_teacher(tutorial):
    losses = json.loads((tutorial[0] / "runs/shapes/metrics.jsonl").read_text().splitlines()[-1])["train"]["losses"]
    assert losses.keys() == {"rgb", "merged", "interm.shapes", "total"}
    assert 0 < losses["interm.shapes"] < 3


def test_the_kernels_measure_slopes_and_were_trained(tutorial, edges):
    ramp_1311HW = (0.03 * torch.arange(64.0)[None] - 0.02 * torch.arange(64.0)[:, None]).expand(1, 3, 1, 64, 64)
    seen = edges()(ramp_1311HW).tower_input[0, :, 0, 8:-8, 8:-8]
    expected = torch.tensor([0.03, -0.02, (0.03**2 + 0.02**2 + 1e-6) ** 0.5])
    torch.testing.assert_close(seen, expected[:, None, None].expand_as(seen), rtol=1e-4, atol=1e-5)
    trained = saved_models.load(tutorial[0] / "runs/edges").model
    assert isinstance(trained.representations["edges"], edges)
    assert not torch.allclose(kernels(trained), edges().slopes.weight, atol=1e-4)


@pytest.mark.parametrize("head", ["edges", "merged"])
def test_every_loss_reaches_the_streams_kernels(edges, tutorial, head):
    model = build(load_config(tutorial[0] / "edges.yaml").model, 4, 5)
    model(clip(2, 3, 3, 64, 64), [head]).logits[head].square().sum().backward()
    assert (kernels(model).grad.abs().sum(dim=(1, 2, 3)) > 0).all()


def test_the_stream_can_be_the_only_one(edges):
    config = Config(model=ModelConfig(streams=["edges"], representations={"edges": "my_streams:Edges"}, width=0.125))
    assert config.active_loss_weights() == {"edges": 1.0}
    model = build(config.model, 4, 5).eval()
    assert model(clip(1, 3, 2, 64, 80)).logits["edges"].shape == (1, 4)


@pytest.mark.parametrize("what", ["edges.yaml", "runs/edges"])
def test_the_cost_is_that_of_the_convolutions(edges, tutorial, what, capsys):
    assert main(["info", str(tutorial[0] / what), "--trust-module", "my_streams", "--json"]) == 0
    part = json.loads(capsys.readouterr().out)["multiply_adds"]["parts"]["edges.representation"]
    assert part == {"parameters": 2 * 25, "inference": 4 * 64 * 64 * 2 * 25, "training": 4 * 64 * 64 * 2 * 25}


def test_a_run_can_start_from_another_with_the_stream(edges, tutorial):
    saved = saved_models.load(tutorial[0] / "runs/edges")
    model = build(replace(saved.config.model, streams=["edges", "flow"]), 2, 5)
    transfer = take_over(model, ("a", "b"), saved.segment_classes, saved)
    assert transfer.parts["edges.representation"] == "taken"
    assert torch.equal(kernels(model), kernels(saved.model))


def test_loading_without_the_module_names_it(tutorial):
    with pytest.raises(InputError, match=r"my_streams:Edges .*PYTHONPATH") as raised:
        airstreams.load(tutorial[0] / "runs/edges")
    assert "\n" not in str(raised.value)


def test_a_missing_module_is_refused_before_the_videos_are_read(synthetic, tmp_path, capsys):
    options = ["--model.streams", "[rgb,edges]", "--model.representations.edges", "no_such_module:Edges"]
    assert main(["train", str(synthetic / "videos"), "--out", str(tmp_path / "run"), *options]) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("airstreams: model.representations.edges: no_such_module:Edges cannot be imported")
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
class Stateful(nn.Module):
    channels = 3
    def get_extra_state(self): return {"mean": 0.5}
class Fails(nn.Module):
    def __init__(self): raise FileNotFoundError("weights.pt\\nis not there")
"""


@pytest.mark.parametrize(
    ("class_path", "said"),
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
        ("odd_streams:Stateful", ("_extra_state", "get_extra_state")),
        ("odd_streams", ("MODULE:CLASS",)),
        ("odd_streams.py:Plain:more", ("MODULE:CLASS",)),
    ],
)
def test_unusable_classes_are_refused(class_path, said, tmp_path, monkeypatch):
    (tmp_path / "odd_streams.py").write_text(CLASSES)
    (tmp_path / "broken_streams.py").write_text("class Edges(\n")
    monkeypatch.syspath_prepend(tmp_path)
    message = complaint(["rgb", "edges"], {"edges": class_path})
    assert f"model.representations.edges: {'got ' if 'MODULE:CLASS' in said else ''}{class_path}" in message
    assert all(words in message for words in said), message


@pytest.mark.parametrize(
    "name", ["rgb", "semantic", "merged", "merged2", "interm", "total", "two words", "a.b", "type"]
)
def test_reserved_names_are_refused(name, edges):
    assert name in complaint(["rgb", name], {name: "my_streams:Edges"})


def test_streams_without_a_class_and_weights_without_a_stream_are_refused():
    message = complaint(["rgb", "egdes"], {"edges": "my_streams:Edges"})
    assert message.startswith("model.streams: got egdes, expected rgb, flow")
    message = complaint(["rgb"], {"edges": "my_streams:Edges"}, loss_weights={"custom": {"egdes": 1.0}})
    names = "rgb2, rgb3, parts, depth, keypoints, distil, edges"
    assert message == f"loss_weights.custom: got egdes, expected custom streams' names: {names}"
    message = complaint(["rgb"], {"edges": "my_streams:Edges"}, loss_weights={"custom": {"edges": -1.0}})
    assert "loss_weights.custom.edges" in message


def test_stop_gradient_of_a_custom_stream_without_a_teacher_is_refused(edges):
    config = ModelConfig(streams=["edges"], representations={"edges": "my_streams:Edges"}, stop_gradient=["edges"])
    with pytest.raises(InputError, match=r"model\.stop_gradient.*edges.*training\.freeze"):
        build(config, 4, 5)


RETURNS = """
import torch
from torch import nn
from airstreams.representations import Representation
class Tensor(nn.Module):
    channels = 3
    def forward(self, clip): return clip
class Small(nn.Module):
    channels = 3
    def forward(self, clip): return Representation(clip[..., ::2], None)
class Double(nn.Module):
    channels = 3
    def forward(self, clip): return Representation(clip.double(), None)
class List(nn.Module):
    channels = 3
    def forward(self, clip): return Representation([clip], None)
class Volume(nn.Module):
    channels = 2
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv3d(3, 2, 3, padding=1)
    def forward(self, clip): return Representation(self.convolution(clip), None)
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Tensor", "forward gave Tensor"),
        ("Small", "(2, 3, 3, 64, 32)"),
        ("Double", "torch.float64, expected"),
        ("List", "forward gave list"),
    ],
)
def test_wrong_outputs_are_refused(name, said, tmp_path, monkeypatch):
    (tmp_path / "returns.py").write_text(RETURNS)
    monkeypatch.syspath_prepend(tmp_path)
    model = build(ModelConfig(streams=["mine"], representations={"mine": f"returns:{name}"}, width=0.125), 4, 5)
    with pytest.raises(InputError) as raised:
        model(clip(2, 3, 3, 64, 64))
    assert f"returns:{name}" in str(raised.value)
    assert said in str(raised.value)
    assert "tower_input of (2, 3, 3, 64, 64)" in str(raised.value)


def test_3d_convolutions_work(tmp_path, monkeypatch):
    """The memory format of the towers, channels last, is not for their 5D weights."""
    (tmp_path / "volumes.py").write_text(RETURNS)
    monkeypatch.syspath_prepend(tmp_path)
    config = ModelConfig(streams=["mine", "rgb"], representations={"mine": "volumes:Volume"}, width=0.125)
    assert build(config, 4, 5)(clip(2, 3, 3, 64, 64)).logits["merged"].isfinite().all()


WORKS = """
import torch
from torch import nn
from airstreams.representations import Representation
class Stream(nn.Module):
    channels = 3
    def forward(self, clip): return Representation(self.see(clip), None)
class Changes(Stream):
    def see(self, clip): return clip[:, 0].sub_(0.5).unsqueeze(1).expand_as(clip)
class LooksUp(Stream):
    def see(self, clip): return {}["mean\\nand more"]
class Multiplies(Stream):
    def see(self, clip): return clip @ torch.ones(3)
class Chooses(Stream):
    def see(self, clip): return clip * 2 if clip.max() > 0.5 else clip
class Begins(Stream):
    def __init__(self):
        super().__init__()
        self.register_buffer("begun", torch.zeros(()))
    def see(self, clip):
        self.begun.add_(1)
        return clip
class Halves(Stream):
    def see(self, clip): return clip.bfloat16()
class Derives(Stream):
    def see(self, clip):
        with torch.enable_grad():
            x = clip.detach().requires_grad_()
            return torch.autograd.grad(x.square().sum(), x)[0]
class Exhausts(Stream):
    def see(self, clip): raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")
class Tied(Stream):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv3d(3, 3, 1, bias=False), nn.Conv3d(3, 3, 1, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("norm", torch.ones(2, 3)[:, 1])
    def see(self, clip): return self.second(self.first(clip))
"""


@pytest.fixture
def works(tmp_path, monkeypatch):
    """A function from a class's name to a config with rgb and a stream of that class."""
    (tmp_path / "works.py").write_text(WORKS)
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda name: ModelConfig(streams=["mine", "rgb"], representations={"mine": f"works:{name}"}, width=0.125)
    sys.modules.pop("works", None)


def test_changing_the_clip_in_place_is_refused(works):
    with pytest.raises(InputError, match=r"^model.representations.mine: works:Changes: .*in place"):
        build(works("Changes"), 4, 5)(clip(2, 3, 3, 64, 64))


@pytest.mark.parametrize(
    ("name", "said"), [("LooksUp", "(KeyError: 'mean\\nand more')"), ("Multiplies", "(RuntimeError: ")]
)
def test_errors_in_forward_name_the_stream(works, name, said):
    for model in (build(works(name), 4, 5), copy.deepcopy(build(works(name), 4, 5))):  # a copy too
        with pytest.raises(InputError) as raised:
            model(clip(2, 3, 3, 64, 64))
        message = str(raised.value)
        assert message.startswith(f"model.representations.mine: works:{name}: forward failed {said}")
        assert "--debug" in message
        assert "\n" not in message
        assert raised.value.__cause__ is not None  # which --debug shows


@pytest.mark.parametrize(("name", "said"), [("Changes", "forward changed the clip"), ("Derives", "forward failed")])
def test_errors_in_forward_appear_before_the_videos_are_checked(works, source, tiny, tmp_path, monkeypatch, name, said):
    """Also errors that occur only in prediction."""
    monkeypatch.setattr(setup, "prepare_videos", None)
    config = replace(tiny, model=replace(works(name), flow=tiny.model.flow))
    with pytest.raises(InputError, match=f"works:{name}: {said}"):
        loop.train(source, config, tmp_path / "run", False, Console(quiet=True))
    assert not (tmp_path / "run").exists()


def test_trying_a_stream_out_does_not_change_it(works):
    stream = build(works("Begins"), 4, 5).representations["mine"]
    try_out(stream, ClipConfig(frames=3, size=64), torch.device("cpu"))
    assert not stream.begun
    assert stream.training
    stream(clip(1, 3, 3, 64, 64))
    assert stream.begun


def test_classes_of_unused_streams_are_not_imported(works, source, tiny, tmp_path):
    model = replace(tiny.model, streams=["rgb"], representations={"mine": "works:Changes"})
    config = replace(tiny, model=model, training=replace(tiny.training, epochs=1), loss_weights=LossWeights(interm=0))
    loop.train(source, config, tmp_path / "run", False, Console(quiet=True))


def test_a_run_with_a_changed_class_is_not_resumed(works, source, tiny, tmp_path):
    config = replace(tiny, model=works("Tied"), training=replace(tiny.training, epochs=2))

    def stop(record):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.train(source, config, tmp_path / "run", False, Console(quiet=True), after_epoch=stop)
    tie = "self.second.weight = self.first.weight"
    for change in (
        "self.third = nn.Linear(3, 3)",
        f"{tie}.requires_grad_(False)",
    ):  # other tensors, or other trainable parameters
        (tmp_path / "works.py").write_text(WORKS.replace(tie, change))
        del sys.modules["works"]
        with pytest.raises(InputError, match=r"works:Tied has changed"):
            loop.train(source, config, tmp_path / "run", True, Console(quiet=True))


def test_bfloat16_is_accepted_only_under_autocast(works):
    model = build(works("Halves"), 4, 5).eval()
    with pytest.raises(InputError, match=r"works:Halves: forward gave .*torch.bfloat16, expected"):
        model(clip(1, 3, 3, 64, 64))
    with torch.autocast("cpu", torch.bfloat16):
        assert model(clip(1, 3, 3, 64, 64)).logits["merged"].isfinite().all()


def test_out_of_memory_is_not_blamed_on_the_stream(works):
    with pytest.raises(torch.OutOfMemoryError):
        build(works("Exhausts"), 4, 5)(clip(1, 3, 3, 64, 64))


def test_a_copied_model_runs_its_own_stream(works):
    model = build(works("Tied"), 4, 5).eval()
    other = copy.deepcopy(model)
    other.load_state_dict({name: torch.zeros_like(value) for name, value in model.state_dict().items()})
    seen, others = (m(clip(1, 3, 3, 64, 64)).representations["mine"].tower_input for m in (model, other))
    assert seen.any()
    assert not others.any()


def test_torch_compile_takes_a_custom_stream_as_one_graph(works):
    model = build(works("Tied"), 4, 5).eval()
    with torch.no_grad():
        expected = model(clip(1, 3, 3, 64, 64)).logits["merged"]
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(clip(1, 3, 3, 64, 64)).logits["merged"], expected)


def test_info_names_the_stream_that_fails_on_the_meta_device(works, tmp_path, capsys):
    recipe = tmp_path / "chooses.yaml"
    recipe.write_text("model: {streams: [rgb, mine], representations: {mine: 'works:Chooses'}}\n")
    assert main(["info", str(recipe), "--trust-module", "works"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("airstreams: model.representations.mine: works:Chooses: forward failed (RuntimeError: ")
    assert "meta device" in err


def saved_with(config, run):
    """Save a model of a config, and return it."""
    model = build(config, 2, 5).eval()
    all_heads = Config(model=config, loss_weights=LossWeights(custom=dict.fromkeys(config.representations, 1.0)))
    saved_models.save(saved_models.SavedModel(all_heads, ("a", "b"), ("background",) * 5, False, None, model), run)
    return model


def test_tied_weights_are_saved_and_loaded(works, tmp_path):
    model = saved_with(works("Tied"), tmp_path / "run")
    loaded = saved_models.load(tmp_path / "run").model
    assert len(list(loaded.representations.parameters())) == 1  # tied again
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize(
    "change",
    [("self.second.weight = self.first.weight", "self.third = nn.Linear(3, 3)"), ("channels = 3", "channels = 2")],
)
def test_loading_with_a_changed_class_names_it(works, tmp_path, change):
    saved_with(works("Tied"), tmp_path / "run")
    (tmp_path / "works.py").write_text(
        WORKS.replace(*change) + "# of another size, or Python would not compile it anew"
    )
    del sys.modules["works"]
    with pytest.raises(InputError, match=r"works:Tied has changed"):
        saved_models.load(tmp_path / "run")


def test_a_changed_tower_is_not_blamed_on_the_class(works, tmp_path, monkeypatch):
    saved_with(works("Tied"), tmp_path / "run")
    monkeypatch.setattr(saved_models, "build", lambda config, *sizes: build(replace(config, width=0.25), *sizes))
    with pytest.raises(InputError, match=r"version of airstreams that model\.json names"):
        saved_models.load(tmp_path / "run")


@pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter")
def test_a_saved_model_does_not_need_the_file_of_taught_weights(tmp_path, monkeypatch, capsys):
    write_the_pages("taught_streams.py", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    weights = {"0.weight": torch.full((8, 3, 3, 3), 0.1), "0.bias": torch.zeros(8)}
    weights |= torch.nn.Sequential(torch.nn.Identity(), torch.nn.BatchNorm2d(8)).state_dict()
    torch.save(weights, tmp_path / "taught.pt")
    config = ModelConfig(streams=["taught"], representations={"taught": "taught_streams:Taught"}, width=0.125)
    with torch.device("meta"):
        build(config, 2, 5)
    model = saved_with(config, tmp_path / "run")
    assert model.state_dict()["representations.taught.network.0.weight"].eq(0.1).all()
    assert capsys.readouterr().err == ""
    (tmp_path / "taught.pt").unlink()
    loaded = saved_models.load(tmp_path / "run").model
    assert "a new one begins from random ones" in capsys.readouterr().err
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    del sys.modules["taught_streams"]


def test_freezing_stops_the_batch_statistics_of_a_taught_network(tmp_path, monkeypatch):
    write_the_pages("taught_streams.py", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    model = ModelConfig(streams=["rgb", "taught"], representations={"taught": "taught_streams:Taught"}, width=0.125)
    for frozen in ([], ["taught.representation"]):
        config = Config(model=model, training=TrainingConfig(freeze=frozen))
        made = build(model, 2, 5)
        made.representations["taught"].requires_grad_(False)
        set_training_mode(made, freeze(made, config))
        made(clip(2, 3, 3, 64, 64))
        assert made.state_dict()["representations.taught.network.1.num_batches_tracked"] == (0 if frozen else 1)
    del sys.modules["taught_streams"]
