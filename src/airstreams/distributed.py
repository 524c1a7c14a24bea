"""Several processes on one job, started by `torchrun`: how they share work and exchange results.

With a single process these functions return their arguments.
"""

import functools
import itertools
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
from airstreams.machine import device_named

Item = TypeVar("Item")

# Processes may finish their shares of a long job hours apart, but torch's own limit is half an hour. torchrun itself
# ends the others when one process dies.
PATIENCE = timedelta(days=7)


def is_main_process() -> bool:
    """Whether this is the process of rank 0, which writes files and prints."""
    is_main: bool = PartialState().is_main_process
    return is_main


def device_of_process(name: str = "auto", key: str = "device") -> torch.device:
    """The device of this process: the named one or, under `torchrun` on CUDA, a card of its own.

    Args:
        name: as `machine.device_named` takes it.
        key: how a message calls the name.

    InputError: this machine has no such device, or not one for each process.
    """
    device = device_named(name, key)
    _require_one_each(device, name, key)
    if device.index is not None:
        torch.cuda.set_device(device)  # for Accelerate, which takes the current card
    state = PartialState(cpu=device.type == "cpu", timeout=PATIENCE)
    return device if state.num_processes == 1 else state.device


def _require_one_each(device: torch.device, name: str, key: str) -> None:
    """Raise InputError if `torchrun` started more processes on this machine than it has such devices."""
    processes, cards = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if processes > 1 and (device.index is not None or device.type == "mps"):
        raise InputError(f"{key}: got {name}, which is one device for {processes} processes. Give cuda or cpu.")
    if device.type == "cuda" and processes > cards:
        raise InputError(f"torchrun: {processes} processes for {cards} CUDA cards. Give --nproc-per-node {cards}.")


def share(items: Sequence[Item]) -> Sequence[Item]:
    """The items of this process: every n-th one."""
    state = PartialState()
    return items[state.process_index :: state.num_processes]


def gather(items: list[Item]) -> list[Item]:
    """The items of all processes, in the order of their ranks."""
    gathered: list[Item] = gather_object(items)
    return gathered


def any_process(flags: Sequence[bool]) -> list[bool]:
    """Which of the flags are set in at least one process.

    The exchange runs on the CPUs (gloo), so that nothing waits for a CUDA device.
    """
    if PartialState().num_processes == 1:
        return list(flags)
    set_anywhere = torch.tensor(flags, dtype=torch.uint8)
    dist.all_reduce(set_anywhere, dist.ReduceOp.MAX, group=_cpu_group())
    return [bool(flag) for flag in set_anywhere]


@functools.cache
def _cpu_group() -> dist.ProcessGroup:
    return dist.new_group(backend="gloo", timeout=PATIENCE)


def share_on_this_machine() -> tuple[int, int]:
    """This process's number among those on its machine, and how many there are."""
    return PartialState().local_process_index, int(os.environ.get("LOCAL_WORLD_SIZE", 1))


_shared_tasks = itertools.count()


class SharedProgress:
    """How far all processes are with a task that they share (`console.Shared`).

    The sums are in torch's key-value store, so no process waits for another one. All processes must make their objects
    in the same order.
    """

    def __init__(self) -> None:
        self._key = f"airstreams/progress/{next(_shared_tasks)}"
        self._store = dist.distributed_c10d._get_default_store() if PartialState().num_processes > 1 else None
        self._done = 0, 0

    def totals(self, units: int, work: int) -> tuple[int, int]:
        """The sums of what each process has to do. All processes wait for each other."""
        parts = gather([(units, work)])
        return sum(units for units, _ in parts), sum(work for _, work in parts)

    def add(self, units: int, work: int) -> tuple[int, int]:
        """Add what this process has done since the last call; returns the sums of all processes."""
        if self._store is None:
            self._done = self._done[0] + units, self._done[1] + work
            return self._done
        return self._store.add(f"{self._key}/units", units), self._store.add(f"{self._key}/work", work)


def broadcast_buffers(model: nn.Module) -> None:
    """Give every process the batch statistics of rank 0, which are the ones that are saved."""
    if PartialState().num_processes > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
