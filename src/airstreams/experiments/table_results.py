"""A table of the paper with our figures beside the published ones.

Intervals (see `evaluation/intervals.py`) come from draws of the test videos that are the same for all runs and seeds:
two runs that err on the same videos are told apart better than their own intervals show. Several DATA are splits of one
data set, and the official ones share test videos: a video is drawn as often in each of them. Where the interval of a
difference spans 0, the table says `undecided`; of one seed it says nothing.

Legend of shape suffixes: N videos, K action classes, R draws, S seeds.
"""

import csv
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from airstreams.data.listing import groups_of
from airstreams.errors import InputError
from airstreams.evaluation.intervals import REPLICATES, difference_interval, draw_groups, proportion_interval
from airstreams.evaluation.metrics import Outcomes, outcomes_of, scored_mask
from airstreams.evaluation.published import NAMES, deviations, options_of, published_for
from airstreams.evaluation.results import read_metrics
from airstreams.experiments.reproduce import Job
from airstreams.experiments.tables import DATA_SETS, EVOLVED, Cell, Table
from airstreams.files import replacing, write_json
from airstreams.runs.folder import RunFolder


def report(name: str, table: Table, jobs: Sequence[Job], command: str) -> tuple[dict[str, Any], str]:
    """The figures of a table, in 0..1, and the same as Markdown.

    Args:
        name: the table's.
        table: what stands in it.
        jobs: finished, of all its runs with the same data and seeds.
        command: that made them.
    """
    outcomes = RunOutcomes(jobs)
    metric = jobs[0].source.metric
    metrics = [of_cell or metric for of_cell in table.metrics]
    runs: dict[str, dict[str, dict[str, Any]]] = {run: {} for run in table.runs}
    pairs: list[dict[str, Any]] = []
    for of_cell in metrics:
        drawn = outcomes.draws(table.runs, of_cell)
        for run in table.runs:
            runs[run][of_cell] = _figures(outcomes, drawn, run, of_cell, table.reference)
        if of_cell == metric:
            pairs = [
                {"run": run, "minus": other, **_difference(outcomes, drawn, run, other, metric)}
                for run, other in table.pairs
            ]
    data = [job.source.name for job in jobs]
    hours = sum(job.seconds for job in jobs) / 3600
    result: dict[str, Any] = {
        "table": name,
        "metric": metric,
        "command": command,
        "data": list(dict.fromkeys(data)),
        "classes": len(jobs[0].source.classes),
        "seeds": outcomes.seeds,
        "videos": outcomes.videos,
        "groups": outcomes.groups,
        "hardware": sorted(set().union(*(job.hardware for job in jobs))),
        "deviations": _deviations(jobs),
        "training_hours": hours,
        "reference": table.reference,
        "runs": runs,
        "pairs": pairs,
    }
    if table.costs:
        result["costs"] = {run: _cost(next(job for job in jobs if job.name == run)) for run in table.runs}

    published = _published(table, data[0])
    lines = [
        f"## {table.title}",
        "",
        f"`{command}`",
        "",
        f"{NAMES[metric]} over {result['classes']} classes on {outcomes.videos} test videos "
        f"({outcomes.groups} groups) of {', '.join(result['data'])}; seeds {', '.join(map(str, outcomes.seeds))}; "
        f"trained on {' and '.join(result['hardware'])}, {hours:.1f} h in all. Intervals are of 95 %, over groups of "
        f"videos{' and seeds' if len(outcomes.seeds) > 1 else ' alone, and say nothing of other seeds'}"
        f"{_about_differences(len(outcomes.seeds)) if table.reference else ''}.",
        "",
        *_rows(table, result, published),
    ]
    lines += ["", *(f"- {pair['run']} minus {pair['minus']}: {_in_points(pair)}" for pair in pairs)] if pairs else []
    if not data[0].startswith(f"{published}:"):
        lines += ["", f"The paper's figures are of {DATA_SETS[published]}, not of these data."]
    if result["deviations"]:
        lines += [
            "",
            f"Otherwise than figures on {data[0].partition(':')[0]} are published: {'; '.join(result['deviations'])}.",
        ]
    lines += [f"\n{note}" for note in (_about_weights(table, jobs), table.note) if note]
    return result, "\n".join(lines) + "\n"


def write(out: Path, name: str, result: Mapping[str, Any], markdown: str) -> None:
    """Leave a table in `out`, as Markdown and as JSON."""
    with replacing(out / f"{name}.md") as temporary:
        temporary.write_text(markdown, encoding="utf-8")
    write_json(out / f"{name}.json", result)


class RunOutcomes:
    """What each run said of each test video: with what a table's figures are made, and drawn anew.

    jobs: finished, of all runs with the same data and seeds.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.seeds = sorted({job.config.seed for job in jobs})
        self._outcomes: dict[tuple[str, str, int], Outcomes] = {}
        self._names: dict[str, list[str]] = {}
        self._labels: dict[str, list[str]] = {}
        sources = {job.source.name: job.source for job in jobs}.values()
        group_of = groups_of([video for source in sources for video in source.split("test")])
        for job in jobs:
            data = job.source.name
            names, labels, outcomes = _read_scores(job)
            alike = self._names.setdefault(data, names) == names and self._labels.setdefault(data, labels) == labels
            if not alike or not group_of.keys() >= set(names):
                raise InputError(
                    f"{job.folder}: scored other videos or labels than the other runs, or than {data} lists; give it "
                    f"the same ones by `airstreams evaluate {job.folder} {data}`"
                )
            self._outcomes[job.name, data, job.config.seed] = outcomes
        scored = list(dict.fromkeys(name for names in self._names.values() for name in names))
        groups, group_N = np.unique([group_of[name] for name in scored], return_inverse=True)
        group = dict(zip(scored, group_N, strict=True))
        self.videos, self.groups = len(scored), len(groups)  # that count, of all data
        self._groups = {data: np.array([group[name] for name in names]) for data, names in self._names.items()}

    def values(self, run: str, metric: str) -> np.ndarray:
        """A run's figure for each seed (S,): the mean over the data (splits)."""
        return self._of_seeds(run, metric, np.ones(self.groups, dtype=np.int64))

    def draws(self, runs: Sequence[str], metric: str) -> dict[str, np.ndarray]:
        """Each run's figures (R, S) over groups of videos that were drawn anew R times, the same for all runs."""
        rng = np.random.default_rng(0)
        drawn: dict[str, list[np.ndarray]] = {run: [] for run in runs}
        for _ in range(REPLICATES):
            counts = self._draw(rng)
            for run in runs:
                drawn[run].append(self._of_seeds(run, metric, counts))
        return {run: np.stack(figures) for run, figures in drawn.items()}

    def _draw(self, rng: np.random.Generator) -> np.ndarray:
        """How often each group counts, once some of every data are drawn."""
        while True:
            counts = draw_groups(rng, self.groups)
            if all(counts[group_N].any() for group_N in self._groups.values()):
                return counts

    def _of_seeds(self, run: str, metric: str, counts: np.ndarray) -> np.ndarray:
        figures_S = np.zeros(len(self.seeds))
        for data, group_N in self._groups.items():
            for place, seed in enumerate(self.seeds):
                figure = self._outcomes[run, data, seed].metrics(counts[group_N])[metric]
                figures_S[place] += (figure or 0.0) / len(self._groups)  # none: no video has a label
        return figures_S


def _about_differences(seeds: int) -> str:
    verdict = "one whose interval spans 0 is undecided" if seeds > 1 else "of one seed they decide nothing"
    return f"; differences are paired, in percentage points, and {verdict}"


def _figures(
    outcomes: RunOutcomes, drawn: Mapping[str, np.ndarray], run: str, metric: str, reference: str | None
) -> dict[str, Any]:
    values = outcomes.values(run, metric)
    found: dict[str, Any] = {
        "mean": float(np.mean(values)),
        "values": values.tolist(),
        "interval": proportion_interval(values, drawn[run], outcomes.groups),
    }
    if reference is not None:
        found |= _difference(outcomes, drawn, run, reference, metric)
    return found


def _difference(
    outcomes: RunOutcomes, drawn: Mapping[str, np.ndarray], run: str, other: str, metric: str
) -> dict[str, Any]:
    """A run's mean figure minus another's. Of one seed nothing says how far another one would lie: no verdict then."""
    differences_S = outcomes.values(run, metric) - outcomes.values(other, metric)
    low, high = difference_interval(differences_S, drawn[run] - drawn[other], outcomes.groups)
    undecided = low <= 0 <= high if len(outcomes.seeds) > 1 else None
    return {"difference": float(differences_S.mean()), "difference_interval": [low, high], "undecided": undecided}


def _cost(job: Job) -> dict[str, int]:
    """What scoring one clip takes; parts that only train are left out."""
    counted = job.cost()
    return {"parameters": counted.scoring, "multiply_adds": sum(counted.inference.values())}


def _read_scores(job: Job) -> tuple[list[str], list[str], Outcomes]:
    """The names of the scored videos that count, their labels as they stand in the file, and what was said of them."""
    with RunFolder(job.folder).evaluation("test").scores.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    classes = header[3:]
    scored = [row for row in rows if len(row) == len(header)]
    names, labels = [row[0] for row in scored], [row[1] for row in scored]
    scores_NK = np.array([row[3:] for row in scored], dtype=np.float64)
    if not job.source.multi_label:
        return names, labels, outcomes_of(scores_NK, np.array([classes.index(label) for label in labels]))
    joined = [label.split(";") if label else [] for label in labels]
    targets_NK = np.array([[name in row for name in classes] for row in joined], dtype=np.int64)
    counted = np.flatnonzero(scored_mask(targets_NK))
    names, labels = [names[n] for n in counted], [labels[n] for n in counted]
    return names, labels, outcomes_of(scores_NK[counted], targets_NK[counted])


def _published(table: Table, data: str) -> str:
    """The data set whose figures of the paper stand beside ours: that of the data, else the table's first."""
    name = data.partition(":")[0]
    return name if name in table.data_sets else table.data_sets[0]


def _rows(table: Table, result: Mapping[str, Any], published: str) -> list[str]:
    """The Markdown table's lines."""
    head = [""]
    for place, column in enumerate(table.columns):
        cells = [row[place] for row in table.rows.values()]
        metric = next((cell.metric for cell in cells if cell and cell.metric), result["metric"])
        head.append(column or NAMES[metric])
        head += [f"minus {table.reference_row}, points"] if table.reference else []
        head.append(f"paper, {DATA_SETS[published]}")
    head += ["parameters, M", "G multiply-adds a clip"] if table.costs else []
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for title, row in table.rows.items():
        texts = [text for cell in row for text in _texts(cell, result, table.reference, published)]
        if table.costs:
            costs = result["costs"][next(cell.run for cell in row if cell is not None)]
            texts += [f"{costs['parameters'] / 1e6:.2f}", f"{costs['multiply_adds'] / 1e9:.2f}"]
        lines.append(f"| {title} | " + " | ".join(texts) + " |")
    return lines


def _texts(cell: Cell | None, result: Mapping[str, Any], reference: str | None, published: str) -> list[str]:
    """A cell's: ours, the difference if there is a reference, the paper's."""
    ours, difference, paper = "", "", ""
    if cell is not None:
        of_paper = getattr(cell, published)
        paper = "-" if of_paper is None else f"{of_paper:.2f} %"
        ours = "-"
    if cell is not None and cell.run is not None:
        found = result["runs"][cell.run][cell.metric or result["metric"]]
        low, high = found["interval"]
        ours = f"{found['mean']:.1%} ({low:.1%} to {high:.1%})"
        if reference not in (None, cell.run):
            difference = _in_points(found)
    return [ours, paper] if reference is None else [ours, difference, paper]


def _in_points(found: Mapping[str, Any]) -> str:
    low, high = (100 * bound for bound in found["difference_interval"])
    verdict = {True: ", undecided", False: "", None: ", one seed"}[found["undecided"]]
    return f"{100 * found['difference']:+.1f} ({low:+.1f} to {high:+.1f}{verdict})"


def _deviations(jobs: Sequence[Job]) -> list[str]:
    """What keeps figures of these runs from being compared with published ones, in words."""
    told = [read_metrics(job.metrics_file) for job in jobs]
    left_out = sum({job.source.name: of_job.left_out for job, of_job in zip(jobs, told, strict=True)}.values())
    learnt = max(of_job.trained_on for of_job in told)
    flatters = [f"{learnt} test videos trained on, by their names"] if learnt else []
    found = published_for(jobs[0].source)
    if found is None:
        return ([f"{left_out} videos left out"] if left_out else []) + flatters
    _, published = found
    sources = {job.source.name: job.source for job in jobs if published_for(job.source)}.values()
    evaluation = jobs[0].config.evaluation
    of_each = (deviations(published, source, "test", evaluation, left_out) for source in sources)
    said = list(dict.fromkeys(chain.from_iterable(of_each)))
    options = {options_of(source) for source in sources}
    if published.options and options != set(published.options):
        mean = "the mean of " if len(published.options) > 1 else ""
        said.insert(0, f"{', '.join(sorted(options))}, not {mean}{', '.join(published.options)}")
    return said + flatters


def _about_weights(table: Table, jobs: Sequence[Job]) -> str:
    evolved = [job for job in jobs if EVOLVED in job.name]
    if not table.evolved and not evolved:
        return ""
    weights = (evolved or jobs)[-1].config.active_loss_weights()  # of the run with all streams
    text = ", ".join(f"{name} {value:.2g}" for name, value in weights.items())
    if evolved:
        return f"Our evolved loss weights: {text}."
    return (
        f"Our loss weights are the fixed ones ({text}); the paper's, as we read it, evolved: give --weights-from STUDY."
    )
