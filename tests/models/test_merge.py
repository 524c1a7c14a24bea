"""Merging with gains: it starts as the first stream alone, and learns what the others add."""

from dataclasses import replace

import pytest
import torch

from airstreams.config import LossWeights
from airstreams.models.airstreams import build
from airstreams.runs import saved_model as saved_models
from airstreams.runs.saved_model import SavedModel
from airstreams.training.learner import freeze, make_optimizer
from tests.models.test_airstreams import clip, small_model

STREAMS = ("flow", "rgb", "semantic")  # flow is the first


def with_gains(**changes):
    return small_model(STREAMS, merge="gain", **changes)


def gains_of(model):
    return {name: value for name, value in model.named_parameters() if ".merge." in name}


@pytest.mark.parametrize("levels", [[3], [3, 6]])
def test_the_merged_tower_starts_as_the_first_stream_alone(levels):
    model = with_gains(merge_levels=levels)
    with torch.no_grad():
        output = model(clip(), list(model.late))
        features = model.early["flow"](output.representations["flow"].tower_input, max(levels))
        for head, level in {"merged": 3, "merged_after_6": 6}.items():
            if head in model.late:
                assert torch.equal(output.logits[head], model.late[head](features[level])[0])
    assert set(gains_of(model)) == {
        f"late.{head}.merge.{stream}.gain"
        for head in ("merged", "merged_after_6")[: len(levels)]
        for stream in ("rgb", "semantic")
    }


def test_the_merged_features_are_the_first_plus_the_others_times_their_gains():
    model = with_gains()
    with torch.no_grad():
        for gain in gains_of(model).values():
            gain.uniform_(-1, 1)
        output = model(clip())
        features = {name: model.early[name](output.representations[name].tower_input, 3)[3] for name in STREAMS}
        gain = {name: model.late["merged"].merge[name].gain[:, None, None, None] for name in ("rgb", "semantic")}
        merged = features["flow"] + gain["rgb"] * features["rgb"] + gain["semantic"] * features["semantic"]
        torch.testing.assert_close(output.logits["merged"], model.late["merged"](merged)[0], rtol=0, atol=1e-5)


def test_gains_learn_first_and_then_the_towers_of_the_other_streams():
    model = with_gains()
    for learnt in (False, True):
        model.zero_grad()
        model(clip()).logits["merged"].square().sum().backward()
        assert all(gain.grad.abs().min() > 0 for gain in gains_of(model).values())
        for stream in STREAMS:
            reached = any(p.grad is not None and p.grad.any() for p in model.early[stream].parameters())
            assert reached == (learnt or stream == "flow"), stream
        with torch.no_grad():
            for gain in gains_of(model).values():
                gain -= gain.grad


def test_gains_do_not_decay(tiny):
    model = with_gains()
    groups = make_optimizer(model, tiny.training).param_groups
    spared = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    assert {id(gain) for gain in gains_of(model).values()} <= spared


def test_gains_are_saved_with_the_model(tiny, tmp_path):
    config = replace(tiny, model=replace(tiny.model, streams=["rgb", "flow"], merge="gain"))
    model = build(config.model, 4, 3).eval()
    for gain in gains_of(model).values():
        torch.nn.init.uniform_(gain)
    saved_models.save(SavedModel(config, tuple("abcd"), ("x", "y", "z"), False, 30.0, model), tmp_path)
    loaded = saved_models.load(tmp_path).model
    with torch.no_grad():
        assert torch.equal(loaded(clip()).logits["merged"], model(clip()).logits["merged"])


def test_without_a_trained_merge_every_trainable_parameter_gets_a_gradient(tiny):
    """Also those of the adaptors between towers of different families, which only a merge needs."""
    model = replace(tiny.model, streams=["rgb", "flow"], backbones={"flow": "r2plus1d18"}, merge="gain", answer="mean")
    config = replace(tiny, model=model, loss_weights=LossWeights(flow=1, merged=0))
    assert (config.answer_heads, config.answer) == (["rgb", "flow"], "answer")
    built = build(config.model, 4, 3)
    freeze(built, config)
    logits = built(clip(), config.trained_heads()).logits
    sum(values.sum() for values in logits.values()).backward()
    for name, parameter in built.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
