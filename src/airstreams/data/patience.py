"""Waiting for the processes of a loader, which may hang: on a network disk, or for lack of file descriptors.

torch waits for ever. Here a thread waits for it, and the caller looks every second whether a signal asks to stop. After
some time the wait ends with an error. Each process notes which file it reads, so the error can name it.
"""

import mmap
import os
import queue
import sys
import threading
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
    # The first call starts the processes, and torch then watches over them, which only the main thread can do.
    waiter = _Waiter(loader, iter(loader) if loader._iterator is None else None)
    try:
        waiter.start()
        while True:
            item = waiter.next(patience, stop)
            if item is _NO_MORE:
                return
            yield item
    except BaseException as error:
        waiter.end()
        # An iterator of torch cannot be asked whether it is true.
        iterator = loader._iterator if waiter.iterator is None else waiter.iterator
        if iterator is not None:
            _end_processes(iterator)
        if _is_about_descriptors(error):
            raise RuntimeError(f"too many open files. {RAISE_THE_LIMIT}") from error
        raise


_NO_MORE = object()


class _Waiter(threading.Thread):
    """Asks a loader for its items, one at a time, so that another thread can stop waiting.

    torch itself may block in a read that nothing interrupts: a process that hangs must pass on the memory of an item
    that it has finished.

    iterator: of the loader; None: the thread gets it, since processes of an earlier epoch must answer first.
    """

    def __init__(self, loader: DataLoader[Any], iterator: Any) -> None:
        super().__init__(daemon=True)
        self.loader, self.iterator = loader, iterator
        self._asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def run(self) -> None:
        """Answer until there is no more, or an error."""
        try:
            if self.iterator is None:
                self.iterator = iter(self.loader)
            while self._asked.get():
                self._answers.put((next(self.iterator), None))
        except StopIteration:
            self._answers.put((_NO_MORE, None))
        except BaseException as error:
            self._answers.put((None, error))

    def end(self) -> None:
        """Let the thread end, unless it is blocked."""
        self._asked.put(False)

    def next(self, patience: float, stop: Callable[[], bool]) -> Any:
        """The next item, or `_NO_MORE`. Raises what `patiently` does."""
        self._asked.put(True)
        asked = time.monotonic()
        while True:
            with suppress(queue.Empty):
                item, error = self._answers.get(timeout=CHECK_EVERY)
                if error is not None:
                    raise error
                return item
            if stop():
                raise StoppedWaitingError
            if time.monotonic() - asked > patience:
                raise self._waited_too_long(patience)

    def _waited_too_long(self, patience: float) -> VideoError:
        notes: Notes | None = getattr(self.loader.worker_init_fn, "notes", None)
        waits, path = "its processes read no file", None
        if notes is not None and self.iterator is not None:
            worker = self.iterator._task_info.get(self.iterator._rcvd_idx, (0,))[0]
            names = [notes.read(number) for number in (worker, *range(self.loader.num_workers))]
            path = next(filter(None, names), None)
        if path is not None:
            waits = "it waits for this file"
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
