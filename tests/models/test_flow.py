"""The flow layer against TV-L1 written out pixel by pixel, against known motions, and at the edges of its domain."""

import math

import numpy as np
import pytest
import torch

from airstreams.data.synthetic import make_clip
from airstreams.models.flow import (
    MAX_TAU,
    SQUARED_GRADIENT_FLOOR,
    SQUARED_NORM_FLOOR,
    RepresentationFlow,
    _divergence,
)


def tv_l1(first, second, iterations, tau, weight, theta, gradient_floor=0.0, norm_floor=0.0):
    """Zach, Pock and Bischof (2007), equations 10 to 15, one pixel at a time in double precision."""
    height, width = first.shape
    pixels = [(y, x) for y in range(height) for x in range(width)]
    image_gradient = {}
    for y, x in pixels:
        along_x = (second[y, x + 1] - second[y, x - 1]) / 2 if 0 < x < width - 1 else 0.0
        along_y = (second[y + 1, x] - second[y - 1, x]) / 2 if 0 < y < height - 1 else 0.0
        image_gradient[y, x] = (along_x, along_y)
    u = {(d, y, x): 0.0 for d in (0, 1) for y, x in pixels}
    p = {(d, y, x): (0.0, 0.0) for d in (0, 1) for y, x in pixels}
    for _ in range(iterations):
        v = {}
        for y, x in pixels:
            gx, gy = image_gradient[y, x]
            squared = gx * gx + gy * gy + gradient_floor
            rho = second[y, x] - first[y, x] + gx * u[0, y, x] + gy * u[1, y, x]
            if rho < -weight * theta * squared:
                factor = weight * theta
            elif rho > weight * theta * squared:
                factor = -weight * theta
            else:
                factor = -rho / squared if squared else 0.0
            v[0, y, x] = u[0, y, x] + factor * gx
            v[1, y, x] = u[1, y, x] + factor * gy
        for d, y, x in u:
            px, py = p[d, y, x]
            divergence = (px if x < width - 1 else 0.0) - (p[d, y, x - 1][0] if x > 0 else 0.0)
            divergence += (py if y < height - 1 else 0.0) - (p[d, y - 1, x][1] if y > 0 else 0.0)
            v[d, y, x] += theta * divergence
        u = v
        new_p = {}
        for d, y, x in u:
            along_x = u[d, y, x + 1] - u[d, y, x] if x < width - 1 else 0.0
            along_y = u[d, y + 1, x] - u[d, y, x] if y < height - 1 else 0.0
            damping = 1 + tau / theta * math.sqrt(along_x**2 + along_y**2 + norm_floor)
            px, py = p[d, y, x]
            new_p[d, y, x] = ((px + tau / theta * along_x) / damping, (py + tau / theta * along_y) / damping)
        p = new_p
    return np.array([[[u[d, y, x] for x in range(width)] for y in range(height)] for d in (0, 1)])


def energy(first, second, flow_2HW, weight, theta):
    """What the iterations lower: the relaxed energy of Zach et al. (equation 7) with v at its best for this u."""
    gradient = np.zeros((2, *second.shape))
    gradient[0, :, 1:-1] = (second[:, 2:] - second[:, :-2]) / 2
    gradient[1, 1:-1] = (second[2:] - second[:-2]) / 2
    along_x = np.diff(flow_2HW, axis=2, append=flow_2HW[:, :, -1:])
    along_y = np.diff(flow_2HW, axis=1, append=flow_2HW[:, -1:])
    squared = (gradient**2).sum(axis=0)
    rho = np.abs(second - first + (gradient * flow_2HW).sum(axis=0))
    far = weight * rho - weight**2 * theta * squared / 2
    near = rho**2 / (2 * theta * np.maximum(squared, 1e-12))
    return np.hypot(along_x, along_y).sum() + np.where(rho > weight * theta * squared, far, near).sum()


def layer_with(iterations, tau, weight, theta, value_range=255.0):
    layer = RepresentationFlow(iterations, value_range).double()
    with torch.no_grad():
        layer.tau_logit.fill_(math.log(tau / (MAX_TAU - tau)))
        layer.log_lambda.fill_(math.log(weight))
        layer.log_theta.fill_(math.log(theta))
    return layer


def waves(x, y):
    """A smooth picture in 0..1 with gradients of every direction."""
    return 0.5 + 0.25 * np.sin(2 * np.pi * (x / 16 + y / 23)) + 0.25 * np.cos(2 * np.pi * (x / 29 - y / 14))


def moving_waves(right, down, frames=2, size=48):
    """A clip (1, 1, T, H, W) of a picture that moves so many px a frame."""
    y, x = np.mgrid[:size, :size].astype(float)
    return torch.tensor(np.stack([waves(x - t * right, y - t * down) for t in range(frames)]))[None, None]


@pytest.mark.parametrize(
    ("floors", "tolerance"),
    [((SQUARED_GRADIENT_FLOOR, SQUARED_NORM_FLOOR), 1e-9), ((0.0, 0.0), 1e-5)],
    ids=["with the layer's floors", "as published"],
)
@pytest.mark.parametrize("iterations", [1, 2, 9])
def test_each_pair_of_each_channel_is_tv_l1_pixel_by_pixel(iterations, floors, tolerance):
    tau, weight, theta = 0.11, 0.4, 0.21
    clip_BCTHW = np.random.default_rng(0).uniform(0, 12, (2, 2, 3, 8, 9))
    # A flat corner that brightens: no image gradient, yet a difference in time.
    clip_BCTHW[0, 0, :, :4, :4] = np.array([3.0, 5.0, 9.0])[:, None, None]
    flow = layer_with(iterations, tau, weight, theta)(torch.tensor(clip_BCTHW)).detach().numpy()
    assert flow.shape == (2, 4, 3, 8, 9)
    for b, c, t in np.ndindex(2, 2, 2):
        expected = tv_l1(clip_BCTHW[b, c, t], clip_BCTHW[b, c, t + 1], iterations, tau, weight, theta, *floors)
        np.testing.assert_allclose(flow[b, 2 * c : 2 * c + 2, t], expected, rtol=0, atol=tolerance)


def test_the_last_frame_repeats_the_last_pair():
    flow = RepresentationFlow(5)(torch.rand(1, 1, 4, 12, 12))
    assert torch.equal(flow[:, :, 3], flow[:, :, 2])
    assert not torch.equal(flow[:, :, 2], flow[:, :, 1])


def test_one_frame_has_no_motion():
    assert torch.equal(RepresentationFlow()(torch.rand(2, 1, 1, 12, 13)), torch.zeros(2, 2, 1, 12, 13))


@pytest.mark.parametrize(("right", "down"), [(1, 0), (-1, 0), (0, 1), (0, -1), (0.5, -0.75)])
def test_a_moving_picture_gives_its_motion_in_px_a_frame(right, down):
    flow = RepresentationFlow(200)(moving_waves(right, down).float())[0, :, 0, 4:-4, 4:-4].detach()
    assert flow[0].median().item() == pytest.approx(right, abs=0.1)
    assert flow[1].median().item() == pytest.approx(down, abs=0.1)


def test_iterations_end_at_the_minimum_of_the_energy():
    rng = np.random.default_rng(1)
    clip = (moving_waves(0.8, -0.6, size=24) + torch.tensor(rng.normal(0, 0.02, (1, 1, 2, 24, 24)))) * 255
    first, second = clip[0, 0].numpy()
    tau, weight, theta = 0.2, 0.15, 0.3
    flows = [layer_with(n, tau, weight, theta)(clip)[0, :, 0].detach().numpy() for n in (1, 20, 2000)]
    energies = [energy(first, second, flow, weight, theta) for flow in flows]
    assert energies == sorted(energies, reverse=True)
    y, x = np.mgrid[:24, :24]
    for size in (1e-2, 1e-1):
        for direction in (np.ones((2, 24, 24)), np.stack((x / 24, -y / 24)), rng.normal(0, 1, (2, 24, 24)), flows[-1]):
            for sign in (1, -1):
                moved = energy(first, second, flows[-1] + sign * size * direction, weight, theta)
                assert moved > energies[-1]


def test_objects_of_the_synthetic_data_move_as_they_were_drawn():
    for how in ("left", "right", "up", "down"):
        drawn = make_clip("square", how, frames=8, size=64, rng=np.random.default_rng(3))
        grey = torch.tensor(drawn.frames).float().mean(dim=-1)[None, None] / 255
        flow_T2HW = RepresentationFlow(50)(grey)[0].detach().transpose(0, 1)[:-1].numpy()
        moving = drawn.label_map[:-1] > 0
        axis, sign = {"left": (0, -1), "right": (0, 1), "up": (1, -1), "down": (1, 1)}[how]
        found, truth = flow_T2HW[:, axis][moving], drawn.flow[..., axis][moving]
        assert (np.sign(truth) == sign).all()
        assert sign * found.mean() > 0.25 * np.abs(truth).mean()
        across = flow_T2HW[:, 1 - axis][moving]
        assert abs(across.mean()) < 0.5 * abs(found.mean())


def test_a_clip_in_0_to_255_gives_the_flow_of_the_clip_in_0_to_1():
    clip = torch.rand(1, 1, 3, 16, 16)
    torch.testing.assert_close(
        RepresentationFlow(10, value_range=255)(clip * 255), RepresentationFlow(10)(clip), rtol=0, atol=1e-4
    )


def test_a_clips_flow_depends_on_its_own_two_frames_alone():
    clips = torch.rand(3, 1, 4, 16, 16)
    clips[1] *= 0.01  # a range of its own
    together = RepresentationFlow(10)(clips)
    for index in range(3):
        assert torch.equal(together[index : index + 1], RepresentationFlow(10)(clips[index : index + 1]))
    assert torch.equal(together[:, :, 1:2], RepresentationFlow(10)(clips[:, :, 1:3])[:, :, :1])


def test_the_divergence_is_the_negative_adjoint_of_forward_differences():
    scalar = torch.rand(6, 7, dtype=torch.float64)
    dual_x, dual_y = torch.rand(6, 6, dtype=torch.float64), torch.rand(5, 7, dtype=torch.float64)
    inner = (torch.diff(scalar, dim=1) * dual_x).sum() + (torch.diff(scalar, dim=0) * dual_y).sum()
    torch.testing.assert_close(inner, -(scalar * _divergence(dual_x, dual_y)).sum())


def test_gradients_of_frames_and_parameters_are_those_of_finite_differences():
    torch.manual_seed(0)
    layer = layer_with(4, 0.15, 0.3, 0.25)
    clip = (torch.rand(1, 1, 3, 6, 7, dtype=torch.float64) * 10).requires_grad_()
    names = [name for name, _ in layer.named_parameters()]

    def flow_of(clip, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (clip,))

    assert torch.autograd.gradcheck(flow_of, (clip, *layer.parameters()), eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("frames", ["all of one grey", "identical"])
def test_frames_without_motion_give_no_flow_and_finite_gradients(frames):
    torch.manual_seed(0)
    picture = torch.full((1, 1, 1, 16, 16), 0.7) if frames == "all of one grey" else torch.rand(1, 1, 1, 16, 16)
    clip = picture.repeat(1, 1, 3, 1, 1).requires_grad_()
    layer = RepresentationFlow(10)
    flow = layer(clip)
    assert torch.equal(flow, torch.zeros_like(flow))
    (flow.sum() + flow.square().sum()).backward()
    for gradient in (clip.grad, *(parameter.grad for parameter in layer.parameters())):
        assert gradient is not None
        assert gradient.isfinite().all()


@pytest.mark.parametrize("raw", [-100.0, 100.0])
@pytest.mark.parametrize("name", ["tau_logit", "log_lambda", "log_theta"])
def test_parameters_stay_valid_after_an_absurd_step_of_the_optimiser(name, raw):
    torch.manual_seed(0)
    layer = RepresentationFlow(20)
    with torch.no_grad():
        getattr(layer, name).fill_(raw)
    assert 0 < layer.tau.item() <= 0.25
    assert 0 < layer.lambda_.item() < math.inf
    assert 0 < layer.theta.item() < math.inf
    flow = layer(torch.rand(1, 1, 3, 16, 16))
    assert flow.isfinite().all()
    flow.square().mean().backward()
    for parameter in layer.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite()


def test_computes_in_single_precision_under_autocast_and_on_half_precision_clips():
    clip = torch.rand(1, 1, 3, 16, 16)
    layer = RepresentationFlow(10)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = layer(clip)
    assert torch.equal(under_autocast, layer(clip))
    for frames in (1, 3):
        half = clip[:, :, :frames].bfloat16()
        assert layer(half).dtype == torch.float32
        assert torch.equal(layer(half), layer(half.float()))
