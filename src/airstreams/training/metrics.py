"""The metrics of training steps: timing, sums over steps, and the console's lines."""

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from airstreams.data.dataset import Batch
from airstreams.distributed import gather
from airstreams.plural import count_of
from airstreams.runs.checkpoint import TrainingState
from airstreams.runs.metrics_log import EpochRecord

Item = TypeVar("Item")


@dataclass
class TakenStep:
    """A step whose metrics are still on the device.

    values: the scalars of `training_step`, by name.
    names: the videos of this process's clips.
    """

    step: int
    values: dict[str, Tensor]
    names: list[str]
    time: "StepTime"


@dataclass
class StepTime:
    """How long a step took, and how long it waited for data.

    seconds, waited: s, by the host's clock.
    idle: on CUDA, where the host runs ahead of the device: an event after the previous step, and one before this step.
    """

    seconds: float
    waited: float
    idle: tuple[torch.cuda.Event, torch.cuda.Event] | None

    def waiting(self) -> float:
        """Seconds without work for lack of data. On CUDA both events must have happened."""
        return self.waited if self.idle is None else self.idle[0].elapsed_time(self.idle[1]) / 1e3


class StepClock:
    """Times the steps of an epoch."""

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._since = time.perf_counter()
        self._waited = 0.0
        self._idle: tuple[torch.cuda.Event, torch.cuda.Event] | None = None

    def waits_for(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, one per step. The time to get an item counts as waiting."""
        iterator = iter(items)
        while True:
            asked, ended = time.perf_counter(), self._event()
            item = next(iterator, None)
            if item is None:
                return
            began = self._event()
            self._waited = time.perf_counter() - asked
            self._idle = (ended, began) if ended is not None and began is not None else None
            yield item

    def step(self, last: bool) -> StepTime:
        """The time since the previous call. After the last step of an epoch, this waits for the device."""
        if last and self._on_cuda:
            torch.cuda.synchronize()
        since, self._since = self._since, time.perf_counter()
        return StepTime(self._since - since, self._waited, self._idle)

    def _event(self) -> torch.cuda.Event | None:
        if not self._on_cuda:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


@dataclass
class StepMetrics:
    """The metrics of a step, on the host."""

    step: int
    values: dict[str, float]
    names: list[str]
    seconds: float
    waited: float

    @property
    def good(self) -> bool:
        """Whether the step changed the weights; False for a skipped step."""
        return self.values["good"] > 0

    @property
    def not_finite(self) -> dict[str, float]:
        """The values that are infinite or not a number."""
        return {name: value for name, value in self.values.items() if not math.isfinite(value)}


def read(taken: Sequence[TakenStep]) -> list[StepMetrics]:
    """Read the metrics of steps from the device, in one wait."""
    if not taken:
        return []
    rows = torch.stack([torch.stack([value.float() for value in step.values.values()]) for step in taken]).tolist()
    return [
        StepMetrics(
            step.step, dict(zip(step.values, row, strict=True)), step.names, step.time.seconds, step.time.waiting()
        )
        for step, row in zip(taken, rows, strict=True)
    ]


@dataclass
class Meter:
    """Sums over steps. A skipped step adds only its time."""

    steps: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, step: StepMetrics) -> None:
        """Count a step."""
        self.seconds += step.seconds
        self.waited += step.waited
        if not step.good:
            self.skipped += 1
            self.skipped_in_a_row += 1
            return
        self.steps += 1
        self.skipped_in_a_row = 0
        for name, value in step.values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def metrics(self) -> dict[str, Any]:
        """Mean losses and gradient norms, clips, clips per second, and the share of time spent waiting for data."""
        means: dict[str, dict[str, float]] = defaultdict(dict)
        for name, value in self.sums.items():
            kind, _, part = name.partition("/")
            if part:
                means[kind][part] = value / self.steps
        clips = round(self.sums.get("clips", 0.0))
        return {
            **means,
            "clips": clips,
            "clips_per_second": clips / self.seconds,
            "waiting": self.waited / self.seconds,
            "seconds": self.seconds,
            "skipped": self.skipped,
        }


@dataclass
class EpochMetrics:
    """The metrics of an epoch so far.

    whole: all of its steps.
    recent: the steps since the last line of the log.
    left_out: clips of this process that could not be read, with the reason.
    taken: steps whose metrics are still on the device.
    """

    whole: Meter
    recent: Meter
    left_out: list[str]
    taken: list[TakenStep] = field(default_factory=list)

    @classmethod
    def resumed(cls, state: TrainingState, is_main_process: bool) -> "EpochMetrics":
        """From a state, which lists the unreadable clips of all processes."""
        return cls(Meter(**state.meter), Meter(**state.recent), list(state.left_out) if is_main_process else [])

    def took(self, step: int, values: dict[str, Tensor], batches: Sequence[Batch], time: StepTime) -> None:
        """Add a step; its values stay on the device."""
        self.taken.append(TakenStep(step, values, [name for batch in batches for name in batch.names], time))
        self.left_out += [f"{bad.video.name}: {bad.reason}" for batch in batches for bad in batch.bad_videos]

    def read_back(self) -> list[StepMetrics]:
        """Read and count the steps that are still on the device; returns the skipped ones."""
        steps = read(self.taken)
        self.taken.clear()
        for metrics in steps:
            self.whole.add(metrics)
            self.recent.add(metrics)
        return [metrics for metrics in steps if not metrics.good]

    def since_last_line(self) -> dict[str, Any]:
        """The recent metrics; the next ones start from zero."""
        recent, self.recent = self.recent, Meter()
        return recent.metrics()

    def of_the_epoch(self) -> dict[str, Any]:
        """The metrics of the whole epoch, for its record, from all processes."""
        return self.whole.metrics() | {"left_out": gather(self.left_out)}

    def state(self, alone: bool = False) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
        """What a state keeps: `whole`, `recent`, and the unreadable clips of all processes, or of this one `alone`."""
        return asdict(self.whole), asdict(self.recent), list(self.left_out) if alone else gather(self.left_out)


def notes(metrics: dict[str, Any]) -> list[str]:
    """Metrics for the display of progress, the most important ones first."""
    losses = [f"{name} {value:.2f}" for name, value in metrics["losses"].items()]
    return [f"{metrics['clips_per_second']:.1f} clips/s", f"waiting {metrics['waiting']:.0%}", *losses]


def note(metrics: dict[str, Any]) -> str:
    """Metrics in one line, for people."""
    losses = " ".join(f"{name} {value:.2f}" for name, value in metrics["losses"].items())
    return f"{losses} | {metrics['clips_per_second']:.1f} clips/s, waiting {metrics['waiting']:.0%}"


def summary(record: EpochRecord, epochs: int) -> str:
    """An epoch's record in one line, for people."""
    metrics = record.train
    line = f"epoch {record.epoch}/{epochs}: {note(metrics)}, {metrics['seconds']:.0f} s"
    if record.val is not None:
        scores = {name: record.val[name] for name in ("top1", "map") if record.val[name] is not None}
        line += ", val " + " ".join(f"{name} {value:.1%}" for name, value in scores.items())
        line += f" log loss {record.val['log_loss']:.2f}"
    if metrics["left_out"]:
        line += f", {count_of(len(metrics['left_out']), 'clip')} left out"
    if metrics["skipped"]:
        line += f", {count_of(metrics['skipped'], 'step')} skipped"
    return line
