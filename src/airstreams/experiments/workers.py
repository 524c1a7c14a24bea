"""Processes that train side by side on one machine: each has its share of the threads and of the card's memory."""

import math
import multiprocessing
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnProcess
from types import FrameType

import torch

from airstreams.data.loader_processes import die_with_parent
from airstreams.errors import InputError, Stopped, message_of
from airstreams.machine import cpus
from airstreams.training.signals import SAVE, STOP, asked_to_stop


def start(process: SpawnProcess) -> None:
    """Start a worker, which hears no signal before `begin_work`: Python would say what it was importing.

    It should be where `end` finds it by then: what comes meanwhile is raised when it has started.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        process.start()
        return
    resource_tracker.ensure_running()  # or the first process would start it, and it clears the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [*STOP, *SAVE])
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end(processes: Iterable[SpawnProcess]) -> None:
    """Ask workers to stop, and wait for them: what they train is saved where it is."""
    processes = [process for process in processes if process.pid is not None]  # those that were started
    for process in processes:
        process.terminate()
    for process in processes:
        process.join()


def portable_error(error: Exception) -> Exception:
    """An error for the parent: one that every process can read, with the same words."""
    return InputError(str(error)) if isinstance(error, InputError) else RuntimeError(message_of(error))


@contextmanager
def worker_process(number: int, workers: int, device: str, tell: Callable[[Exception], None]) -> Iterator[None]:
    """The life of a worker's process: with status 1 it ends when it was asked to stop, or fails and has told why."""
    try:
        begin_work(number, workers, device)
        yield
    except (KeyboardInterrupt, Stopped):
        _be_deaf()
        for loader in multiprocessing.active_children():  # or Python, at its end, could wait for one that heard nothing
            loader.kill()
        raise SystemExit(1) from None
    except Exception as error:
        tell(portable_error(error))
        raise SystemExit(1) from error


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise only once: a terminal's Ctrl-C is followed by the parent's own request."""
    asked_to_stop.set()  # should the exception be lost, as in the end of an object
    _be_deaf()
    raise KeyboardInterrupt


def _be_deaf() -> None:
    for asked in STOP:
        signal.signal(asked, lambda number, frame: None)  # of SIG_IGN Python complains where one is under way


def begin_work(number: int, workers: int, device: str) -> None:
    """What worker `number` of so many does first. It dies with its parent; asked to stop, it raises in Python.

    `device`: the config's.
    """
    for asked in STOP:  # never ignored, or what was sent before would be lost
        signal.signal(asked, _interrupt)
    for warning in SAVE:
        signal.signal(warning, signal.SIG_IGN)
    die_with_parent(0)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [*STOP, *SAVE])
    warnings.simplefilter("ignore")
    share = max(1, cpus() // workers)
    torch.set_num_threads(min(share, torch.get_num_threads()))  # which is OMP_NUM_THREADS where that is given
    if device != "cpu" and torch.cuda.is_available():
        take_card(number, workers)


def take_card(number: int, workers: int) -> None:
    """Give a worker one of the cards, by turns, and bound its memory there to an equal part."""
    cards = torch.cuda.device_count()
    torch.cuda.set_device(number % cards)
    # Of which 5 % are for what CUDA itself takes for each process.
    torch.cuda.set_per_process_memory_fraction(0.95 / math.ceil(workers / cards))
