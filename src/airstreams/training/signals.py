"""Signals to a training. A handler notes them, and the loop acts between two steps.

SIGINT (Ctrl-C), SIGTERM and SIGHUP (the terminal is gone) ask the training to save its state and stop. SIGUSR1, which
schedulers send some time before they kill a job, asks it to save its state and go on. A second Ctrl-C stops at once. So
does any request to stop before the first step, when there is nothing to save.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

# Windows lacks some of them. nohup ignores SIGHUP, and then so do we.
STOP = [signal.SIGINT, signal.SIGTERM]
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
    STOP.append(signal.SIGHUP)
SAVE = [signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []

asked_to_stop = threading.Event()
"""Set by the first request to stop. After the last step of a training, it stops whatever follows."""


class Signals:
    """A context that notes signals; `save` and `stop` say what they ask for.

    Outside the main thread Python allows no handlers. Signals then keep their usual effect.
    """

    def __init__(self) -> None:
        self.save = False
        self.stop = False
        self.has_steps = False  # set by the loop, which looks at the other two from then on
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
    """Let every signal to stop raise KeyboardInterrupt, as Ctrl-C does. Without effect outside the main thread."""
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, signal.default_int_handler) for number in STOP if main}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
