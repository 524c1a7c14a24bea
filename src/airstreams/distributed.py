"""Several processes on one job, started by `torchrun`: what each takes, and how they come together again.

With one process all of this is the identity.
"""

import functools
import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import gather_object
from rich.progress import Progress
from torch import Tensor, nn

from airstreams.data.cache import FrameCache
from airstreams.data.check import BadVideo, check_videos
from airstreams.data.listing import Video

Item = TypeVar("Item")


def leads() -> bool:
    """Whether this is the process that writes files and talks."""
    is_main: bool = PartialState().is_main_process
    return is_main


def device_of_process() -> torch.device:
    """The CUDA device that is this process's, or the CPU. Processes wait a week for each other from then on."""
    # Their shares of a long job end hours apart; torch's own patience ends after half of one.
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=7)).device


def hardware(device: torch.device) -> str:
    """What a job runs on, in words."""
    name = f"{_cpu()}, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    processes = PartialState().num_processes
    return name if processes == 1 else f"{processes} x {name}"


def _cpu() -> str:
    with suppress(OSError):  # Linux alone has this file; elsewhere Python knows the name
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def share(items: Sequence[Item]) -> Sequence[Item]:
    """This process's part: every n-th item."""
    state = PartialState()
    return items[state.process_index :: state.num_processes]


def gather(items: list[Item]) -> list[Item]:
    """All processes' items, process by process."""
    gathered: list[Item] = gather_object(items)
    return gathered


def any_process(flags: Sequence[bool]) -> list[bool]:
    """Which of the flags are set in at least one process.

    It goes by the hosts alone, so that nothing waits for a device.
    """
    if PartialState().num_processes == 1:
        return list(flags)
    everyones = torch.tensor(flags, dtype=torch.uint8)
    dist.all_reduce(everyones, dist.ReduceOp.MAX, group=_hosts())
    return [bool(flag) for flag in everyones]


@functools.cache
def _hosts() -> dist.ProcessGroup:
    return dist.new_group(backend="gloo")


def share_on_this_machine() -> tuple[int, int]:
    """Which process this is of how many on its machine."""
    return PartialState().local_process_index, int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def check_together(
    videos: Sequence[Video], progress: Progress, cache: FrameCache | None = None
) -> tuple[list[Video], list[BadVideo]]:
    """`check_videos`, each process opening its share."""
    _, bad = check_videos(share(videos), progress, cache)
    reasons = {item.video.name: item for item in gather(bad)}
    good = [video for video in videos if video.name not in reasons]
    return good, [reasons[video.name] for video in videos if video.name in reasons]


def align_buffers(model: nn.Module) -> None:
    """Give every process the batch statistics of the first, which are those that are saved."""
    if PartialState().num_processes > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def synchronise_norms(model: nn.Module, device: torch.device) -> None:
    """Make batch normalisation use the mean and variance over the clips of all processes.

    On CUDA these are torch's own layers. They refuse a CPU, so there it is `SynchronisedNorm`.
    """
    for name, child in model.named_children():
        if not isinstance(child, nn.BatchNorm2d | nn.BatchNorm3d):
            synchronise_norms(child, device)
        elif device.type == "cuda":
            setattr(model, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))
        else:
            setattr(model, name, SynchronisedNorm(child))


class SynchronisedNorm(nn.Module):
    """Batch normalisation over all dimensions but the second (channels), and over all processes.

    It holds the parameters and statistics of the layer that it stands for, under the same names.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, norm: nn.BatchNorm2d | nn.BatchNorm3d) -> None:
        super().__init__()
        assert norm.momentum is not None
        self.eps, self.momentum = norm.eps, norm.momentum
        self.weight, self.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers():
            self.register_buffer(name, buffer)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, ...) to the same."""
        shape = (-1, *[1] * (features.ndim - 2))
        if self.training:
            others = [dim for dim in range(features.ndim) if dim != 1]
            count = _SumOverProcesses.apply(features.new_tensor(features.numel() / features.shape[1]))
            mean_C = _SumOverProcesses.apply(features.sum(dim=others)) / count
            features = features - mean_C.view(shape)
            variance_C = _SumOverProcesses.apply(features.square().sum(dim=others)) / count
            with torch.no_grad():
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean_C, self.momentum)
                self.running_var.lerp_(variance_C * (count / (count - 1)), self.momentum)
        else:
            features = features - self.running_mean.view(shape)
            variance_C = self.running_var
        return features * (self.weight * (variance_C + self.eps).rsqrt()).view(shape) + self.bias.view(shape)


class _SumOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        return tensor

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient
