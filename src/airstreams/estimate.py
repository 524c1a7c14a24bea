"""How long work takes: an estimate from its recent speed, and times in words."""

import time
from bisect import bisect_left
from collections.abc import Callable
from datetime import datetime, timedelta

WINDOW = 120.0  # s; the speed is that of this time or of half the time so far, whichever is longer
SAMPLES = 100  # of the work done, in the time so far
MOVED = 4 / 3  # a total time that moves by this factor is said again
SAID_AGAIN_AFTER = 30.0  # s
OVERDUE = 2.0  # s after the estimated end; from then on there is no estimate

Clock = Callable[[], float]


class Estimate:
    """The time that is left of some work, from its speed over a moving window.

    Count the work in units that take about the same time, such as frames. The window is long enough for units that
    differ, and it forgets a slow beginning.

    done: the work so far. Work that was done before the estimate began has no influence on the speed.

    Args:
        total: the work, in any unit; it may change.
        done: the part of it that was done before.
        clock: gives seconds.
    """

    def __init__(self, total: float, done: float = 0.0, clock: Clock = time.monotonic) -> None:
        self.total, self.done = total, done
        self._clock = clock
        self._last = clock()
        self._times, self._dones = [self._last], [done]

    def advance(self, work: float = 1.0) -> float:
        """Count work that is done now; returns the time."""
        now = self._last = self._clock()
        self.done += work
        if now - self._times[-1] >= (now - self._times[0]) / SAMPLES:
            self._dones.append(self.done)
            self._times.append(now)
        return now

    @property
    def timed(self) -> float:
        """The work since the estimate began."""
        return self.done - self._dones[0]

    @property
    def seconds(self) -> float:
        """The time from the beginning to the last call of `advance`."""
        return self._last - self._times[0]

    def speed(self) -> float | None:
        """Work a second over the window; None before any work was done."""
        first = self._times[0]
        since = self._last - max(WINDOW, (self._last - first) / 2)
        start = min(bisect_left(self._times, since), max(0, len(self._times) - 2))
        work, seconds = self.done - self._dones[start], self._last - self._times[start]
        return work / seconds if work > 0 and seconds > 0 else None

    def left(self) -> float | None:
        """Seconds until all is done; None: nothing is known, or the work takes much longer than estimated."""
        if self.done >= self.total:
            return 0.0
        speed = self.speed()
        if speed is None:
            return None
        left = (self.total - self.done) / speed - (self._clock() - self._last)
        return max(left, 0.0) if left > -OVERDUE else None


class TotalTime:
    """Says how long work takes in all: once, and again where the estimate has moved by a third.

    Args:
        began: when the work began, by `clock`; None: now.
        clock: gives seconds.
        now: gives the local time.
    """

    def __init__(
        self, began: float | None = None, clock: Clock = time.monotonic, now: Callable[[], datetime] = datetime.now
    ) -> None:
        self._clock, self._now = clock, now
        self._began = clock() if began is None else began
        self._said, self._said_at = 0.0, 0.0

    @property
    def is_silent(self) -> bool:
        """Whether the last estimate was said a moment ago, so that `news` gives none yet."""
        return self._said > 0 and self._clock() - self._said_at < SAID_AGAIN_AFTER

    def news(self, left: float) -> str | None:
        """The total time in words, such as "about 12 min in all, until 17:43"; None: it has not moved by much.

        left: the estimate, in seconds from now on.
        """
        now = self._clock()
        total = now - self._began + left
        if self.is_silent or (self._said and self._said / MOVED <= total <= self._said * MOVED):
            return None
        correction = "now " if self._said else ""
        self._said, self._said_at = total, now
        return correction + total_in_words(total, left, self._now())


def clock_time(seconds: float) -> str:
    """A duration for a display: 0:07, 12:30 or 1:02:30."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def in_words(seconds: float) -> str:
    """A rounded duration for a sentence: 40 s, 12 min, 3 h 20 min or 2 days 4 h."""
    if seconds < 55:
        return f"{max(10, round(seconds, -1)):.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        tens = round(minutes, -1) if minutes >= 120 else minutes
        return f"{tens // 60} h {tens % 60} min" if tens % 60 else f"{tens // 60} h"
    days, hours = divmod(round(minutes / 60), 24)
    return f"{days} day{'s' * (days != 1)}" + (f" {hours} h" if hours else "")


def total_in_words(total: float, left: float, now: datetime) -> str:
    """A sentence part on how long work takes in all, such as "about 12 min in all, until 17:43".

    Args:
        total: seconds, with the time so far.
        left: seconds from now on.
        now: local time.
    """
    end = now + timedelta(seconds=left + 30)  # to the nearest minute
    days = (end.date() - now.date()).days
    day = "" if days == 0 else f"{end:%A} " if days < 7 else f"{end.day} {end:%B} "
    return f"about {in_words(total)} in all, until {day}{end:%H:%M}"
