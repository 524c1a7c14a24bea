"""How the features of streams merge. With gains, a merge starts as the first stream alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from airstreams.config import LossWeights
from airstreams.models.airstreams import build
from airstreams.models.merge import ConcatMerge, WeightedMerge, draw_streams, make_merge, merge_of_some
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


def features(*streams):
    torch.manual_seed(0)
    return {stream: torch.randn(2, 8, 3, 4, 5) for stream in streams}


def test_a_sum_merges_as_numpy_adds():
    parts = features(*STREAMS)
    expected = sum(part.numpy() for part in parts.values())
    torch.testing.assert_close(make_merge("sum", STREAMS, 8)(parts), torch.from_numpy(expected))


@pytest.mark.parametrize("kind", ["weighted", "concat"])
def test_learnt_merges_start_as_the_mean_and_learn(kind):
    parts = features(*STREAMS)
    merge = make_merge(kind, STREAMS, 8)
    merged = merge(parts)
    torch.testing.assert_close(merged, make_merge("mean", STREAMS, 8)(parts))
    (merged * parts["rgb"]).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in merge.parameters())


def test_learnt_weights_and_convolutions_follow_their_formula():
    parts = features(*STREAMS)
    weighted, concat = WeightedMerge(3), ConcatMerge(3, 8)
    with torch.no_grad():
        weighted.scores.copy_(torch.tensor([0.0, 1.0, -1.0]))
        concat.join.weight.normal_()
    weights = np.exp([0.0, 1.0, -1.0]) / np.exp([0.0, 1.0, -1.0]).sum()
    expected = sum(weight * part.numpy() for weight, part in zip(weights, parts.values(), strict=True))
    torch.testing.assert_close(weighted(parts), torch.from_numpy(expected.astype("float32")))
    stacked = np.concatenate([part.numpy() for part in parts.values()], axis=1)
    expected = np.einsum("oc,bcthw->bothw", concat.join.weight[:, :, 0, 0, 0].detach().numpy(), stacked)
    torch.testing.assert_close(concat(parts), torch.from_numpy(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["sum", "weighted", "concat"])
def test_every_merge_is_saved_with_the_model(tiny, tmp_path, kind):
    config = replace(tiny, model=replace(tiny.model, streams=["rgb", "flow"], merge=kind, merge_norm=False))
    model = build(config.model, 4, 3).eval()
    assert not any("output_norm" in name for name in model.state_dict())
    saved_models.save(SavedModel(config, tuple("abcd"), ("x", "y", "z"), False, 30.0, model), tmp_path)
    with torch.no_grad():
        assert torch.equal(saved_models.load(tmp_path).model(clip()).logits["merged"], model(clip()).logits["merged"])


def present(streams):
    return torch.tensor([[stream in streams for stream in STREAMS]])


@pytest.mark.parametrize("kind", ["mean", "sum", "weighted", "concat", "gain"])
def test_a_merge_of_some_streams_is_that_of_a_model_without_the_others(kind):
    torch.manual_seed(0)
    features = {stream: torch.randn(2, 4, 2, 3, 3) for stream in STREAMS}
    merge = make_merge(kind, STREAMS, 4)
    assert torch.equal(merge_of_some(merge, features, None), merge(features))
    for some in (("rgb",), ("rgb", "flow"), ("flow", "semantic")):
        found = merge_of_some(merge, features, present(some))
        kept = [features[stream] for stream in some]
        mean = torch.stack(kept).mean(dim=0)
        first = features["flow"] if "flow" in some else torch.zeros_like(mean)  # gains start at 0
        expected = {"sum": 3 * mean, "gain": first}.get(kind, mean)
        torch.testing.assert_close(found, expected)
        other = {stream: part if stream in some else torch.randn_like(part) for stream, part in features.items()}
        assert torch.equal(merge_of_some(merge, other, present(some)), found)


def test_weights_are_shared_among_the_streams_that_are_left():
    merge = make_merge("weighted", STREAMS, 4)
    merge.scores.data = torch.tensor([0.0, 1.0, 2.0])
    features = {stream: torch.randn(1, 4, 1, 2, 2) for stream in STREAMS}
    weights = torch.tensor([0.0, 1.0]).softmax(dim=0)
    expected = weights[0] * features["flow"] + weights[1] * features["rgb"]
    torch.testing.assert_close(merge_of_some(merge, features, present(("rgb", "flow"))), expected)


def test_streams_are_dropped_at_the_rate_asked_for_but_never_all():
    torch.manual_seed(0)
    kept_BS = draw_streams(20_000, 2, 0.5, torch.device("cpu"))
    # Of the four equal outcomes, none is kept becomes all are kept.
    assert kept_BS.any(dim=1).all()
    assert kept_BS.float().mean(dim=0).tolist() == pytest.approx([0.75, 0.75], abs=0.015)
    assert kept_BS.all(dim=1).float().mean().item() == pytest.approx(0.5, abs=0.015)


@pytest.mark.parametrize("kind", ["mean", "concat"])
def test_a_clip_in_training_is_answered_by_the_streams_that_it_keeps(kind):
    model = small_model(STREAMS, merge=kind, merge_levels=[2, 3], stream_dropout=0.5, dropout=0.0)
    heads = [head for head in model.late if head not in STREAMS]
    with torch.no_grad():
        whole = model(clip(batch=4), heads).logits
        model.training = True  # batch normalisations keep their statistics
        torch.manual_seed(1)
        output = model(clip(batch=4), heads).logits
        torch.manual_seed(1)
        kept_BS = draw_streams(4, len(STREAMS), 0.5, torch.device("cpu"))
        for index, kept_S in enumerate(kept_BS):
            subset = [stream for stream, kept in zip(STREAMS, kept_S, strict=True) if kept]
            expected = model.subset_logits(clip(batch=4), heads, [subset])[0]
            for head in heads:
                torch.testing.assert_close(output[head][index], expected[head][index], rtol=0, atol=1e-5)
        assert not kept_BS.all()
        model.eval()
        assert torch.equal(model(clip(batch=4), heads).logits["merged"], whole["merged"])


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
