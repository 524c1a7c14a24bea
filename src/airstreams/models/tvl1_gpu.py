"""The iterations of TV-L1 on a GPU: CUDA kernels in Triton for `tvl1.recomputed` and its backward pass.

The operations of `tvl1.py` read and write the planes of a block about forty times per iteration. The kernel of an
iteration reads each plane once, and writes the new flow and dual once. Each pixel also computes the new dual of its
left and upper neighbours, so it does not wait for them. Flow and dual therefore go from one buffer to another. The
backward pass does the same with the adjoints. It recomputes flows and duals, one block of pairs at a time.

With learnt taps, each program takes pixels of one pair alone, and so it has eight taps: (near, far) of the gradient for
x, then for y, and the same of the divergence.

The sums over pixels, for the gradients of tau and of the taps, have a fixed order. So the same input gives the same
bits.

Legend: planes are (N, H, W) of one block of pairs, as one row of `pixels` numbers. `at` is an index into that row. A
flow has two planes (x, y). A dual has four: direction x of both components, then direction y of both.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor

from airstreams.models.tvl1 import _backward, _blocks, recomputed

PIXELS = 512  # per program


Solver = TypeVar("Solver", bound=Callable[..., Any])


def on_device_of_tensors(solver: Solver) -> Solver:
    """Triton launches on the current device. This makes it the device of the first tensor."""

    @wraps(solver)
    def guarded(first: Tensor, *rest: Any) -> Any:
        with torch.cuda.device_of(first):
            return solver(first, *rest)

    return guarded  # type: ignore[return-value]


@recomputed.register_kernel("cuda")
@on_device_of_tensors
def solve(
    offset: Tensor,
    slope: Tensor,
    gradient: Tensor,
    tau: Tensor,
    iterations: int,
    start: Tensor | None = None,
    taps: Tensor | None = None,
) -> Tensor:
    """The forward pass: `tvl1.in_place`."""
    flow = torch.empty_like(gradient, memory_format=torch.contiguous_format)
    for pairs in _blocks(offset):
        block = _Block(offset, slope, gradient, tau, taps, pairs)
        old_flow, new_flow = flow.new_empty(2, 2, *block.shape)
        old_dual, new_dual = flow.new_empty(2, 4, *block.shape)
        if start is not None:
            old_flow.copy_(start[:, pairs])
        for iteration in range(iterations):
            block.advance(iteration, start is not None, old_flow, old_dual, new_flow, new_dual)
            old_flow, new_flow, old_dual, new_dual = new_flow, old_flow, new_dual, old_dual
        flow[:, pairs] = old_flow
    return flow


@_backward.register_kernel("cuda")
@on_device_of_tensors
def solve_backward(
    flow_grad: Tensor,
    offset: Tensor,
    slope: Tensor,
    gradient: Tensor,
    tau: Tensor,
    iterations: int,
    start: Tensor | None,
    taps: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of offset, slope, gradient, tau, start and taps (the last two empty if None)."""
    offset_grad, slope_grad, gradient_grad = map(_zeros_like, (offset, slope, gradient))
    tau_grad = torch.zeros_like(tau)
    start_grad = flow_grad.new_empty(0) if start is None else _zeros_like(gradient)
    taps_grad = flow_grad.new_empty(0) if taps is None else _zeros_like(taps)
    for pairs in _blocks(offset):
        block = _Block(offset, slope, gradient, tau, taps, pairs)
        flows = offset.new_empty(iterations + 1, 2, *block.shape)  # flows[0] is the start
        duals = offset.new_empty(iterations, 4, *block.shape)
        if start is not None:
            flows[0] = start[:, pairs]
        for i in range(iterations):
            block.advance(i, start is not None, flows[i], duals[i - 1], flows[i + 1], duals[i])
        grad, next_grad = offset.new_empty(2, 2, *block.shape)
        dual_grad, next_dual_grad = offset.new_zeros(2, 4, *block.shape)
        grad.copy_(flow_grad[:, pairs])
        tau_parts = offset.new_zeros(block.programs)
        taps_parts = offset.new_zeros(block.programs, 8) if block.learnt else tau
        for i in reversed(range(iterations)):
            _retrace[block.programs,](
                *block.planes, tau, block.taps, flows[i], duals[i], grad, dual_grad, next_grad, next_dual_grad,
                *(plane[pairs] for plane in (offset_grad, *slope_grad, *gradient_grad)), tau_parts, taps_parts,
                *block.size, HAS_FLOW=i > 0 or start is not None, HAS_DUAL=i > 0, LEARNT=block.learnt,
                PIXELS=PIXELS,
            )  # fmt: skip
            grad, next_grad, dual_grad, next_dual_grad = next_grad, grad, next_dual_grad, dual_grad
        tau_grad += tau_parts.sum()
        if block.learnt and len(offset) > 0:
            taps_grad[..., pairs] = taps_parts.view(block.shape[0], -1, 2, 2, 2).sum(dim=1).movedim(0, -1)
        if start is not None:
            start_grad[:, pairs] = grad
    return offset_grad, slope_grad, gradient_grad, tau_grad, start_grad, taps_grad


def _zeros_like(planes: Tensor) -> Tensor:
    return torch.zeros_like(planes, memory_format=torch.contiguous_format)


class _Block:
    """A block of frame pairs, as the kernels take it."""

    def __init__(
        self, offset: Tensor, slope: Tensor, gradient: Tensor, tau: Tensor, taps: Tensor | None, pairs: slice
    ) -> None:
        self.planes = [plane[pairs].contiguous() for plane in (offset, *slope, *gradient)]
        self.tau = tau
        self.shape = self.planes[0].shape
        self.size = self.planes[0].numel(), *self.shape[1:]
        if taps is None:
            self.taps = tau  # not read
            self.programs = triton.cdiv(max(self.size[0], 1), PIXELS)
        else:
            self.taps = taps[..., pairs].flatten(0, 2).mT.contiguous()  # (N, 8)
            self.programs = self.shape[0] * triton.cdiv(self.shape[1] * self.shape[2], PIXELS)
        self.learnt = taps is not None

    def advance(
        self, iteration: int, from_start: bool, flow: Tensor, dual: Tensor, next_flow: Tensor, next_dual: Tensor
    ) -> None:
        """One iteration, from flow and dual to the next ones, which are other tensors."""
        _advance[self.programs,](
            *self.planes, self.tau, self.taps, flow, dual, next_flow, next_dual, *self.size,
            HAS_FLOW=iteration > 0 or from_start, HAS_DUAL=iteration > 0, IS_FIRST=iteration == 1,
            LEARNT=self.learnt, PIXELS=PIXELS,
        )  # fmt: skip


@triton.jit
def _advance(
    offset, slope_x, slope_y, gradient_x, gradient_y, tau, taps, flow, dual, next_flow, next_dual, pixels, height,
    width, HAS_FLOW: tl.constexpr, HAS_DUAL: tl.constexpr, IS_FIRST: tl.constexpr, LEARNT: tl.constexpr,
    PIXELS: tl.constexpr,
):  # fmt: skip
    """The step of the dual, then flow = flow - clamp(offset + <slope, flow>, -1, 1) gradient + div dual."""
    at, inside, taps = _pixels(taps, pixels, height, width, LEARNT, PIXELS)
    x, y = at % width, at // width % height
    tau = tl.load(tau)
    residual = tl.load(offset + at, inside)
    if HAS_FLOW:
        residual += tl.load(slope_x + at, inside) * tl.load(flow + at, inside)
        residual += tl.load(slope_y + at, inside) * tl.load(flow + pixels + at, inside)
    step = _clamped(residual)
    for component in tl.static_range(2):
        moved = -step * tl.load((gradient_x if component == 0 else gradient_y) + at, inside)
        here = flow + component * pixels
        if HAS_FLOW:
            moved += tl.load(here + at, inside)
        if HAS_DUAL:
            dual_x, dual_y = dual + component * pixels, dual + (2 + component) * pixels
            left, upper = inside & (x > 0), inside & (y > 0)
            p_x, p_y = _next_dual(here, dual_x, dual_y, at, x, y, height, width, inside, tau, taps, IS_FIRST, LEARNT)
            left_x, _ = _next_dual(
                here, dual_x, dual_y, at - 1, x - 1, y, height, width, left, tau, taps, IS_FIRST, LEARNT
            )
            _, upper_y = _next_dual(
                here, dual_x, dual_y, at - width, x, y - 1, height, width, upper, tau, taps, IS_FIRST, LEARNT
            )
            moved += _divergence(left_x, p_x, upper_y, p_y, taps + 4, False, LEARNT)
            tl.store(next_dual + component * pixels + at, p_x, inside)
            tl.store(next_dual + (2 + component) * pixels + at, p_y, inside)
        tl.store(next_flow + component * pixels + at, moved, inside)


@triton.jit
def _pixels(taps, pixels, height, width, LEARNT: tl.constexpr, PIXELS: tl.constexpr):
    """The pixels of this program, which of them exist, and with learnt taps those of its pair."""
    if LEARNT:
        programs = tl.cdiv(height * width, PIXELS)
        pair = tl.program_id(0) // programs
        of_pair = tl.program_id(0) % programs * PIXELS + tl.arange(0, PIXELS)
        return pair * height * width + of_pair, of_pair < height * width, taps + 8 * pair
    at = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    return at, at < pixels, taps


@triton.jit
def _clamped(residual):
    """Clamp to -1..1. NaN stays NaN."""
    return tl.where(residual > 1, 1.0, tl.where(residual < -1, -1.0, residual))


@triton.jit
def _next_dual(
    flow, dual_x, dual_y, at, x, y, height, width, inside, tau, taps, IS_FIRST: tl.constexpr, LEARNT: tl.constexpr
):
    """(dual + tau grad flow) / (1 + |grad flow|) at some pixels, one component; zero outside."""
    along_x, along_y = _differences(flow, at, x, y, height, width, inside, taps, False, LEARNT)
    damping = 1 + tl.sqrt(along_x * along_x + along_y * along_y)
    p_x, p_y = tau * along_x, tau * along_y
    if not IS_FIRST:
        p_x += tl.load(dual_x + at, inside, 0.0)
        p_y += tl.load(dual_y + at, inside, 0.0)
    return p_x / damping, p_y / damping


@triton.jit
def _differences(
    plane, at, x, y, height, width, inside, taps, ADJOINT: tl.constexpr, LEARNT: tl.constexpr
):  # fmt: skip
    """Forward differences; zero at the far border and outside. ADJOINT: minus the adjoint of a divergence's taps."""
    here = tl.load(plane + at, inside, 0.0)
    right, lower = inside & (x < width - 1), inside & (y < height - 1)
    far_x, far_y = tl.load(plane + at + 1, right, 0.0), tl.load(plane + at + width, lower, 0.0)
    if LEARNT:
        a_x, b_x, a_y, b_y = _weights(taps, ADJOINT)
        along_x, along_y = a_x * here + b_x * far_x, a_y * here + b_y * far_y
    else:
        along_x, along_y = far_x - here, far_y - here
    return tl.where(right, along_x, 0.0), tl.where(lower, along_y, 0.0)


@triton.jit
def _divergence(left_x, dual_x, upper_y, dual_y, taps, ADJOINT: tl.constexpr, LEARNT: tl.constexpr):
    """The divergence of a dual. ADJOINT: minus the adjoint of a gradient's taps."""
    if LEARNT:
        a_x, b_x, a_y, b_y = _weights(taps, ADJOINT)
        return a_x * left_x + b_x * dual_x + a_y * upper_y + b_y * dual_y
    return dual_x - left_x + dual_y - upper_y


@triton.jit
def _weights(taps, ADJOINT: tl.constexpr):
    """The weights (near, far) for x and for y."""
    near_x, far_x, near_y, far_y = tl.load(taps), tl.load(taps + 1), tl.load(taps + 2), tl.load(taps + 3)
    if ADJOINT:
        return -far_x, -near_x, -far_y, -near_y
    return near_x, far_x, near_y, far_y


@triton.jit
def _retrace(
    offset, slope_x, slope_y, gradient_x, gradient_y, tau, taps, before, dual, grad, dual_grad, next_grad,
    next_dual_grad, offset_grad, slope_x_grad, slope_y_grad, gradient_x_grad, gradient_y_grad, tau_parts, taps_parts,
    pixels, height, width, HAS_FLOW: tl.constexpr, HAS_DUAL: tl.constexpr, LEARNT: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """The adjoint of `_advance`: from the gradients after an iteration to those before it.

    before: the flow before the iteration. dual: the dual after it.
    """
    at, inside, taps = _pixels(taps, pixels, height, width, LEARNT, PIXELS)
    x, y = at % width, at // width % height
    tau = tl.load(tau)
    s_x, s_y = tl.load(slope_x + at, inside, 0.0), tl.load(slope_y + at, inside, 0.0)
    grad_x, grad_y = tl.load(grad + at, inside, 0.0), tl.load(grad + pixels + at, inside, 0.0)
    residual = tl.load(offset + at, inside, 0.0)
    if HAS_FLOW:
        before_x, before_y = tl.load(before + at, inside, 0.0), tl.load(before + pixels + at, inside, 0.0)
        residual += s_x * before_x + s_y * before_y
    step = _clamped(residual)
    along = tl.load(gradient_x + at, inside, 0.0) * grad_x + tl.load(gradient_y + at, inside, 0.0) * grad_y
    step_grad = tl.where((residual > -1) & (residual < 1), -along, 0.0)
    _add(gradient_x_grad, at, -step * grad_x, inside)
    _add(gradient_y_grad, at, -step * grad_y, inside)
    _add(offset_grad, at, step_grad, inside)
    if HAS_FLOW:
        _add(slope_x_grad, at, step_grad * before_x, inside)
        _add(slope_y_grad, at, step_grad * before_y, inside)
    for component in tl.static_range(2):
        moved = grad_x + step_grad * s_x if component == 0 else grad_y + step_grad * s_y
        if HAS_DUAL:
            left, upper = inside & (x > 0), inside & (y > 0)
            planes = pixels * component
            q_x, q_y, back_x, back_y, for_tau = _dual_gradient(
                before, dual, grad, dual_grad, planes, pixels, at, x, y, height, width, inside, tau, taps, LEARNT
            )
            _, _, left_x, _, _ = _dual_gradient(
                before, dual, grad, dual_grad, planes, pixels, at - 1, x - 1, y, height, width, left, tau, taps, LEARNT
            )
            _, _, _, upper_y, _ = _dual_gradient(
                before,
                dual,
                grad,
                dual_grad,
                planes,
                pixels,
                at - width,
                x,
                y - 1,
                height,
                width,
                upper,
                tau,
                taps,
                LEARNT,
            )
            moved += _divergence(left_x, back_x, upper_y, back_y, taps, True, LEARNT)
            tl.store(next_dual_grad + planes + at, q_x, inside)
            tl.store(next_dual_grad + planes + 2 * pixels + at, q_y, inside)
            part = tau_parts + tl.program_id(0)
            tl.store(part, tl.load(part) + tl.sum(for_tau, 0))
            if LEARNT:
                parts = taps_parts + 8 * tl.program_id(0)
                _add_products(parts, before + planes, -back_x, -back_y, at, x, y, height, width, inside, False)
                p_x = tl.load(dual + planes + at, inside, 0.0)
                p_y = tl.load(dual + planes + 2 * pixels + at, inside, 0.0)
                _add_products(parts + 4, grad + planes, p_x, p_y, at, x, y, height, width, inside, True)
        tl.store(next_grad + component * pixels + at, moved, inside)


@triton.jit
def _dual_gradient(
    flow, dual, grad, dual_grad, plane, pixels, at, x, y, height, width, inside, tau, taps, LEARNT: tl.constexpr
):
    """The adjoint of `_next_dual` at some pixels, one component.

    Returns the gradient of the dual before the iteration (x, y), minus the gradient of the flow's differences (x, y),
    and the pixels' terms of the gradient of tau.
    """
    along_x, along_y = _differences(flow + plane, at, x, y, height, width, inside, taps, False, LEARNT)
    grad_x, grad_y = _differences(grad + plane, at, x, y, height, width, inside, taps + 4, True, LEARNT)
    norm = tl.sqrt(along_x * along_x + along_y * along_y)
    # The adjoint of the divergence: minus the differences.
    q_x = (tl.load(dual_grad + plane + at, inside, 0.0) - grad_x) / (1 + norm)
    q_y = (tl.load(dual_grad + plane + 2 * pixels + at, inside, 0.0) - grad_y) / (1 + norm)
    p_x, p_y = tl.load(dual + plane + at, inside, 0.0), tl.load(dual + plane + 2 * pixels + at, inside, 0.0)
    # Where the flow is flat, the differences are 0 and so is their term. The lower bound avoids 0 / 0.
    factor = (q_x * p_x + q_y * p_y) / tl.maximum(norm, 1e-18)
    return q_x, q_y, along_x * factor - tau * q_x, along_y * factor - tau * q_y, q_x * along_x + q_y * along_y


@triton.jit
def _add_products(parts, plane, dual_x, dual_y, at, x, y, height, width, inside, FAR_FIRST: tl.constexpr):
    """Add the inner products of a dual with the near and the far pixels of a plane: (near, far) for x, then for y."""
    here = tl.load(plane + at, inside, 0.0)
    far_x = tl.load(plane + at + 1, inside & (x < width - 1), 0.0)
    far_y = tl.load(plane + at + width, inside & (y < height - 1), 0.0)
    near = 1 if FAR_FIRST else 0
    _add_sum(parts + near, dual_x * here)
    _add_sum(parts + 1 - near, dual_x * far_x)
    _add_sum(parts + 2 + near, dual_y * here)
    _add_sum(parts + 3 - near, dual_y * far_y)


@triton.jit
def _add_sum(part, values):
    tl.store(part, tl.load(part) + tl.sum(values, 0))


@triton.jit
def _add(plane, at, value, inside):
    tl.store(plane + at, tl.load(plane + at, inside) + value, inside)
