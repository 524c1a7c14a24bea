"""The processes that decode beside a training or scoring: how they start, hand over, and end with their parent."""

import ctypes
import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import reduction
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import get_worker_info

PR_SET_PDEATHSIG = 1  # of linux/prctl.h
FEWER = "or decode with 0 workers (a run's data.workers, annotate's --workers)"


def share_memory(tensors: Iterable[object]) -> None:
    """In a loader's process, move the tensors among these to the memory that it shares with the others. RuntimeError:
    there is too little of it, as in a container.

    torch would do so later, in a thread whose errors nobody hears: the batch would be lost and awaited forever.
    """
    if get_worker_info() is not None:
        try:
            for tensor in tensors:
                if isinstance(tensor, Tensor):
                    tensor.share_memory_()
        except RuntimeError as error:
            raise RuntimeError(
                f"no shared memory for what a process decoded ({error}); give a container more of it (docker run "
                f"--shm-size=2g), {FEWER}"
            ) from error


def bind_to_parent(worker: int) -> None:
    """For a loader's processes, which are to stop when their parent does and not before.

    A terminal and a scheduler signal the whole group: what that means is the parent's to decide.
    """
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):  # Windows has fewer
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    die_with_parent(worker)


def die_with_parent(worker: int) -> None:
    """For a loader's processes, which may stop before their parent does: what they have in hand can take long.

    When the parent is killed, torch's own watch over it misses a kill that falls while this process starts, so Linux is
    asked to tell.
    """
    # Here the thread that hands shared memory over complains when the parent has stopped to listen, as after Ctrl-C.
    sys.excepthook = lambda *_: None
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:
        os._exit(1)


def loader_options(workers: int, begin: Callable[[int], None] = bind_to_parent) -> dict[str, Any]:
    """For a `DataLoader` that is to have so many processes: how they start, and what they do first."""
    return {
        "num_workers": workers,
        "multiprocessing_context": _start_method(workers),
        "worker_init_fn": partial(_begin, begin),
    }


def _begin(begin: Callable[[int], None], worker: int) -> None:
    begin(worker)
    _open_a_socket()


def _open_a_socket() -> None:
    """Start what will hand memory over on Linux, by a socket in the temporary folder. RuntimeError: that cannot be.

    It would start by itself later, in a thread whose errors nobody hears: the batch would be lost and awaited forever.
    """
    if sys.platform == "linux":
        try:
            with Path(os.devnull).open("rb") as file:
                reduction.DupFd(file.fileno())
        except OSError as error:
            raise RuntimeError(
                f"no socket in the temporary folder {tempfile.gettempdir()} ({error}) to hand decoded frames over; set "
                f"TMPDIR to a folder with a shorter path and room in it, {FEWER}"
            ) from error


def _start_method(workers: int) -> str | None:
    """How a loader's so many processes start. On Linux always as copies of this one: they begin at once, and know what
    this one has learnt of the videos. None: as torch has it.
    """
    return "fork" if workers and sys.platform == "linux" else None


@contextmanager
def ends_its_loaders() -> Iterator[None]:
    """Decorates what makes a loader of processes bound to this one: they end with the call, also by an error.

    A traceback keeps the call's variables, the loader among them. If it lives on until Python's end, as where nobody
    catches the error, Python asks the processes to stop by SIGTERM, to which they are deaf, and waits forever.
    """
    try:
        yield
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise
