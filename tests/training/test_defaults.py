"""The recipe of a training that gives none: by what it starts from, and by the machine."""

import io
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from airstreams.config import Config, FlowConfig, ModelConfig
from airstreams.errors import InputError
from airstreams.models.pretrained import PublishedWeights
from airstreams.recipe import GivenConfig, load_config, recipe_path
from airstreams.runs import saved_model as saved_models
from airstreams.training import defaults
from airstreams.training.defaults import config_of_new_run, warn_of_unused_start
from airstreams.training.start import Start, read_start, with_flow_of


def published(backbone):
    return Start("weights", everywhere=PublishedWeights("weights", backbone, 3, {}))


def chosen(source, start, given=None, device="cpu", monkeypatch=None):
    """The config of a new run, and what the console got."""
    if monkeypatch is not None:
        monkeypatch.setattr(defaults, "device_of_process", lambda name, key: torch.device(device))
        monkeypatch.setattr(defaults, "hardware", str)
    said = io.StringIO()
    config = config_of_new_run(given or GivenConfig(Config()), source, Console(file=said, width=200), start)
    return config, said.getvalue()


@pytest.mark.parametrize(("device", "name"), [("cpu", "finetune-small"), ("cuda", "finetune")])
def test_published_weights_choose_a_recipe_by_the_machine(source, monkeypatch, device, name):
    config, said = chosen(source, published("i3d"), device=device, monkeypatch=monkeypatch)
    assert config == load_config(recipe_path(name))
    assert f"recipe {name}," in said
    assert ("--config finetune" in said) == (device == "cpu")


def test_other_starts_choose_as_a_training_from_random_weights(source, monkeypatch, tmp_path):
    assert chosen(source, Start("run", run=tmp_path)) == chosen(source, None)
    assert chosen(source, None)[0] == load_config(recipe_path("small"))
    segmenter = Start("segmenter=x", segmenter=PublishedWeights("x", "resnet18", 3, {}))
    assert chosen(source, segmenter) == (Config(), "")  # the segmenter of `small` is narrower
    assert chosen(source, None, device="cuda", monkeypatch=monkeypatch) == (Config(), "")


def test_the_weights_choose_the_backbone_of_the_recipe(source):
    config, _ = chosen(source, published("r2plus1d_18"))
    assert config.model.backbone == "r2plus1d_18"
    assert config.training == load_config(recipe_path("finetune-small")).training
    named = replace(Config(), model=replace(Config().model, backbone="airstreams"))
    config, _ = chosen(source, published("i3d"), GivenConfig(named, frozenset({"model.backbone"})))
    assert config.model.backbone == "airstreams"  # the start then says that the weights fit no tower


def test_merges_after_the_last_block_move_to_the_last_block(source, monkeypatch):
    late = load_config(recipe_path("finetune-small"))
    late.model.merge_levels = [6, 5, 3]
    monkeypatch.setattr(defaults, "load_config", lambda path: late)
    assert chosen(source, published("i3d"))[0].model.merge_levels == [6, 5, 3]
    assert chosen(source, published("r2plus1d_18"))[0].model.merge_levels == [5, 3]


def test_a_recipe_or_a_key_that_is_given_wins(source):
    small = load_config(recipe_path("small"))
    given = GivenConfig(small, frozenset({"clip.frames"}), has_recipe=True)
    config, said = chosen(source, None, given)
    assert (config, said) == (small, "")
    with pytest.raises(InputError, match=r"model\.width"):  # I3D's channels are fixed
        chosen(source, published("i3d"), given)
    keys = replace(Config(), training=replace(Config().training, epochs=3))
    config, _ = chosen(source, published("i3d"), GivenConfig(keys, frozenset({"training.epochs"})))
    assert (config.training.epochs, config.training.lr_taken) == (3, 2e-4)


def test_without_label_maps_no_key_is_left_for_the_semantic_stream(source):
    config = load_config(recipe_path("finetune-small"))
    config.training.lr_factors = {"semantic": 2.0, "flow": 3.0}
    config.model.backbones = {"semantic": "i3d"}
    given = GivenConfig(config, frozenset(), has_recipe=True)
    config, _ = chosen(replace(source, label_store=None), published("i3d"), given)
    assert config.model.streams == ["rgb", "flow"]
    assert (config.training.lr_factors, config.model.backbones) == ({"flow": 3.0}, {})


@pytest.mark.parametrize(("name", "warns"), [("finetune-small", True), ("finetune", True), ("small", False)])
def test_a_recipe_for_published_weights_without_any_gives_a_warning(name, warns):
    said = io.StringIO()
    warn_of_unused_start(load_config(recipe_path(name)), Console(file=said, width=200))
    assert ("--init i3d-kinetics400" in said.getvalue()) == warns


def test_weights_for_flow_decide_how_flow_is_scaled():
    rgb, flow = (PublishedWeights("weights", "i3d", channels, {}) for channels in (3, 2))
    for start, scale in [
        (Start("x", everywhere=rgb), None),
        (Start("x", everywhere=rgb, by_stream={"flow": flow}), 20),
        (Start("x", everywhere=flow), 20),
    ]:
        assert with_flow_of(start, Config()).model.flow.scale == scale
    differences = Config(model=ModelConfig(flow=FlowConfig(kind="difference")))  # not in px
    assert with_flow_of(Start("x", everywhere=flow), differences) == differences
    named = Config(model=ModelConfig(flow=FlowConfig(scale=5)))
    assert with_flow_of(Start("x", everywhere=flow), named) == named


def test_a_stream_from_a_run_sees_the_flow_of_the_run(run):
    saved = saved_models.load(run)
    saved.config.model.flow.scale = 2.0
    saved_models.save(saved, run)
    start = read_start(f"flow={run}")
    assert (start.run_of, start.runs, start.backbone) == ({"flow": run}, [run], None)
    assert with_flow_of(start, Config()).model.flow == saved.config.model.flow == FlowConfig(iterations=3, scale=2.0)
    other = Config(model=ModelConfig(flow=FlowConfig(iterations=5)))
    assert with_flow_of(start, other).model.flow == FlowConfig(iterations=5, scale=2.0)
