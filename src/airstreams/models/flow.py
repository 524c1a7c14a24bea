"""Optical flow inside the network (section 3.1, "Optical Flow Stream"): Representation Flow, and what may stand for it.

Representation Flow is TV-L1 optical flow as a differentiable layer: Zach, Pock and Bischof, *A duality based approach
for realtime TV-L1 optical flow* (2007), a fixed number of iterations of it as in Piergiovanni and Ryoo, *Representation
Flow for Action Recognition* (CVPR 2019). For two frames I0 and I1 it lowers, over u = (u1, u2),

    E(u) = sum over pixels of |grad u1| + |grad u2| + lambda |rho(u)|,    rho(u) = I1 - I0 + <grad I1, u>

through an auxiliary v close to u: the sum of |grad u1| + |grad u2| + |u - v|^2 / (2 theta) + lambda |rho(v)|, by
alternating, from u = 0 and p = 0,

    v  =  u - clamp(rho(u) / |grad I1|^2, -lambda theta, lambda theta) grad I1      (thresholding, in closed form)
    u  =  v + theta div p                                                           (one p for each component of u)
    p  =  (p + tau/theta grad u) / (1 + tau/theta |grad u|)                         (stable for 0 < tau <= 1/4)

Differences of u are forward with zero at the far border (right, bottom), the divergence is the negative adjoint of
that, so p is taken as zero outside; image gradients are central with zero at all borders, and where an image has no
gradient, v = u. One level and no warping, as in the 2019 paper: motion of more than a pixel or two is underestimated.
With `levels` and `warps` the same iterations are the full solver of the 2007 paper, coarse to fine.

The constants below suit intensities of 0 to 255, so frames are scaled by a constant; scaling by a frame's or a
batch's own range would break brightness constancy and make a clip's flow depend on the clips beside it.
"""

import math
import os
import shutil
import sysconfig
from contextlib import suppress
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from airstreams.config import FlowConfig
from airstreams.errors import InputError
from airstreams.models.tvl1 import iterate

# Triton compiles a launcher in C. Without a compiler, Python's headers or Triton, a GPU runs the operations of tvl1.py.
_compiles = any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang")))
if torch.cuda.is_available() and _compiles and Path(sysconfig.get_path("include"), "Python.h").is_file():
    with suppress(ImportError):
        from airstreams.models import tvl1_gpu  # noqa: F401

TAU, LAMBDA, THETA = 0.2, 0.15, 0.3  # before learning; lambda and theta as in Zach et al.
MAX_TAU = 0.25  # the dual step is stable up to here
LARGEST_RAW = 8.0  # the learnt logarithms count up to here either way, so that float32 neither overflows nor ends in 0
LARGEST_TAP = 2.0  # of a learnt kernel, either way
SMALLEST_SIDE = 16  # px, of a pyramid's coarsest level

# Additions, multiplications, divisions, comparisons and roots on one pixel: of the thresholding step and u (4 for rho
# over the squared gradient, 2 for the clamp, 6 for each component), of p (14 for each component), and once a solve
# (difference 1, image gradient 4, its square 3, its inverse 2, the residual's offset 2 and slope 4, the gradient's
# scale 2, the flow's 2).
PRIMAL_OPERATIONS, DUAL_OPERATIONS, SOLVE_OPERATIONS = 18, 28, 20


class RepresentationFlow(nn.Module):
    """TV-L1 optical flow between consecutive frames, channel by channel, in px a frame.

    tau, lambda and theta are learnable and stay in their valid range (0 < tau <= 1/4, lambda and theta over 0 and
    finite) whatever the optimiser does. Computes in float32 also under autocast and for lower precisions, in float64
    for float64. Gradients reach frames and parameters, first derivatives alone.

    Args:
        iterations: of the three steps above, at least 1; at each warp where there are any.
        value_range: what one unit of full brightness is in the input: 1 for clips in 0..1, 255 for 0..255.
        levels: of a pyramid, each half as large as the one before, down to a side of 16 px; 1: none.
        warps: how often, at each level, the second frame is warped by the flow so far and the iterations run about that
            flow; 0: they run once, about rest.
        learn_kernels: learn the kernels of the image gradient, of the flow's differences and of the divergence too,
            from the ones above and shared by all channels, as the 2019 paper does. Taps stay in -2..2. This unrolls the
            iterations: some twenty times the memory in training.

    Raises:
        InputError: for a number that is out of range.
    """

    channels = 2  # for each channel of the clip

    def __init__(
        self,
        iterations: int = 20,
        value_range: float = 1.0,
        *,
        levels: int = 1,
        warps: int = 0,
        learn_kernels: bool = False,
    ) -> None:
        super().__init__()
        for name, given, least in (("iterations", iterations, 1), ("levels", levels, 1), ("warps", warps, 0)):
            if given < least:
                raise InputError(f"flow: {name} is {given}: expected at least {least}")
        if levels > 1 and warps == 0:
            raise InputError(f"flow: {levels} levels and no warps: a finer level starts from a warp, give at least 1")
        if not 0 < value_range < math.inf:
            raise InputError(f"flow: value_range is {value_range}: expected 1 for clips in 0..1 or 255 for 0..255")
        self.iterations = iterations
        self.levels = levels
        self.warps = warps
        self.scale = 255.0 / value_range
        self.tau_logit = nn.Parameter(torch.tensor(math.log(TAU / (MAX_TAU - TAU))))
        self.log_lambda = nn.Parameter(torch.tensor(math.log(LAMBDA)))
        self.log_theta = nn.Parameter(torch.tensor(math.log(THETA)))
        # A row of taps for x, from left to right, and one for y, from top to bottom.
        self.image_taps = nn.Parameter(torch.tensor([[-0.5, 0.0, 0.5]] * 2)) if learn_kernels else None
        self.difference_taps = nn.Parameter(torch.tensor([[-1.0, 1.0]] * 2)) if learn_kernels else None
        self.divergence_taps = nn.Parameter(torch.tensor([[-1.0, 1.0]] * 2)) if learn_kernels else None

    @property
    def tau(self) -> Tensor:
        """The dual step."""
        return MAX_TAU * torch.sigmoid(_limited(self.tau_logit))

    @property
    def lambda_(self) -> Tensor:
        """The weight of the brightness term."""
        return _limited(self.log_lambda).exp()

    @property
    def theta(self) -> Tensor:
        """How tightly v is bound to u."""
        return _limited(self.log_theta).exp()

    def forward(self, clip_BCTHW: Tensor) -> Tensor:
        """Flow (B, 2C, T, H, W) of a float clip: channels 2c and 2c + 1 are x (right) and y (down) of channel c.

        Frame t holds the flow from t to t + 1; the last frame repeats the last pair's. One frame alone has no motion:
        zeros. C may be any number, such as a feature map's.

        InputError: frames less than 2 px wide or high, or of whole numbers.
        """
        if not clip_BCTHW.is_floating_point():
            mend = "frames.float() / 255, or frames.float() with value_range=255"
            raise InputError(f"flow: frames of {clip_BCTHW.dtype}: expected floating-point ones; give {mend}")
        B, C, T, H, W = clip_BCTHW.shape
        if min(H, W) < 2:
            raise InputError(f"flow: frames of {W}x{H} px: expected at least 2 px either way")
        # Autocast lowers none of the operations below, so float32 in is float32 throughout.
        clip_BCTHW = clip_BCTHW.to(torch.promote_types(clip_BCTHW.dtype, torch.float32))
        if T == 1:
            return clip_BCTHW.new_zeros(B, 2 * C, 1, H, W)
        clip_BCTHW = clip_BCTHW.contiguous() * self.scale
        first_NHW = clip_BCTHW[:, :, :-1].reshape(-1, H, W)
        second_NHW = clip_BCTHW[:, :, 1:].reshape(-1, H, W)
        flow_2NHW = self._solve(first_NHW, second_NHW)
        flow_BCTHW = flow_2NHW.unflatten(1, (B, C, T - 1)).permute(1, 2, 0, 3, 4, 5).flatten(1, 2)
        return torch.cat((flow_BCTHW, flow_BCTHW[:, :, -1:]), dim=2)

    def operations(self, height: int, width: int) -> int:
        """Elementary operations on one pair of frames: multiply-adds are half of them."""
        a_solve = SOLVE_OPERATIONS + self.iterations * PRIMAL_OPERATIONS + (self.iterations - 1) * DUAL_OPERATIONS
        pixels = sum(h * w for h, w in self._sizes(height, width))
        return pixels * max(self.warps, 1) * a_solve

    def _solve(self, first_NHW: Tensor, second_NHW: Tensor) -> Tensor:
        if self.warps == 0:
            return self._iterate(first_NHW, second_NHW)
        flow_2NHW = first_NHW.new_zeros(2, *first_NHW.shape)
        for size in reversed(self._sizes(*first_NHW.shape[-2:])):
            first, second = _resized(first_NHW, size), _resized(second_NHW, size)
            height, width = flow_2NHW.shape[-2:]
            x_NHW, y_NHW = _resized(flow_2NHW, size)
            flow_2NHW = torch.stack((x_NHW * (size[1] / width), y_NHW * (size[0] / height)))
            for _ in range(self.warps):
                flow_2NHW = self._iterate(first, warp(second, flow_2NHW), about=flow_2NHW)
        return flow_2NHW

    def _sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Height and width of each level, the finest first."""
        sizes = [(height, width)]
        while len(sizes) < self.levels and min(sizes[-1]) >= 2 * SMALLEST_SIDE:
            sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
        return sizes

    def _iterate(self, first_NHW: Tensor, second_NHW: Tensor, about: Tensor | None = None) -> Tensor:
        """The flow of a pair, by iterations from `about`, which the second frame was warped by; None: from rest."""
        taps_x, taps_y = (None, None) if self.image_taps is None else _taps(self.image_taps).unbind()
        gradient_2NHW = torch.stack(
            (_image_gradient(second_NHW, -1, taps_x), _image_gradient(second_NHW, -2, taps_y)),
        )
        squared_NHW = gradient_2NHW.square().sum(dim=0)
        # Below this, which no image of 8 or 16 bits comes near, the quotient's derivative overflows.
        flat_NHW = squared_NHW < torch.finfo(squared_NHW.dtype).tiny ** (1 / 3)
        inverse_NHW = torch.where(flat_NHW, 0, 1 / torch.where(flat_NHW, 1, squared_NHW))
        residual_NHW = second_NHW - first_NHW
        if about is not None:
            residual_NHW = residual_NHW - (gradient_2NHW * about).sum(dim=0)
        # In units of theta/tau for u and of lambda theta for the clamped quotient, tau alone is left in the iterations.
        tau, unit = self.tau, self.theta / self.tau
        flow_2NHW = iterate(
            offset=residual_NHW * (inverse_NHW / (self.lambda_ * self.theta)),
            slope=gradient_2NHW * (inverse_NHW / (self.lambda_ * tau)),
            gradient=gradient_2NHW * (self.lambda_ * tau),
            tau=tau,
            iterations=self.iterations,
            start=None if about is None else about / unit,
            difference_taps=None if self.difference_taps is None else _taps(self.difference_taps),
            divergence_taps=None if self.divergence_taps is None else _taps(self.divergence_taps),
        )
        return flow_2NHW * unit


class FrameDifference(nn.Module):
    """What changes from frame to frame, the plainest stand-in for flow: the next frame less this one, by channel."""

    channels = 1  # for each channel of the clip

    def forward(self, clip_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W), in the clip's own units; the last frame repeats the last difference, one alone has none."""
        if clip_BCTHW.shape[2] == 1:
            return torch.zeros_like(clip_BCTHW)
        difference_BCTHW = clip_BCTHW.diff(dim=2)
        return torch.cat((difference_BCTHW, difference_BCTHW[:, :, -1:]), dim=2)

    def operations(self, height: int, width: int) -> int:
        """Elementary operations on one pair of frames."""
        return height * width


def make_flow(config: FlowConfig) -> RepresentationFlow | FrameDifference:
    """The flow layer of a config, by its kind, for clips in 0..1."""
    if config.kind == "difference":
        return FrameDifference()
    return RepresentationFlow(
        config.iterations, levels=config.levels, warps=config.warps, learn_kernels=config.learn_kernels
    )


def warp(frames_NHW: Tensor, flow_2NHW: Tensor) -> Tensor:
    """Frames (N, H, W) as seen at x + flow(x), bicubic, the border's values outside."""
    height, width = frames_NHW.shape[-2:]
    x = torch.arange(width, device=frames_NHW.device, dtype=frames_NHW.dtype) + flow_2NHW[0]
    y = torch.arange(height, device=frames_NHW.device, dtype=frames_NHW.dtype)[:, None] + flow_2NHW[1]
    places_NHW2 = torch.stack((x * (2 / (width - 1)) - 1, y * (2 / (height - 1)) - 1), dim=-1)
    warped = F.grid_sample(frames_NHW[:, None], places_NHW2, "bicubic", padding_mode="border", align_corners=True)
    return warped[:, 0]


def _limited(raw: Tensor) -> Tensor:
    return raw.clamp(-LARGEST_RAW, LARGEST_RAW)


def _taps(raw: Tensor) -> Tensor:
    return raw.clamp(-LARGEST_TAP, LARGEST_TAP)


def _image_gradient(image_NHW: Tensor, dim: int, taps: Tensor | None) -> Tensor:
    """Central differences, or learnt taps in their place; zero at the border."""
    length = image_NHW.shape[dim]
    before, after = image_NHW.narrow(dim, 0, length - 2), image_NHW.narrow(dim, 2, length - 2)
    if taps is None:
        inner = (after - before) * 0.5
    else:
        inner = taps[0] * before + taps[1] * image_NHW.narrow(dim, 1, length - 2) + taps[2] * after
    return F.pad(inner, (1, 1) if dim == -1 else (0, 0, 1, 1))


def _resized(maps_xHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (..., H, W) at another size, smoothed first where that is smaller."""
    if maps_xHW.shape[-2:] == size:
        return maps_xHW
    flat = maps_xHW.reshape(1, -1, *maps_xHW.shape[-2:])
    resized = F.interpolate(flat, size=size, mode="bilinear", align_corners=False, antialias=True)
    return resized.reshape(*maps_xHW.shape[:-2], *size)
