"""A pool of processes that train side by side on one machine.

Each process gets an equal share of the CPU threads and of a card's memory. It ends when its parent does.
"""

import ctypes
import math
import multiprocessing
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import FrameType, TracebackType

import torch

from airstreams.data.loader_processes import die_with_parent
from airstreams.errors import InputError, Stopped, message_of
from airstreams.machine import cpus
from airstreams.training.signals import SAVE, STOP, asked_to_stop

_steps_of_this_process: "ctypes.Array[ctypes.c_longlong] | None" = None


def show_steps(done: int, total: int) -> None:
    """Tell the pool how far the training of this process is. Outside of a pool it has no effect."""
    if _steps_of_this_process is not None:
        _steps_of_this_process[:] = [done, total]


@dataclass(frozen=True)
class EndedWorker:
    """A process that has ended.

    number: its number in the pool. A process that starts later may get the same one.
    exit_code: 0 means that its work is done; a negative one is the signal that killed it.
    error: what it reported before it ended; None if it reported nothing, as after a kill.
    """

    number: int
    exit_code: int
    error: Exception | None


class WorkerPool:
    """Up to `size` processes at a time, numbered from 0.

    Use it in a `with` block. At the end of the block, the processes that still run are asked to stop, and awaited:
    a training saves its state first.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._context = multiprocessing.get_context("spawn")
        self._steps = [self._context.RawArray(ctypes.c_longlong, 2) for _ in range(size)]
        self._running: dict[SpawnProcess, tuple[int, Connection]] = {}

    @property
    def running(self) -> list[int]:
        """The numbers of the processes that have not been reported as ended."""
        return [number for number, _ in self._running.values()]

    @property
    def steps(self) -> dict[int, tuple[int, int]]:
        """How far the training of each running process is, by the process's number: finished steps and all steps."""
        return {number: (self._steps[number][0], self._steps[number][1]) for number in self.running}

    @property
    def is_full(self) -> bool:
        """Whether `size` processes run."""
        return len(self._running) >= self.size

    def start(self, device: str, function: Callable[..., None], *arguments: object) -> int:
        """Call `function(*arguments)` in a new process.

        Args:
            device: the config's `training.device`, of which the process gets its share.
            function: a function of a module, which the new process imports.
            arguments: they are pickled.

        Returns:
            The number of the process, the lowest one that is free.
        """
        number = min(set(range(self.size)) - set(self.running))
        receiver, sender = self._context.Pipe(duplex=False)
        steps = self._steps[number]
        steps[:] = [0, 0]
        process = self._context.Process(
            target=_run, args=(number, self.size, device, sender, steps, function, arguments)
        )
        self._running[process] = number, receiver
        start_without_signals(process)
        sender.close()
        return number

    def wait(self, seconds: float | None = None) -> list[EndedWorker]:
        """Wait until a process ends, or for this time; returns all that have ended since the last call."""
        wait([process.sentinel for process in self._running], seconds)
        ended = []
        for process in [process for process in self._running if process.exitcode is not None]:
            number, receiver = self._running.pop(process)
            ended.append(EndedWorker(number, process.exitcode or 0, _reported(receiver)))
        return ended

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        started = [process for process in self._running if process.pid is not None]
        for process in started:
            process.terminate()
        for process in started:
            process.join()


def start_without_signals(process: SpawnProcess) -> None:
    """Start a process in which signals wait until `begin_work`, or Python would print a traceback of its imports.

    Signals to this process wait too, until the new one has started and can be found in the pool.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        process.start()
        return
    resource_tracker.ensure_running()  # otherwise the first process would start it, which clears the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [*STOP, *SAVE])
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _reported(receiver: Connection) -> Exception | None:
    """The error that a process sent before it ended."""
    with receiver:
        if not receiver.poll():  # nothing was sent, but a process that it started still holds the other end
            return None
        try:
            error: Exception = receiver.recv()
        except EOFError:
            return None
    return error


def _run(
    number: int,
    workers: int,
    device: str,
    sender: Connection,
    steps: "ctypes.Array[ctypes.c_longlong]",
    function: Callable[..., None],
    arguments: tuple[object, ...],
) -> None:
    """What a process of a pool does."""
    global _steps_of_this_process
    _steps_of_this_process = steps
    with worker_process(number, workers, device, sender.send):
        function(*arguments)


@contextmanager
def worker_process(number: int, workers: int, device: str, report: Callable[[Exception], None]) -> Iterator[None]:
    """Set up a worker's process, and end it with status 1 if its work is stopped or fails; `report` gets the error."""
    try:
        begin_work(number, workers, device)
        yield
    except (KeyboardInterrupt, Stopped):
        _ignore_stop_signals()
        for loader in multiprocessing.active_children():  # one that missed its signal would keep Python from ending
            loader.kill()
        raise SystemExit(1) from None
    except Exception as error:
        report(portable_error(error))
        raise SystemExit(1) from error


def portable_error(error: Exception) -> Exception:
    """An error with the same message that any process can unpickle."""
    return InputError(str(error)) if isinstance(error, InputError) else RuntimeError(message_of(error))


def begin_work(number: int, workers: int, device: str) -> None:
    """Prepare this process to be worker `number` of `workers`: its signals, its threads and its card.

    It dies with its parent. A request to stop raises KeyboardInterrupt.

    Args:
        number: from 0.
        workers: how many share the machine.
        device: the config's `training.device`.
    """
    for stop in STOP:  # set before the mask is lifted, so that a signal that waits is not lost
        signal.signal(stop, _interrupt)
    for save in SAVE:
        signal.signal(save, signal.SIG_IGN)
    die_with_parent(0)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [*STOP, *SAVE])
    warnings.simplefilter("ignore")
    share = max(1, cpus() // workers)
    torch.set_num_threads(min(share, torch.get_num_threads()))  # the latter is OMP_NUM_THREADS where that is set
    if device not in ("cpu", "mps") and torch.cuda.is_available():
        take_card(number, workers, device)


def take_card(number: int, workers: int, device: str = "auto") -> None:
    """Give worker `number` a card, in turn, or the one that `device` names. Limit its memory there to its share."""
    named = None if device == "auto" else torch.device(device).index
    cards = torch.cuda.device_count() if named is None else 1
    torch.cuda.set_device(number % cards if named is None else named)
    # The other 5 % are for CUDA itself, which takes some memory per process.
    torch.cuda.set_per_process_memory_fraction(0.95 / math.ceil(workers / cards))


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt once. After a terminal's Ctrl-C, the parent sends a request of its own."""
    asked_to_stop.set()  # an exception that is raised in a destructor is lost
    _ignore_stop_signals()
    raise KeyboardInterrupt


def _ignore_stop_signals() -> None:
    for stop in STOP:
        signal.signal(stop, lambda number, frame: None)  # with SIG_IGN, Python warns if a signal is already on its way
