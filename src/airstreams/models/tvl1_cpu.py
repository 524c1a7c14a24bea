"""TV-L1 on a CPU by a fused kernel: `tvl1_cpu.c`, compiled when a process first needs it, and its backward pass.

`tvl1.py` passes over the planes of many pairs with one small operation after the other. The kernel takes one pair at a
time, from the image gradients to the last iteration, so that the pair stays in the processor's cache. Its backward pass
runs the pair's iterations again, and keeps them only until the pair is done.

Threads take pairs in turn, as many threads as torch uses. One thread computes a pair, and the sum over pairs has a
fixed order. So the same input gives the same bits for any number of threads. They differ from those of `tvl1.py` by
rounding.

The compiler uses all instructions of this processor. So the library is not kept: another process compiles its own, in
about a second.
"""

import ctypes
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).with_suffix(".c")
FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fopenmp-simd", "-shared", "-fPIC")
# The C kernel gives the gradients of the divergence's weights, the last four, with the far ones first.
FAR_FIRST = [*range(10), 11, 10, 13, 12]
TYPES = {torch.float32: ("float", "sqrtf"), torch.float64: ("double", "sqrt")}
SHARES = 8  # of the pairs for each thread: if one waits for a busy core, the others take over its later shares


def solve(
    first: Tensor,
    second: Tensor,
    tau: Tensor,
    lambda_: Tensor,
    theta: Tensor,
    iterations: int,
    start: Tensor | None = None,
    taps: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The flow from each first to each second frame, with gradients for all tensors.

    Args:
        first: (N, H, W), float32 or float64, on a CPU.
        second: the same, warped by `start` if there is one.
        tau: a scalar, as the two that follow; `flow.py` explains them.
        lambda_: the weight of the brightness term.
        theta: how far v may be from u.
        iterations: at least 1.
        start: (2, N, H, W), the flow to start from; None: zero.
        taps: learnt weights of the image gradient, (2, 3, N), and those that `tvl1.iterate` takes; None: fixed ones.

    Returns:
        flow (2, N, H, W).
    """
    units = torch.stack((tau, 1 / (lambda_ * theta), 1 / (lambda_ * tau), lambda_ * tau, theta / tau))
    taps_NK = None if taps is None else torch.cat([kernel.flatten(0, -2) for kernel in taps]).mT
    flow: Tensor = _Solve.apply(first, second, units.to(first.dtype), iterations, start, taps_NK)
    return flow


@cache
def library(dtype: torch.dtype, *, learnt: bool) -> ctypes.CDLL | None:
    """The kernel for a type of numbers and for fixed or learnt weights; None if no C compiler here can build it."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)
    if compiler is None or dtype not in TYPES:
        return None
    real, root = TYPES[dtype]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # Windows keeps a loaded library
        target = Path(folder, f"tvl1_{real}.so")
        defined = (f"-DREAL={real}", f"-DROOT={root}", f"-DLEARNT={int(learnt)}")
        for native in (("-march=native",), ()):  # not every compiler knows it
            command = [compiler, *FLAGS, *native, *defined, "-o", str(target), str(SOURCE), "-lm"]
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                return ctypes.CDLL(str(target))
    return None


class _Solve(torch.autograd.Function):
    """`solve` with the five units that `flow.py` forms: of tau, the offset, the slope, the gradient and the flow."""

    @staticmethod
    def forward(
        ctx: Any,
        first: Tensor,
        second: Tensor,
        units: Tensor,
        iterations: int,
        start: Tensor | None,
        taps_NK: Tensor | None,
    ) -> Tensor:
        ctx.iterations = iterations
        ctx.save_for_backward(first, second, units, start, taps_NK)
        flow = first.new_empty(2, *first.shape)
        _call("solve", first, second, units, iterations, start, taps_NK, flow)
        return flow

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, flow_grad: Tensor) -> tuple[Tensor | None, ...]:
        first, second, units, start, taps_NK = ctx.saved_tensors
        first_grad, second_grad = first.new_empty(2, *first.shape)
        start_grad = None if start is None else first.new_empty(2, *first.shape)
        units_grad = first.new_empty(len(first), len(units), dtype=torch.float64)
        taps_grad = None if taps_NK is None else taps_NK.new_empty(taps_NK.shape, dtype=torch.float64)
        outputs = (first_grad, second_grad, start_grad, units_grad, taps_grad)
        _call("gradients", first, second, units, ctx.iterations, start, taps_NK, flow_grad, *outputs)
        if taps_grad is not None:
            taps_grad = taps_grad[:, FAR_FIRST].to(first.dtype)
        return first_grad, second_grad, units_grad.sum(dim=0).to(units.dtype), None, start_grad, taps_grad


def _call(
    name: str,
    first: Tensor,
    second: Tensor,
    units: Tensor,
    iterations: int,
    start: Tensor | None,
    taps_NK: Tensor | None,
    *rest: Tensor | None,
) -> None:
    """Call a function of the library for all pairs."""
    kernel = getattr(library(first.dtype, learnt=taps_NK is not None), name)
    tiny = torch.finfo(first.dtype).tiny
    limits = first.new_tensor([tiny ** (1 / 3), math.sqrt(tiny)])  # as in flow.py and tvl1.py
    # The list keeps the contiguous copies until the work is done.
    tensors = [x if x is None else x.contiguous() for x in (units, limits, first, second, start, taps_NK, *rest)]
    pointers = [ctypes.c_void_p(None if x is None else x.data_ptr()) for x in tensors]
    sizes = [ctypes.c_long(size) for size in (*first.shape, iterations)]

    def work(begin: int, stop: int) -> None:
        if kernel(ctypes.c_long(begin), ctypes.c_long(stop), *sizes, *pointers):
            raise MemoryError(f"flow: no memory for a pair of frames of {first.shape[-1]}x{first.shape[-2]} px")

    _share(len(first), work)


def _share(pairs: int, work: Callable[[int, int], None]) -> None:
    """Call work(begin, stop) for parts of the pairs, on as many threads as torch uses."""
    threads = min(torch.get_num_threads(), pairs)
    if threads <= 1:
        work(0, pairs)
        return
    size = max(pairs // (threads * SHARES), 1)
    begins = iter(range(0, pairs, size))  # each thread takes the next one, which no other thread gets

    def take() -> None:
        for begin in begins:
            work(begin, min(begin + size, pairs))

    with ThreadPoolExecutor(threads - 1) as pool:
        others = [pool.submit(take) for _ in range(threads - 1)]
        take()
        for other in others:
            other.result()
