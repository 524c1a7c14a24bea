"""Compare the speed of a training step with the machine's own matrix products.

    python benchmarks/step_speed.py --recipe jhmdb-small --streams rgb rgb,semantic

The step is the one of training, from decoded frames on the device to changed weights, on random frames and label maps.
It runs in the precision that training takes on the machine. There are two comparisons, because the first flatters:

- counted/matmul: the multiply-adds of `airstreams info` times three (forward pass, gradients of the features, gradients
  of the weights), compared with a large square `torch.matmul`.
- needed/best: without the multiply-adds on zero padding (a third of all on small grids), and without gradients that
  nothing needs. Compared with the faster of that matmul and a large 3x3 convolution without padding. On a CPU the two
  run in different libraries. If `torch.matmul` is the slower one, a step can exceed 100 % of it.

Both references are timed after every step, so all of them see the same load of the machine. Medians are compared. The
flow layer does element-wise work, which neither comparison counts. It is timed by itself, and the rates are those of
the rest of the step.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch.overrides import TorchFunctionMode

from airstreams.config import Config
from airstreams.data.dataset import Batch, StepSampler
from airstreams.data.label_maps import COCO_CLASSES
from airstreams.machine import precision_on
from airstreams.models import cost
from airstreams.models.airstreams import AIRStreams, build
from airstreams.recipe import load_config, recipe_path
from airstreams.training.learner import Learner, freeze, make_accelerator
from airstreams.training.learner import make_learner as learner_of
from airstreams.training.step import to_device, training_step

CLASSES = 21  # J-HMDB's
WARM_UP = 5  # untimed steps, in which memory is allocated, kernels are chosen and a CUDA graph is captured


def main() -> None:
    """Print a line for each set of streams."""
    parser = argparse.ArgumentParser(description="Training steps against the machine's matrix rate.")
    parser.add_argument("--recipe", default="jhmdb-small", help="a packaged recipe's name or a YAML file")
    parser.add_argument("--batch", type=int, help="clips per step (default: the recipe's)")
    parser.add_argument("--steps", type=int, default=10, help="timed steps per line (default: 10)")
    sets = ["rgb", "semantic", "rgb,semantic", "rgb,flow,semantic"]
    parser.add_argument("--streams", nargs="+", default=sets, metavar="A,B", help=f"default: {' '.join(sets)}")
    arguments = parser.parse_args()
    recipe = load_config(recipe_path(arguments.recipe))
    batch = arguments.batch or recipe.training.batch_size
    accelerator = make_accelerator(recipe.training)
    device = accelerator.device
    print(f"{arguments.recipe}, batch {batch}, {device.type}, {torch.get_num_threads()} CPU threads; rates in GFLOP/s")
    print("                                      flow layer     counted/matmul       needed/best")
    print("streams            steps/s   ms/clip     ms/clip")
    for streams in arguments.streams:
        training = replace(recipe.training, batch_size=batch)
        config = replace(recipe, model=replace(recipe.model, streams=streams.split(",")), training=training)
        times = measure(config, arguments.steps, accelerator)
        counted = counted_operations(config, batch) / (times.step - times.flow) / 1e9
        needed = needed_operations(config, batch) / (times.step - times.flow) / 1e9
        matmul = times.matmul_operations / times.matmul / 1e9
        best = max(matmul, times.convolution_operations / times.convolution / 1e9)
        print(
            f"{streams:18}{1 / times.step:8.2f}{1e3 * times.step / batch:10.1f}{1e3 * times.flow / batch:12.1f}"
            f"{counted:8.0f}/{matmul:<4.0f}{counted / matmul:5.0%}{needed:8.0f}/{best:<4.0f}{needed / best:5.0%}",
            flush=True,
        )


@dataclass
class Times:
    """Medians in seconds, and the operations of the two references."""

    step: float
    flow: float  # of the step, in the flow layer
    matmul: float
    matmul_operations: int
    convolution: float
    convolution_operations: int


def measure(config: Config, steps: int, accelerator: Accelerator) -> Times:
    """Time steps and references in turn."""
    device = accelerator.device
    learner, batch = make_learner(config, accelerator), make_batch(config, device)
    flow_pass = make_flow_pass(learner.model, config, device)
    precision = getattr(torch, learner.precision)
    side, channels = (8192, 1024) if device.type == "cuda" else (2048, 128)
    left, right = torch.rand(2, side, side, device=device, dtype=precision)
    features_NCHW = torch.rand(16, 66, 66, channels, device=device, dtype=precision).permute(0, 3, 1, 2)
    kernel_CC33 = torch.rand(channels, 3, 3, channels, device=device, dtype=precision).permute(0, 3, 1, 2)
    work: tuple[Callable[[], object], ...] = (
        lambda: training_step(learner, accelerator, [batch], config),
        flow_pass,
        lambda: left @ right,
        lambda: F.conv2d(features_NCHW, kernel_CC33),
    )
    rounds = [[seconds(part, device) for part in work] for _ in range(WARM_UP + steps)][WARM_UP:]
    step_s, flow_s, matmul_s, convolution_s = (median(column) for column in zip(*rounds, strict=True))
    return Times(step_s, flow_s, matmul_s, 2 * side**3, convolution_s, 2 * 16 * 64**2 * 9 * channels**2)


def make_learner(config: Config, accelerator: Accelerator) -> Learner:
    """The recipe's model and optimiser, as in training."""
    torch.manual_seed(0)
    model = build(config.model, CLASSES, config.segmenter_classes(len(COCO_CLASSES)))
    sampler = StepSampler([""] * config.training.batch_size, config)
    precision = precision_on(accelerator.device, config.training.precision, config.model.is_full_size)
    learner = learner_of(model, freeze(model, config), config, sampler, accelerator, precision=precision)
    learner.begin_training()
    return learner


def make_batch(config: Config, device: torch.device) -> Batch:
    """Random frames at the size that the recipe decodes, cropped nowhere, and random label maps."""
    B, T, size, side = config.training.batch_size, config.clip.frames, config.clip.size, config.decoded_side
    stride = config.data.label_stride
    labels = (B, T, size // stride, size // stride)
    batch = Batch(
        frames_BTHW3=torch.randint(0, 256, (B, T, side, side, 3), dtype=torch.uint8),
        box_B4=torch.tensor([[0.0, 0.0, side, side]]).repeat(B, 1),
        inside_B2=torch.full((B, 2), side),
        flip_B=torch.rand(B) < 0.5,
        colour_B3=1 + 0.3 * torch.rand(B, 3),
        target=torch.randint(0, CLASSES, (B,)),
        teachers={"semantic": torch.randint(0, config.segmenter_classes(len(COCO_CLASSES)), labels, dtype=torch.uint8)},
        names=["random"] * B,
        bad_videos=[],
    )
    return to_device(batch, device)


def make_flow_pass(model: AIRStreams, config: Config, device: torch.device) -> Callable[[], None]:
    """The forward and backward pass of the flow layer; nothing if the model has none."""
    if "flow" not in config.model.streams:
        return lambda: None
    B, size = config.training.batch_size, config.clip.size
    clip_B3THW = torch.rand(B, 3, config.clip.frames, size, size, device=device)
    representation = model.representations["flow"]

    def flow_pass() -> None:
        flow_B2THW = representation(clip_B3THW).tower_input
        if flow_B2THW.requires_grad:
            flow_B2THW.sum().backward()
            representation.zero_grad()  # a step begins without gradients

    return flow_pass


def counted_operations(config: Config, batch: int) -> int:
    """The additions and multiplications of a step, as the literature counts them."""
    multiply_adds = cost.count(config, CLASSES, config.segmenter_classes(len(COCO_CLASSES))).training
    return 2 * 3 * batch * sum(count for part, count in multiply_adds.items() if part != "flow.representation")


def needed_operations(config: Config, batch: int) -> int:
    """The additions and multiplications whose results are used."""
    with torch.device("meta"):
        model = build(config.model, CLASSES, config.segmenter_classes(len(COCO_CLASSES)))
        clip_B3THW = torch.empty(1, 3, config.clip.frames, config.clip.size, config.clip.size)
    with NeededMultiplyAdds() as needed:
        model(clip_B3THW, config.trained_heads())
    return 2 * batch * needed.total


class NeededMultiplyAdds(TorchFunctionMode):
    """Sums the needed multiply-adds of the convolutions and linear layers called in it, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.conv2d:
            features, weight, _, stride, padding, dilation = args[:6]
            sides = zip(features.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
            rows, columns = (taps_inside(*side) for side in sides)
            multiply_adds = features.shape[0] * weight.shape[0] * weight.shape[1] * rows * columns
            self.total += multiply_adds * (3 if features.requires_grad else 2)
        elif func is F.linear:
            self.total += 3 * args[0].shape[0] * args[1].numel()
        return func(*args, **(kwargs or {}))


def taps_inside(length: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """The number of kernel positions along one side that are on the features and not on their padding."""
    starts = range(-padding, length + padding - dilation * (kernel - 1), stride)
    return sum(0 <= start + tap * dilation < length for start in starts for tap in range(kernel))


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """The time of a piece of work in s, until the device has finished it."""
    synchronize(device)
    started = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    """Wait until a CUDA device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
