"""Configs survive saving and loading, and every error is one line that names its key."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

import airstreams
from airstreams.cli import main
from airstreams.config import Config, DataConfig, LossWeights, ModelConfig, TrainingConfig
from airstreams.errors import InputError
from airstreams.models.airstreams import build
from airstreams.old_keys import with_current_key_options
from airstreams.recipe import (
    GivenConfig,
    add_config_arguments,
    config_from,
    config_to_resume,
    from_dict,
    load_config,
    recipe_path,
    save_config,
    training_settings,
)
from airstreams.towers import BACKBONES, BackboneName, Block, Layer

RECIPES = sorted(path.stem for path in (Path(airstreams.__file__).parent / "recipes").glob("*.yaml"))


def complaint(values):
    with pytest.raises(InputError) as raised:
        from_dict(values)
    message = str(raised.value)
    assert "\n" not in message
    return message


def parse(*arguments):
    parser = ArgumentParser(exit_on_error=False)
    add_config_arguments(parser)
    return config_from(parser.instantiate(parser.parse_args(list(arguments))))


def test_a_config_survives_saving_and_loading(tmp_path):
    block = {"channels": 24, "layers": [{"kind": "conv2d", "kernel": 5, "stride": 2}, {"kind": "squeeze_excite"}]}
    config = from_dict(
        {
            "seed": 3,
            "clip": {"rate": 12.5, "frames": 5},
            "data": {"crop_scale": [0.3, 0.9]},
            "model": {"streams": ["flow", "rgb"], "tower": [block] * 6, "stop_gradient": ["flow"]},
        }
    )
    assert config.model.tower[5].layers[0].kernel == 5
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


def test_a_relative_cache_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_config(Config(data=DataConfig(cache="frames")), tmp_path / "c.yaml")
    monkeypatch.chdir("/")
    assert load_config(str(tmp_path / "c.yaml")).data.cache == str(tmp_path / "frames")


def test_training_settings_exclude_machine_keys(tmp_path):
    here, there = Config(), Config(data=DataConfig(workers=0, cache="/x"), training=TrainingConfig(device="cpu"))
    assert training_settings(here) == training_settings(there)
    assert training_settings(here) != training_settings(Config(training=TrainingConfig(lr=0.5)))
    save_config(here, tmp_path / "config.yaml")
    given = GivenConfig(there, frozenset({"data.workers", "training.lr"}))
    assert config_to_resume(tmp_path / "config.yaml", given) == Config(data=DataConfig(workers=0))


def test_a_saved_config_is_complete(tmp_path):
    save_config(Config(), tmp_path / "config.yaml")
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == asdict(Config())


def test_missing_keys_keep_their_defaults():
    config = from_dict({"model": {"width": 0.5}})
    assert config == Config(model=ModelConfig(width=0.5))


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"sed": 1}, "sed"),
        ({"training": {"epoch": 3}}, "epoch"),
        ({"seed": -1}, "seed"),
        ({"clip": {"frames": 0}}, "clip.frames"),
        ({"clip": {"stride": 0}}, "clip.stride"),
        ({"clip": {"rate": 0.0}}, "clip.rate"),
        ({"clip": {"size": 63}}, "clip.size"),
        ({"data": {"crop_scale": [0.5]}}, "data.crop_scale"),
        ({"data": {"crop_scale": [0.9, 0.5]}}, "data.crop_scale"),
        ({"data": {"crop_aspect": 0.5}}, "data.crop_aspect"),
        ({"data": {"colour": 1.0}}, "data.colour"),
        ({"data": {"workers": -1}}, "data.workers"),
        ({"data": {"val_fraction": 0.6, "test_fraction": 0.5}}, "data.val_fraction"),
        ({"model": {"streams": []}}, "model.streams"),
        ({"model": {"streams": ["rgb", "rgb"]}}, "model.streams"),
        ({"model": {"streams": ["rgb", "sound"]}}, "model.streams"),
        ({"model": {"tower": [{"channels": 8, "layers": [{"kind": "conv2d"}]}]}}, "model.tower"),
        ({"model": {"backbone": "resnet"}}, "model.backbone"),
        (
            {"model": {"backbone": "r2plus1d18", "tower": [{"channels": 8, "layers": [{"kind": "conv2d"}]}] * 4}},
            "model.backbone",
        ),
        ({"model": {"merge_levels": []}}, "model.merge_levels"),
        ({"model": {"merge_levels": [3, 3]}}, "model.merge_levels"),
        ({"model": {"merge_levels": [0]}}, "model.merge_levels"),
        ({"model": {"merge_levels": [7]}}, "model.merge_levels"),
        ({"model": {"backbone": "r2plus1d18", "merge_levels": [2, 6]}}, "1 to 5"),
        ({"model": {"width": 0}}, "model.width"),
        ({"model": {"flow": {"iterations": 0}}}, "model.flow.iterations"),
        ({"model": {"stop_gradient": ["rgb"]}}, "model.stop_gradient"),
        ({"model": {"dropout": 1.0}}, "model.dropout"),
        ({"loss_weights": {"flow": -0.1}}, "loss_weights.flow"),
        ({"loss_weights": {"interm": float("nan")}}, "loss_weights.interm"),
        ({"loss_weights": {"merged": 0.0}}, "loss_weights.merged"),
        ({"model": {"answer": "mean"}, "loss_weights": {"merged": 0.0}}, "loss_weights.flow"),
        ({"model": {"answer": "mean", "representations": {"answer": "a:B"}}}, "model.representations"),
        ({"model": {"answer": "flow"}}, "model.answer"),
        ({"model": {"merge": "product"}}, "model.merge"),
        ({"model": {"flow": {"scale": 0.0}}}, "model.flow.scale"),
        ({"training": {"lr_factors": {"sound": 2.0}}}, "training.lr_factors"),
        ({"training": {"lr_factors": {"flow": -1.0}}}, "training.lr_factors.flow"),
        ({"training": {"epochs": 0}}, "training.epochs"),
        ({"training": {"epochs": "many"}}, "training.epochs"),
        ({"training": {"optimizer": "adam"}}, "training.optimizer"),
        ({"training": {"lr": 0}}, "training.lr"),
        ({"training": {"lr": [1, 2]}}, "training.lr: got [1, 2], expected a number"),
        ({"training": {"optimizer": ["sgd"]}}, "training.optimizer"),
        ({"seed": [1]}, "seed"),
        ({"data": {"cache": ["a"]}}, "data.cache"),
        ({"training": {"label_smoothing": 1}}, "training.label_smoothing"),
        ({"evaluation": {"views": 0}}, "evaluation.views"),
        ({"evaluation": {"window": 0}}, "evaluation.window"),
    ],
    ids=str,
)
def test_invalid_values_name_their_key(values, key):
    assert key in complaint(values)


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"channels": 8, "layers": [{"kind": "conv4d"}]}, "conv4d"),
        ({"channels": 8, "layers": [{"kind": "conv2d", "kernel": 0}]}, "kernel"),
        ({"channels": 8, "layers": [{"kind": "pool1d", "stride": 0}]}, "stride"),
        ({"channels": 8, "layers": [{"kind": "pool2d"}]}, "at least one convolution"),
        ({"channels": 0, "layers": [{"kind": "conv2d"}]}, "channels"),
        ({"channels": 8, "layers": [{"kind": "conv2d", "channels": 16}]}, "last convolution"),
        ({"channels": 8, "layers": [{"kind": "conv2d"}, {"kind": "squeeze_excite", "ratio": 0}]}, "ratio"),
        ({"channels": 8, "layers": [{"kind": "conv2d"}], "skip": "projektion"}, "skip"),
        (
            {"channels": 8, "layers": [{"kind": "conv2d", "stride": None}]},
            "tower[0].layers[0].stride: got nothing",
        ),
        ({"channels": 8, "layers": [{"kind": ["conv2d"]}]}, "kind"),
        ({"channels": 8, "layers": [None]}, "model.tower[0].layers[0]: got None, expected keys"),
        ({"channels": 8, "layers": [{"kind": "conv2d", "strid": 2}]}, "expected stride"),
    ],
)
def test_invalid_blocks_name_their_key(block, said):
    assert said in complaint({"model": {"tower": [block] * 6}})


@pytest.mark.parametrize("name", list(BACKBONES))
def test_a_backbone_is_saved_by_name_and_can_be_replaced(tmp_path, name):
    config = from_dict({"model": {"backbone": name}})
    assert config.model.blocks_of() == BACKBONES[name]()
    save_config(config, tmp_path / "config.yaml")
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())["model"]
    assert (saved["backbone"], saved["tower"]) == (name, [])
    assert load_config(tmp_path / "config.yaml") == config
    other = parse(
        "--config", str(tmp_path / "config.yaml"), "--model.backbone", "r2plus1d18", "--model.merge_levels", "[5,2]"
    )
    assert other.model == ModelConfig(backbone="r2plus1d18", merge_levels=[5, 2])
    assert other.model.block_count() == 5


def test_the_default_backbone_is_airstreams():
    assert ModelConfig().blocks_of() == BACKBONES["airstreams"]()


@pytest.mark.parametrize(("backbone", "name"), [(None, "airstreams"), (None, "r2plus1d18"), ("r2plus1d18",) * 2])
def test_packaged_towers_of_version_0_1_become_backbones(backbone, name):
    blocks = [asdict(block) for block in BACKBONES[name]()]
    for block in blocks:
        block["layers"] = [layer | {"every": None} for layer in block["layers"]]
    model = from_dict({"model": {"backbone": backbone, "tower": blocks}}).model
    assert model == ModelConfig(backbone=None if name == "airstreams" else name)


def test_an_own_tower_takes_no_values_from_a_packaged_one():
    model = from_dict({"model": {"tower": [{"channels": 24, "layers": [{"kind": "conv2d"}]}] * 6}}).model
    assert model.tower == [Block(24, [Layer("conv2d")])] * 6


OLD_LAYERS = [{"kind": "pool2d", "every": None}, {"kind": "conv2d", "kernel": 5, "stride": 2, "every": None}]


@pytest.mark.filterwarnings("error")
def test_removed_keys_without_effect_are_dropped_silently():
    config = from_dict(
        {
            "training": {"compile": False, "ema": 0.0, "epochs": 3},
            "model": {"tower": [{"channels": 24, "layers": OLD_LAYERS}] * 6},
            "loss_weights": {"further": {}},
        }
    )
    block = Block(24, [Layer("pool2d"), Layer("conv2d", 5, 2)])
    assert config == Config(model=ModelConfig(tower=[block] * 6), training=TrainingConfig(epochs=3))


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"training": {"compile": True}}, "training.compile"),
        ({"training": {"ema": 0.9}}, "training.ema"),
        ({"training.ema": 0.9}, "training.ema"),
    ],
)
def test_removed_keys_with_effect_give_a_warning(values, key):
    with pytest.warns(DeprecationWarning, match=key):
        assert from_dict(values) == Config()


@pytest.mark.parametrize(
    "values",
    [{"loss_weights": {"further": {"rgb2": 0.5}}}, {"loss_weights.further": {"rgb2": 0.5}}],
    ids=["section", "dotted"],
)
def test_renamed_keys_work_and_give_a_warning(values):
    with pytest.warns(DeprecationWarning, match=r"loss_weights\.further.*loss_weights\.custom"):
        assert from_dict(values).loss_weights == LossWeights(custom={"rgb2": 0.5})


@pytest.mark.parametrize(
    ("model", "key"),
    [
        ({"backbone": "tvn1"}, "tvn1"),
        (
            {"tower": [{"channels": 8, "layers": [{"kind": "depthwise_conv2d"}, {"kind": "conv2d"}]}]},
            "depthwise_conv2d",
        ),
        ({"tower": [{"channels": 8, "layers": [{"kind": "average_pool2d"}, {"kind": "conv2d"}]}]}, "average_pool2d"),
        ({"tower": [{"channels": 8, "layers": [{"kind": "conv1d", "every": 2}, {"kind": "conv2d"}]}]}, "every"),
        ({"tower": [{"channels": 8, "layers": [{"kind": "conv2d"}], "skip": "projection"}]}, "projection"),
    ],
)
def test_removed_towers_are_refused(model, key):
    message = complaint({"model": model})
    assert key in message
    assert "0.1" in message


def test_old_options_are_renamed_or_dropped():
    words = ["train", "videos", "--training.epochs", "3", "--data.flip=false"]
    old = ["--loss_weights.further.rgb2", "0.5", "--training.ema=0.9", "--training.compile", "false"]
    with pytest.warns(DeprecationWarning, match=r"training\.ema") as warned:
        assert with_current_key_options([*words, *old]) == [*words, "--loss_weights.custom.rgb2=0.5"]
    assert [str(warning.message).split()[0] for warning in warned] == ["loss_weights.further", "training.ema"]


@pytest.mark.parametrize("verb", [["info"], ["train", "nowhere", "--out", "run", "--config"]])
def test_the_command_line_shows_one_warning_for_each_old_key_of_a_recipe(verb, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("old.yaml").write_text("model: {streams: [rgb, rgb2]}\nloss_weights: {further: {rgb2: 0.5}}\n")
    assert main([*verb, "old.yaml"]) == (0 if verb == ["info"] else 2)
    err = capsys.readouterr().err
    assert err.count("warning: ") == err.count("loss_weights.further") == 1
    assert ("nowhere" in err) == (verb[0] == "train")  # the parser accepted the recipe


def test_a_config_with_its_own_tower_keeps_it():
    block = {"channels": 24, "layers": [{"kind": "conv2d", "kernel": 5, "stride": 2}], "repeats": 1, "skip": True}
    model = from_dict({"model": {"tower": [block] * 6}}).model
    assert (model.tower, model.merge_levels) == ([Block(24, [Layer("conv2d", 5, 2)])] * 6, [3])


@pytest.mark.parametrize("text", ["", "- 1", "just words", "a: [", "model: {width: 1", "seed: 0b_", "seed: !!bool x"])
def test_files_without_keys_are_refused(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(InputError, match=r"mine\.yaml") as raised:
        load_config(tmp_path / "mine.yaml")
    assert "\n" not in str(raised.value)


def test_binary_files_are_refused(tmp_path):
    (tmp_path / "video.mp4").write_bytes(b"\x00\x00\x00\x18ftyp\xff\xfe\x80")
    with pytest.raises(InputError, match=r"video\.mp4"):
        load_config(tmp_path / "video.mp4")


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        *(load_config(recipe_path(name)) for name in RECIPES),
        *(Config(model=ModelConfig(backbone=name)) for name in get_args(BackboneName)),
        Config(7, loss_weights=LossWeights(custom={"rgb2": 0.5}), training=TrainingConfig(lr=1)),
    ],
)
def test_a_config_survives_plain_values(config):
    assert from_dict(asdict(config)) == config


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds(name):
    config = load_config(recipe_path(name))
    with torch.device("meta"):
        build(config.model, classes=21, segment_classes=81)


def test_the_documented_recipes_exist():
    small, full = {"demo", "small", "finetune-small", "jhmdb-small"}, {"finetune", "jhmdb", "hmdb51", "moments"}
    assert small | full | {"charades", "smarthome"} <= set(RECIPES)


def test_a_recipe_is_a_path_or_a_known_name(tmp_path):
    (tmp_path / "mine.yaml").write_text("seed: 1\n")
    assert recipe_path(str(tmp_path / "mine.yaml")) == tmp_path / "mine.yaml"
    with pytest.raises(InputError) as raised:
        recipe_path("jhmbd")
    assert "jhmbd" in str(raised.value)
    assert all(name in str(raised.value) for name in RECIPES)


def test_options_override_recipes_and_recipes_override_defaults(tmp_path):
    (tmp_path / "mine.yaml").write_text("seed: 5\ntraining: {epochs: 7, batch_size: 3}\n")
    config = parse("--config", str(tmp_path / "mine.yaml"), "--training.epochs", "2", "--model.streams", "[rgb,flow]")
    assert (config.seed, config.training.epochs, config.training.batch_size) == (5, 2, 3)
    assert config.model.streams == ["rgb", "flow"]
    assert config.clip == Config().clip


def test_the_default_weights_train_two_heads_and_the_segmenter():
    config = Config()
    assert config.active_loss_weights() == {"rgb": 1, "flow": 0, "semantic": 0, "merged": 1, "interm": 1}
    assert config.trained_heads() == ["rgb", "merged"]
    assert config.needs_labels


def test_merges_without_a_weight_take_that_of_merged():
    config = Config(model=ModelConfig(merge_levels=[3, 6]), loss_weights=LossWeights(merged=0.7, rgb=0.0))
    assert config.active_loss_weights() == {
        "rgb": 0, "flow": 0, "semantic": 0, "merged_after_6": 0.7, "merged": 0.7, "interm": 1,
    }  # fmt: skip
    assert config.trained_heads() == ["merged_after_6", "merged"]
    assert config.lambdas() == ["rgb", "flow", "semantic", "merged_after_6", "merged", "interm"]
    own = replace(config, loss_weights=LossWeights(merged=0.7, merged_after={6: 0.2}))
    assert (own.loss_weights.of("merged_after_6"), own.loss_weights.of("merged")) == (0.2, 0.7)
    assert own.loss_weights.updated({"merged_after_6": 0.4}).merged_after == {6: 0.4}
    with pytest.raises(InputError, match=r"loss_weights\.merged_after: got 3"):
        replace(config, loss_weights=LossWeights(merged_after={3: 0.2}))
    assert Config(model=ModelConfig(streams=["rgb"], merge_levels=[3, 6])).lambdas() == ["rgb"]


@pytest.mark.parametrize("stream", ["rgb", "flow", "semantic"])
def test_a_lone_stream_has_an_action_loss_of_weight_1(stream):
    config = Config(
        model=ModelConfig(streams=[stream]), loss_weights=LossWeights(rgb=0, flow=0, semantic=0, merged=0, interm=0.5)
    )
    weights = config.active_loss_weights()
    assert weights.pop("interm", 0.5) == 0.5
    assert weights == {stream: 1.0}
    assert (config.answer_heads, config.answer) == ([stream], stream)
    assert config.needs_labels == (stream == "semantic")


def test_labels_are_needed_only_for_the_teachers_loss():
    assert not Config(model=ModelConfig(streams=["rgb", "flow"])).needs_labels
    assert not Config(loss_weights=LossWeights(interm=0)).needs_labels


def test_each_teacher_has_its_own_weight():
    model = ModelConfig(streams=["rgb", "semantic", "parts"], representations={"parts": "parts:Parts"})
    one = Config(model=model, loss_weights=LossWeights(interm=0.3))
    assert one.taught == ["semantic"]
    two = replace(one, loss_weights=one.loss_weights.updated({"interm.parts": 0.5}))
    assert two.loss_weights.interm == {"semantic": 0.3, "parts": 0.5}
    assert two.taught == ["semantic", "parts"]
    assert two.lambdas()[-2:] == ["interm", "interm.parts"]
    assert from_dict(asdict(two)) == two
    fixed = replace(two, evolution=replace(two.evolution, fixed=["interm", "merged"]))
    assert fixed.searched_lambdas() == ["rgb", "semantic", "parts", "interm.parts"]
    assert Config(model=model, loss_weights=LossWeights(interm={"parts": 0.0})).taught == ["semantic"]
    with pytest.raises(InputError, match=r"loss_weights\.interm: got egdes"):
        replace(one, loss_weights=LossWeights(interm={"egdes": 1.0}))
