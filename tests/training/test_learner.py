"""The learner: optimiser, schedule, frozen parts and the device."""

import copy
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from airstreams.config import LossWeights, TrainingConfig
from airstreams.data.sources import open_source
from airstreams.errors import InputError
from airstreams.models.airstreams import build
from airstreams.training.learner import freeze, make_optimizer, make_schedule
from airstreams.training.loop import train
from tests.training.runs import epochs, of_one_stream

QUIET = Console(quiet=True)


def test_deterministic_training_runs(synthetic, tiny, tmp_path):
    """On a CPU the numbers do not change. The test shows that no operation lacks a deterministic algorithm."""
    source = open_source(str(synthetic / "videos"), synthetic / "labels")
    config = replace(tiny, training=replace(tiny.training, epochs=1, deterministic=True))
    try:
        train(source, config, tmp_path / "run", False, QUIET)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_norms_biases_and_flow_parameters_do_not_decay(tiny):
    model = build(tiny.model, 4, 6)
    decayed = {
        id(parameter)
        for group in make_optimizer(model, tiny.training).param_groups
        if group["weight_decay"] > 0
        for parameter in group["params"]
    }
    spared = [name for name, parameter in model.named_parameters() if id(parameter) not in decayed]
    held = [name for name, parameter in model.named_parameters() if id(parameter) in decayed]
    assert all(name.endswith(".weight") for name in held)
    assert {name for name, _ in model.named_parameters() if name.startswith("representations.flow.")} <= set(spared)
    norms = {
        f"{name}."
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.modules.batchnorm._BatchNorm, torch.nn.LayerNorm, torch.nn.GroupNorm))
    }
    assert norms
    assert not any(name.startswith(norm) for name in held for norm in norms)
    assert len(held) > 20
    for optimizer in ("adamw", "sgd"):
        groups = make_optimizer(model, replace(tiny.training, optimizer=optimizer)).param_groups
        assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_fused_optimisers_match_plain_ones_also_when_resumed(tiny, tmp_path, optimizer):
    """Fused ones on a CPU give wrong results without an error if weights, gradients and moments differ in layout."""
    config = replace(tiny, training=replace(tiny.training, optimizer=optimizer, lr=0.01))
    model = build(config.model, 4, 6)
    plain_model = copy.deepcopy(model)
    fused = make_optimizer(model, config.training)
    decay = config.training.weight_decay
    groups = [
        {"params": [p for p in plain_model.parameters() if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in plain_model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    plain: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=0.01, foreach=False)
    if optimizer == "sgd":
        plain = torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True, foreach=False)
    clip = torch.rand(2, 3, 4, 64, 64)
    for step in range(4):
        output = model(clip, config.model.heads)
        torch.stack([logits.square().sum() for logits in output.logits.values()]).sum().backward()
        for parameter, other in zip(model.parameters(), plain_model.parameters(), strict=True):
            other.grad = None if parameter.grad is None else parameter.grad.clone()
        for stepping in (fused, plain):
            stepping.step()
            stepping.zero_grad()
        for (name, parameter), other in zip(model.named_parameters(), plain_model.parameters(), strict=True):
            torch.testing.assert_close(parameter, other, atol=1e-6, rtol=1e-5, msg=name)
        if step == 1:
            torch.save({"model": model.state_dict(), "optimizer": fused.state_dict()}, tmp_path / "state.pt")
            state = torch.load(tmp_path / "state.pt", weights_only=True)
            model = build(config.model, 4, 6)
            model.load_state_dict(state["model"])
            fused = make_optimizer(model, config.training)
            fused.load_state_dict(state["optimizer"])


@pytest.mark.parametrize("prefixes", [("early.flow.", "early.rgb."), ()])
def test_a_stream_has_a_learning_rate_of_its_own(tiny, prefixes):
    model = build(replace(tiny.model, streams=["rgb", "flow"]), 4, 6)
    config = replace(tiny.training, lr=0.1, lr_taken=0.01, hold_epochs=1, lr_factors={"flow": 3.0})
    taken = {name for name, _ in model.named_parameters() if name.startswith(prefixes)}
    groups = make_optimizer(model, config, taken).param_groups
    found = {id(p): (group["lr"], group["taken"]) for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        has_factor = name.split(".")[1] == "flow" and (name in taken or not taken)
        rate = (0.01 if name in taken else 0.1) * (3 if has_factor else 1)
        assert found[id(parameter)] == (pytest.approx(rate), name in taken), name
    assert len(found) == len(list(model.parameters()))


def test_the_learning_rate_rises_to_its_peak_and_falls_to_0():
    config = TrainingConfig(epochs=10, lr=0.4, warmup_epochs=2)
    parameter = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = torch.optim.SGD([parameter], lr=config.lr)
    schedule = make_schedule(optimizer, config, steps_per_epoch=5)
    rates = []
    for _ in range(50):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert 0 < rates[0] < 0.05
    assert rates[:11] == sorted(rates[:11])
    assert rates[10] == max(rates) == pytest.approx(0.4)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[30] == pytest.approx(0.2)  # half-way down the cosine
    assert schedule.get_last_lr()[0] == pytest.approx(0, abs=1e-6)


def test_the_flow_layer_is_frozen_for_clips_of_one_frame(tiny):
    one, two = (replace(tiny, clip=replace(tiny.clip, frames=frames)) for frames in (1, 2))
    for config, learns in ((one, False), (two, True)):
        model = build(config.model, 4, 81)
        freeze(model, config)
        assert any(p.requires_grad for p in model.representations["flow"].parameters()) is learns


def test_frozen_parts_keep_weights_and_statistics(synthetic, tiny, tmp_path):
    config = replace(tiny, training=replace(tiny.training, epochs=1, freeze=["rgb.early", "semantic.representation"]))
    source = open_source(str(synthetic / "videos"), synthetic / "labels")
    train(source, config, tmp_path / "run", False, QUIET)
    torch.manual_seed(config.seed)
    assert source.label_store is not None
    first = build(config.model, 4, len(source.label_store.classes)).state_dict()
    for name, tensor in load_file(tmp_path / "run" / "model.safetensors").items():
        stays = name.startswith(("early.rgb.", "representations.semantic.", "late.semantic."))
        if tensor.is_floating_point() and tensor.numel() > 1:
            assert torch.equal(tensor, first[name]) == stays, name
    norms = epochs(tmp_path / "run")[0]["train"]["gradient_norms"]
    assert not {"rgb.early", "semantic.representation"} & set(norms)


def test_unknown_parts_to_freeze_are_rejected(synthetic, tiny, tmp_path):
    source = open_source(str(synthetic / "videos"))
    with pytest.raises(InputError, match=r"training\.freeze: got rgb\.tower\..*rgb\.early, rgb\.late"):
        train(source, of_one_stream(tiny, freeze=["rgb.tower"]), tmp_path / "run", False, QUIET)
    with pytest.raises(InputError, match=r"training\.freeze: got rgb\.early, rgb\.late"):
        train(source, of_one_stream(tiny, freeze=["rgb.early", "rgb.late"]), tmp_path / "run", False, QUIET)
    assert not (tmp_path / "run").exists()  # nothing is written


@pytest.mark.parametrize("stopped", [[], ["semantic"], ["flow", "semantic"]])
@pytest.mark.parametrize("interm", [0.0, 1.0])
def test_every_trainable_parameter_gets_a_gradient(tiny, stopped, interm):
    """With several processes, each waits for the gradients of all trainable parameters."""
    config = replace(tiny, model=replace(tiny.model, stop_gradient=stopped), loss_weights=LossWeights(interm=interm))
    model = build(config.model, 4, 6)
    freeze(model, config)
    output = model(torch.rand(2, 3, 4, 64, 64), config.trained_heads())
    total = sum(logits.sum() for logits in output.logits.values())
    if interm:
        total = total + output.representations["semantic"].prediction.square().sum()
    total.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_an_absent_device_is_rejected(synthetic, tiny, tmp_path):
    source = open_source(str(synthetic / "videos"))
    with pytest.raises(InputError, match=r"training\.device: got mps"):
        train(source, of_one_stream(tiny, device="mps"), tmp_path / "run", False, QUIET)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match=r"--training\.device cpu"):
            train(source, of_one_stream(tiny, device="cuda"), tmp_path / "run", False, QUIET)
