"""Compare the flow layer, by both of its CPU kernels, with its authors' layer in time, and with autograd in memory.

    python benchmarks/flow_speed.py rep_flow_layer.py

The file is the published layer: piergiaj/representation-flow-cvpr19 on GitHub, commit 787564a, unchanged. One of its
lines, `mask1^1` on bool masks, no longer runs. It is corrected in memory. The file has no licence, so it is not here.

Times are for 20 iterations on two CPU threads (`--threads`), on the same tensors, the layers in turn: the forward pass
without gradients, and the forward and backward pass for both frames and all parameters. Our layer is timed with the
kernels `torch` and `fused`. The ratios are of median times. All layers start from pairs of frames: theirs takes two
tensors, ours a clip of two frames. The times are taken twice: with the cores to themselves, and beside a process that
keeps a core busy.

With `--device cuda` our layer is timed with its Triton kernels, and with the in-place operations that a GPU runs
without Triton, and beside no other process. It is also timed at the size of a training step (32 clips of 16 frames).

Memory is for the forward and backward pass of 8 clips of 16 frames (15 pairs each) of 112x112 px. It is the increase of
a new process's peak resident memory, or on CUDA of the memory that torch allocates. It is measured for the layer as it
is, and with unrolled iterations and plain autograd.

    python benchmarks/flow_speed.py --learnt --threads 1

compares the layer with learnt kernels, one set for each channel, with the layer as it is, by the forward and backward
pass. It needs no file. Times are CPU times, so that other processes matter little; on CUDA they are wall times.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from airstreams.models import flow, tvl1

ITERATIONS = 20
SIZES = ((64, 56), (16, 112))  # pairs, side in px
STEP = (32 * 15, 112)  # pairs of a training step of the recipe jhmdb
PASSES = ("forward", "forward and backward")
LEARNT: dict[str, Any] = {"learn_kernels": True, "kernel_channels": 1}


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layer", type=Path, nargs="?", help="the authors' rep_flow_layer.py")
    parser.add_argument("--learnt", action="store_true", help="compare learnt kernels with fixed ones, and no more")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--without-memory", action="store_true", help="leave out the table of peak memory")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    torch.set_default_device(arguments.device)
    console = Console(width=110)
    if arguments.learnt:
        console.print(learnt_table(arguments.rounds))
        return
    if arguments.layer is None:
        parser.error("no layer. Give the path of rep_flow_layer.py, or --learnt")
    authors = authors_layer(arguments.layer)
    if not arguments.without_memory:
        console.print(memory_table(max(arguments.rounds // 5, 1)))
    console.print(time_table(authors, arguments.rounds, "alone"))
    if arguments.device == "cpu":
        with busy_process():
            console.print(time_table(authors, arguments.rounds, "beside a busy process"))


def authors_layer(path: Path) -> type[nn.Module]:
    """The published `FlowLayer`, with `^1` on masks read as their negation."""
    text = path.read_text(encoding="utf-8").replace("(mask1^1)", "(~mask1)").replace("(mask2^1)", "(~mask2)")
    names: dict[str, Any] = {}
    exec(compile(text, str(path), "exec"), names)
    layer: type[nn.Module] = names["FlowLayer"]
    return layer


def time_table(authors: type[nn.Module], rounds: int, where: str) -> Table:
    """The times of the authors' layer and of ours in ms, and their ratios."""
    on_cuda = torch.get_default_device().type == "cuda"
    ours = ("without Triton", "Triton") if on_cuda else ("torch", "fused")
    ratios = (f"authors / {ours[0]}", f"authors / {ours[1]}", f"{ours[0]} / {ours[1]}")
    times = (f"{name}, ms" for name in ("authors", *ours))
    table = Table("pairs", "pass", *times, *ratios, title=f"{ITERATIONS} iterations, {where}")
    for pairs, side in (*SIZES, STEP) if on_cuda else SIZES:
        frames = torch.rand(2, pairs, 1, side, side) * 255
        for name in PASSES:
            backward = name != "forward"
            with torch.set_grad_enabled(backward):
                taken = in_turn(runs_of(authors, frames, backward), rounds)
            theirs, plain, fast = (statistics.median(each) * 1e3 for each in taken)
            shown = (f"{median:.2f}" if median < 10 else f"{median:.1f}" for median in (theirs, plain, fast))
            quotients = (f"{quotient:.1f}" for quotient in (theirs / plain, theirs / fast, plain / fast))
            table.add_row(f"{pairs} of {side}x{side}", name, *shown, *quotients)
    return table


def runs_of(authors: type[nn.Module], frames: Tensor, backward: bool) -> tuple[Callable[[], None], ...]:
    """A run of the authors' layer and of both forms of ours, on the same pairs of frames."""
    theirs = authors(n_iter=ITERATIONS).to(frames.device)
    plain, fused = (flow.RepresentationFlow(ITERATIONS, value_range=255, kernel=k) for k in ("torch", "fused"))
    first, second = (frame.clone().requires_grad_(backward) for frame in frames)
    clip = frames.movedim(0, 2).clone().requires_grad_(backward)
    on_cuda = frames.device.type == "cuda"

    def run_plain() -> None:
        with without_triton() if on_cuda else nullcontext():
            finish(plain(clip)[:, :, 0], backward)

    return (
        lambda: finish(torch.cat(theirs(first, second)), backward),
        run_plain,
        lambda: finish(fused(clip)[:, :, 0], backward),
    )


@contextmanager
def without_triton() -> Iterator[None]:
    """Run the in-place operations on a GPU too."""
    with tvl1.recomputed.set_kernel_enabled("cuda", False), tvl1._backward.set_kernel_enabled("cuda", False):
        yield


@contextmanager
def busy_process() -> Iterator[None]:
    """A process that keeps a core busy."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def finish(result: Tensor, backward: bool) -> None:
    """Run the backward pass of a loss with a different weight for every pixel."""
    if backward:
        (result * torch.linspace(-1, 1, result.numel()).view_as(result)).sum().backward()


def in_turn(
    runs: Sequence[Callable[[], None]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> list[list[float]]:
    """The times of each in s. They run in turn, so a slower phase of the machine affects all of them."""
    times: list[list[float]] = [[] for _ in runs]
    for number in range(rounds + 2):
        for run, taken in zip(runs, times, strict=True):
            started = clock()
            run()
            if torch.get_default_device().type == "cuda":
                torch.cuda.synchronize()
            if number >= 2:
                taken.append(clock() - started)
    return times


def memory_table(rounds: int) -> Table:
    """Peak memory and time of the layer, with its own backward pass and with plain autograd."""
    runs = {
        "plain autograd, unrolled": partial(train_step, iterate=tvl1.unrolled),
        "the layer": partial(train_step, iterate=tvl1.iterate),
    }
    peaks = [peak_bytes(run) for run in runs.values()]
    clip = torch.rand(8, 1, 16, 112, 112)
    times = in_turn([partial(run, clip) for run in runs.values()], rounds)
    medians = [statistics.median(taken) * 1e3 for taken in times]
    table = Table("8 clips of 16 frames, 112x112", "peak, MB", "time, ms", title="forward and backward")
    for name, peak, taken in zip(runs, peaks, medians, strict=True):
        table.add_row(name, f"{peak / 1e6:.0f}", f"{taken:.0f}")
    table.add_row("share (marks 0.25 and 1.3)", f"{peaks[1] / peaks[0]:.3f}", f"{medians[1] / medians[0]:.2f}")
    return table


def learnt_table(rounds: int) -> Table:
    """Peak memory and time with fixed and with learnt kernels, and their ratios."""
    on_cuda = torch.get_default_device().type == "cuda"
    clock = time.perf_counter if on_cuda else time.process_time
    steps = {
        kernel: [partial(train_step, kernel=kernel, **options) for options in ({}, LEARNT)]
        for kernel in (("torch",) if on_cuda else ("torch", "fused"))
    }
    peaks = {kernel: [peak_bytes(step) / 1e6 for step in both] for kernel, both in steps.items()}
    table = Table("kernel", "8 clips of 16 frames", "fixed", "learnt", "ratio", title="forward and backward")
    for kernel, both in steps.items():
        fixed, learnt = peaks[kernel]
        table.add_row(kernel, "112x112, peak, MB", f"{fixed:.0f}", f"{learnt:.0f}", f"{learnt / fixed:.2f}")
        for side in (56, 112):
            clip = torch.rand(8, 1, 16, side, side)
            taken = in_turn([partial(step, clip) for step in both], rounds, clock)
            fixed, learnt = (statistics.median(each) * 1e3 for each in taken)
            table.add_row(kernel, f"{side}x{side}, ms", f"{fixed:.0f}", f"{learnt:.0f}", f"{learnt / fixed:.2f}")
    return table


def train_step(clip: Tensor, iterate: Callable[..., Tensor] = tvl1.iterate, **options: Any) -> None:
    """Run the layer forward and backward, with one of the forms of the iterations."""
    with mock.patch.object(flow, "iterate", iterate):
        finish(flow.RepresentationFlow(ITERATIONS, **options)(clip.requires_grad_()), backward=True)


def peak_bytes(step: Callable[[Tensor], None]) -> int:
    """The increase of a new process's peak memory by one step, in bytes.

    The process inherits the peak of this one, so this is called while this one is still small.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(own_peak_bytes, step, torch.get_default_device().type).result()


def own_peak_bytes(step: Callable[[Tensor], None], device: str) -> int:
    """The increase of this process's peak memory on the device by one step, in bytes."""
    torch.set_num_threads(2)
    torch.set_default_device(device)
    step(torch.rand(1, 1, 3, 32, 32))  # so that the memory of torch's first use does not count
    clip = torch.rand(8, 1, 16, 112, 112)
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(clip)
        return torch.cuda.max_memory_allocated() - before
    before = psutil.Process().memory_info().rss
    step(clip)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


if __name__ == "__main__":
    main()
