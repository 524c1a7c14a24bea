"""The iterations of TV-L1, in two forms: plain operations, and in place with a backward pass of their own.

Both run this step `iterations` times, from a dual of zero:

    dual  =  (dual + tau grad flow) / (1 + |grad flow|)                  (not in the first; one dual per component)
    flow  =  flow - clamp(offset + <slope, flow>, -1, 1) gradient + div dual

This is the scheme of Zach, Pock and Bischof, in units that leave tau as the only constant. `flow.py` explains the
scheme, and converts frames into these units. The gradient has forward differences, zero at the far border. The
divergence is its negative adjoint. `taps` replaces the weights -1 and 1 of both by learnt ones for each pair.

`unrolled` is for `torch.export`. Autograd keeps about sixteen planes of numbers per iteration for it. Everything else
runs `recomputed`. It works in place on one block of frame pairs at a time, and keeps nothing.
Its backward pass runs the iterations of each block again. It is still several times as fast, in a tenth of the memory.
`torch.compile` takes it as one operator: it took half a minute to fuse the unrolled operations, and a step on a CPU was
then half as fast. `tvl1_gpu.py` registers CUDA kernels for the forward and the backward operator. Other devices run the
code below; a CPU runs `tvl1_cpu.py` instead where `RepresentationFlow` has the kernel `fused`.

Legend: N frame pairs, H, W pixels. A tensor with a leading 2 holds the x part, then the y part. A dual,
(2, 2, N, H, W), has its direction first and the flow's component second. Taps, (2, 2, 2, N), are the weights of the
gradient and of the divergence, for the directions x and y, of the near (left, upper) and the far pixel.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# A block must be large enough for all threads (torch gives a thread at least 2^15 numbers), and small enough for its
# flows and duals to stay in the caches. 2^15 pixels per thread were fastest with 1 and 2 threads. The forward pass
# keeps no iteration, so its blocks may be larger.
PIXELS_PER_THREAD = 2**15
FORWARD_BLOCK = 4  # the forward pass takes so many times the pixels
PIXELS_ON_A_GPU = 2**20


def iterate(
    offset: Tensor,
    slope: Tensor,
    gradient: Tensor,
    tau: Tensor,
    iterations: int,
    start: Tensor | None = None,
    taps: Tensor | None = None,
) -> Tensor:
    """The flow after all iterations, in the fastest form that fits.

    Args:
        offset: (N, H, W), the brightness residual without flow.
        slope: (2, N, H, W), the change of the residual per unit of flow.
        gradient: (2, N, H, W), the change of the flow per unit of residual.
        tau: the step size of the dual, a scalar.
        iterations: at least 1.
        start: (2, N, H, W), the flow to start from; None: zero.
        taps: (2, 2, 2, N), learnt weights of the gradient and of the divergence; None: -1 and 1.

    Returns:
        flow (2, N, H, W).
    """
    if torch.compiler.is_exporting():
        return unrolled(offset, slope, gradient, tau, iterations, start, taps)
    if offset.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
        # Without gradients the operator does the same, but its first call imports torch's compiler. That is a third of
        # the time to predict a short video.
        return in_place(offset, slope, gradient, tau, iterations, start, taps)
    return recomputed(offset, slope, gradient, tau, iterations, start, taps)


def unrolled(
    offset: Tensor,
    slope: Tensor,
    gradient: Tensor,
    tau: Tensor,
    iterations: int,
    start: Tensor | None = None,
    taps: Tensor | None = None,
) -> Tensor:
    """`iterate` as plain operations, one after the other."""
    (taps_x, taps_y), (back_x, back_y) = ((None, None),) * 2 if taps is None else taps[..., None, None]
    flow = torch.zeros_like(gradient) if start is None else start
    # The differences at the far border are zero, so that column or row is not stored.
    dual_x, dual_y = torch.zeros_like(flow[..., :-1]), torch.zeros_like(flow[..., :-1, :])
    tiny = 4 * torch.finfo(flow.dtype).tiny  # keeps the derivative of the square root finite where the flow is flat
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
    """Backward differences (..., H, W) of duals (..., H, W - 1) and (..., H - 1, W), which are zero outside.

    Without learnt weights (near, far) it is the negative adjoint of forward differences.
    """
    along_x = _difference(F.pad(dual_x, (1, 0)), F.pad(dual_x, (0, 1)), taps_x)
    along_y = _difference(F.pad(dual_y, (0, 0, 1, 0)), F.pad(dual_y, (0, 0, 0, 1)), taps_y)
    return along_x + along_y


def _difference(near: Tensor, far: Tensor, taps: Tensor | None) -> Tensor:
    return far - near if taps is None else taps[0] * near + taps[1] * far


def in_place(
    offset: Tensor,
    slope: Tensor,
    gradient: Tensor,
    tau: Tensor,
    iterations: int,
    start: Tensor | None = None,
    taps: Tensor | None = None,
) -> Tensor:
    """`iterate` in place, one block of pairs at a time, without gradients."""
    flow = torch.empty_like(gradient, memory_format=torch.contiguous_format)
    blocks = _blocks(offset, FORWARD_BLOCK)
    scratch = _Scratch(offset[blocks[0]], (2,), (2, 2), (2, 2), (2,))
    for pairs in blocks:
        block = _Block(offset, slope, gradient, tau, start, taps, pairs)
        own, diff, dual, norm = scratch.planes(offset[pairs])
        whole = own.shape == flow.shape
        now = flow if whole else own
        for iteration in range(iterations):
            block.advance(iteration, now, dual, now, dual, diff, norm)
        if not whole:
            flow[:, pairs] = now
    return flow


# `in_place` as an operator with a backward pass, registered below.
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
    taps: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of offset, slope, gradient, tau, start and taps (the last two empty if None).

    Iteration by iteration, the last first.
    """
    all_offset_grad = torch.zeros_like(offset)
    all_slope_grad, all_gradient_grad = torch.zeros_like(slope), torch.zeros_like(gradient)
    tau_grad = torch.zeros_like(tau)
    start_grad = flow_grad.new_empty(0) if start is None else torch.empty_like(gradient)
    taps_grad = flow_grad.new_empty(0) if taps is None else torch.zeros_like(taps)
    blocks = _blocks(offset)
    scratch = _Scratch(offset[blocks[0]], (iterations, 2), (iterations, 2, 2), (2,), (2, 2), (2, 2), (2,), (2,))
    for pairs in blocks:
        block = _Block(offset, slope, gradient, tau, start, taps, pairs)
        all_flows, all_duals, grad, dual_grad, diff, norm, factor = scratch.planes(offset[pairs])
        flows, duals = list(all_flows), list(all_duals)
        for i in range(iterations):
            block.advance(i, flows[i - 1], duals[i - 1], flows[i], duals[i], diff, norm)
        offset_grad, slope_grad = all_offset_grad[pairs], all_slope_grad[:, pairs]
        gradient_grad = all_gradient_grad[:, pairs]
        grad.copy_(flow_grad[:, pairs])
        dual_grad.zero_()
        difference_grad, divergence_grad = (None, None) if taps is None else taps_grad[..., pairs]
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
            if i > 0:  # the adjoint of the divergence: minus the differences
                if divergence_grad is not None:
                    divergence_grad += _products(duals[i], grad).flip(1)
                _differences_into(diff, grad, block.divergence_adjoint)
                dual_grad.sub_(diff)
            grad.addcmul_(step_grad, block.slope)
            if i > 0:
                # dual = (dual before + tau diff) / (1 + |diff|), with diff = the differences of before
                _differences_into(diff, flows[i - 1], block.difference)
                _dot_into(norm, diff, diff).sqrt_()
                dual_grad.div_(torch.add(norm, 1, out=factor))
                tau_grad += torch.dot(dual_grad.view(-1), diff.view(-1))
                # Where the flow is flat, diff is 0 and so is its term. The lower bound avoids 0 / 0.
                _dot_into(factor, dual_grad, duals[i]).div_(norm.clamp_(min=torch.finfo(norm.dtype).tiny ** 0.5))
                diff.mul_(factor).addcmul_(dual_grad, tau, value=-1)
                if difference_grad is not None:
                    difference_grad -= _products(diff, flows[i - 1])
                _add_divergence(grad, diff, block.difference_adjoint)
        if start is not None:
            start_grad[:, pairs] = grad
    return all_offset_grad, all_slope_grad, all_gradient_grad, tau_grad, start_grad, taps_grad


@recomputed.register_fake
def _(
    offset: Tensor,
    slope: Tensor,
    gradient: Tensor,
    tau: Tensor,
    iterations: int,
    start: Tensor | None = None,
    taps: Tensor | None = None,
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
    taps: Tensor | None,
) -> tuple[Tensor, ...]:
    start_grad = flow_grad.new_empty(0) if start is None else torch.empty_like(gradient)
    taps_grad = flow_grad.new_empty(0) if taps is None else torch.empty_like(taps)
    return (*map(torch.empty_like, (offset, slope, gradient, tau)), start_grad, taps_grad)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.iterations, start, taps = inputs
    ctx.save_for_backward(*tensors, start, taps)


def _gradients(ctx: Any, flow_grad: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, start, taps = ctx.saved_tensors
    *grads, start_grad, taps_grad = _backward(flow_grad, *tensors, ctx.iterations, start, taps)
    return *grads, None, None if start is None else start_grad, None if taps is None else taps_grad


recomputed.register_autograd(_gradients, setup_context=_keep)


class _Block:
    """A block of frame pairs with their part of `iterate`'s arguments, and one iteration on it."""

    def __init__(
        self,
        offset: Tensor,
        slope: Tensor,
        gradient: Tensor,
        tau: Tensor,
        start: Tensor | None,
        taps: Tensor | None,
        pairs: slice,
    ) -> None:
        self.offset, self.slope, self.gradient = offset[pairs], slope[:, pairs], gradient[:, pairs]
        self.start = None if start is None else start[:, pairs]
        self.tau = tau
        self.difference: Tensor | None = None
        self.divergence: Tensor | None = None
        if taps is not None:
            self.difference, self.divergence = taps[..., pairs]
        self.difference_adjoint, self.divergence_adjoint = _adjoint(self.difference), _adjoint(self.divergence)

    def step_into(self, step: Tensor, flow: Tensor | None) -> None:
        """The thresholding step of a flow; None: of zero flow."""
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
        """One iteration, from flow and dual to the next ones, which may be the same tensors.

        The first iteration ignores flow and dual. diff and norm are scratch memory.
        """
        if iteration == 0:
            before = self.start
        else:
            before = flow
            _differences_into(diff, flow, self.difference)
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
            _add_divergence(next_flow, next_dual, self.divergence)


def _blocks(offset: Tensor, times: int = 1) -> list[slice]:
    """The pairs 0 to N, in blocks of about equal size."""
    pixels = PIXELS_PER_THREAD * torch.get_num_threads() if offset.device.type == "cpu" else PIXELS_ON_A_GPU
    blocks = max(-(-offset.numel() // (pixels * times)), 1)
    size = max(-(-len(offset) // blocks), 1)
    return [slice(first, min(first + size, len(offset))) for first in range(0, max(len(offset), 1), size)]


class _Scratch:
    """Scratch memory for tensors (*leading, N, H, W), allocated once for all blocks.

    Fresh memory pages cost more time than the arithmetic on them.

    Args:
        largest: a tensor with the shape (N, H, W) of the largest block.
        leading: the leading dimensions of each tensor.
    """

    def __init__(self, largest: Tensor, *leading: tuple[int, ...]) -> None:
        self.leading = leading
        self.memory = largest.new_empty(sum(map(math.prod, leading)) * largest.numel())

    def planes(self, block: Tensor) -> list[Tensor]:
        """The tensors for a block (N, H, W), contiguous."""
        sizes = [math.prod(lead) * block.numel() for lead in self.leading]
        parts = self.memory[: sum(sizes)].split(sizes)
        return [part.view(*lead, *block.shape) for part, lead in zip(parts, self.leading, strict=True)]


# The functions below treat planes as one row of numbers. The right and the lower neighbour of a pixel are 1 and W
# numbers further on. Processors are fast on long runs without borders. Differences across a border are then set to
# zero. A dual is zero at its far borders, so its backward differences are right as they are.


def _differences_into(diff: Tensor, flow: Tensor, taps: Tensor | None) -> None:
    """Write forward differences (2, *flow.shape), direction first, zero at the far border."""
    width = flow.shape[-1]
    if taps is None:
        flat = flow.view(-1)
        torch.sub(flat[1:], flat[:-1], out=diff[0].view(-1)[:-1])
        torch.sub(flat[width:], flat[:-width], out=diff[1].view(-1)[:-width])
    else:
        rows = flow.flatten(-2)
        for out, (near, far), shift in zip(diff.flatten(-2), taps[..., None], (1, width), strict=True):
            torch.mul(rows[..., :-shift], near, out=out[..., :-shift]).addcmul_(rows[..., shift:], far)
    diff[0, ..., -1].zero_()
    diff[1, ..., -1, :].zero_()


def _add_divergence(flow: Tensor, dual: Tensor, taps: Tensor | None) -> None:
    """Add the divergence of a dual to a flow."""
    width = flow.shape[-1]
    if taps is None:
        flat, dual_x, dual_y = flow.view(-1), dual[0].view(-1), dual[1].view(-1)
        flat.add_(dual_x)
        flat[1:].sub_(dual_x[:-1])
        flat.add_(dual_y)
        flat[width:].sub_(dual_y[:-width])
    else:
        rows = flow.flatten(-2)
        for along, (near, far), shift in zip(dual.flatten(-2), taps[..., None], (1, width), strict=True):
            rows.addcmul_(along, far)
            rows[..., shift:].addcmul_(along[..., :-shift], near)


def _adjoint(taps: Tensor | None) -> Tensor | None:
    """The taps (2, 2, N) of the differences that are minus the adjoint of a divergence, and the other way round."""
    return None if taps is None else -taps.flip(1)


def _products(dual: Tensor, flow: Tensor) -> Tensor:
    """The inner products (2, 2, N) of a dual, for x and y, with the near and the far pixel of a flow, for each pair."""
    width = flow.shape[-1]
    rows, products = flow.flatten(-2), flow.new_empty(2, 2, 2, flow.shape[1])
    for along, out, shift in zip(dual.flatten(-2), products, (1, width), strict=True):
        torch.linalg.vecdot(along, rows, out=out[0])
        torch.linalg.vecdot(along[..., :-shift], rows[..., shift:], out=out[1])
    return products.sum(dim=2)


def _dot_into(out: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Write the inner product along the first dimension, of size 2."""
    return torch.mul(first[0], second[0], out=out).addcmul_(first[1], second[1])
