"""Runs of version 0.1 still load, predict and resume. A new run, rewritten as 0.1 wrote it, stands for an old one."""

import json
import shutil
from dataclasses import asdict, replace

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file, save_file

import airstreams
from airstreams.config import Config
from airstreams.data.sources import open_source
from airstreams.models.airstreams import build
from airstreams.recipe import GivenConfig, config_to_resume, load_config
from airstreams.runs import saved_model
from airstreams.runs.checkpoint import load_state, saved_states
from airstreams.runs.folder import RunFolder
from airstreams.training.loop import train
from tests.training.runs import of_one_stream

QUIET = Console(quiet=True)


def old_values(config):
    """A config as version 0.1 wrote it: its key names, keys that are gone now, and every block of the tower."""
    values = asdict(config)
    values["loss_weights"]["further"] = values["loss_weights"].pop("custom")
    values["training"] |= {"compile": False, "ema": 0.0}
    del values["data"]["deinterlace"]
    values["model"]["tower"] = [asdict(block) for block in config.model.blocks_of()]
    for block in values["model"]["tower"]:
        block["layers"] = [layer | {"every": None} for layer in block["layers"]]
    return values


def make_old(run):
    """Rewrite a run as version 0.1 wrote it."""
    folder = RunFolder(run)
    values = old_values(load_config(folder.config))
    folder.config.write_text(yaml.safe_dump(values, sort_keys=False))
    for path in saved_states(run):
        content = torch.load(path, weights_only=True)
        content["learns"] = content.pop("data_fingerprint")
        content["learner"]["average"] = None
        torch.save(content, path)
    if not folder.description.is_file():
        return
    description = json.loads(folder.description.read_text()) | {"config": values, "versions": {"airstreams": "0.1.0"}}
    weights = load_file(folder.weights)
    config = load_config(folder.config).model
    all_heads = build(config, len(description["classes"]), len(description["segment_classes"])).state_dict()
    weights = {name: weights.get(name, tensor.contiguous()) for name, tensor in all_heads.items()}
    sums = {
        "sha256": saved_model._sum_of_weights(weights),
        "description": saved_model._sum_of_description(description),
    }
    save_file(weights, folder.weights, {"sums": json.dumps(sums)})
    folder.description.write_text(saved_model._as_text(description))


@pytest.mark.filterwarnings("error::DeprecationWarning")
def test_an_old_run_predicts_as_before(trained, tmp_path, synthetic):
    old = shutil.copytree(trained, tmp_path / "old")
    make_old(old)
    assert (old / "model.safetensors").stat().st_size > (trained / "model.safetensors").stat().st_size
    assert load_config(RunFolder(old).config) == load_config(RunFolder(trained).config)
    video = next((synthetic / "videos" / "test").glob("*/*.mp4"))
    before, after = (airstreams.load(run, "cpu").predict(video) for run in (trained, old))
    assert after.probabilities == before.probabilities
    assert saved_model.read_description(trained).config.data.deinterlace == "auto"
    assert saved_model.read_description(old).config.data.deinterlace == "off"
    assert config_to_resume(RunFolder(old).config, GivenConfig(Config())).data.deinterlace == "off"


@pytest.mark.filterwarnings("error::DeprecationWarning")
def test_an_old_run_resumes_to_the_same_weights(tiny, tmp_path, synthetic):
    config = of_one_stream(replace(tiny, data=replace(tiny.data, workers=0)), batch_size=6, save_every=1, keep=10)
    source = open_source(str(synthetic / "videos"))
    whole = tmp_path / "whole"
    old = tmp_path / "old"
    train(source, config, whole, False, QUIET, after_epoch=lambda record: shutil.copytree(whole, old) and None)
    for path in saved_states(old)[:-2]:  # it ended after its first step
        path.unlink()
    for path in (RunFolder(old).weights, RunFolder(old).description):
        path.unlink()
    make_old(old)
    assert load_state(old)[0].step == 1
    train(source, load_config(RunFolder(old).config), old, True, QUIET)
    expected = load_file(RunFolder(whole).weights)
    found = load_file(RunFolder(old).weights)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
