"""Compare the speed of float32 and bfloat16 on this machine, for some recipes.

    python benchmarks/precision.py small jhmdb finetune-small --streams rgb

Each recipe's model has random weights. Inference is the pass of the answer's heads through the model, and a step is the
one of training, on random frames and label maps. Both precisions take turns, so they see the same load of the machine.
A ratio is float32's time divided by bfloat16's: the median over the rounds of the ratio of neighbours, with their
lowest and highest value. On a CPU the time is that of the process on all its threads.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import get_args

import torch

from airstreams.config import Config
from airstreams.data.dataset import Batch, StepSampler
from airstreams.data.label_maps import COCO_CLASSES
from airstreams.machine import Precision, autocast, keep_freed_memory, precision_on
from airstreams.models.airstreams import AIRStreams, build
from airstreams.recipe import load_config, recipe_path
from airstreams.training.learner import freeze, make_accelerator, make_learner
from airstreams.training.step import to_device, training_step

CLASSES = 21  # J-HMDB's
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


def main() -> None:
    """Print a line for each recipe."""
    parser = argparse.ArgumentParser(description="How much faster bfloat16 is than float32.")
    parser.add_argument("recipes", nargs="+", help="names of packaged recipes, or YAML files")
    parser.add_argument("--streams", metavar="A,B", help="default: the recipe's")
    parser.add_argument("--batch", type=int, default=4, help="clips per pass and per step (default: 4)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds, after one that is not timed (default: 5)")
    arguments = parser.parse_args()
    keep_freed_memory()
    print(f"float32's time / bfloat16's, batch {arguments.batch}, {torch.get_num_threads()} CPU threads")
    print(f"{'recipe':24}{'auto':>10}{'inference':>24}{'step':>24}")
    for name in arguments.recipes:
        config = load_config(recipe_path(name))
        training = replace(config.training, batch_size=arguments.batch, accumulate=1)
        streams = arguments.streams.split(",") if arguments.streams else config.model.streams
        config = replace(config, model=replace(config.model, streams=streams), training=training)
        device = make_accelerator(config.training).device
        auto = precision_on(device, "auto", config.model.is_full_size)
        ratios = [ratio(times(make(config), arguments.rounds)) for make in (make_inference, make_step)]
        print(f"{Path(name).stem:24}{auto:>10}{ratios[0]:>24}{ratios[1]:>24}", flush=True)


def ratio(rounds: list[tuple[float, float]]) -> str:
    """The median of float32's time over bfloat16's, with the lowest and the highest."""
    found = sorted(in_float32 / in_bfloat16 for in_float32, in_bfloat16 in rounds)
    return f"{median(found):.2f} ({found[0]:.2f} to {found[-1]:.2f})"


def times(work: dict[Precision, Callable[[], object]], rounds: int) -> list[tuple[float, float]]:
    """The seconds of both precisions in each round, after one as a warm-up."""
    taken = []
    for _ in range(1 + rounds):
        seconds = []
        for precision in PRECISIONS:
            began = now()
            work[precision]()
            seconds.append(now() - began)
        taken.append((seconds[0], seconds[1]))
    return taken[1:]


def now() -> float:
    """A clock: of the wall with CUDA, of this process without."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def make_inference(config: Config) -> dict[Precision, Callable[[], object]]:
    """A pass through the model, by precision."""
    device = make_accelerator(config.training).device
    model = make_model(config).to(device).eval()
    clip = config.clip
    clips_B3THW = torch.rand(config.training.batch_size, 3, clip.frames, clip.size, clip.size, device=device)

    def infer(precision: Precision) -> None:
        with torch.inference_mode(), autocast(device, precision):
            model(clips_B3THW)

    return {precision: lambda precision=precision: infer(precision) for precision in PRECISIONS}  # type: ignore[misc]


def make_step(config: Config) -> dict[Precision, Callable[[], object]]:
    """A training step, by precision."""
    accelerator = make_accelerator(config.training)
    model = make_model(config)
    sampler = StepSampler([""] * config.training.batch_size, config)
    learner = make_learner(model, freeze(model, config), config, sampler, accelerator)
    learner.begin_training()
    learner.captured_pass = None  # one graph has one precision
    batch = to_device(make_batch(config), accelerator.device)

    def step(precision: Precision) -> None:
        learner.precision = precision
        training_step(learner, accelerator, [batch], config)

    return {precision: lambda precision=precision: step(precision) for precision in PRECISIONS}  # type: ignore[misc]


def make_batch(config: Config) -> Batch:
    """Random frames of the clip's size and random label maps."""
    B, T, size = config.training.batch_size, config.clip.frames, config.clip.size
    stride = config.data.label_stride
    labels = (B, T, size // stride, size // stride)
    return Batch(
        frames_BTHW3=torch.randint(0, 256, (B, T, size, size, 3), dtype=torch.uint8),
        box_B4=torch.tensor([[0.0, 0.0, size, size]]).repeat(B, 1),
        inside_B2=torch.full((B, 2), size),
        flip_B=torch.rand(B) < 0.5,
        colour_B3=1 + 0.3 * torch.rand(B, 3),
        target=torch.randint(0, CLASSES, (B,)),
        teachers={"semantic": torch.randint(0, config.segmenter_classes(len(COCO_CLASSES)), labels, dtype=torch.uint8)},
        names=["random"] * B,
        bad_videos=[],
    )


def make_model(config: Config) -> AIRStreams:
    """The recipe's model with random weights."""
    torch.manual_seed(0)
    return build(config.model, CLASSES, config.segmenter_classes(len(COCO_CLASSES)))


if __name__ == "__main__":
    main()
