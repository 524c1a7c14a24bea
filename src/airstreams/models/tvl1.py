"""The iterations of TV-L1, twice: as a graph of plain operations, and in place with a backward pass of their own.

Both compute, for `iterations` times, from a dual of zero,

    dual  =  (dual + tau grad flow) / (1 + |grad flow|)                  (not the first time: one dual each component)
    flow  =  flow - clamp(offset + <slope, flow>, -1, 1) gradient + div dual

which is Zach, Pock and Bischof's scheme in units that leave tau as its only constant; `flow.py` says what it stands for
and brings frames into these units. The gradient is of forward differences with zero at the far border, the divergence
its negative adjoint.

`unrolled` is for `torch.export` and for learnt kernels. Plain autograd keeps some sixteen planes of numbers an
iteration of it, so everything else runs `recomputed`: it works in place on a block of frame pairs at a time and keeps
nothing; its backward pass runs each block's iterations again. That costs one more forward pass, and is several times as
fast in a tenth of the memory all the same. `torch.compile` takes it as one operator: fusing the unrolled operations
took it half a minute, to a step on a CPU half as fast. `tvl1_gpu.py` registers kernels for CUDA with the two operators,
by `recomputed.register_kernel("cuda")`; what has none runs what stands here.

Legend: N frame pairs, H, W pixels. What has a leading 2 holds the x part, then the y part; a dual, (2, 2, N, H, W),
has its direction first and the flow's component second.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Two planes of 4 bytes for each pixel of a block must be many enough for all threads to share (torch gives a thread
# 2^15 at the least) and few enough that a block's flows and duals stay in the caches: 2^15 pixels a thread, measured
# with 1 and 2 threads. Where no iteration is kept, blocks may be larger.
PIXELS_A_THREAD = 2**15
FORWARD_BLOCK = 4  # times as many
PIXELS_ON_A_GPU = 2**20


def iterate(
    offset: Tensor,
    slope: Tensor,
    gradient: Tensor,
    tau: Tensor,
    iterations: int,
    start: Tensor | None = None,
    difference_taps: Tensor | None = None,
    divergence_taps: Tensor | None = None,
) -> Tensor:
    """Flow after so many iterations, by the fastest way that fits.

    Args:
        offset: (N, H, W), the brightness residual without flow.
        slope: (2, N, H, W), how the residual grows with flow.
        gradient: (2, N, H, W), how far a residual of one moves the flow.
        tau: the dual step, a scalar.
        iterations: at least 1.
        start: (2, N, H, W), the flow to begin from; None for rest.
        difference_taps: (2, 2), learnt weights of the near and the far pixel for x and for y; None for -1 and 1.
        divergence_taps: the same for the divergence.

    Returns:
        flow (2, N, H, W).
    """
    if torch.compiler.is_exporting() or difference_taps is not None or divergence_taps is not None:
        return unrolled(offset, slope, gradient, tau, iterations, start, difference_taps, divergence_taps)
    if offset.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
        # Without a graph the operator does no more than this, but its first call imports torch's compiler, which is a
        # third of the time that predicting a short video takes.
        return in_place(offset, slope, gradient, tau, iterations, start)
    return recomputed(offset, slope, gradient, tau, iterations, start)


def unrolled(
    offset: Tensor,
    slope: Tensor,
    gradient: Tensor,
    tau: Tensor,
    iterations: int,
    start: Tensor | None = None,
    difference_taps: Tensor | None = None,
    divergence_taps: Tensor | None = None,
) -> Tensor:
    """`iterate` as plain operations, one after the other."""
    taps_x, taps_y = (None, None) if difference_taps is None else difference_taps.unbind()
    back_x, back_y = (None, None) if divergence_taps is None else divergence_taps.unbind()
    flow = torch.zeros_like(gradient) if start is None else start
    # The differences at the far border are zero by construction, so they are kept without that column or row.
    dual_x, dual_y = torch.zeros_like(flow[..., :-1]), torch.zeros_like(flow[..., :-1, :])
    tiny = 4 * torch.finfo(flow.dtype).tiny  # keeps the square root's derivative finite where the flow is flat
    for iteration in range(iterations):
        if iteration > 0:
            along_x = _difference(flow[..., :-1], flow[..., 1:], taps_x)
            along_y = _difference(flow[..., :-1, :], flow[..., 1:, :], taps_y)
            squared = F.pad(along_x.square(), (0, 1)) + F.pad(along_y.square(), (0, 0, 0, 1))
            damping = 1 + (squared + tiny).sqrt()
            dual_x = (dual_x + tau * along_x) / damping[..., :-1]
            dual_y = (dual_y + tau * along_y) / damping[..., :-1, :]
        step = (offset + slope[0] * flow[0] + slope[1] * flow[1]).clamp(-1, 1)
        flow = flow - step * gradient
        if iteration > 0:
            flow = flow + divergence(dual_x, dual_y, back_x, back_y)
    return flow


def divergence(dual_x: Tensor, dual_y: Tensor, taps_x: Tensor | None = None, taps_y: Tensor | None = None) -> Tensor:
    """Backward differences (..., H, W) of duals (..., H, W - 1) and (..., H - 1, W), zero outside.

    The negative adjoint of forward differences, unless learnt taps (near, far) take the place of -1 and 1.
    """
    along_x = _difference(F.pad(dual_x, (1, 0)), F.pad(dual_x, (0, 1)), taps_x)
    along_y = _difference(F.pad(dual_y, (0, 0, 1, 0)), F.pad(dual_y, (0, 0, 0, 1)), taps_y)
    return along_x + along_y


def _difference(near: Tensor, far: Tensor, taps: Tensor | None) -> Tensor:
    return far - near if taps is None else taps[0] * near + taps[1] * far


def in_place(
    offset: Tensor, slope: Tensor, gradient: Tensor, tau: Tensor, iterations: int, start: Tensor | None = None
) -> Tensor:
    """`iterate` in place, a block of pairs at a time, without a graph."""
    flow = torch.empty_like(gradient, memory_format=torch.contiguous_format)
    blocks = _blocks(offset, FORWARD_BLOCK)
    scratch = _Scratch(offset[blocks[0]], (2,), (2, 2), (2, 2), (2,))
    for pairs in blocks:
        block = _Block(offset, slope, gradient, tau, start, pairs)
        own, diff, dual, norm = scratch.planes(offset[pairs])
        whole = own.shape == flow.shape
        now = flow if whole else own
        for iteration in range(iterations):
            block.advance(iteration, now, dual, now, dual, diff, norm)
        if not whole:
            flow[:, pairs] = now
    return flow


# `in_place` as an operator: autograd knows its backward pass.
recomputed = torch.library.custom_op("airstreams::tvl1", in_place, mutates_args=())


@torch.library.custom_op("airstreams::tvl1_backward", mutates_args=())
def _backward(
    flow_grad: Tensor,
    offset: Tensor,
    slope: Tensor,
    gradient: Tensor,
    tau: Tensor,
    iterations: int,
    start: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of offset, slope, gradient, tau and start (empty without one): each iteration's adjoint, last first."""
    all_offset_grad = torch.zeros_like(offset)
    all_slope_grad, all_gradient_grad = torch.zeros_like(slope), torch.zeros_like(gradient)
    tau_grad = torch.zeros_like(tau)
    start_grad = flow_grad.new_empty(0) if start is None else torch.empty_like(gradient)
    blocks = _blocks(offset)
    scratch = _Scratch(offset[blocks[0]], (iterations, 2), (iterations, 2, 2), (2,), (2, 2), (2, 2), (2,), (2,))
    for pairs in blocks:
        block = _Block(offset, slope, gradient, tau, start, pairs)
        all_flows, all_duals, grad, dual_grad, diff, norm, factor = scratch.planes(offset[pairs])
        flows, duals = list(all_flows), list(all_duals)
        for i in range(iterations):
            block.advance(i, flows[i - 1], duals[i - 1], flows[i], duals[i], diff, norm)
        offset_grad, slope_grad = all_offset_grad[pairs], all_slope_grad[:, pairs]
        gradient_grad = all_gradient_grad[:, pairs]
        grad.copy_(flow_grad[:, pairs])
        dual_grad.zero_()
        step, step_grad = norm[0], norm[1]
        for i in reversed(range(iterations)):
            before = flows[i - 1] if i > 0 else block.start
            # flow = before - step gradient + div dual, with step = clamp(offset + <slope, before>, -1, 1)
            block.step_into(step, before)
            gradient_grad.addcmul_(step, grad, value=-1)
            _dot_into(step_grad, block.gradient, grad)
            step_grad.neg_().mul_(step.abs_() < 1)
            offset_grad.add_(step_grad)
            if before is not None:
                slope_grad.addcmul_(step_grad, before)
            if i > 0:  # the divergence's adjoint is the differences with the other sign
                _differences_into(diff, grad)
                dual_grad.sub_(diff)
            grad.addcmul_(step_grad, block.slope)
            if i > 0:
                # dual = (dual before + tau diff) / (1 + |diff|), with diff = the differences of before
                _differences_into(diff, flows[i - 1])
                _dot_into(norm, diff, diff).sqrt_()
                dual_grad.div_(torch.add(norm, 1, out=factor))
                tau_grad += torch.dot(dual_grad.view(-1), diff.view(-1))
                # Where the flow is flat, diff is 0 and so is the quotient's part; the floor keeps it from 0 x inf.
                _dot_into(factor, dual_grad, duals[i]).div_(norm.clamp_(min=torch.finfo(norm.dtype).tiny ** 0.5))
                diff.mul_(factor).addcmul_(dual_grad, tau, value=-1)
                _add_divergence(grad, diff)
        if start is not None:
            start_grad[:, pairs] = grad
    return all_offset_grad, all_slope_grad, all_gradient_grad, tau_grad, start_grad


@recomputed.register_fake
def _(
    offset: Tensor, slope: Tensor, gradient: Tensor, tau: Tensor, iterations: int, start: Tensor | None = None
) -> Tensor:
    return torch.empty_like(gradient, memory_format=torch.contiguous_format)


@_backward.register_fake
def _(
    flow_grad: Tensor,
    offset: Tensor,
    slope: Tensor,
    gradient: Tensor,
    tau: Tensor,
    iterations: int,
    start: Tensor | None,
) -> tuple[Tensor, ...]:
    start_grad = flow_grad.new_empty(0) if start is None else torch.empty_like(gradient)
    return (*map(torch.empty_like, (offset, slope, gradient, tau)), start_grad)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.iterations, start = inputs
    ctx.save_for_backward(*tensors, start)


def _gradients(ctx: Any, flow_grad: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, start = ctx.saved_tensors
    *grads, start_grad = _backward(flow_grad, *tensors, ctx.iterations, start)
    return *grads, None, None if start is None else start_grad


recomputed.register_autograd(_gradients, setup_context=_keep)


class _Block:
    """Some of the frame pairs of `iterate`'s arguments, and what one iteration does to their flow."""

    def __init__(
        self, offset: Tensor, slope: Tensor, gradient: Tensor, tau: Tensor, start: Tensor | None, pairs: slice
    ) -> None:
        self.offset, self.slope, self.gradient = offset[pairs], slope[:, pairs], gradient[:, pairs]
        self.start = None if start is None else start[:, pairs]
        self.tau = tau

    def step_into(self, step: Tensor, flow: Tensor | None) -> None:
        """The thresholding step of a flow; None for rest."""
        if flow is None:
            torch.clamp(self.offset, -1, 1, out=step)
        else:
            torch.addcmul(self.offset, self.slope[0], flow[0], out=step)
            step.addcmul_(self.slope[1], flow[1]).clamp_(-1, 1)

    def advance(
        self,
        iteration: int,
        flow: Tensor,
        dual: Tensor,
        next_flow: Tensor,
        next_dual: Tensor,
        diff: Tensor,
        norm: Tensor,
    ) -> None:
        """One iteration, from flow and dual into the next ones, which may be the same.

        The first begins from rest, whatever lies in flow and dual. diff and norm are for scratch.
        """
        if iteration == 0:
            before = self.start
        else:
            before = flow
            _differences_into(diff, flow)
            _dot_into(norm, diff, diff).sqrt_().add_(1)
            if iteration == 1:
                torch.mul(diff, self.tau, out=next_dual).div_(norm)
            else:
                torch.addcmul(dual, diff, self.tau, out=next_dual).div_(norm)
        step = norm[0]
        self.step_into(step, before)
        if before is None:
            torch.mul(step, self.gradient, out=next_flow).neg_()
        else:
            torch.addcmul(before, step, self.gradient, value=-1, out=next_flow)
        if iteration > 0:
            _add_divergence(next_flow, next_dual)


def _blocks(offset: Tensor, times: int = 1) -> list[slice]:
    """Pairs 0 to N, in parts of about equal size."""
    pixels = PIXELS_A_THREAD * torch.get_num_threads() if offset.device.type == "cpu" else PIXELS_ON_A_GPU
    blocks = max(-(-offset.numel() // (pixels * times)), 1)
    size = max(-(-len(offset) // blocks), 1)
    return [slice(first, min(first + size, len(offset))) for first in range(0, max(len(offset), 1), size)]


class _Scratch:
    """Memory for tensors (*leading, N, H, W) of one block after the other, taken once: fresh pages cost more than the
    arithmetic on them.

    Args:
        largest: (N, H, W) of the largest block.
        leading: a tensor's leading dimensions, for each tensor.
    """

    def __init__(self, largest: Tensor, *leading: tuple[int, ...]) -> None:
        self.leading = leading
        self.memory = largest.new_empty(sum(map(math.prod, leading)) * largest.numel())

    def planes(self, block: Tensor) -> list[Tensor]:
        """The tensors, contiguous, for a block (N, H, W)."""
        sizes = [math.prod(lead) * block.numel() for lead in self.leading]
        parts = self.memory[: sum(sizes)].split(sizes)
        return [part.view(*lead, *block.shape) for part, lead in zip(parts, self.leading, strict=True)]


# Below, planes are taken as one row of numbers, and a pixel's right and lower neighbours lie 1 and W further on: long
# runs without a border are what a processor is fast at. What crosses a border is then set to zero, and as a dual is
# zero at its far borders, its backward differences need no such care.


def _differences_into(diff: Tensor, flow: Tensor) -> None:
    """Forward differences (2, *flow.shape), direction first; zero at the far border."""
    width = flow.shape[-1]
    flat = flow.view(-1)
    torch.sub(flat[1:], flat[:-1], out=diff[0].view(-1)[:-1])
    torch.sub(flat[width:], flat[:-width], out=diff[1].view(-1)[:-width])
    diff[0, ..., -1].zero_()
    diff[1, ..., -1, :].zero_()


def _add_divergence(flow: Tensor, dual: Tensor) -> None:
    width = flow.shape[-1]
    flat, dual_x, dual_y = flow.view(-1), dual[0].view(-1), dual[1].view(-1)
    flat.add_(dual_x)
    flat[1:].sub_(dual_x[:-1])
    flat.add_(dual_y)
    flat[width:].sub_(dual_y[:-width])


def _dot_into(out: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """The inner product of two vectors at each place, along the first dimension."""
    return torch.mul(first[0], second[0], out=out).addcmul_(first[1], second[1])
