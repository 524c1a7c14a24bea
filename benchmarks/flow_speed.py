"""Compare the flow layer with its authors' layer in time, and with plain autograd in memory.

    python benchmarks/flow_speed.py rep_flow_layer.py

The file is the published layer: piergiaj/representation-flow-cvpr19 on GitHub, commit 787564a, unchanged. One of its
lines, `mask1^1` on bool masks, no longer runs. It is corrected in memory. The file has no licence, so it is not here.

Times are for 20 iterations on two CPU threads, on the same tensors, both layers in turn: the forward pass without
gradients, and the forward and backward pass for both frames and all parameters. The ratio is the authors' median time
over ours. Both layers start from pairs of frames: theirs takes two tensors, ours a clip of two frames.

With `--device cuda` our layer is timed twice: with its Triton kernels, and with the in-place operations that a GPU runs
without Triton. It is also timed at the size of a training step (32 clips of 16 frames).

Memory is for the forward and backward pass of 8 clips of 16 frames (15 pairs each) of 112x112 px. It is the increase of
a new process's peak resident memory, or on CUDA of the memory that torch allocates. It is measured for the layer as it
is, and with unrolled iterations and plain autograd.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
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
MARKS = {"forward": 13.0, "forward and backward": 10.0}


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layer", type=Path, help="the authors' rep_flow_layer.py")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    torch.set_default_device(arguments.device)
    console = Console(width=110)
    authors = authors_layer(arguments.layer)
    console.print(memory_table(max(arguments.rounds // 5, 1)))
    console.print(time_table(authors, arguments.rounds))


def authors_layer(path: Path) -> type[nn.Module]:
    """The published `FlowLayer`, with `^1` on masks read as their negation."""
    text = path.read_text(encoding="utf-8").replace("(mask1^1)", "(~mask1)").replace("(mask2^1)", "(~mask2)")
    names: dict[str, Any] = {}
    exec(compile(text, str(path), "exec"), names)
    layer: type[nn.Module] = names["FlowLayer"]
    return layer


def time_table(authors: type[nn.Module], rounds: int) -> Table:
    """The times of both layers in ms, and the ratio of the authors' to ours."""
    on_cuda = torch.get_default_device().type == "cuda"
    columns = ("pairs", "pass", "authors, ms", "ours, ms", *(("ours without Triton, ms",) if on_cuda else ()))
    table = Table(*columns, "ratio", "mark", title=f"{ITERATIONS} iterations")
    for pairs, side in (*SIZES, STEP) if on_cuda else SIZES:
        frames = torch.rand(2, pairs, 1, side, side) * 255
        theirs, ours = authors(n_iter=ITERATIONS), flow.RepresentationFlow(ITERATIONS, value_range=255)
        theirs.to(frames.device)

        def passes(backward: bool, theirs: nn.Module = theirs, ours: nn.Module = ours, frames: Tensor = frames) -> Any:
            first, second = (frame.clone().requires_grad_(backward) for frame in frames)
            clip = frames.movedim(0, 2).clone().requires_grad_(backward)

            def without_kernels() -> None:
                with (
                    tvl1.recomputed.set_kernel_enabled("cuda", False),
                    tvl1._backward.set_kernel_enabled("cuda", False),
                ):
                    finish(ours(clip)[:, :, 0], backward)

            both = (
                lambda: finish(torch.cat(theirs(first, second)), backward),
                lambda: finish(ours(clip)[:, :, 0], backward),
            )
            return (*both, without_kernels) if on_cuda else both

        for name, mark in MARKS.items():
            backward = name != "forward"
            with torch.set_grad_enabled(backward):
                times = in_turn(passes(backward), rounds)
            medians = [statistics.median(taken) * 1e3 for taken in times]
            ratio = medians[0] / medians[1]
            shown = [f"{median:.2f}" if median < 10 else f"{median:.1f}" for median in medians]
            table.add_row(f"{pairs} of {side}x{side}", name, *shown, f"{ratio:.1f}", f"{mark:.0f}")
    return table


def finish(result: Tensor, backward: bool) -> None:
    """Run the backward pass of a loss with a different weight for every pixel."""
    if backward:
        (result * torch.linspace(-1, 1, result.numel()).view_as(result)).sum().backward()


def in_turn(runs: Sequence[Callable[[], None]], rounds: int) -> list[list[float]]:
    """The times of each in s. They run in turn, so a slower phase of the machine affects all of them."""
    times: list[list[float]] = [[] for _ in runs]
    for number in range(rounds + 2):
        for run, taken in zip(runs, times, strict=True):
            started = time.perf_counter()
            run()
            if torch.get_default_device().type == "cuda":
                torch.cuda.synchronize()
            if number >= 2:
                taken.append(time.perf_counter() - started)
    return times


def memory_table(rounds: int) -> Table:
    """Peak memory and time of the layer, with its own backward pass and with plain autograd."""
    runs = {"plain autograd, unrolled": tvl1.unrolled, "the layer": tvl1.iterate}
    peaks = []
    for iterate in runs.values():
        # In a new process. It inherits the peak of this one, so this runs while this one is still small.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            peaks.append(process.submit(peak_bytes, iterate, torch.get_default_device().type).result())
    clip = torch.rand(8, 1, 16, 112, 112)
    times = in_turn([partial(train_step, iterate, clip) for iterate in runs.values()], rounds)
    medians = [statistics.median(taken) * 1e3 for taken in times]
    table = Table("8 clips of 16 frames, 112x112", "peak, MB", "time, ms", title="forward and backward")
    for name, peak, taken in zip(runs, peaks, medians, strict=True):
        table.add_row(name, f"{peak / 1e6:.0f}", f"{taken:.0f}")
    table.add_row("share (marks 0.25 and 1.3)", f"{peaks[1] / peaks[0]:.3f}", f"{medians[1] / medians[0]:.2f}")
    return table


def train_step(iterate: Callable[..., Tensor], clip: Tensor) -> None:
    """Run the layer forward and backward, with one of the forms of the iterations."""
    with mock.patch.object(flow, "iterate", iterate):
        finish(flow.RepresentationFlow(ITERATIONS)(clip.requires_grad_()), backward=True)


def peak_bytes(iterate: Callable[..., Tensor], device: str) -> int:
    """The increase of this process's peak memory on the device by one step, in bytes."""
    torch.set_num_threads(2)
    torch.set_default_device(device)
    train_step(iterate, torch.rand(1, 1, 3, 32, 32))  # so that the memory of torch's first use does not count
    clip = torch.rand(8, 1, 16, 112, 112)
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        train_step(iterate, clip)
        return torch.cuda.max_memory_allocated() - before
    before = psutil.Process().memory_info().rss
    train_step(iterate, clip)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


if __name__ == "__main__":
    main()
