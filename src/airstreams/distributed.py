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

from airstreams.errors import InputError

Item = TypeVar("Item")

# Processes end their shares of a long job, or prepare their videos, hours apart; torch's own patience ends after half
# an hour. Of a process that died, torchrun tells the others.
PATIENCE = timedelta(days=7)


def is_main_process() -> bool:
    """Whether this is the process that writes files and talks."""
    is_main: bool = PartialState().is_main_process
    return is_main


def device_of_process() -> torch.device:
    """The CUDA device that is this process's, or the CPU. InputError: there are fewer cards than processes."""
    if torch.cuda.is_available():
        require_a_card_each()
    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE).device


def require_a_card_each() -> None:
    """Raise InputError if `torchrun` started more processes on this machine than it has CUDA cards."""
    processes, cards = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if processes > cards:
        raise InputError(f"torchrun: got {processes} processes for {cards} CUDA cards; give --nproc-per-node {cards}")


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
    return dist.new_group(backend="gloo", timeout=PATIENCE)


def share_on_this_machine() -> tuple[int, int]:
    """Which process this is of how many on its machine."""
    return PartialState().local_process_index, int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def broadcast_buffers(model: nn.Module) -> None:
    """Give every process the batch statistics of the first, which are those that are saved."""
    if PartialState().num_processes > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
