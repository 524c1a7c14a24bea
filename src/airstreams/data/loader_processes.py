"""The processes that decode beside training or scoring: how they start, pass on memory, and end with their parent."""

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import reduction
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from airstreams.data.patience import RAISE_THE_LIMIT, Notes, require_descriptors

PR_SET_PDEATHSIG = 1  # of linux/prctl.h
NO_WORKERS = "or decode with 0 workers (data.workers of a run, --workers of annotate)"


def share_memory(tensors: Iterable[object]) -> None:
    """In a loader's process, move the tensors among these objects to shared memory.

    torch would do this later, in a thread whose errors are lost: the batch would never arrive.

    Raises:
        RuntimeError: there is too little shared memory, as in a container.
    """
    if get_worker_info() is not None:
        try:
            for tensor in tensors:
                if isinstance(tensor, Tensor):
                    tensor.share_memory_()
        except RuntimeError as error:
            if "Too many open files" in str(error):
                raise RuntimeError(f"too many open files. {RAISE_THE_LIMIT}") from error
            raise RuntimeError(
                f"no shared memory for decoded frames ({error}); give the container more (docker run --shm-size=2g), "
                f"{NO_WORKERS}"
            ) from error
        require_descriptors()


def bind_to_parent(worker: int) -> None:
    """For a loader's process: end with the parent, and not before it.

    Signals of a terminal or a scheduler go to the whole process group. The parent decides what they mean.
    """
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):  # Windows has fewer
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    die_with_parent(worker)


def die_with_parent(worker: int) -> None:
    """For a loader's process: end with the parent, but signals may end it earlier, since one task can take long.

    torch watches for the parent's death, but misses a kill while this process starts. So Linux sends a signal.
    """
    # Without this, the thread that passes on shared memory prints an error when the parent has ended, as after Ctrl-C.
    sys.excepthook = lambda *_: None
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:
        os._exit(1)


def loader_options(workers: int, begin: Callable[[int], None] = bind_to_parent) -> dict[str, Any]:
    """Keyword arguments for a `DataLoader` with `workers` processes. Each first calls `begin` with its number."""
    method = _start_method(workers)
    return {
        "num_workers": workers,
        "multiprocessing_context": method,
        "worker_init_fn": _Beginning(begin, Notes(workers) if method == "fork" else None),
    }


@dataclass(frozen=True)
class _Beginning:
    """What a loader's process does first. `notes`: where it notes the file that it reads; None: nowhere."""

    begin: Callable[[int], None]
    notes: Notes | None

    def __call__(self, worker: int) -> None:
        gc.freeze()  # the collector would write to every object of the parent, and so copy its memory
        self.begin(worker)
        _open_a_socket()
        if self.notes is not None:
            self.notes.begin()


def _open_a_socket() -> None:
    """On Linux, open the socket in the temporary folder that passes shared memory on.

    It would be opened later, in a thread whose errors are lost: the batch would never arrive.

    Raises:
        RuntimeError: it cannot be opened.
    """
    if sys.platform == "linux":
        try:
            with Path(os.devnull).open("rb") as file:
                reduction.DupFd(file.fileno())
        except OSError as error:
            raise RuntimeError(
                f"cannot open a socket in the temporary folder {tempfile.gettempdir()} ({error}); set TMPDIR to a "
                f"folder with a shorter path and free space, {NO_WORKERS}"
            ) from error


def _start_method(workers: int) -> str | None:
    """How a loader's processes start; None: torch's default.

    On Linux they are forks: they start at once and inherit what this process knows about the videos.
    """
    return "fork" if workers and sys.platform == "linux" else None


@contextmanager
def ending(loader: DataLoader[Any]) -> Iterator[None]:
    """End the persistent processes of a loader after the block.

    The loader would do this when Python frees it. But within a cycle of references, Python closes its queues first.
    Then a process is never told to end, and Python waits for it forever.
    """
    try:
        yield
    finally:
        iterator, loader._iterator = loader._iterator, None
        if iterator is not None:
            iterator._shutdown_workers()  # type: ignore[attr-defined]


@contextmanager
def ends_its_loaders() -> Iterator[None]:
    """Decorates a function that makes a loader of `bind_to_parent` processes: they end with the call, even on an error.

    A traceback keeps the function's variables, and so the loader, alive. If it lives until Python exits, as for an
    uncaught error, Python sends SIGTERM to the processes, which ignore it, and waits forever.
    """
    try:
        yield
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise
