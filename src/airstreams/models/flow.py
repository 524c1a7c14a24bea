"""Optical flow inside the network (section 3.1, "Optical Flow Stream"): the Representation Flow layer.

Representation Flow is TV-L1 optical flow as a differentiable layer. TV-L1 is by Zach, Pock and Bischof, *A duality
based approach for realtime TV-L1 optical flow* (2007). The layer, with a fixed number of iterations, is by Piergiovanni
and Ryoo, *Representation Flow for Action Recognition* (CVPR 2019). For two frames I0 and I1, TV-L1 minimises over the
flow u = (u1, u2)

    E(u) = sum over pixels of |grad u1| + |grad u2| + lambda |rho(u)|,    rho(u) = I1 - I0 + <grad I1, u>

It introduces an auxiliary flow v close to u, and minimises instead the sum over pixels of

    |grad u1| + |grad u2| + |u - v|^2 / (2 theta) + lambda |rho(v)|

by three steps in turn, from u = 0 and p = 0:

    v  =  u - clamp(rho(u) / |grad I1|^2, -lambda theta, lambda theta) grad I1      (thresholding, in closed form)
    u  =  v + theta div p                                                           (one p for each component of u)
    p  =  (p + tau/theta grad u) / (1 + tau/theta |grad u|)                         (stable for 0 < tau <= 1/4)

Differences of u are forward, and zero at the far border (right, bottom). The divergence is their negative adjoint, so
p counts as zero outside. Image gradients are central, and zero at all borders. Where an image has no gradient, v = u.
There is one pyramid level and no warp, as in the 2019 paper, so motion of more than a pixel or two is underestimated.
With `levels` and `warps` the same iterations are the full solver of the 2007 paper, coarse to fine.

The constants below suit intensities in 0..255, so frames are multiplied by a constant. A scale from a frame's or a
batch's own range would break brightness constancy, and a clip's flow would depend on the clips beside it.
"""

import math
import os
import shutil
import sysconfig
from contextlib import suppress
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from airstreams.config import FlowConfig
from airstreams.errors import InputError
from airstreams.models import tvl1_cpu
from airstreams.models.tvl1 import iterate

# Triton compiles a launcher in C, so it needs a compiler and Python's headers. Without them, or without Triton, a GPU
# runs the plain operations of tvl1.py.
_has_compiler = any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang")))
if torch.cuda.is_available() and _has_compiler and Path(sysconfig.get_path("include"), "Python.h").is_file():
    with suppress(ImportError):
        from airstreams.models import tvl1_gpu  # noqa: F401

TAU, LAMBDA, THETA = 0.2, 0.15, 0.3  # the initial values; lambda and theta as in Zach et al.
MAX_TAU = 0.25  # the dual step is stable up to here
LARGEST_RAW = 8.0  # bound on the learnt logarithms, either way: float32 neither overflows nor underflows
LARGEST_TAP = 2.0  # bound on the weights of a learnt kernel, either way
SMALLEST_SIDE = 16  # px: the coarsest level of a pyramid is at least this high and wide

# Additions, multiplications, divisions, comparisons and roots per pixel:
# primal: the thresholding step and u (4 for rho over the squared gradient, 2 for the clamp, 6 for each component);
# dual: p (14 for each component);
# solve: once per pair of frames (difference 1, image gradient 4, its square 3, its inverse 2, the residual's offset 2
# and slope 4, the gradient's scale 2, the flow's 2).
PRIMAL_OPERATIONS, DUAL_OPERATIONS, SOLVE_OPERATIONS = 18, 28, 20


class RepresentationFlow(nn.Module):
    """TV-L1 optical flow between consecutive frames, channel by channel, in px per frame.

    tau, lambda and theta are learnt. They stay in their valid range whatever the optimiser does: 0 < tau <= 1/4, and
    lambda and theta are positive and finite. The layer computes in float32, also under autocast and for lower
    precisions, and in float64 for float64. Gradients reach the frames and the parameters. Only first derivatives exist.

    Args:
        iterations: how often the three steps above run, at least once. With warps: at each warp.
        value_range: the value of full brightness in the input: 1 for clips in 0..1, 255 for clips in 0..255.
        levels: pyramid levels. Each is half as large as the one before, down to a side of 16 px. 1: full size only.
        warps: warps at each level. Each warps the second frame by the flow so far, and runs the iterations from that
            flow. 0: the iterations run once, from zero flow.
        learn_kernels: also learn the kernels of the image gradient, of the flow's differences and of the divergence, as
            the 2019 paper does. They start as above, and stay in -2..2.
        kernel_channels: the clip's channels, if each learns kernels of its own, as in the 2019 paper's code. None: all
            channels share them, and their number is free.
        kernel: `torch`, or `fused` for the C kernel of `tvl1_cpu.py` on a CPU. It needs a C compiler; torch's
            operations run where there is none. The two differ by rounding. Other devices run the same for both.

    Raises:
        InputError: a number is out of range.
    """

    channels = 2  # per channel of the clip

    def __init__(
        self,
        iterations: int = 20,
        value_range: float = 1.0,
        *,
        levels: int = 1,
        warps: int = 0,
        learn_kernels: bool = False,
        kernel_channels: int | None = None,
        kernel: Literal["torch", "fused"] = "torch",
    ) -> None:
        super().__init__()
        for name, given, least in (("iterations", iterations, 1), ("levels", levels, 1), ("warps", warps, 0)):
            if given < least:
                raise InputError(f"flow: {name} is {given}. Give at least {least}.")
        if levels > 1 and warps == 0:
            raise InputError(f"flow: {levels} levels need warps, and warps is 0. Give at least 1.")
        if not 0 < value_range < math.inf:
            raise InputError(f"flow: value_range is {value_range}. Give 1 for clips in 0..1, 255 for 0..255.")
        self.iterations = iterations
        self.levels = levels
        self.warps = warps
        self.kernel = kernel
        self.scale = 255.0 / value_range
        self.tau_logit = nn.Parameter(torch.tensor(math.log(TAU / (MAX_TAU - TAU))))
        self.log_lambda = nn.Parameter(torch.tensor(math.log(LAMBDA)))
        self.log_theta = nn.Parameter(torch.tensor(math.log(THETA)))
        # Each has a row of weights for x, from left to right, and a row for y, from top to bottom. With sets of its own
        # for each channel, the channel comes first.
        sets = () if kernel_channels is None else (kernel_channels,)
        self.image_taps = _learnt(-0.5, 0.0, 0.5, sets=sets) if learn_kernels else None
        self.difference_taps = _learnt(-1.0, 1.0, sets=sets) if learn_kernels else None
        self.divergence_taps = _learnt(-1.0, 1.0, sets=sets) if learn_kernels else None

    @property
    def tau(self) -> Tensor:
        """The step size of p, in 0 < tau <= 1/4."""
        return MAX_TAU * torch.sigmoid(_limited(self.tau_logit))

    @property
    def lambda_(self) -> Tensor:
        """The weight of the brightness term, positive and finite."""
        return _limited(self.log_lambda).exp()

    @property
    def theta(self) -> Tensor:
        """How far v may be from u, positive and finite."""
        return _limited(self.log_theta).exp()

    def forward(self, clip_BCTHW: Tensor) -> Tensor:
        """Compute the flow (B, 2C, T, H, W) of a float clip, in px per frame.

        Channels 2c and 2c + 1 are x (right) and y (down) of the clip's channel c. Frame t holds the flow from t to
        t + 1. The last frame repeats the flow before it. A clip of one frame gets zeros. C may be any number.

        Raises:
            InputError: the frames are less than 2 px wide or high, or integers, or the layer has learnt kernels for
                another number of channels.
        """
        if not clip_BCTHW.is_floating_point():
            fix = "Give frames.float() / 255, or frames.float() with value_range=255."
            raise InputError(f"flow: the frames are {clip_BCTHW.dtype}, not floating-point. {fix}")
        B, C, T, H, W = clip_BCTHW.shape
        if min(H, W) < 2:
            raise InputError(f"flow: the frames have {W}x{H} px. Give frames at least 2 px wide and high.")
        if self.image_taps is not None and self.image_taps.ndim == 3 and len(self.image_taps) != C:
            raise InputError(f"flow: the clip has {C} channels. Give {len(self.image_taps)}, as many as learn kernels.")
        # Autocast changes none of the operations below, so float32 stays float32.
        clip_BCTHW = clip_BCTHW.to(torch.promote_types(clip_BCTHW.dtype, torch.float32))
        if T == 1:
            return clip_BCTHW.new_zeros(B, 2 * C, 1, H, W)
        clip_BCTHW = clip_BCTHW.contiguous() * self.scale
        first_NHW = clip_BCTHW[:, :, :-1].reshape(-1, H, W)
        second_NHW = clip_BCTHW[:, :, 1:].reshape(-1, H, W)
        flow_2NHW = self._solve(first_NHW, second_NHW, self._taps(B, C, T - 1, clip_BCTHW.dtype))
        flow_BCTHW = flow_2NHW.unflatten(1, (B, C, T - 1)).permute(1, 2, 0, 3, 4, 5).flatten(1, 2)
        return torch.cat((flow_BCTHW, flow_BCTHW[:, :, -1:]), dim=2)

    def operations(self, height: int, width: int) -> int:
        """Elementary operations for one pair of frames of that size; multiply-adds are half as many."""
        per_pixel = SOLVE_OPERATIONS + self.iterations * PRIMAL_OPERATIONS + (self.iterations - 1) * DUAL_OPERATIONS
        pixels = sum(h * w for h, w in self._sizes(height, width))
        return pixels * max(self.warps, 1) * per_pixel

    def _taps(self, B: int, C: int, pairs: int, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
        """The learnt kernels, within their bounds, for all N pairs of the clips; None: the fixed ones.

        Those of the image gradient (2, 3, N), and those that `iterate` takes.
        """
        if self.image_taps is None or self.difference_taps is None or self.divergence_taps is None:
            return None

        def for_each_pair(raw: Tensor) -> Tensor:
            taps_C2K = raw.clamp(-LARGEST_TAP, LARGEST_TAP).to(dtype).expand(C, -1, -1)
            return taps_C2K.permute(1, 2, 0)[:, :, None, :, None].expand(-1, -1, B, -1, pairs).flatten(2)

        both = (for_each_pair(self.difference_taps), for_each_pair(self.divergence_taps))
        return for_each_pair(self.image_taps), torch.stack(both)

    def _solve(self, first_NHW: Tensor, second_NHW: Tensor, taps: tuple[Tensor, Tensor] | None) -> Tensor:
        if self.warps == 0:
            return self._iterate(first_NHW, second_NHW, None, taps)
        flow_2NHW = first_NHW.new_zeros(2, *first_NHW.shape)
        for size in reversed(self._sizes(*first_NHW.shape[-2:])):
            first, second = _resized(first_NHW, size), _resized(second_NHW, size)
            height, width = flow_2NHW.shape[-2:]
            x_NHW, y_NHW = _resized(flow_2NHW, size)
            flow_2NHW = torch.stack((x_NHW * (size[1] / width), y_NHW * (size[0] / height)))
            for _ in range(self.warps):
                flow_2NHW = self._iterate(first, warp(second, flow_2NHW), flow_2NHW, taps)
        return flow_2NHW

    def _sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """The height and width of each pyramid level, the finest first."""
        sizes = [(height, width)]
        while len(sizes) < self.levels and min(sizes[-1]) >= 2 * SMALLEST_SIDE:
            sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
        return sizes

    def _iterate(
        self,
        first_NHW: Tensor,
        second_NHW: Tensor,
        start: Tensor | None = None,
        taps: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Flow (2, N, H, W) of N pairs. `start` is the flow that the second frames were warped by; None: zero."""
        if self._runs_fused(first_NHW):
            constants = (self.tau, self.lambda_, self.theta)
            return tvl1_cpu.solve(first_NHW, second_NHW, *constants, self.iterations, start, taps)
        image_taps, dual_taps = (None, None) if taps is None else taps
        taps_x, taps_y = (None, None) if image_taps is None else image_taps[..., None, None]
        gradient_2NHW = torch.stack(
            (_image_gradient(second_NHW, -1, taps_x), _image_gradient(second_NHW, -2, taps_y)),
        )
        squared_NHW = gradient_2NHW.square().sum(dim=0)
        # Below this value the derivative of the quotient overflows. No image of 8 or 16 bits comes near it.
        flat_NHW = squared_NHW < torch.finfo(squared_NHW.dtype).tiny ** (1 / 3)
        inverse_NHW = torch.where(flat_NHW, 0, 1 / torch.where(flat_NHW, 1, squared_NHW))
        residual_NHW = second_NHW - first_NHW
        if start is not None:
            residual_NHW = residual_NHW - (gradient_2NHW * start).sum(dim=0)
        # In units of theta/tau for u and of lambda theta for the clamped quotient, tau is the only constant left.
        tau, unit = self.tau, self.theta / self.tau
        flow_2NHW = iterate(
            offset=residual_NHW * (inverse_NHW / (self.lambda_ * self.theta)),
            slope=gradient_2NHW * (inverse_NHW / (self.lambda_ * tau)),
            gradient=gradient_2NHW * (self.lambda_ * tau),
            tau=tau,
            iterations=self.iterations,
            start=None if start is None else start / unit,
            taps=dual_taps,
        )
        return flow_2NHW * unit

    def _runs_fused(self, frames: Tensor) -> bool:
        if self.kernel != "fused" or frames.device.type != "cpu":
            return False
        # The graph of an export or a compilation must not leave torch.
        if torch.compiler.is_compiling():
            return False
        return tvl1_cpu.library(frames.dtype, learnt=self.image_taps is not None) is not None


class FrameDifference(nn.Module):
    """The next frame minus this one, channel by channel: the simplest alternative to optical flow."""

    channels = 1  # per channel of the clip

    def forward(self, clip_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) in the clip's units. The last frame repeats the difference before it. One frame: zeros."""
        if clip_BCTHW.shape[2] == 1:
            return torch.zeros_like(clip_BCTHW)
        difference_BCTHW = clip_BCTHW.diff(dim=2)
        return torch.cat((difference_BCTHW, difference_BCTHW[:, :, -1:]), dim=2)

    def operations(self, height: int, width: int) -> int:
        """Elementary operations for one pair of frames of that size."""
        return height * width


def make_flow(config: FlowConfig) -> RepresentationFlow | FrameDifference:
    """The flow layer of a config, for clips in 0..1."""
    if config.kind == "difference":
        return FrameDifference()
    return RepresentationFlow(
        config.iterations,
        levels=config.levels,
        warps=config.warps,
        learn_kernels=config.learn_kernels,
        kernel_channels=config.channels if config.kernels_per_channel else None,
        kernel=config.kernel,
    )


def warp(frames_NHW: Tensor, flow_2NHW: Tensor) -> Tensor:
    """Sample frames (N, H, W) at x + flow(x), bicubic. Outside, the border's values continue."""
    height, width = frames_NHW.shape[-2:]
    x = torch.arange(width, device=frames_NHW.device, dtype=frames_NHW.dtype) + flow_2NHW[0]
    y = torch.arange(height, device=frames_NHW.device, dtype=frames_NHW.dtype)[:, None] + flow_2NHW[1]
    grid_NHW2 = torch.stack((x * (2 / (width - 1)) - 1, y * (2 / (height - 1)) - 1), dim=-1)
    warped = F.grid_sample(frames_NHW[:, None], grid_NHW2, "bicubic", padding_mode="border", align_corners=True)
    return warped[:, 0]


def _limited(raw: Tensor) -> Tensor:
    return raw.clamp(-LARGEST_RAW, LARGEST_RAW)


def _learnt(*weights: float, sets: tuple[int, ...]) -> nn.Parameter:
    """Initial weights (*sets, 2, K) of a kernel along x and along y."""
    return nn.Parameter(torch.tensor(weights).repeat(*sets, 2, 1))


def _image_gradient(image_NHW: Tensor, dim: int, taps: Tensor | None) -> Tensor:
    """Central differences, or learnt weights instead of theirs; zero at the border."""
    length = image_NHW.shape[dim]
    before, after = image_NHW.narrow(dim, 0, length - 2), image_NHW.narrow(dim, 2, length - 2)
    if taps is None:
        inner = (after - before) * 0.5
    else:
        inner = taps[0] * before + taps[1] * image_NHW.narrow(dim, 1, length - 2) + taps[2] * after
    return F.pad(inner, (1, 1) if dim == -1 else (0, 0, 1, 1))


def _resized(maps_xHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (..., H, W) at another height and width, with anti-aliasing."""
    if maps_xHW.shape[-2:] == size:
        return maps_xHW
    flat = maps_xHW.reshape(1, -1, *maps_xHW.shape[-2:])
    resized = F.interpolate(flat, size=size, mode="bilinear", align_corners=False, antialias=True)
    return resized.reshape(*maps_xHW.shape[:-2], *size)
