"""The inputs of the towers, and the weights that the action losses reach (stop-gradients of Table 2)."""

import numpy as np
import pytest
import torch

from airstreams.config import FlowConfig, ModelConfig
from airstreams.models.airstreams import build
from airstreams.models.segmenter import upsample, upsample_by_matmul
from airstreams.models.tower import on_frames
from airstreams.representations.flow import Flow
from airstreams.representations.semantic import Semantic


def small_model(stop_gradient):
    """A model of all streams without dropout, with fixed weights, none at an initial value without a gradient."""
    torch.manual_seed(0)
    config = ModelConfig(
        width=0.125,
        segmenter_width=0.125,
        flow=FlowConfig(iterations=3),
        dropout=0.0,
        stop_gradient=list(stop_gradient),
    )
    model = build(config, classes=4, segment_classes=5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("representations.flow"):
                parameter.add_(torch.rand_like(parameter) * 0.05)
    return model


def gradients(stop_gradient, loss_of):
    """The gradients of the parameters that a loss reaches, by name."""
    model = small_model(stop_gradient)
    clip = torch.rand(2, 3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    loss_of(model(clip, ["rgb", "flow", "semantic", "merged"])).backward()
    return {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }


def action_losses(output):
    return sum(logits.square().sum() for logits in output.logits.values())


def teachers_loss(output):
    return output.representations["semantic"].prediction.square().sum()


@pytest.mark.parametrize("size", [(64, 64), (70, 101)])
def test_reducing_before_enlarging_gives_the_same_input(size):
    torch.manual_seed(0)
    semantic = Semantic(21, segmenter_width=0.125, segmenter_stride=16, channels=8, stop_gradient=False).eval()
    seen = semantic(torch.rand(2, 3, 3, *size))
    enlarged = on_frames(lambda frames: upsample(frames, size), seen.prediction)
    expected = torch.einsum("cs,bsthw->bcthw", semantic.reduction.state_dict()["weight"][:, :, 0, 0], enlarged)
    assert seen.tower_input.shape == (2, 8, 3, *size)
    torch.testing.assert_close(seen.tower_input, expected, rtol=1e-5, atol=1e-5)


def test_without_a_projection_the_tower_sees_the_logits():
    semantic = Semantic(21, segmenter_width=0.125, segmenter_stride=16, channels=None, stop_gradient=False).eval()
    seen = semantic(torch.rand(1, 3, 2, 64, 64))
    enlarged = on_frames(lambda frames: upsample(frames, (64, 64)), seen.prediction)
    assert semantic.channels == 21
    assert torch.equal(seen.tower_input, enlarged)


def test_enlarging_keeps_positions():
    # A cell covers 16 px, so away from the border a ramp over cells becomes a ramp over pixels.
    cells = torch.arange(5.0) * 16 + 7.5
    ramp = upsample(cells.expand(1, 1, 4, 5), (64, 80))[0, 0]
    torch.testing.assert_close(ramp[:, 8:72], torch.arange(8.0, 72.0).expand(64, 64))


@pytest.mark.parametrize("size", [(16, 28), (7, 9), (4, 5)])
def test_enlarging_by_matrix_products_is_the_same(size):
    given = torch.randn(3, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, 2, *size, dtype=torch.float64)
    plain, product = upsample(given, size), upsample_by_matmul(given, size)
    torch.testing.assert_close(product, plain, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad((enlarged * weights).sum(), given)[0] for enlarged in (plain, product)]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-12, atol=1e-12)


def test_flow_sees_brightness_and_not_colour():
    rng = np.random.default_rng(0)
    clip = torch.tensor(rng.uniform(0.2, 0.8, (1, 3, 2, 16, 16))).float()
    layer = Flow(FlowConfig(iterations=5), stop_gradient=False)
    red, green = rng.uniform(-0.02, 0.02, (2, 1, 2, 16, 16))  # a different change at each pixel
    change = np.stack([red, green, -(0.299 * red + 0.587 * green) / 0.114], axis=1)
    recoloured = clip + torch.tensor(change).float()
    torch.testing.assert_close(layer(recoloured).prediction, layer(clip).prediction, rtol=0, atol=1e-3)
    recoloured[:, 0, 1] += 0.1
    assert not torch.allclose(layer(recoloured).prediction, layer(clip).prediction, atol=1e-2)


CUT = {"semantic": "representations.semantic.segmenter.", "flow": "representations.flow.layer."}


def test_without_stop_gradient_action_losses_reach_every_weight():
    assert gradients([], action_losses).keys() == dict(small_model([]).named_parameters()).keys()


@pytest.mark.parametrize("stopped", [["semantic"], ["flow"], ["flow", "semantic"]])
def test_stop_gradient_keeps_action_losses_from_one_representation(stopped):
    everything, left = gradients([], action_losses), gradients(stopped, action_losses)
    cut = everything.keys() - left.keys()
    prefixes = tuple(CUT[name] for name in stopped)
    assert cut == {name for name in everything if name.startswith(prefixes)}
    for name, gradient in left.items():
        torch.testing.assert_close(gradient, everything[name])


@pytest.mark.parametrize("stopped", [[], ["semantic"], ["flow", "semantic"]])
def test_the_teachers_loss_reaches_only_the_segmenter(stopped):
    reached = gradients(stopped, teachers_loss).keys()
    assert reached == {name for name in gradients([], action_losses) if name.startswith(CUT["semantic"])}
