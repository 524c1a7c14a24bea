"""A table of the paper with our figures beside the published ones.

Intervals come from a bootstrap that draws test videos and seeds anew, the same ones for all runs: two runs that err on
the same videos are told apart better than their own intervals show. Several DATA are splits of one data set, and the
official ones share test videos: a video is drawn as often in each of them. Where the interval of a difference spans 0,
the table says `undecided`; of one seed it says nothing.

Legend of shape suffixes: N videos, K action classes.
"""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from airstreams.data.benchmarks import BENCHMARKS
from airstreams.data.listing import Source
from airstreams.errors import InputError
from airstreams.evaluation.intervals import BOUNDS, around
from airstreams.evaluation.metrics import Outcomes, outcomes_of
from airstreams.evaluation.published import NAMES, deviations, published_for
from airstreams.experiments.reproduce import Job
from airstreams.experiments.tables import DATA_SETS, EVOLVED, Cell, Table
from airstreams.files import replacing, write_json

REPLICATES = 2000  # of the bootstrap


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
        drawn = outcomes.bootstrap(table.runs, of_cell)
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
        f"{NAMES[metric]} over {result['classes']} classes on {outcomes.videos} test videos of "
        f"{', '.join(result['data'])}; seeds {', '.join(map(str, outcomes.seeds))}; trained on "
        f"{' and '.join(result['hardware'])}, {hours:.1f} h in all. Intervals are 95 % of a bootstrap over videos"
        f"{' and seeds' if len(outcomes.seeds) > 1 else ' alone, and say nothing of other seeds'}"
        f"{'; differences are paired' if table.reference else ''}.",
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
        self.data = list(dict.fromkeys(job.source.name for job in jobs))
        self.seeds = sorted({job.config.seed for job in jobs})
        self._outcomes: dict[tuple[str, str, int], Outcomes] = {}
        self._names: dict[str, list[str]] = {}
        self._labels: dict[str, list[str]] = {}
        for job in jobs:
            data = job.source.name
            names, labels, outcomes = _read_scores(job)
            if self._names.setdefault(data, names) != names or self._labels.setdefault(data, labels) != labels:
                raise InputError(
                    f"{job.folder}: scored other videos or labels than the other runs; give it the same ones by "
                    f"`airstreams evaluate {job.folder} {data}`"
                )
            self._outcomes[job.name, data, job.config.seed] = outcomes
        place = {
            name: n for n, name in enumerate(dict.fromkeys(name for names in self._names.values() for name in names))
        }
        self.videos = len(place)  # scored ones, of all data
        self._places = {data: np.array([place[name] for name in names]) for data, names in self._names.items()}

    def values(self, run: str, metric: str) -> list[float]:
        """A run's figure for each seed: the mean over the data (splits)."""
        once = {data: np.ones(len(places), dtype=np.int64) for data, places in self._places.items()}
        return [
            float(np.mean([self._figure(run, data, seed, metric, once[data]) for data in self.data]))
            for seed in self.seeds
        ]

    def bootstrap(self, runs: Sequence[str], metric: str) -> dict[str, np.ndarray]:
        """Each run's mean figure (R,) over videos and seeds that were drawn anew R times, the same for all runs.

        Seeds that are drawn from so few vary too little, three of three by two thirds of their variance. So what the
        draw of seeds changes is enlarged by as much as that lacks.
        """
        rng = np.random.default_rng(0)
        drawn = {run: np.zeros(REPLICATES) for run in runs}
        S = len(self.seeds)
        enlarged = math.sqrt(S / (S - 1)) if S > 1 else 0.0
        for replicate in range(REPLICATES):
            shares_S = np.bincount(rng.integers(S, size=S), minlength=S) / S
            weights_S = 1 / S + enlarged * (shares_S - 1 / S)
            for data, counts_N in self._draw(rng).items():
                for run in runs:
                    figures_S = [self._figure(run, data, seed, metric, counts_N) for seed in self.seeds]
                    drawn[run][replicate] += np.dot(weights_S, figures_S) / len(self.data)
        return drawn

    def _draw(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """How often each video of each data counts, once some of every data are drawn."""
        while True:
            counts = np.bincount(rng.integers(self.videos, size=self.videos), minlength=self.videos)
            drawn = {data: counts[places] for data, places in self._places.items()}
            if all(counts_N.any() for counts_N in drawn.values()):
                return drawn

    def _figure(self, run: str, data: str, seed: int, metric: str, counts_N: np.ndarray) -> float:
        return self._outcomes[run, data, seed].figures(counts_N)[metric] or 0.0  # none: no video of any class was drawn


def _figures(
    outcomes: RunOutcomes, drawn: Mapping[str, np.ndarray], run: str, metric: str, reference: str | None
) -> dict[str, Any]:
    values = outcomes.values(run, metric)
    found: dict[str, Any] = {
        "mean": float(np.mean(values)),
        "values": values,
        "interval": around(float(np.mean(values)), drawn[run]),
    }
    if reference is not None:
        found |= _difference(outcomes, drawn, run, reference, metric)
    return found


def _difference(
    outcomes: RunOutcomes, drawn: Mapping[str, np.ndarray], run: str, other: str, metric: str
) -> dict[str, Any]:
    """A run's mean figure minus another's. Of one seed nothing says how far another one would lie: no verdict then."""
    difference = float(np.mean(outcomes.values(run, metric)) - np.mean(outcomes.values(other, metric)))
    differences = drawn[run] - drawn[other]
    low, high = (difference + np.percentile(differences, BOUNDS) - differences.mean()).tolist()
    undecided = low <= 0 <= high if len(outcomes.seeds) > 1 else None
    return {"difference": difference, "difference_interval": [low, high], "undecided": undecided}


def _cost(job: Job) -> dict[str, int]:
    """What scoring one clip takes; parts that only train are left out."""
    counted = job.cost()
    used = [name for name, count in counted.inference.items() if count > 0]
    return {
        "parameters": sum(counted.parameters[name] for name in used),
        "multiply_adds": sum(counted.inference.values()),
    }


def _read_scores(job: Job) -> tuple[list[str], list[str], Outcomes]:
    """The scored videos' names, their labels as they stand in the file, and what was said of them."""
    with (job.figures.parent / "scores.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    classes = header[3:]
    scored = [row for row in rows if len(row) == len(header)]
    names, labels = [row[0] for row in scored], [row[1] for row in scored]
    scores_NK = np.array([row[3:] for row in scored], dtype=np.float64)
    if not job.source.multi_label:
        return names, labels, outcomes_of(scores_NK, np.array([classes.index(label) for label in labels]))
    joined = [label.split(";") if label else [] for label in labels]
    targets_NK = np.array([[name in row for name in classes] for row in joined], dtype=np.int64)
    return names, labels, outcomes_of(scores_NK, targets_NK)


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
        head += [f"minus {table.reference}"] if table.reference else []
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
    undecided = ", undecided" if found["undecided"] else ""
    return f"{100 * found['difference']:+.1f} ({low:+.1f} to {high:+.1f}{undecided})"


def _deviations(jobs: Sequence[Job]) -> list[str]:
    """What keeps figures of these runs from being compared with published ones, in words."""
    left_out = sum({job.source.name: json.loads(job.figures.read_text())["left_out"] for job in jobs}.values())
    found = published_for(jobs[0].source)
    if found is None:
        return [f"{left_out} videos left out"] if left_out else []
    _, published = found
    said = deviations(published, "test", jobs[0].config.evaluation, left_out)
    options = {_options_of(job.source) for job in jobs}
    if published.options and options != set(published.options):
        mean = "the mean of " if len(published.options) > 1 else ""
        said.insert(0, f"{', '.join(sorted(options))}, not {mean}{', '.join(published.options)}")
    return said


def _options_of(source: Source) -> str:
    """The options of NAME:ROOT[?OPTIONS], or the default ones."""
    name, _, rest = source.name.partition(":")
    defaults = "&".join(f"{key}={values[0]}" for key, values in BENCHMARKS[name].options.items())
    options = rest.rpartition("?")[2] if "?" in rest else defaults
    return options.replace("=auto", f"={len(source.classes)}")  # Moments' releases are called by their classes


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
