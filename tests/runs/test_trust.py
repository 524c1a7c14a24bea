"""A module that a run or a recipe names is imported only with consent."""

import json
import sys

import pytest
import torch

import airstreams
from airstreams.cli import main
from airstreams.config import ClipConfig, Config, DataConfig, ModelConfig, TrainingConfig
from airstreams.errors import InputError
from airstreams.models.airstreams import build
from airstreams.recipe import save_config
from airstreams.runs import saved_model as saved_models
from airstreams.runs import trust
from airstreams.runs.saved_model import SavedModel
from airstreams.towers import Block, Layer
from airstreams.training.start import read_start

MODULE = """
import pathlib
from torch import nn
from airstreams.representations import Representation
pathlib.Path(__file__).with_suffix(".imported").touch()
class Stream(nn.Module):
    channels = 3
    def forward(self, clip): return Representation(1 - clip, None)
"""


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """A folder with a module that leaves a mark when it is imported, a run and a recipe that name it."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "strange.py").write_text(MODULE)
    tower = [Block(8, [Layer("conv2d", stride=2)]), Block(8, [Layer("conv2d")])]
    streams, classes = ["rgb", "odd"], {"odd": "strange:Stream"}
    model = ModelConfig(streams=streams, representations=classes, tower=tower, merge_levels=[1])
    training = TrainingConfig(epochs=1, batch_size=4, device="cpu")
    config = Config(clip=ClipConfig(frames=2, size=64), data=DataConfig(workers=0), model=model, training=training)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another_user"))
    torch.manual_seed(0)
    network = build(config.model, 2, 1).eval()
    saved_models.save(SavedModel(config, ("a", "b"), ("background",), False, None, model=network), tmp_path / "run")
    save_config(config, tmp_path / "recipe.yaml")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "this_user"))
    (tmp_path / "strange.imported").unlink()
    del sys.modules["strange"]
    yield tmp_path
    sys.modules.pop("strange", None)


def is_imported(stranger):
    return (stranger / "strange.imported").exists()


def test_loading_a_strangers_run_imports_nothing(stranger):
    for load in (airstreams.load, lambda run: airstreams.load(run, trust=["strange_too", "strang"])):
        with pytest.raises(InputError, match=r"odd.* strange.*--trust-module strange"):
            load(stranger / "run")
    with pytest.raises(InputError, match="trust"):
        airstreams.load(stranger / "run", trust="strange")
    assert not is_imported(stranger)
    assert airstreams.load(stranger / "run", trust=["strange"]).classes == ("a", "b")
    assert is_imported(stranger)


@pytest.mark.parametrize(
    "call",
    [
        "predict {run} {video}",
        "evaluate {run} {data}",
        "export {run} --out {folder}/a.pt2",
        "train {data} --out {folder}/new --config {recipe}",
        "evolve {data} --out {folder}/study --config {recipe}",
    ],
)
def test_every_verb_asks_first(call, stranger, videos, capsys):
    names = {"run": stranger / "run", "video": next(videos.rglob("*.mp4")), "data": videos, "folder": stranger}
    assert main(call.format(recipe=stranger / "recipe.yaml", **names).split()) == 2
    assert "--trust-module strange" in capsys.readouterr().err.splitlines()[-1]
    assert not is_imported(stranger)


def test_a_start_from_a_strangers_run_asks_first(stranger):
    tower = saved_models.read_description(stranger / "run").config.model.tower
    model = build(ModelConfig(streams=["rgb"], tower=tower, merge_levels=[1]), 2, 1)
    with pytest.raises(InputError, match="strange"):
        read_start(str(stranger / "run")).apply(model, ModelConfig(), ("a", "b"), ("background",))
    assert not is_imported(stranger)
    assert read_start(str(stranger / "run"), trust=["strange"]).apply(model, ModelConfig(), ("a", "b"), ()).taken


@pytest.mark.parametrize("what", ["run", "recipe.yaml"])
def test_info_imports_nothing_unless_asked(what, stranger, capsys):
    assert main(["info", str(stranger / what), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert not is_imported(stranger)
    assert found["not_counted"] == ["odd.representation"]
    assert main(["info", str(stranger / what)]) == 0  # in words
    assert "--trust-module strange" in capsys.readouterr().out
    assert main(["info", str(stranger / what), "--trust-module", "strange", "--json"]) == 0
    trusted = json.loads(capsys.readouterr().out)
    assert is_imported(stranger)
    assert trusted["not_counted"] == []
    assert trusted["parameters"] == found["parameters"]  # Stream has none


def test_the_report_imports_nothing(stranger):
    (stranger / "run" / "metrics.jsonl").write_text("")
    assert main(["report", str(stranger / "run")]) == 0
    assert "strange:Stream" in (stranger / "run" / "report.html").read_text()
    assert not is_imported(stranger)


def test_a_run_is_remembered_by_its_folder(stranger):
    config = saved_models.read_description(stranger / "run").config
    trust.remember(stranger / "run", config.model)
    assert not is_imported(stranger)
    assert airstreams.load(stranger / "run").classes == ("a", "b")
    (stranger / "run").rename(stranger / "moved")
    with pytest.raises(InputError, match="strange"):
        airstreams.load(stranger / "moved")


def test_a_package_includes_its_modules():
    model = ModelConfig(streams=["odd"], representations={"odd": "package.part:Stream"})
    trust.require_trusted(model, ["package"], "a recipe")
    trust.require_trusted(model, ["package.part"], "a recipe")
    for other in ([], ["pack"], ["package.par"], ["part"], ["package.part.more"]):
        with pytest.raises(InputError, match=r"package\.part"):
            trust.require_trusted(model, other, "a recipe")
