"""The losses on teachers' targets: closed forms, gradients, and sums that add up over shares."""

import math

import pytest
import torch

from airstreams.representations.losses import (
    absolute_loss,
    cosine_loss,
    heat_map_loss,
    scale_invariant_loss,
    squared_loss,
)

VALUES = (absolute_loss, squared_loss, cosine_loss)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def maps(channels=3):
    """A prediction on its own grid, and a target with pixels, a frame and a clip without a value."""
    target = random(3, channels, 2, 6, 8, seed=1)
    target[0, 0, 0, :2] = torch.nan
    target[1, :, 1] = torch.nan
    target[2] = torch.nan
    return random(3, channels, 2, 3, 4), target


def points():
    place = torch.rand(3, 2, 2, 4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    place[0, 0, :, 1, 2] = 0
    place[2, ..., 2] = 0
    return random(3, 4, 2, 5, 6), place


CASES = [*((loss, maps) for loss in VALUES), (scale_invariant_loss, lambda: maps(1)), (heat_map_loss, points)]


@pytest.mark.parametrize(("loss", "case"), CASES)
def test_gradients_are_right_and_finite(loss, case):
    prediction, target = case()
    prediction.requires_grad_()
    assert torch.autograd.gradcheck(lambda given: loss(given, target)[0], prediction)
    loss(prediction.float(), target.float())[0].backward()
    assert prediction.grad.isfinite().all()
    assert not prediction.grad[2].any()


@pytest.mark.parametrize(("loss", "case"), CASES)
def test_sums_and_counts_add_up_over_shares(loss, case):
    prediction, target = case()
    whole, count = loss(prediction, target)
    shares = [loss(prediction[i : i + 1], target[i : i + 1]) for i in range(3)]
    assert whole.item() == pytest.approx(sum(share.item() for share, _ in shares))
    assert count.item() == pytest.approx(sum(number.item() for _, number in shares))
    assert shares[2] == (0, 0)
    assert count > 0


def test_values_have_closed_forms():
    target = torch.zeros(1, 2, 1, 2, 2)
    target[:, 0], target[:, 1] = 3, 4
    target[0, :, 0, 0, 0] = torch.nan
    given = torch.zeros_like(target)
    given[:, 0] = 1
    assert absolute_loss(given, target) == (3 * (2 + 4) / 2, 3)
    assert squared_loss(given, target) == (3 * (4 + 16) / 2, 3)
    total, count = cosine_loss(given, target)
    assert (total.item(), count) == (pytest.approx(3 * (1 - 3 / 5)), 3)
    vector = torch.tensor([[3.0, 4.0], [torch.nan, 1.0]])
    assert squared_loss(torch.tensor([[3.0, 2.0], [9.0, 9.0]]), vector) == (2, 1)


def test_the_depth_loss_ignores_the_scale_and_shift_of_each_frame():
    target = random(2, 1, 3, 4, 5)
    target[0, 0, 0, 0] = torch.nan
    scale, shift = random(2, 1, 3, 1, 1, seed=2), random(2, 1, 3, 1, 1, seed=3)
    aligned = torch.where(target.isnan(), 99.0, target) * scale + shift
    total, count = scale_invariant_loss(aligned, target)
    assert total.item() == pytest.approx(0, abs=1e-9)
    assert count == 2 * 3 * 20 - 5


def test_the_depth_loss_is_the_part_of_the_variance_that_is_not_explained():
    given, target = random(1, 1, 1, 6, 7), random(1, 1, 1, 6, 7, seed=1)
    r = torch.corrcoef(torch.stack([given.flatten(), target.flatten()]))[0, 1]
    for scale in (1.0, 1000.0):
        total, count = scale_invariant_loss(given, scale * target + 5)
        assert total.item() == pytest.approx(42 * (1 - r.item() ** 2))
    flat, _ = scale_invariant_loss(given, torch.full_like(target, 3.0))
    assert (flat, count) == (0, 42)
    constant, _ = scale_invariant_loss(torch.ones_like(given), target)
    assert constant.item() == pytest.approx(42)


def test_the_heat_map_loss_is_a_divergence_weighted_by_visibility():
    h, w, x, y, seen = 8, 8, 0.3, 0.6, 0.7
    point = torch.tensor([x, y, seen], dtype=torch.float64).view(1, 1, 1, 1, 3)
    spread = 0.5 / 8  # a coarse grid
    bell = [
        [math.exp(-(((j + 0.5) / w - x) ** 2 + ((i + 0.5) / h - y) ** 2) / (2 * spread**2)) for j in range(w)]
        for i in range(h)
    ]
    heat = torch.tensor(bell, dtype=torch.float64)
    heat = heat / heat.sum()
    perfect, count = heat_map_loss(heat.log().view(1, 1, 1, h, w), point)
    assert (perfect.item(), count.item()) == (pytest.approx(0, abs=1e-9), seen)
    uniform, _ = heat_map_loss(torch.zeros(1, 1, 1, h, w, dtype=torch.float64), point)
    assert uniform.item() == pytest.approx(seen * (math.log(h * w) + (heat * heat.log()).sum().item()))


def test_two_people_share_a_heat_map():
    two = torch.tensor([[0.2, 0.2, 1.0], [0.8, 0.8, 0.5]], dtype=torch.float64).view(1, 1, 2, 1, 3)
    one_by_one = [
        heat_map_loss(torch.zeros(1, 1, 1, 40, 40, dtype=torch.float64), two[:, :, i : i + 1])[0] for i in (0, 1)
    ]
    both, count = heat_map_loss(torch.zeros(1, 1, 1, 40, 40, dtype=torch.float64), two)
    # Two separate bells have the entropy of one, plus that of the choice between them.
    choice = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert count == 1
    assert both.item() == pytest.approx(one_by_one[0].item() - choice, rel=1e-3)
