"""Processes that train side by side on one machine: each has its share of the threads and of the card's memory."""

import math
import os
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.context import SpawnProcess

import torch

from airstreams.data.loading import bind_to_parent
from airstreams.errors import InputError, Stopped, in_words
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
    return InputError(str(error)) if isinstance(error, InputError) else RuntimeError(in_words(error))


@contextmanager
def at_work(number: int, workers: int, device: str, tell: Callable[[Exception], None]) -> Iterator[None]:
    """The life of a worker's process: with status 1 it ends when it was asked to stop, or fails and has told why."""
    try:
        begin_work(number, workers, device)
        yield
    except (KeyboardInterrupt, Stopped):
        raise SystemExit(1) from None
    except Exception as error:
        tell(as_told(error))
        raise SystemExit(1) from error


def begin_work(number: int, workers: int, device: str) -> None:
    """What worker `number` of so many does first. It dies with its parent; asked to stop, it raises in Python.

    `device`: the config's.
    """
    bind_to_parent(0)
    for asked in STOP:
        signal.signal(asked, signal.default_int_handler)
    warnings.simplefilter("ignore")
    share = max(1, (os.cpu_count() or 1) // workers)
    torch.set_num_threads(min(share, torch.get_num_threads()))  # which is OMP_NUM_THREADS where that is given
    if device != "cpu" and torch.cuda.is_available():
        take_card(number, workers)


def take_card(number: int, workers: int) -> None:
    """Give a worker one of the cards, by turns, and bound its memory there to an equal part."""
    cards = torch.cuda.device_count()
    torch.cuda.set_device(number % cards)
    # Of which 5 % are for what CUDA itself takes for each process.
    torch.cuda.set_per_process_memory_fraction(0.95 / math.ceil(workers / cards))
