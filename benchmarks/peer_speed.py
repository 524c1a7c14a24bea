"""Compare the views that this model and SlowFast-R50 score per second on the CPU.

    pip install --no-deps pytorchvideo fvcore iopath    # the reference
    pip install parameterized yacs tabulate termcolor portalocker pillow networkx    # what it imports
    python benchmarks/peer_speed.py

A view is one clip at each model's own size: 16 frames of 112 px for the recipe `jhmdb` with all three streams, and 32
frames of 256 px (8 of them for the slow pathway) for pytorchvideo's SlowFast-R50 8x8, the reference. Both have random
weights, run in float32, and compute only what inference needs. They run in turn in one process. Times are medians.
"""

import argparse
import sys
import time
from collections.abc import Callable
from statistics import median
from types import ModuleType

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from airstreams.data.label_maps import COCO_CLASSES
from airstreams.models.airstreams import build
from airstreams.recipe import load_config, recipe_path

CLASSES = 400  # Kinetics'
MARK = 4.0  # the ratio of views per second that we aim for


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="jhmdb", help="a packaged recipe's name or a YAML file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    config = load_config(recipe_path(arguments.recipe))
    ours = build(config.model, CLASSES, config.segmenter_classes(len(COCO_CLASSES))).eval()
    clip_B3THW = torch.rand(1, 3, config.clip.frames, config.clip.size, config.clip.size)
    theirs = slowfast()
    pathways = [torch.rand(1, 3, 8, 256, 256), torch.rand(1, 3, 32, 256, 256)]
    models: dict[str, Callable[[], object]] = {
        "SlowFast-R50 8x8, 256 px": lambda: theirs(list(pathways)),  # it changes the list
        f"this, {arguments.recipe}": lambda: ours(clip_B3THW),
    }
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for number in range(arguments.rounds + 2):
            for name, score in models.items():
                started = time.perf_counter()
                score()
                if number >= 2:
                    times[name].append(time.perf_counter() - started)
    table = Table("model", "G multiply-adds", "ms per view", "views per second")
    for name, score in models.items():
        counter = FlopCounterMode(display=False)
        with counter, torch.inference_mode():
            score()
        taken = median(times[name])
        table.add_row(name, f"{counter.get_total_flops() / 2e9:.1f}", f"{1e3 * taken:.0f}", f"{1 / taken:.2f}")
    reference, measured = (median(taken) for taken in times.values())
    Console(width=100).print(table)
    print(f"{reference / measured:.1f} times as many views per second (mark {MARK:.0f}), {arguments.threads} threads")


def slowfast() -> torch.nn.Module:
    """pytorchvideo's SlowFast-R50 8x8 with random weights."""
    try:
        import torchvision.ops  # noqa: F401
    except ImportError:  # pytorchvideo imports RoIAlign for detection heads; this model has none
        operators = ModuleType("torchvision.ops")
        operators.RoIAlign = torch.nn.Identity  # type: ignore[attr-defined]
        sys.modules |= {"torchvision": ModuleType("torchvision"), "torchvision.ops": operators}
    from pytorchvideo.models.slowfast import create_slowfast

    model: torch.nn.Module = create_slowfast(model_num_class=CLASSES, slowfast_fusion_conv_kernel_size=(7, 1, 1))
    return model.eval()


if __name__ == "__main__":
    main()
