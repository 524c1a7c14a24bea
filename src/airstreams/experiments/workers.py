"""Processes that train side by side on one machine: each has its share of the threads and of the card's memory."""

import os
import signal
import warnings
from collections.abc import Iterable
from multiprocessing.context import SpawnProcess

import torch

from airstreams.data.loading import bind_to_parent
from airstreams.errors import InputError
from airstreams.training.signals import STOP


def end(processes: Iterable[SpawnProcess]) -> None:
    """Ask workers to stop, and wait for them: what they train is saved where it is."""
    processes = list(processes)
    for process in processes:
        process.terminate()
    for process in processes:
        process.join()


def as_told(error: Exception) -> Exception:
    """An error for the parent: one that every process can read, with the same words."""
    text = str(error) or type(error).__name__
    return InputError(text) if isinstance(error, InputError) else RuntimeError(text)


def begin_work(workers: int) -> None:
    """What each of so many workers does first. It dies with its parent; asked to stop, it raises in Python."""
    bind_to_parent(0)
    for asked in STOP:
        signal.signal(asked, signal.default_int_handler)
    warnings.simplefilter("ignore")
    share = max(1, (os.cpu_count() or 1) // workers)
    torch.set_num_threads(min(share, torch.get_num_threads()))  # which is OMP_NUM_THREADS where that is given
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(1 / workers)
