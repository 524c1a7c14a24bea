"""The flow layer compared with TV-L1 pixel by pixel and with known motions, and its behaviour in extreme cases."""

import math

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from torch.export import Dim

from airstreams.config import FlowConfig, ModelConfig
from airstreams.data.synthetic import make_clip
from airstreams.errors import InputError
from airstreams.models import flow as flow_module
from airstreams.models.airstreams import build
from airstreams.models.flow import LARGEST_TAP, MAX_TAU, FrameDifference, RepresentationFlow, make_flow, warp
from airstreams.recipe import add_config_arguments, config_from, from_dict

# Options of the layer; each runs other code.
PLAIN: dict[str, int] = {}
LEARNT, WARPED = {"learn_kernels": True}, {"levels": 2, "warps": 1}
EACH_WAY = pytest.mark.parametrize("options", [PLAIN, LEARNT, WARPED], ids=["plain", "learnt kernels", "warped"])


def tv_l1(first, second, iterations, tau, weight, theta, about=None):
    """Zach, Pock and Bischof (2007), equations 10 to 15, one pixel at a time in double precision.

    about: the flow (2, H, W) that the second frame was warped by, and to begin from; None: from rest.
    """
    height, width = first.shape
    about = np.zeros((2, height, width)) if about is None else about
    pixels = [(y, x) for y in range(height) for x in range(width)]
    image_gradient = {}
    for y, x in pixels:
        along_x = (second[y, x + 1] - second[y, x - 1]) / 2 if 0 < x < width - 1 else 0.0
        along_y = (second[y + 1, x] - second[y - 1, x]) / 2 if 0 < y < height - 1 else 0.0
        image_gradient[y, x] = (along_x, along_y)
    u = {(d, y, x): float(about[d, y, x]) for d in (0, 1) for y, x in pixels}
    p = {(d, y, x): (0.0, 0.0) for d in (0, 1) for y, x in pixels}
    for _ in range(iterations):
        v = {}
        for y, x in pixels:
            gx, gy = image_gradient[y, x]
            squared = gx * gx + gy * gy
            rho = second[y, x] - first[y, x] + gx * (u[0, y, x] - about[0, y, x]) + gy * (u[1, y, x] - about[1, y, x])
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
            damping = 1 + tau / theta * math.hypot(along_x, along_y)
            px, py = p[d, y, x]
            new_p[d, y, x] = ((px + tau / theta * along_x) / damping, (py + tau / theta * along_y) / damping)
        p = new_p
    return np.array([[[u[d, y, x] for x in range(width)] for y in range(height)] for d in (0, 1)])


def warped_picture(picture, flow_2HW):
    """Cubic convolution (Keys 1981, a = -3/4) at x + flow(x), border pixels repeated outside, one pixel at a time."""

    def weight(distance):
        d, a = abs(distance), -0.75
        if d <= 1:
            return (a + 2) * d**3 - (a + 3) * d**2 + 1
        return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0

    height, width = picture.shape
    warped = np.zeros_like(picture)
    for y, x in np.ndindex(height, width):
        at_x, at_y = x + flow_2HW[0, y, x], y + flow_2HW[1, y, x]
        for row in range(math.floor(at_y) - 1, math.floor(at_y) + 3):
            for column in range(math.floor(at_x) - 1, math.floor(at_x) + 3):
                value = picture[min(max(row, 0), height - 1), min(max(column, 0), width - 1)]
                warped[y, x] += weight(at_y - row) * weight(at_x - column) * value
    return warped


def resized_picture(picture, size):
    """Bilinear; if the new pixels are larger, the triangle is as wide as they are."""

    def weights(old, new):
        step = old / new
        matrix = np.zeros((new, old))
        for i, j in np.ndindex(new, old):
            matrix[i, j] = max(0.0, 1 - abs((j + 0.5) - (i + 0.5) * step) / max(step, 1.0))
        return matrix / matrix.sum(axis=1, keepdims=True)

    height, width = picture.shape
    return weights(height, size[0]) @ picture @ weights(width, size[1]).T


def full_tv_l1(first, second, sizes, warps, **constants):
    """TV-L1 coarse to fine over `sizes`, with the second frame warped by the flow so far."""
    flow = np.zeros((2, *sizes[0]))
    for size in sizes:
        height, width = flow.shape[1:]
        flow = np.stack(
            (resized_picture(flow[0], size) * size[1] / width, resized_picture(flow[1], size) * size[0] / height)
        )
        at_level = resized_picture(first, size), resized_picture(second, size)
        for _ in range(warps):
            flow = tv_l1(at_level[0], warped_picture(at_level[1], flow), **constants, about=flow)
    return flow


def energy(first, second, flow_2HW, weight, theta):
    """The energy that the iterations minimise: equation 7 of Zach et al. with the best v for this u."""
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


def layer_with(iterations, tau, weight, theta, value_range=255.0, **options):
    layer = RepresentationFlow(iterations, value_range, **options).double()
    with torch.no_grad():
        layer.tau_logit.fill_(math.log(tau / (MAX_TAU - tau)))
        layer.log_lambda.fill_(math.log(weight))
        layer.log_theta.fill_(math.log(theta))
    return layer


def waves(x, y):
    """A smooth picture in 0..1 with gradients in every direction."""
    return 0.5 + 0.25 * np.sin(2 * np.pi * (x / 16 + y / 23)) + 0.25 * np.cos(2 * np.pi * (x / 29 - y / 14))


def moving_waves(right, down, frames=2, size=48):
    """A clip (1, 1, T, H, W) of a picture that moves by (right, down) px per frame."""
    y, x = np.mgrid[:size, :size].astype(float)
    return torch.tensor(np.stack([waves(x - t * right, y - t * down) for t in range(frames)]))[None, None]


def random_clip(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def gradients_of(layer, clip):
    """The flow, and the gradients of frames and parameters for a loss without symmetry, so that none is zero."""
    clip = clip.detach().requires_grad_()
    flow = layer(clip)
    weights = torch.linspace(0.5, 1.5, flow.numel(), dtype=flow.dtype).view_as(flow)
    return flow.detach(), torch.autograd.grad((flow.sin() * weights).sum(), (clip, *layer.parameters()))


@pytest.mark.parametrize("options", [PLAIN, LEARNT], ids=["fixed kernels", "learnt kernels"])
@pytest.mark.parametrize("iterations", [1, 2, 9, 20])
def test_flow_equals_tv_l1_computed_pixel_by_pixel(iterations, options):
    tau, weight, theta = 0.11, 0.4, 0.21
    clip_BCTHW = np.random.default_rng(0).uniform(0, 12, (2, 2, 3, 8, 9))
    # A flat corner that brightens: no image gradient, but a difference in time.
    clip_BCTHW[0, 0, :, :4, :4] = np.array([3.0, 5.0, 9.0])[:, None, None]
    flow = layer_with(iterations, tau, weight, theta, **options)(torch.tensor(clip_BCTHW)).detach().numpy()
    assert flow.shape == (2, 4, 3, 8, 9)
    for b, c, t in np.ndindex(2, 2, 2):
        expected = tv_l1(clip_BCTHW[b, c, t], clip_BCTHW[b, c, t + 1], iterations, tau, weight, theta)
        np.testing.assert_allclose(flow[b, 2 * c : 2 * c + 2, t], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("levels", [1, 2])
def test_with_warps_flow_equals_the_full_solver(levels):
    constants = {"iterations": 4, "tau": 0.2, "weight": 0.3, "theta": 0.25}
    first, second = np.random.default_rng(0).uniform(0, 60, (2, 33, 36))
    sizes = [(17, 18), (33, 36)][-levels:]
    expected = full_tv_l1(first, second, sizes, 2, **constants)
    layer = layer_with(**constants, levels=levels, warps=2)
    flow = layer(torch.tensor(np.stack((first, second)))[None, None])[0, :, 0].detach().numpy()
    assert np.abs(expected).max() > 1  # more than a pixel, so warps matter
    np.testing.assert_allclose(flow, expected, rtol=0, atol=1e-9)


def test_one_warp_at_one_level_changes_nothing():
    clip = random_clip(1, 1, 3, 16, 17).double()
    without = layer_with(6, 0.2, 0.15, 0.3, 1.0)(clip)
    torch.testing.assert_close(layer_with(6, 0.2, 0.15, 0.3, 1.0, warps=1)(clip), without, rtol=0, atol=1e-9)


def test_warping_follows_the_flow_and_repeats_the_border():
    frames_NHW = torch.arange(30.0).view(1, 5, 6).square().double()
    shift = torch.zeros(2, 1, 5, 6, dtype=torch.float64)
    shift[0], shift[1] = 2, -1
    seen = warp(frames_NHW, shift)
    torch.testing.assert_close(seen[0, 1:, :4], frames_NHW[0, :-1, 2:])
    torch.testing.assert_close(seen[0, 0], frames_NHW[0, 0, [2, 3, 4, 5, 5, 5]])


def test_the_last_frame_repeats_the_last_pair():
    flow = RepresentationFlow(5)(random_clip(1, 1, 4, 12, 12))
    assert torch.equal(flow[:, :, 3], flow[:, :, 2])
    assert not torch.equal(flow[:, :, 2], flow[:, :, 1])


def test_one_frame_has_no_motion():
    assert torch.equal(RepresentationFlow()(random_clip(2, 1, 1, 12, 13)), torch.zeros(2, 2, 1, 12, 13))


@pytest.mark.parametrize("shape", [(0, 1, 3, 8, 8), (2, 1, 3, 2, 9), (2, 1, 3, 9, 2), (1, 3, 2, 2, 2)], ids=str)
@EACH_WAY
def test_batches_without_clips_and_frames_of_2_px(shape, options):
    clip = random_clip(*shape)
    flow, gradients = gradients_of(RepresentationFlow(4, **options), clip)
    assert flow.shape == (shape[0], 2 * shape[1], *shape[2:])
    assert all(x.isfinite().all() for x in (flow, *gradients))


@pytest.mark.parametrize(("right", "down"), [(1, 0), (-1, 0), (0, 1), (0, -1), (0.5, -0.75)])
def test_flow_measures_motion_in_px_a_frame(right, down):
    flow = RepresentationFlow(200)(moving_waves(right, down).float())[0, :, 0, 4:-4, 4:-4].detach()
    assert flow[0].median().item() == pytest.approx(right, abs=0.1)
    assert flow[1].median().item() == pytest.approx(down, abs=0.1)


def test_levels_and_warps_measure_larger_motion():
    clip = moving_waves(6, -3, size=64).float()
    truth = torch.tensor([6.0, -3.0])[:, None, None]

    def error(**options):
        flow = RepresentationFlow(30, **options)(clip)[0, :, 0, 10:-10, 10:-10].detach()
        return (flow - truth).norm(dim=0).median().item()

    assert error() > 3
    assert error(levels=3, warps=5) < 0.3


def test_iterations_reach_the_minimum_of_the_energy():
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


def test_flow_of_synthetic_videos_is_the_motion_drawn():
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


@EACH_WAY
def test_a_clip_in_0_to_255_gives_the_flow_of_the_clip_in_0_to_1(options):
    clip = random_clip(1, 1, 3, 32, 32)
    flow = RepresentationFlow(10, **options)(clip)
    assert flow.abs().max() > 0.5
    in_255 = RepresentationFlow(10, value_range=255, **options)(clip * 255)
    torch.testing.assert_close(in_255, flow, rtol=0, atol=1e-4)


@EACH_WAY
def test_flow_depends_only_on_its_two_frames(options):
    clips = random_clip(3, 1, 4, 32, 33)
    clips[1] *= 0.01  # another range of values
    layer = RepresentationFlow(10, **options)
    together = layer(clips)
    for index in range(3):
        alone = layer(clips[index : index + 1])
        torch.testing.assert_close(together[index : index + 1], alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(together[:, :, 1:2], layer(clips[:, :, 1:3])[:, :, :1], rtol=0, atol=1e-5)


@EACH_WAY
def test_flow_of_several_channels_is_computed_channel_by_channel(options):
    features = random_clip(2, 3, 3, 32, 33)
    features[:, 1] = features[:, 1] * 8 - 4
    layer = RepresentationFlow(6, **options)
    flow = layer(features)
    assert flow.shape == (2, 6, 3, 32, 33)
    for c in range(3):
        torch.testing.assert_close(flow[:, 2 * c : 2 * c + 2], layer(features[:, c : c + 1]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [PLAIN, LEARNT, {"warps": 2}, {"levels": 2, "warps": 2}, {"levels": 2, "warps": 1, "learn_kernels": True}],
    ids=str,
)
def test_gradients_equal_finite_differences(monkeypatch, options):
    """One number at a time without warps. With warps, which are slow, along random directions."""
    monkeypatch.setattr(flow_module, "SMALLEST_SIDE", 4)  # so that a small frame has two levels
    layer = layer_with(3, 0.15, 0.3, 0.25, **options)
    clip = (random_clip(1, 1, 2, 8, 9).double() * 10).requires_grad_()
    warped = "warps" in options
    names = [name for name, _ in layer.named_parameters()]
    assert set(names) >= {"tau_logit", "log_lambda", "log_theta"}
    assert len(names) == (6 if layer.image_taps is not None else 3)

    def flow_of(clip, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (clip,))

    assert torch.autograd.gradcheck(flow_of, (clip, *layer.parameters()), eps=1e-6, atol=1e-5, fast_mode=warped)


def degenerate_clips():
    texture = random_clip(1, 1, 1, 32, 32)
    grey = torch.full((1, 1, 1, 32, 32), 0.7)
    moving = moving_waves(1, -0.5, size=32).float()
    bars = moving.clone()
    bars[..., :10, :] = bars[..., -10:, :] = 0
    line, spot = grey.clone(), grey.clone()
    line[..., 15, :] = 0.2
    spot[..., 15, 15] = 0.2
    return {
        "one grey": torch.cat((grey, grey), dim=2),
        "black": torch.zeros(1, 1, 2, 32, 32),
        "identical": torch.cat((texture, texture), dim=2),
        "one grey that brightens": torch.cat((0.3 * grey, grey), dim=2),
        "bars above and below": bars,
        "a line that appears": torch.cat((grey, line), dim=2),
        "a line that moves": torch.cat((line, line.roll(1, dims=3)), dim=2),
        "a spot that moves": torch.cat((spot, spot.roll(1, dims=4)), dim=2),
        "a spot that goes": torch.cat((spot, grey), dim=2),
        "noise below a grey level": 0.5 + 1e-7 * torch.cat((texture, texture.flip(-1)), dim=2),
        "few grey levels": (random_clip(1, 1, 2, 32, 32, seed=15) * 4).round() / 8,
    }


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bf16 autocast"])
@EACH_WAY
def test_degenerate_frames_give_finite_flow_and_finite_gradients(options, autocast):
    for name, clip in degenerate_clips().items():
        layer = RepresentationFlow(30, **options)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            flow, gradients = gradients_of(layer, clip)
        assert flow.dtype == torch.float32
        assert flow.isfinite().all(), name
        assert flow.abs().max() < 100, name
        for gradient in gradients:
            assert gradient.isfinite().all(), name


@EACH_WAY
@pytest.mark.parametrize("frames", ["one grey", "black", "identical"])
def test_frames_without_motion_give_zero_flow(frames, options):
    flow = RepresentationFlow(10, **options)(degenerate_clips()[frames])
    torch.testing.assert_close(flow, torch.zeros_like(flow), rtol=0, atol=1e-3 if options is WARPED else 0)


@EACH_WAY
@pytest.mark.parametrize("raw", [-1e30, -100.0, 100.0, 1e30])
@pytest.mark.parametrize("name", ["tau_logit", "log_lambda", "log_theta", "all"])
def test_parameters_stay_valid_after_an_absurd_step_of_the_optimiser(name, raw, options):
    layer = RepresentationFlow(20, **options)
    with torch.no_grad():
        for parameter in ("tau_logit", "log_lambda", "log_theta") if name == "all" else (name,):
            getattr(layer, parameter).fill_(raw)
    assert 0 < layer.tau.item() <= 0.25
    assert 0 < layer.lambda_.item() < math.inf
    assert 0 < layer.theta.item() < math.inf
    flow, gradients = gradients_of(layer, random_clip(1, 1, 3, 32, 32))
    assert all(x.isfinite().all() for x in (flow, *gradients))


@pytest.mark.parametrize("raw", [-1e30, -100.0, 0.0, 100.0, 1e30])
@pytest.mark.parametrize("name", ["image_taps", "difference_taps", "divergence_taps", "all"])
def test_kernels_stay_valid_after_an_absurd_step_of_the_optimiser(name, raw):
    layer = RepresentationFlow(20, learn_kernels=True)
    with torch.no_grad():
        for taps in ("image_taps", "difference_taps", "divergence_taps") if name == "all" else (name,):
            getattr(layer, taps).mul_(abs(raw)).add_(raw)
    clip = random_clip(1, 1, 3, 16, 16)
    flow, gradients = gradients_of(layer, clip)
    assert all(x.isfinite().all() for x in (flow, *gradients))
    limited = RepresentationFlow(20, learn_kernels=True)
    limited.load_state_dict({key: x.clamp(-LARGEST_TAP, LARGEST_TAP) for key, x in layer.state_dict().items()})
    torch.testing.assert_close(flow, limited(clip).detach())


@EACH_WAY
def test_computes_in_single_precision_under_autocast_and_on_half_precision_clips(options):
    clip = random_clip(1, 1, 3, 32, 32)
    layer = RepresentationFlow(10, **options)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = layer(clip)
    assert under_autocast.dtype == torch.float32
    assert torch.equal(under_autocast, layer(clip))
    for frames in (1, 3):
        half = clip[:, :, :frames].bfloat16()
        assert layer(half).dtype == torch.float32
        assert torch.equal(layer(half), layer(half.float()))


@EACH_WAY
def test_computes_in_double_precision_on_double_precision_clips(options):
    clip = random_clip(1, 1, 3, 32, 32).double()
    layer = RepresentationFlow(10, **options).double()
    flow = layer(clip)
    assert flow.dtype == torch.float64
    # A change of one part in 10^12 matters, which single precision would lose.
    assert not torch.equal(flow, layer(clip * (1 + 1e-12)))
    assert layer(clip[:, :, :1]).dtype == torch.float64


def test_integer_frames_are_refused():
    with pytest.raises(InputError, match=r"torch\.uint8.*frames\.float\(\) / 255") as raised:
        RepresentationFlow(2)(torch.zeros(1, 1, 2, 16, 16, dtype=torch.uint8))
    assert "\n" not in str(raised.value)


def test_learnt_kernels_start_as_the_fixed_ones():
    clip = random_clip(2, 3, 3, 12, 13)
    torch.testing.assert_close(RepresentationFlow(8, learn_kernels=True)(clip), RepresentationFlow(8)(clip))


@pytest.mark.parametrize("kernel", ["torch", "fused"])
def test_each_channel_may_learn_kernels_of_its_own(kernel):
    clip = random_clip(2, 3, 3, 12, 13).double()
    layer = RepresentationFlow(6, learn_kernels=True, kernel_channels=3, kernel=kernel).double()
    shared = RepresentationFlow(6, learn_kernels=True, kernel=kernel).double()
    torch.testing.assert_close(layer(clip), shared(clip), rtol=0, atol=1e-12)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for taps in [parameter for name, parameter in layer.named_parameters() if "taps" in name]:
            taps.add_(0.2 * torch.randn(taps.shape, generator=generator, dtype=taps.dtype))
    flow, (_, *gradients) = gradients_of(layer, clip)
    for c in range(3):
        shared.load_state_dict({key: x[c] if "taps" in key else x for key, x in layer.state_dict().items()})
        torch.testing.assert_close(flow[:, 2 * c : 2 * c + 2], shared(clip[:, c : c + 1]), rtol=0, atol=1e-12)
    for name, gradient in zip(dict(layer.named_parameters()), gradients, strict=True):
        assert "taps" not in name or gradient.flatten(1).abs().amax(dim=1).min() > 0
    with pytest.raises(InputError, match="2 channels"):
        layer(clip[:, :2])


@pytest.mark.parametrize("options", [PLAIN, {"learn_kernels": True, "kernel_channels": 32}], ids=["fixed", "learnt"])
def test_feature_maps_have_flow_and_gradients(options):
    features = torch.randn(2, 32, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    layer = RepresentationFlow(4, value_range=4, **options)
    flow, gradients = gradients_of(layer, features)
    assert flow.shape == (2, 64, 3, 28, 28)
    assert gradients[0].shape == features.shape
    assert all(x.isfinite().all() and x.abs().max() > 0 for x in gradients)


def test_learnt_kernels_of_an_export_equal_the_layer():
    layer = RepresentationFlow(3, learn_kernels=True, kernel_channels=2)
    clip = random_clip(1, 2, 3, 12, 13)
    exported = torch.export.export(layer, (clip,)).module()
    torch.testing.assert_close(exported(clip), layer(clip), rtol=0, atol=1e-5)


def test_training_changes_learnt_kernels():
    clip = moving_waves(1, 0, frames=3, size=24).float()
    layer = RepresentationFlow(8, learn_kernels=True)
    optimiser = torch.optim.SGD(layer.parameters(), lr=1e-3)
    before = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}

    def loss():
        return (layer(clip) - torch.tensor([1.0, 0.0]).view(1, 2, 1, 1, 1)).square().mean()

    first = loss()
    first.backward()
    optimiser.step()
    for name, parameter in layer.named_parameters():
        assert (parameter != before[name]).all(), name
    assert loss() < first


def smooth_clips(*shape, seed=0):
    """Smooth clips (B, 1, T, H, W). Warping noise would amplify rounding."""
    clips, frames, height, width = shape
    noise = random_clip(clips * frames, 1, height // 4, width // 4, seed=seed)
    smooth = torch.nn.functional.interpolate(noise, size=(height, width), mode="bicubic", align_corners=True)
    return smooth.view(clips, 1, frames, height, width)


@pytest.mark.slow
@pytest.mark.parametrize("options", [PLAIN, LEARNT, {"warps": 1}], ids=["plain", "learnt kernels", "warped"])
def test_compiles_as_one_graph_for_any_batch_length_and_size(options):
    torch._dynamo.reset()
    layer = RepresentationFlow(2, **options)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape, stance in (((2, 4, 34, 48), "default"), ((3, 5, 71, 37), "fail_on_recompile")):
        clip = smooth_clips(*shape)
        with torch.compiler.set_stance(stance):
            flow, gradients = gradients_of(compiled, clip)
        expected, expected_gradients = gradients_of(layer, clip)
        torch.testing.assert_close(flow, expected, rtol=0, atol=1e-4)
        for ours, theirs in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


# torch treats dimensions of 1, such as a single pair, as a case of their own.
DYNAMIC = (dict.fromkeys((0, 2, 3, 4), Dim.DYNAMIC),)


@pytest.mark.slow
@EACH_WAY
def test_exports_for_any_batch_length_and_size(options):
    layer = RepresentationFlow(2, **options)
    exported = torch.export.export(layer, (smooth_clips(2, 3, 34, 40),), dynamic_shapes=DYNAMIC)
    for shape in ((1, 4, 71, 37), (3, 6, 32, 60)):
        clip = smooth_clips(*shape)
        torch.testing.assert_close(exported.module()(clip), layer(clip), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_exports_to_onnx_for_any_batch_length_and_size(tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    layer = RepresentationFlow(2).eval()
    program = torch.onnx.export(
        layer, (smooth_clips(2, 3, 20, 24),), dynamo=True, dynamic_shapes=DYNAMIC, input_names=["clip"], verbose=False
    )
    assert program is not None
    program.save(tmp_path / "flow.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(tmp_path / "flow.onnx", options, providers=["CPUExecutionProvider"])
    for shape in ((1, 4, 33, 17), (3, 6, 8, 40)):
        clip = smooth_clips(*shape)
        (flow,) = session.run(None, {"clip": clip.numpy()})
        torch.testing.assert_close(torch.from_numpy(flow), layer(clip).detach(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"iterations": 0}, "iterations"),
        ({"iterations": -3}, "iterations"),
        ({"levels": 0, "warps": 1}, "levels"),
        ({"warps": -1}, "warps"),
        ({"levels": 2}, "warps"),
        ({"value_range": 0.0}, "value_range"),
        ({"value_range": -1.0}, "value_range"),
        ({"value_range": math.inf}, "value_range"),
        ({"value_range": math.nan}, "value_range"),
    ],
    ids=str,
)
def test_numbers_out_of_range_are_refused(numbers, said):
    with pytest.raises(InputError, match=said) as raised:
        RepresentationFlow(**numbers)
    assert "\n" not in str(raised.value)


def test_a_frame_difference_is_the_next_frame_minus_this_one():
    clip = random_clip(2, 3, 4, 5, 6)
    difference = FrameDifference()(clip)
    for t in range(3):
        torch.testing.assert_close(difference[:, :, t], clip[:, :, t + 1] - clip[:, :, t])
    torch.testing.assert_close(difference[:, :, 3], clip[:, :, 3] - clip[:, :, 2])
    assert torch.equal(FrameDifference()(clip[:, :, :1]), torch.zeros(2, 3, 1, 5, 6))


def test_make_flow_follows_the_config():
    assert isinstance(make_flow(FlowConfig(kind="difference")), FrameDifference)
    layer = make_flow(FlowConfig(iterations=7, levels=3, warps=2, learn_kernels=True))
    assert isinstance(layer, RepresentationFlow)
    assert (layer.iterations, layer.levels, layer.warps) == (7, 3, 2)
    assert layer.difference_taps is not None
    clip = random_clip(1, 1, 2, 16, 16)
    torch.testing.assert_close(make_flow(FlowConfig())(clip), RepresentationFlow(20, value_range=1.0)(clip))


def test_make_flow_learns_kernels_of_each_colour():
    colours = make_flow(FlowConfig(learn_kernels=True, kernels_per_channel=True, input="rgb"))
    assert isinstance(colours, RepresentationFlow)
    assert colours.image_taps is not None
    assert colours.image_taps.shape == (3, 2, 3)


@pytest.mark.parametrize("kind", ["tvl1", "difference"])
def test_the_flow_of_colours_is_that_of_each_colour(kind):
    torch.manual_seed(0)
    flow = FlowConfig(kind=kind, iterations=3, input="rgb")
    model = build(ModelConfig(streams=["rgb", "flow"], width=0.125, flow=flow), classes=3, segment_classes=2)
    clip = random_clip(2, 3, 3, 64, 64)
    shown = model.representations["flow"](clip)
    of_colours = make_flow(flow)(clip)
    assert torch.equal(shown.tower_input, of_colours)
    assert torch.equal(shown.prediction, of_colours.unflatten(1, (3, -1)).mean(dim=1))
    model(clip, ["flow", "merged"]).logits["merged"].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.early["flow"].parameters())


def test_a_model_trains_on_frame_differences():
    torch.manual_seed(0)
    config = ModelConfig(streams=["rgb", "flow"], width=0.125, flow=FlowConfig(kind="difference"))
    model = build(config, classes=3, segment_classes=2)
    clip = random_clip(2, 3, 3, 64, 64)
    output = model(clip, ["flow", "merged"])
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1, 1)
    grey = (clip * luma).sum(dim=1, keepdim=True)
    shown = output.representations["flow"].prediction
    torch.testing.assert_close(shown[:, :, :2], grey[:, :, 1:] - grey[:, :, :-1], rtol=0, atol=1e-6)
    assert output.logits["merged"].shape == (2, 3)
    output.logits["merged"].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.early["flow"].parameters())


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"kind": "farneback"}, "model.flow.kind"),
        ({"iterations": 0}, "model.flow.iterations"),
        ({"levels": 0}, "model.flow.levels"),
        ({"warps": -1}, "model.flow.warps"),
        ({"levels": 3}, "model.flow.warps"),
        ({"kernel": "numba"}, "model.flow.kernel"),
        ({"kernels_per_channel": True}, "model.flow.kernels_per_channel"),
        ({"input": "hsv"}, "model.flow.input"),
    ],
    ids=str,
)
def test_invalid_flow_values_name_their_key(values, key):
    with pytest.raises(InputError) as raised:
        from_dict({"model": {"flow": values}})
    message = str(raised.value)
    assert key in message
    assert str(next(iter(values.values()))) in message
    assert "\n" not in message


def test_the_command_line_takes_only_known_kinds_of_flow():
    parser = ArgumentParser(exit_on_error=False)
    add_config_arguments(parser)
    parsed = parser.parse_args(["--model.flow.kind", "difference"])
    assert config_from(parser.instantiate(parsed)).model.flow.kind == "difference"
    with pytest.raises(Exception, match="farneback") as raised:
        parser.parse_args(["--model.flow.kind", "farneback"])
    assert "model.flow.kind" in str(raised.value)
    assert "difference" in str(raised.value)
