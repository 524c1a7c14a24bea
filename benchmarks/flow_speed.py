"""Representation Flow against its authors' layer, in time, and against plain autograd, in memory.

    python benchmarks/flow_speed.py rep_flow_layer.py

The file is the published layer: piergiaj/representation-flow-cvpr19 on GitHub, commit 787564a, as it stands. Its one
line that no longer runs, `mask1^1` on bool masks, is mended in memory. It has no licence, so it is not part of this.

Times are of 20 iterations on two CPU threads, the same tensors for both in turn, forward without gradients and forward
plus backward for both frames and all parameters; each ratio is the authors' time over ours, medians over the rounds.
Both layers begin at pairs of frames: theirs takes them apart, ours as clips of two frames.

With `--device cuda` ours is timed twice, by its Triton kernels and by the in-place operations that a GPU runs without
Triton, and at the size of a training step too (32 clips of 16 frames).

Memory is of forward plus backward for 8 clips of 16 frames (15 pairs each) of 112x112: how far it raises the peak of
a fresh process's resident memory (on CUDA, of what torch has taken of the card's), once through the layer as it is and
once with its iterations unrolled for plain autograd, whose time is the reference too.
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
    """Milliseconds of the layers, and the ratio of the authors' to ours."""
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
    """Run the backward pass of a loss that weighs every pixel differently."""
    if backward:
        (result * torch.linspace(-1, 1, result.numel()).view_as(result)).sum().backward()


def in_turn(runs: Sequence[Callable[[], None]], rounds: int) -> list[list[float]]:
    """Seconds of each, one after the other, so that a change of the machine's pace meets all."""
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
    """Peak memory and time of the layer with its own backward pass and with plain autograd's."""
    runs = {"plain autograd, unrolled": tvl1.unrolled, "the layer": tvl1.iterate}
    peaks = []
    for iterate in runs.values():
        # In a process of its own, which inherits its parent's peak: so while this one is small.
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
    """The layer forward and backward, its iterations by one way or the other."""
    with mock.patch.object(flow, "iterate", iterate):
        finish(flow.RepresentationFlow(ITERATIONS)(clip.requires_grad_()), backward=True)


def peak_bytes(iterate: Callable[..., Tensor], device: str) -> int:
    """How far a step raises the peak of this process's memory on the device over what it held before."""
    torch.set_num_threads(2)
    torch.set_default_device(device)
    train_step(iterate, torch.rand(1, 1, 3, 32, 32))  # what torch itself takes for its first use
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
