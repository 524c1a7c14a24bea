"""The results of a table: our metrics with 95 % intervals, and paired differences.

Intervals (see `evaluation/intervals.py`) come from resampled test videos. The resamples are the same for all runs and
seeds. A difference of two runs that fail on the same videos therefore has a narrower interval than the runs themselves.
Several DATA are splits of one data set, whose test videos may overlap: a video is resampled alike in all of them.

A difference whose interval spans 0 is not significant. A single seed gives no verdict: it does not show how far the
next seed would be.

Legend of shape suffixes: N videos, K action classes, R resamples, S seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any, Literal

import numpy as np

from airstreams.data.listing import groups_of
from airstreams.errors import InputError
from airstreams.evaluation.intervals import REPLICATES, difference_interval, draw_groups, proportion_interval
from airstreams.evaluation.metrics import Outcomes, outcomes_of, scored_mask
from airstreams.evaluation.published import deviations, options_of, published_for
from airstreams.experiments.noise import Verdict, judge_runs
from airstreams.experiments.reproduce import Job
from airstreams.experiments.tables import Table, run_config
from airstreams.files import csv_rows
from airstreams.plural import count_of
from airstreams.runs.folder import RunFolder


@dataclass(frozen=True)
class Difference:
    """The mean over seeds of one run's metric minus another's, with its 95 % interval.

    significant: whether the interval leaves 0 out; None for a single seed.
    """

    mean: float
    interval: list[float]
    significant: bool | None

    def as_dict(self) -> dict[str, Any]:
        """Its keys in the table's JSON file."""
        undecided = None if self.significant is None else not self.significant
        return {"difference": self.mean, "difference_interval": self.interval, "undecided": undecided}


@dataclass(frozen=True)
class RunMetric:
    """One metric of a run, in 0..1.

    mean: over seeds.
    values: of each seed.
    interval: of the mean, 95 %.
    difference: to the table's reference; None if it has none.
    """

    mean: float
    values: list[float]
    interval: list[float]
    difference: Difference | None = None

    def as_dict(self) -> dict[str, Any]:
        """Its content in the table's JSON file."""
        difference = {} if self.difference is None else self.difference.as_dict()
        return {"mean": self.mean, "values": self.values, "interval": self.interval, **difference}


@dataclass(frozen=True)
class Pair:
    """The difference between two runs that the table names."""

    run: str
    minus: str
    difference: Difference

    def as_dict(self) -> dict[str, Any]:
        """Its content in the table's JSON file."""
        return {"run": self.run, "minus": self.minus, **self.difference.as_dict()}


@dataclass(frozen=True)
class ScoringCost:
    """What it takes to score one clip. Parts that only training uses are left out."""

    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class TableResults:
    """What the JSON file of a table holds, in the order of its keys (docs/reproduce.md).

    metric: that of the data, a key of `evaluation.published.NAMES`.
    command: that made the table.
    groups: the number of groups of test videos, which are resampled as a whole.
    deviations: what keeps our metrics from being compared with published ones.
    reference: the run that differences are taken to.
    runs: run and metric to our result.
    distinguishable, reason, baseline: see `noise.Verdict`, of the runs' metric of the data.
    costs: by run; None if the table shows no costs.
    """

    table: str
    metric: str
    command: str
    data: list[str]
    classes: int
    seeds: list[int]
    videos: int
    groups: int
    hardware: list[str]
    deviations: list[str]
    training_hours: float
    reference: str | None
    runs: dict[str, dict[str, RunMetric]]
    pairs: list[Pair]
    distinguishable: bool | None = None
    reason: Literal["chance", "noise"] | None = None
    baseline: float | None = None
    costs: dict[str, ScoringCost] | None = None

    def as_dict(self) -> dict[str, Any]:
        """The content of the JSON file."""
        content = {name: getattr(self, name) for name in self.__dataclass_fields__}
        content["runs"] = {
            run: {name: metric.as_dict() for name, metric in metrics.items()} for run, metrics in self.runs.items()
        }
        content["pairs"] = [pair.as_dict() for pair in self.pairs]
        if self.costs is None:
            del content["costs"]
        else:
            content["costs"] = {run: asdict(cost) for run, cost in self.costs.items()}
        return content


def results_of(name: str, table: Table, jobs: Sequence[Job], command: str) -> TableResults:
    """The results of a table.

    Args:
        name: of the table.
        table: its rows.
        jobs: finished ones, of all its runs with the same data and seeds.
        command: that made them.

    Raises:
        InputError: the runs were scored on other videos or labels than each other, or than the data list.
    """
    outcomes = RunOutcomes(jobs)
    metric = jobs[0].source.metric
    runs: dict[str, dict[str, RunMetric]] = {run: {} for run in table.runs}
    pairs: list[Pair] = []
    verdict = Verdict(None, None, None)
    for cell_metric in (cell_metric or metric for cell_metric in table.metrics):
        resampled = outcomes.resample(table.runs, cell_metric)
        for run in table.runs:
            runs[run][cell_metric] = _run_metric(outcomes, resampled, run, cell_metric, table.reference)
        if cell_metric == metric:
            pairs = [
                Pair(run, other, _difference(outcomes, resampled, run, other, metric)) for run, other in table.pairs
            ]
            values = {run: outcomes.values(run, metric) for run in table.runs}
            verdict = judge_runs(values, resampled, outcomes.groups, _baseline(jobs, metric))
    return TableResults(
        table=name,
        metric=metric,
        command=command,
        data=list(dict.fromkeys(job.source.name for job in jobs)),
        classes=len(jobs[0].source.classes),
        seeds=outcomes.seeds,
        videos=outcomes.videos,
        groups=outcomes.groups,
        hardware=sorted(set().union(*(job.hardware for job in jobs))),
        deviations=_deviations(jobs),
        training_hours=sum(job.seconds for job in jobs) / 3600,
        reference=table.reference,
        runs=runs,
        pairs=pairs,
        distinguishable=verdict.distinguishable,
        reason=verdict.reason,
        baseline=verdict.baseline,
        costs=_costs(table, jobs) if table.costs else None,
    )


class RunOutcomes:
    """The outcome of each test video in each run: the metrics on all test videos, and on resampled ones.

    jobs: finished ones, of all runs with the same data and seeds.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.seeds = sorted({job.config.seed for job in jobs})
        self._outcomes: dict[tuple[str, str, int], Outcomes] = {}
        self._names: dict[str, list[str]] = {}
        self._labels: dict[str, list[str]] = {}
        sources = {job.source.name: job.source for job in jobs}.values()
        group_by_name = groups_of([video for source in sources for video in source.split("test")])
        for job in jobs:
            data = job.source.name
            names, labels, outcomes = _read_scores(job)
            alike = self._names.setdefault(data, names) == names and self._labels.setdefault(data, labels) == labels
            if not alike or not group_by_name.keys() >= set(names):
                raise InputError(
                    f"{job.folder}: it was scored on other videos or labels than the other runs, or than {data} lists. "
                    f"Score it again: airstreams evaluate {job.folder} {data}"
                )
            self._outcomes[job.name, data, job.config.seed] = outcomes
        scored = list(dict.fromkeys(name for names in self._names.values() for name in names))
        groups, group_N = np.unique([group_by_name[name] for name in scored], return_inverse=True)
        group_index = dict(zip(scored, group_N, strict=True))
        self.videos, self.groups = len(scored), len(groups)  # each once, even if several DATA have it
        self._groups = {data: np.array([group_index[name] for name in names]) for data, names in self._names.items()}

    def values(self, run: str, metric: str) -> np.ndarray:
        """A run's metric for each seed (S,): the mean over the DATA."""
        return self._by_seed(run, metric, np.ones(self.groups, dtype=np.int64))

    def resample(self, runs: Sequence[str], metric: str) -> dict[str, np.ndarray]:
        """Each run's metric (R, S) on resampled groups of videos, which are the same for all runs."""
        rng = np.random.default_rng(0)
        resampled: dict[str, list[np.ndarray]] = {run: [] for run in runs}
        for _ in range(REPLICATES):
            counts = self._draw(rng)
            for run in runs:
                resampled[run].append(self._by_seed(run, metric, counts))
        return {run: np.stack(values) for run, values in resampled.items()}

    def _draw(self, rng: np.random.Generator) -> np.ndarray:
        """How often each group counts. Drawn again until each of the DATA has a group."""
        while True:
            counts = draw_groups(rng, self.groups)
            if all(counts[group_N].any() for group_N in self._groups.values()):
                return counts

    def _by_seed(self, run: str, metric: str, counts: np.ndarray) -> np.ndarray:
        values_S = np.zeros(len(self.seeds))
        for data, group_N in self._groups.items():
            for column, seed in enumerate(self.seeds):
                value = self._outcomes[run, data, seed].metrics(counts[group_N])[metric]
                values_S[column] += (value or 0.0) / len(self._groups)  # None: no video has a label
        return values_S


def _run_metric(
    outcomes: RunOutcomes, resampled: Mapping[str, np.ndarray], run: str, metric: str, reference: str | None
) -> RunMetric:
    values_S = outcomes.values(run, metric)
    return RunMetric(
        mean=float(np.mean(values_S)),
        values=values_S.tolist(),
        interval=proportion_interval(values_S, resampled[run], outcomes.groups),
        difference=None if reference is None else _difference(outcomes, resampled, run, reference, metric),
    )


def _difference(
    outcomes: RunOutcomes, resampled: Mapping[str, np.ndarray], run: str, other: str, metric: str
) -> Difference:
    differences_S = outcomes.values(run, metric) - outcomes.values(other, metric)
    low, high = difference_interval(differences_S, resampled[run] - resampled[other], outcomes.groups)
    significant = not low <= 0 <= high if len(outcomes.seeds) > 1 else None
    return Difference(float(differences_S.mean()), [low, high], significant)


def _baseline(jobs: Sequence[Job], metric: str) -> float | None:
    """The metric that needs no look at the videos, the mean over the DATA; None: not all evaluations recorded it."""
    by_data: dict[str, float] = {}
    for job in jobs:
        baselines = job.read_metrics().baselines
        known = [] if baselines is None else [row[metric] for row in baselines.by_description().values()]
        values = [value for value in known if value is not None]
        if not values:
            return None
        by_data[job.source.name] = max(values)  # the same for all runs on the same data
    return sum(by_data.values()) / len(by_data)


def _costs(table: Table, jobs: Sequence[Job]) -> dict[str, ScoringCost]:
    costs = {run: next(job for job in jobs if job.name == run).cost() for run in table.runs}
    for run in table.costs_of.values():  # not trained
        costs[run] = replace(jobs[0], name=run, config=run_config(run, jobs[0].config, None)).cost()
    return {run: ScoringCost(cost.parameters_at_inference, sum(cost.inference.values())) for run, cost in costs.items()}


def _read_scores(job: Job) -> tuple[list[str], list[str], Outcomes]:
    """The names of the scored videos that count, their labels as in the file, and their outcomes."""
    with RunFolder(job.folder).evaluation("test").scores.open(encoding="utf-8", newline="") as file:
        header, *rows = (cells for _, cells in csv_rows(file))
    classes = header[3:]
    scored = [row for row in rows if len(row) == len(header)]  # the row of a video that was left out is shorter
    names, labels = [row[0] for row in scored], [row[1] for row in scored]
    scores_NK = np.array([row[3:] for row in scored], dtype=np.float64)
    if not job.source.multi_label:
        return names, labels, outcomes_of(scores_NK, np.array([classes.index(label) for label in labels]))
    split_labels = [label.split(";") if label else [] for label in labels]
    targets_NK = np.array([[name in row for name in classes] for row in split_labels], dtype=np.int64)
    counted = np.flatnonzero(scored_mask(targets_NK))
    names, labels = [names[n] for n in counted], [labels[n] for n in counted]
    return names, labels, outcomes_of(scores_NK[counted], targets_NK[counted])


def _deviations(jobs: Sequence[Job]) -> list[str]:
    """What keeps the metrics of these runs from being compared with published ones, in words."""
    metrics = [job.read_metrics() for job in jobs]
    left_out = sum({job.source.name: found.left_out for job, found in zip(jobs, metrics, strict=True)}.values())
    trained_on = max(found.trained_on for found in metrics)
    overlap = [f"{count_of(trained_on, 'test video')} trained on"] if trained_on else []
    found = published_for(jobs[0].source)
    if found is None:
        return ([f"{count_of(left_out, 'video')} left out"] if left_out else []) + overlap
    _, published = found
    sources = {job.source.name: job.source for job in jobs if published_for(job.source)}.values()
    evaluation = jobs[0].config.evaluation
    by_source = (deviations(published, source, "test", evaluation, left_out) for source in sources)
    found_deviations = list(dict.fromkeys(chain.from_iterable(by_source)))
    options = {options_of(source) for source in sources}
    if published.options and options != set(published.options):
        mean = "the mean of " if len(published.options) > 1 else ""
        found_deviations.insert(0, f"{', '.join(sorted(options))}, not {mean}{', '.join(published.options)}")
    return found_deviations + overlap
