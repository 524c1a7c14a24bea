"""Signals that reach a training: they are noted, and the loop acts on them between two steps.

SIGINT (Ctrl-C), SIGTERM and SIGHUP (the terminal is gone) ask it to save its state and stop; SIGUSR1, which schedulers
send some time before they kill, to save its state and go on, so that nothing of that time is lost either. A second
Ctrl-C stops at once, and so does any request to stop before the first step, when there is nothing to save.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

# Windows has not all of them. nohup ignores SIGHUP, and so do we then.
STOP = [signal.SIGINT, signal.SIGTERM]
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
    STOP.append(signal.SIGHUP)
SAVE = [signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []

asked_to_stop = threading.Event()
"""Set with the first request: one that comes after a training's last step is for what follows, if anything does."""


class Signals:
    """Notes signals while it is entered; `save` and `stop` say what they asked for.

    Outside the main thread Python allows no handlers, and signals then do what they always do.
    """

    def __init__(self) -> None:
        self.save = False
        self.stop = False
        self.has_steps = False  # set by the loop, which from then on looks at the other two
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (*STOP, *SAVE)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number in STOP and (not self.has_steps or (number == signal.SIGINT and self.stop)):
            raise KeyboardInterrupt
        self.save = True
        if number in STOP:
            self.stop = True
            asked_to_stop.set()


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Every signal to stop raises KeyboardInterrupt, as Ctrl-C does; outside the main thread, what it always did."""
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, signal.default_int_handler) for number in STOP if main}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
