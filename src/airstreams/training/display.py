"""What a training shows while it runs: its steps, its validations, and how long it takes in all."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from types import TracebackType

from airstreams.config import Config
from airstreams.console import Progress, say
from airstreams.distributed import SharedProgress, share
from airstreams.estimate import Clock, Estimate, TotalTime
from airstreams.training.metrics import notes
from airstreams.training.setup import Training

FIRST_STEPS, FIRST_SECONDS, FIRST_PART = 3, 5.0, 0.02  # before the first estimate; see `TrainingTime.news`
FORWARD_PART = 1 / 3  # of a training step: its forward pass


class TrainingTime:
    """How long a training takes in all: start-up, steps and validations.

    Steps are estimated from the speed of the last ones. The first one only starts the clock, because it waits for the
    loader's processes. A validation takes as long as the last one. Until there is one, it is estimated as the forward
    passes of training steps with as many clips.

    Args:
        steps, done: of the whole training, and those before this call.
        validations: that are left.
        steps_per_validation: how many training steps have as many clips.
        began: when this call began, by `clock`.
        clock: gives seconds.
        now: gives the local time.
    """

    def __init__(
        self,
        steps: int,
        done: int,
        validations: int,
        steps_per_validation: float,
        began: float,
        clock: Clock = time.monotonic,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self.steps, self.done, self.validations = steps, done, validations
        self.steps_per_validation = steps_per_validation
        self._clock = clock
        self._total = TotalTime(began, clock, now)
        self._estimate: Estimate | None = None
        self._validating_since: float | None = None
        self._in_validations = 0.0
        self._last_validation: float | None = None

    def step(self) -> None:
        """Count a step."""
        self.done += 1
        if self._estimate is None:
            self._estimate = Estimate(self.steps, self.done, self._clock_of_steps)
        else:
            self._estimate.advance()

    @contextmanager
    def validation(self) -> Iterator[None]:
        """Time a validation."""
        self._validating_since = self._clock()
        yield
        self._last_validation = self._clock() - self._validating_since
        self._in_validations += self._last_validation
        self._validating_since = None
        self.validations -= 1

    def left(self) -> float | None:
        """Seconds until the end; None: not known yet."""
        speed, of_steps = (None, None) if self._estimate is None else (self._estimate.speed(), self._estimate.left())
        if speed is None or of_steps is None:
            return None
        one = self._last_validation
        if one is None:
            one = self.steps_per_validation * FORWARD_PART / speed
        return of_steps + max(0.0, one * self.validations - self._in_this_validation)

    def news(self) -> str | None:
        """The total time in words, once it is known and where it has moved by a third; else None.

        It is known when 3 steps were timed that took 5 s or are 2 % of the training.
        """
        estimate = self._estimate
        if self._total.is_silent or estimate is None or estimate.timed < min(FIRST_STEPS, self.steps - 1):
            return None
        if estimate.seconds < FIRST_SECONDS and estimate.timed < FIRST_PART * self.steps:
            return None
        left = self.left()
        return None if left is None else self._total.news(left)

    @property
    def _in_this_validation(self) -> float:
        return 0.0 if self._validating_since is None else self._clock() - self._validating_since

    def _clock_of_steps(self) -> float:
        """A clock that stands still during validations."""
        return self._clock() - self._in_validations - self._in_this_validation


class TrainingDisplay:
    """A `with` block that shows a training.

    Args:
        training: the training, which stands at its first step.
        began: when this call began, by `time.monotonic`.
        after_step: called after each step with the number of finished steps and that of all steps.
    """

    def __init__(self, training: Training, began: float, after_step: Callable[[int, int], None]) -> None:
        self.training = training
        state, config = training.state, training.config
        self.time = TrainingTime(
            training.steps,
            state.step,
            _validations_left(training),
            len(training.val_videos) * config.evaluation.views * config.evaluation.crops / config.training.batch_size,
            began,
        )
        self._after_step = after_step
        self._waits_for_steps = training.accelerator.device.type != "cuda"
        self._progress = Progress(training.console)
        self._task = self._progress.add_task("training", training.steps, "steps", state.step)
        self._task.time_left = self.time.left

    def __enter__(self) -> "TrainingDisplay":
        self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, error, trace)

    def step(self) -> None:
        """Count a step."""
        self.time.step()
        if self._task.done + 1 >= self._task.total:
            self._task.notes = ()  # they are of earlier steps; the line of the last epoch has the newest ones
        self._task.advance()
        self._after_step(self.training.state.step, self.training.steps)

    def say_total(self, has_read: bool) -> None:
        """Say how long the training takes, where there is news.

        has_read: the metrics were read from the device. On CUDA only this waits for the steps.
        """
        if (has_read or self._waits_for_steps) and (news := self.time.news()):
            say(self.training.console, f"training: {news}")

    def show(self, metrics: dict[str, object]) -> None:
        """Show the metrics of the last steps."""
        self._task.notes = notes(metrics)

    @contextmanager
    def validation(self) -> Iterator[Callable[[], None]]:
        """Show a validation; gives the function to call after each video."""
        with self.time.validation():
            own = len(share(self.training.val_videos))
            yield self._progress.add_task("validating", own, brief=True, shared=SharedProgress()).advance


def _validations_left(training: Training) -> int:
    epochs = training.config.training.epochs
    later = range(training.state.epoch + 1, epochs + 1)
    return sum(is_validated(epoch, training.config) for epoch in later) if training.val_videos else 0


def is_validated(epoch: int, config: Config) -> bool:
    """Whether it is the turn of the validation videos after this epoch."""
    return epoch == config.training.epochs or epoch % config.training.validate_every == 0
