"""The losses against their formulas in numpy, also without labels and without weights."""

import numpy as np
import pytest
import torch

from airstreams.models.airstreams import Output
from airstreams.representations import Representation
from airstreams.representations.losses import class_loss
from airstreams.representations.semantic import Semantic
from airstreams.training.losses import PassInputs, action_loss, compute_losses, total_loss

RNG = np.random.default_rng(0)
SEMANTIC = {"semantic": Semantic(5, segmenter_width=0.125, segmenter_stride=16, channels=1, stop_gradient=False)}


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def flat_logits(batch=2, classes=5, frames=3, grid=4):
    """Logits that are constant within a frame, as numpy (B, T, S) and as a tensor (B, S, T, h, w)."""
    logits_BTS = RNG.normal(0, 2, (batch, frames, classes))
    logits_BSThw = torch.tensor(logits_BTS.transpose(0, 2, 1)[..., None, None]).float()
    return logits_BTS, logits_BSThw.repeat(1, 1, 1, grid, grid)


def blocks_of_labels(batch=2, frames=3, size=64, ids=(0, 1, 2, 3, 4, 255)):
    """Label maps that are constant in each block of 8x8 px, so resampling within a block changes nothing."""
    small = RNG.choice(ids, (batch, frames, size // 8, size // 8)).astype(np.uint8)
    return small.repeat(8, axis=2).repeat(8, axis=3)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_cross_entropy_with_label_smoothing(smoothing):
    logits, target = RNG.normal(0, 2, (6, 4)), RNG.integers(0, 4, 6)
    log_p = log_softmax(logits)
    expected = -(1 - smoothing) * log_p[np.arange(6), target].mean() - smoothing * log_p.mean()
    loss = action_loss(torch.tensor(logits), torch.tensor(target), smoothing)
    assert loss.item() / 6 == pytest.approx(expected, 1e-5)


def test_sigmoid_cross_entropy_for_multi_label_clips():
    logits, target = RNG.normal(0, 2, (6, 4)), RNG.integers(0, 2, (6, 4)).astype(np.float32)
    p = 1 / (1 + np.exp(-logits))
    expected = -(target * np.log(p) + (1 - target) * np.log(1 - p)).mean()
    assert action_loss(torch.tensor(logits), torch.tensor(target), 0.1).item() / 6 == pytest.approx(expected, 1e-5)


def test_the_segmentation_loss_sums_cross_entropy_over_labelled_pixels():
    logits_BTS, logits_BSThw = flat_logits()
    labels = blocks_of_labels()
    log_p = log_softmax(logits_BTS)
    b, t, y, x = np.nonzero(labels != 255)
    expected = -log_p[b, t, labels[b, t, y, x]].sum()
    loss, count = class_loss(logits_BSThw, torch.tensor(labels))
    assert loss.item() == pytest.approx(expected, 1e-5)
    assert count == len(b)


def test_the_segmentation_loss_compares_each_pixel_with_its_own_label():
    labels = blocks_of_labels(ids=(0, 1, 2))
    where_labelled = torch.nn.functional.one_hot(torch.tensor(labels).long(), 3).movedim(-1, 1).float()
    # What a segmenter that is right about 16 px cells would say.
    cells = torch.nn.functional.avg_pool3d(where_labelled, (1, 16, 16)) * 10
    right = class_loss(cells, torch.tensor(labels))[0]
    for moved in (cells.flip(-1), cells.flip(-2), cells.mT, cells.flip(2), cells.roll(1, -1), cells.roll(1, -2)):
        assert class_loss(moved, torch.tensor(labels))[0] > 1.3 * right


def test_unlabelled_pixels_frames_and_videos_change_neither_loss_nor_gradient():
    logits = flat_logits()[1] + torch.randn(2, 5, 3, 4, 4)
    labels = torch.tensor(blocks_of_labels())
    labels[0, 1] = 255

    def loss_and_gradient(logits, labels):
        logits = logits.clone().requires_grad_()
        loss, _ = class_loss(logits, labels)
        loss.backward()
        return loss.item(), logits.grad

    loss, gradient = loss_and_gradient(logits, labels)
    elsewhere = logits.clone()
    elsewhere[0, :, 1] = torch.randn(5, 4, 4) * 10
    assert loss_and_gradient(elsewhere, labels)[0] == pytest.approx(loss, 1e-6)
    assert not gradient[0, :, 1].any()

    with_another = torch.cat((logits, torch.randn(1, 5, 3, 4, 4)))
    unlabelled = torch.cat((labels, torch.full_like(labels[:1], 255)))
    same_loss, its_gradient = loss_and_gradient(with_another, unlabelled)
    assert same_loss == pytest.approx(loss, 1e-6)
    torch.testing.assert_close(its_gradient[:2], gradient)
    assert not its_gradient[2].any()


@pytest.mark.parametrize("labels", [None, torch.full((2, 3, 64, 64), 255, dtype=torch.uint8)], ids=["none", "all 255"])
def test_a_batch_without_labels_has_loss_0_and_gradient_0(labels):
    logits = flat_logits()[1].requires_grad_()
    output = Output({}, {"semantic": Representation(torch.empty(0), logits)}, {})
    inputs = inputs_of(torch.tensor([0, 1]), labels, torch.tensor(1.0))
    loss = compute_losses(output, inputs, {"interm": 1.0}, 0.0, SEMANTIC)["interm"]
    assert loss.item() == 0.0
    loss.backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_bfloat16_logits_give_float32_losses():
    logits_BK, logits_BSThw = torch.randn(6, 4).bfloat16(), torch.randn(2, 5, 3, 4, 4).bfloat16()
    indices, marks = torch.tensor([0, 3, 1, 1, 2, 0]), torch.randint(0, 2, (6, 4)).float()
    labels = torch.tensor(blocks_of_labels())
    for loss_of, logits in (
        (lambda logits: action_loss(logits, indices, 0.1), logits_BK),
        (lambda logits: action_loss(logits, marks, 0.1), logits_BK),
        (lambda logits: class_loss(logits, labels)[0], logits_BSThw),
    ):
        torch.testing.assert_close(loss_of(logits), loss_of(logits.float()), rtol=1e-6, atol=0)


def outputs():
    heads = {name: torch.randn(4, 3) for name in ("rgb", "flow", "semantic", "merged")}
    seen = {"semantic": Representation(torch.empty(0), flat_logits(batch=4)[1])}
    return Output(heads, seen, {}), torch.tensor([0, 2, 1, 1]), torch.tensor(blocks_of_labels(batch=4))


def inputs_of(target, labels, pixels):
    teachers = {} if labels is None else {"semantic": labels}
    return PassInputs(torch.empty(0), target, teachers, torch.tensor(1.0), torch.tensor(4.0), {"semantic": pixels})


def test_the_total_is_the_weighted_sum_of_the_losses():
    output, target, labels = outputs()
    weights = {"rgb": 0.5, "flow": 2.0, "semantic": 0.25, "merged": 1.0, "interm": 3.0}
    pixels = (labels != 255).sum()
    losses = compute_losses(output, inputs_of(target, labels, pixels), weights, 0.0, SEMANTIC)
    expected = 3.0 * class_loss(output.representations["semantic"].prediction, labels)[0].item() / pixels.item()
    for name, logits in output.logits.items():
        log_p = log_softmax(logits.double().numpy())
        expected -= weights[name] * log_p[np.arange(4), target.numpy()].mean()
    assert total_loss(losses, weights).item() == pytest.approx(expected, 1e-5)


def test_losses_without_weight_are_not_computed():
    output, target, labels = outputs()
    weights = {"rgb": 1.0, "flow": 0.0, "semantic": 0.0, "merged": 1.0, "interm": 0.0}
    only_weighty = Output({name: output.logits[name] for name in ("rgb", "merged")}, {}, {})
    losses = compute_losses(only_weighty, inputs_of(target, labels, torch.tensor(1.0)), weights, 0.0, SEMANTIC)
    assert losses.keys() == {"rgb", "merged"}
