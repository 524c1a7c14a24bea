"""Several processes on one job, started by `torchrun`: what each takes, and how they come together again.

With one process all of this is the identity.
"""

import functools
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn

Item = TypeVar("Item")


def leads() -> bool:
    """Whether this is the process that writes files and talks."""
    is_main: bool = PartialState().is_main_process
    return is_main


def device_of_process() -> torch.device:
    """The CUDA device that is this process's, or the CPU. Processes wait a week for each other from then on."""
    # Their shares of a long job end hours apart; torch's own patience ends after half of one.
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=7)).device


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


def align_buffers(model: nn.Module) -> None:
    """Give every process the batch statistics of the first, which are those that are saved."""
    if PartialState().num_processes > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
