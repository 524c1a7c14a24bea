"""What many trainings show while they run: how many are done, the steps of the running ones, and the time left."""

from collections.abc import Callable, Iterable, Sequence

from airstreams.console import Progress, Task, say
from airstreams.estimate import TotalTime

UPDATE_EVERY = 1.0  # s
PART = 1000  # of an average training's work, in which estimates count
FIRST_PART = 0.1  # of an average training is timed before the first estimate


class TrainingsDisplay:
    """The rows of trainings that several processes do: one for the trainings, one for the steps of the running ones.

    The time starts with the first step, because processes take some time to begin.

    Args:
        progress: shows the rows.
        title, unit: such as "fresh seeds" and "trainings".
        total: how many there are.
        total_time: says how long all takes.
        average: the average work of those left, in any unit.

    Attributes:
        guess: gives the seconds that are left, as long as no step was timed.
    """

    def __init__(
        self,
        progress: Progress,
        title: str,
        unit: str,
        total: int,
        total_time: TotalTime,
        average: float = 1.0,
    ) -> None:
        self.progress = progress
        self.task = progress.add_task(title, total, unit, work=total * PART)
        self._average = average
        self._done_before: int | None = None
        self._worked, self._has_begun = 0, False
        self._steps: Task | None = None
        self._total_time = total_time
        self.guess: Callable[[], float | None] = lambda: None
        self.task.time_left = self._left

    def update(
        self, finished: int, running: Iterable[tuple[int, int, float]], finished_work: float | None = None
    ) -> None:
        """Show where the trainings stand. The first call finds those that were done before.

        Args:
            finished: how many are done.
            running: finished steps, all steps and work of each running training.
            finished_work: the work of those that were finished since the first call; None: all take the same.
        """
        if self._done_before is None:
            self._done_before = finished
            self.task.restart((self.task.total - finished) * PART)
        running = [(steps, total, work) for steps, total, work in running if total]
        if finished_work is None:
            finished_work = finished - self._done_before
        worked = finished_work + sum(steps / total * work for steps, total, work in running)
        parts = round(worked / self._average * PART)
        if self._has_begun or parts == 0:
            if (finished, parts) != (self.task.done, self._worked):  # else the speed would fall while nothing runs
                self.task.advance(finished - self.task.done, parts - self._worked)
        else:
            self._has_begun = True
            self.task.restart((self.task.total - self._done_before) * PART - parts)
            self.task.advance(finished - self.task.done, 0)
        self._worked = parts
        self._show_steps(running)

    def seconds_for(self, trainings: float) -> float | None:
        """How long this many other trainings of average work would take, at the speed so far; None: not known yet."""
        speed = self.task.speed()
        return None if speed is None else trainings * PART / speed

    def say_total(self, name: str, later: float = 0.0) -> None:
        """Say how long all takes, where there is news.

        later: seconds that other work takes after these trainings.
        """
        left = self._left()
        if left is not None and self.task.timed >= FIRST_PART * PART and (news := self._total_time.news(left + later)):
            say(self.progress.console, f"{name}: {news}")

    def _left(self) -> float | None:
        return self.guess() if self.task.speed() is None else self.task.estimated_left()

    def _show_steps(self, running: Sequence[tuple[int, int, float]]) -> None:
        """One row for the steps of all running trainings together. It takes as long as the one with the most left."""
        done, total = sum(steps for steps, _, _ in running), sum(of for _, of, _ in running)
        if self._steps is None or self._steps.finished:
            if done >= total:
                return
            self._steps = self.progress.add_task("steps of those running", total, "steps", done, brief=True)
        longest = max(((1 - steps / of) * work for steps, of, work in running), default=0.0)
        self._steps.total = max(total, done)
        speed = self.task.speed()
        left = None if speed is None else longest / self._average * PART * len(running) / speed
        self._steps.time_left = lambda: left
        self._steps.advance(done - self._steps.done)
