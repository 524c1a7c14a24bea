"""Waiting for the processes of a loader, which may hang: on a network disk, or for lack of file descriptors.

torch waits for ever, and Python runs no other code meanwhile. Here the wait ends every second, so that a signal to stop
is heeded, and it ends with an error after some time. Each process notes which file it reads, so the error can name it.
"""

import mmap
import os
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import process
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, get_worker_info

from airstreams.errors import VideoError

Item = TypeVar("Item")

CHECK_EVERY = 1  # s
NAME_BYTES = 1024  # of a file's path that a process notes
SPARE_DESCRIPTORS = 8  # that a process needs to pass on a batch
RAISE_THE_LIMIT = "Raise the limit with `ulimit -n 65536`, or decode with 0 workers (data.workers of a run)."


class StoppedWaitingError(Exception):
    """The caller's `stop` was true while there was nothing to iterate over."""


class Notes:
    """Which file each process of a loader reads, in memory that forks share."""

    _own: "Notes | None" = None  # in a loader's process

    def __init__(self, workers: int) -> None:
        self._memory = mmap.mmap(-1, max(1, workers) * NAME_BYTES)

    def begin(self) -> None:
        """In a loader's process: note its files here."""
        Notes._own = self

    def write(self, worker: int, path: str) -> None:
        """Note a file; an empty text: none."""
        name = os.fsencode(path)[-NAME_BYTES:].ljust(NAME_BYTES, b"\0")
        self._memory[worker * NAME_BYTES : (worker + 1) * NAME_BYTES] = name

    def read(self, worker: int) -> str:
        """The file that a process reads; empty: none."""
        return os.fsdecode(self._memory[worker * NAME_BYTES : (worker + 1) * NAME_BYTES].rstrip(b"\0"))


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """In a loader's process: note that the block reads this file. Elsewhere: nothing."""
    worker = get_worker_info()
    if Notes._own is None or worker is None:
        yield
        return
    Notes._own.write(worker.id, os.fspath(path))
    try:
        yield
    finally:
        Notes._own.write(worker.id, "")


def patiently(loader: DataLoader[Any], patience: float, stop: Callable[[], bool] = lambda: False) -> Generator[Any]:
    """Iterate over a loader. Its processes are ended if this is left early.

    Args:
        loader: with the options of `loader_processes.loader_options`.
        patience: how long to wait for an item, s.
        stop: asked every second while there is nothing to iterate over.

    Raises:
        StoppedWaitingError: `stop` was true.
        VideoError: no item came in time. It names the file that is being read.
        RuntimeError: a process has no file descriptors left, or died.
    """
    if not loader.num_workers:
        yield from loader
        return
    if loader._iterator is not None:  # of the last epoch: its processes say that they begin again
        loader._iterator._timeout = patience
    iterator: Any = None
    try:
        iterator = iter(loader)
        while True:
            iterator._timeout = CHECK_EVERY
            try:
                item = _next(iterator, loader, patience, stop)
            except StopIteration:
                return
            iterator._timeout = 0
            yield item
    except BaseException as error:
        if iterator is not None or loader._iterator is not None:
            _end_processes(iterator or loader._iterator)
        if _is_about_descriptors(error):
            raise RuntimeError(f"too many open files. {RAISE_THE_LIMIT}") from error
        if _timed_out(error):
            raise VideoError(f"no clip for {patience:g} s (data.patience), at the start of an epoch") from error
        raise


def _next(iterator: Any, loader: DataLoader[Any], patience: float, stop: Callable[[], bool]) -> Any:
    """The next item. Raises what `patiently` does, and StopIteration."""
    asked = time.monotonic()
    while True:
        try:
            return next(iterator)
        except RuntimeError as error:
            if not _timed_out(error):
                raise
        if iterator._pin_memory and not iterator._pin_memory_thread.is_alive():
            raise RuntimeError(
                f"the thread that passes on clips has ended, perhaps for too many open files. {RAISE_THE_LIMIT}"
            )
        if stop():
            raise StoppedWaitingError
        if time.monotonic() - asked > patience:
            raise _waited_too_long(iterator, loader, patience)


def _waited_too_long(iterator: Any, loader: DataLoader[Any], patience: float) -> VideoError:
    notes: Notes | None = getattr(loader.worker_init_fn, "notes", None)
    worker = iterator._task_info.get(iterator._rcvd_idx, (0,))[0]
    names = [] if notes is None else [notes.read(number) for number in (worker, *range(loader.num_workers))]
    path = next(filter(None, names), None)
    waits = "it waits for this file" if path else "its processes read no file"
    fix = "Check the disk that it is on, or give more seconds as data.patience"
    return VideoError(f"no clip for {patience:g} s, and {waits}. {fix}", path)


def require_descriptors() -> None:
    """In a loader's process, before it passes on a batch: RuntimeError if too few file descriptors are left.

    torch would open some in a thread whose errors are lost: the batch would never arrive.
    """
    if sys.platform != "linux":
        return
    import resource  # missing on Windows

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and len([*Path("/proc/self/fd").iterdir()]) + SPARE_DESCRIPTORS > limit:
        raise RuntimeError(f"too many open files (the limit is {limit}). {RAISE_THE_LIMIT}")


def _timed_out(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader timed out")


def _is_about_descriptors(error: BaseException) -> bool:
    text = str(error)
    return isinstance(error, RuntimeError | OSError) and ("Too many open files" in text or "ancillary data" in text)


def _end_processes(iterator: Any) -> None:
    """Kill the processes of a loader: they may be stopped, or wait for a disk, and would not heed another signal."""
    torch._C._remove_worker_pids(id(iterator))  # else torch raises an error for each killed process
    iterator._worker_pids_set = False
    for worker in iterator._workers:
        worker.kill()
    for worker in iterator._workers:
        worker.join(CHECK_EVERY)
        if worker.is_alive():  # the kernel kills it once its disk answers; Python must not wait for that at its end
            process._children.discard(worker)  # type: ignore[attr-defined]
    with suppress(Exception):  # its queues may be broken
        iterator._shutdown_workers()
