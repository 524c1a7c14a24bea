"""Representation Flow: TV-L1 optical flow as a differentiable layer (section 3.1, "Optical Flow Stream").

Zach, Pock and Bischof, *A duality based approach for realtime TV-L1 optical flow* (2007), unrolled for a fixed number
of iterations as in Piergiovanni and Ryoo, *Representation Flow for Action Recognition* (CVPR 2019). For two frames I0
and I1 it lowers

    E(u) = sum over pixels of |grad u1| + |grad u2| + lambda |rho(u)|,    rho(u) = I1 - I0 + <grad I1, u>

by alternating, from u = 0 and p = 0,

    v  =  u - clamp(rho(u) / |grad I1|^2, -lambda theta, lambda theta) grad I1      (thresholding, in closed form)
    u  =  v + theta div p
    p  =  (p + tau/theta grad u) / (1 + tau/theta |grad u|)                         (one p for each component of u)

Differences of u are forward with zero at the far border, the divergence is the negative adjoint of that, and image
gradients are central with zero at the border. One level and no warping, as in the 2019 paper: motion of more than a
pixel or two is underestimated.

The constants below suit intensities of 0 to 255, so frames are scaled by a constant; scaling by a frame's or a
batch's own range would break brightness constancy and make a clip's flow depend on the clips beside it.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TAU, LAMBDA, THETA = 0.2, 0.15, 0.3  # before learning; lambda and theta as in Zach et al.
MAX_TAU = 0.25  # the dual step is stable up to here
LARGEST_RAW = 8.0  # the learnt logarithms count up to here either way, so that float32 neither overflows nor ends in 0
SQUARED_GRADIENT_FLOOR = 1e-6  # keeps the quotient finite where the image has no gradient
SQUARED_NORM_FLOOR = 1e-12  # keeps the square root's derivative finite where the flow has no gradient

# Additions, multiplications, divisions, comparisons and roots on one pixel, counted off `_iterate`: in one iteration,
# 4 for rho over the squared gradient, 2 for the clamp, 4 for each component of u, 3 for each divergence and 15 for
# each dual step ...
OPERATIONS_PER_PIXEL_AND_ITERATION = 50
# ... and once a pair of frames: grey value 5, scaling 1, image gradient 4, its square 4, quotients 4.
OPERATIONS_PER_PIXEL = 18


class RepresentationFlow(nn.Module):
    """Optical flow between consecutive frames, channel by channel, in px a frame.

    tau, lambda and theta are learnable and stay in their valid range (0 < tau <= 1/4, lambda and theta over 0 and
    finite) whatever the optimiser does. Computes in float32 also under autocast and for lower precisions, in float64
    for float64.

    Args:
        iterations: of the three steps above.
        value_range: what one unit of full brightness is in the input: 1 for clips in 0..1, 255 for 0..255.
    """

    def __init__(self, iterations: int = 20, value_range: float = 1.0) -> None:
        super().__init__()
        self.iterations = iterations
        self.scale = 255.0 / value_range
        self.tau_logit = nn.Parameter(torch.tensor(math.log(TAU / (MAX_TAU - TAU))))
        self.log_lambda = nn.Parameter(torch.tensor(math.log(LAMBDA)))
        self.log_theta = nn.Parameter(torch.tensor(math.log(THETA)))

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
        zeros.
        """
        B, C, T, H, W = clip_BCTHW.shape
        # Autocast lowers none of the element-wise operations below, so float32 in is float32 throughout.
        clip_BCTHW = clip_BCTHW.to(torch.promote_types(clip_BCTHW.dtype, torch.float32))
        if T == 1:
            return clip_BCTHW.new_zeros(B, 2 * C, 1, H, W)
        clip_BCTHW = clip_BCTHW.contiguous() * self.scale
        x_BCTHW, y_BCTHW = self._iterate(clip_BCTHW[:, :, :-1], clip_BCTHW[:, :, 1:])
        flow_BCTHW = torch.stack((x_BCTHW, y_BCTHW), dim=2).flatten(1, 2)
        return torch.cat((flow_BCTHW, flow_BCTHW[:, :, -1:]), dim=2)

    def _iterate(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        tau_over_theta = self.tau / self.theta
        bound = self.lambda_ * self.theta
        gradient_x, gradient_y = _central_difference(second, -1), _central_difference(second, -2)
        squared = gradient_x.square() + gradient_y.square() + SQUARED_GRADIENT_FLOOR
        # rho / squared = offset + <slope, u>: the division is done once instead of in every iteration.
        offset = (second - first) / squared
        slope_x, slope_y = gradient_x / squared, gradient_y / squared
        u, v = torch.zeros_like(first), torch.zeros_like(first)
        # The duals' differences at the far border are zero by construction, so they are kept without that row or
        # column.
        u_dual = (torch.zeros_like(first[..., :-1]), torch.zeros_like(first[..., :-1, :]))
        v_dual = (torch.zeros_like(first[..., :-1]), torch.zeros_like(first[..., :-1, :]))
        for iteration in range(self.iterations):
            step = torch.minimum(torch.maximum(offset + slope_x * u + slope_y * v, -bound), bound)
            u = u - step * gradient_x + self.theta * _divergence(*u_dual)
            v = v - step * gradient_y + self.theta * _divergence(*v_dual)
            if iteration + 1 < self.iterations:  # the last dual step would be thrown away
                u_dual = _dual_step(u, u_dual, tau_over_theta)
                v_dual = _dual_step(v, v_dual, tau_over_theta)
        return u, v


def _limited(raw: Tensor) -> Tensor:
    return raw.clamp(-LARGEST_RAW, LARGEST_RAW)


def _central_difference(image: Tensor, dim: int) -> Tensor:
    length = image.shape[dim]
    inner = (image.narrow(dim, 2, length - 2) - image.narrow(dim, 0, length - 2)) * 0.5
    return F.pad(inner, (1, 1) if dim == -1 else (0, 0, 1, 1))


def _divergence(dual_x: Tensor, dual_y: Tensor) -> Tensor:
    """Backward differences with zero outside: the negative adjoint of the forward differences."""
    along_x = F.pad(dual_x, (0, 1)) - F.pad(dual_x, (1, 0))
    along_y = F.pad(dual_y, (0, 0, 0, 1)) - F.pad(dual_y, (0, 0, 1, 0))
    return along_x + along_y


def _dual_step(component: Tensor, dual: tuple[Tensor, Tensor], rate: Tensor) -> tuple[Tensor, Tensor]:
    along_x = component[..., 1:] - component[..., :-1]
    along_y = component[..., 1:, :] - component[..., :-1, :]
    squared = F.pad(along_x.square(), (0, 1)) + F.pad(along_y.square(), (0, 0, 0, 1))
    damping = 1 + rate * (squared + SQUARED_NORM_FLOOR).sqrt()
    return (
        (dual[0] + rate * along_x) / damping[..., :-1],
        (dual[1] + rate * along_y) / damping[..., :-1, :],
    )
