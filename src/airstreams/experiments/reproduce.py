"""The paper's ablations, one command each: the trainings that a table needs, our figures beside the published ones.

A table is data: its cells name the *runs* that it needs, and a run is a change to the recipe. Each run is trained once
for every DATA (a split of the data set) and seed, by the same recipe and hence the same budget, and is shared by all
tables in a folder. A finished one is only read; one that was killed goes on.

Intervals come from a bootstrap that draws test videos and seeds anew, the same ones for all runs: two runs that err on
the same videos are told apart better than their own intervals show. Where the interval of a difference spans 0, the
table says `undecided`.
"""

import csv
import json
import multiprocessing
import platform
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from airstreams.config import Config, LossWeights, load_config
from airstreams.data.labels import COCO_CLASSES
from airstreams.data.sources import open_source
from airstreams.errors import InputError
from airstreams.evaluation.evaluate import evaluate
from airstreams.evaluation.metrics import action_figures
from airstreams.experiments.workers import begin_work
from airstreams.files import replacing
from airstreams.models import cost
from airstreams.training.log import METRICS
from airstreams.training.loop import may_begin, train

REPLICATES = 2000  # of the bootstrap
MAP_REPLICATES = 200  # the mean average precision takes long
STOPPED = "(stopped)"  # ends the name of a run whose representations the action losses do not reach


@dataclass(frozen=True)
class Cell:
    """One figure of a table: of which run, and the paper's, in %, on HMDB-51 (accuracy) and Charades (mAP)."""

    run: str
    hmdb51: float | None = None
    charades: float | None = None


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    rows: name to its cells, one for each column; None for an empty one.
    reference: the run from which differences are taken.
    """

    title: str
    columns: tuple[str, ...]
    rows: dict[str, tuple[Cell | None, ...]]
    reference: str
    note: str = ""

    @property
    def runs(self) -> list[str]:
        """The runs that it needs, each once."""
        return list(dict.fromkeys(cell.run for cells in self.rows.values() for cell in cells if cell is not None))


TABLES = {
    "table1": Table(
        "Table 1: intermediate representations help",
        ("accuracy",),
        {
            "RGB": (Cell("rgb", 41.72),),
            "RGB + semantics": (Cell("rgb+semantic", 46.32),),
            "RGB + flow": (Cell("rgb+flow", 47.66),),
            "RGB + semantics + flow": (Cell("all", 50.02),),
            "control: RGB three times": (Cell("rgb x3"),),
        },
        "rgb",
        "The control is not in the paper: three towers, merged as the others are, that all see RGB.",
    ),
    "table2": Table(
        "Table 2: they should be optimised for the task",
        ("stop gradient", "propagate gradient"),
        {
            "RGB": (Cell("rgb", 41.72), None),
            "RGB + semantics": (Cell(f"rgb+semantic {STOPPED}", 43.57), Cell("rgb+semantic", 46.32)),
            "RGB + flow": (Cell(f"rgb+flow {STOPPED}", 46.84), Cell("rgb+flow", 47.66)),
            "RGB + semantics + flow": (Cell(f"all {STOPPED}", 47.76), Cell("all", 50.02)),
        },
        "rgb",
    ),
    "table3": Table(
        "Table 3: loss weights",
        ("accuracy",),
        {
            "no auxiliary losses (RGB)": (Cell("rgb", 41.72, 28.56),),
            "uniform weights": (Cell("uniform", 42.82),),
            "fixed weights": (Cell("all", 50.02, 35.05),),
            "evolved weights": (Cell("evolved", 50.53, 35.45),),
        },
        "all",
        "The paper's Charades column uses weights evolved on Moments in Time.",
    ),
}
STREAMS: dict[str, list[str]] = {
    "rgb": ["rgb"],
    "rgb+semantic": ["rgb", "semantic"],
    "rgb+flow": ["rgb", "flow"],
    "all": ["rgb", "flow", "semantic"],
    "rgb x3": ["rgb", "rgb2", "rgb3"],
}


@dataclass(frozen=True)
class Job:
    """One training and its evaluation. `data` and `labels` are as on the command line."""

    name: str
    data: str
    labels: Path | None
    config: Config
    folder: Path

    @property
    def figures(self) -> Path:
        """Written when all is done."""
        return self.folder / "evaluation" / "test" / "figures.json"

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do."""
        return self.figures.is_file()


def run_config(name: str, recipe: Config, evolved: Mapping[str, float] | None) -> Config:
    """The recipe as a run of a table has it. InputError: `evolved` without weights."""
    if name in ("uniform", "evolved"):
        if name == "evolved" and evolved is None:
            raise InputError("table3: its last row needs evolved weights; give --weights-from STUDY")
        weights = LossWeights(1.0, 1.0, 1.0, 1.0, 1.0) if name == "uniform" else LossWeights(**evolved)  # type: ignore[arg-type]
        return replace(recipe, model=replace(recipe.model, streams=STREAMS["all"]), loss_weights=weights)
    streams = STREAMS[name.removesuffix(f" {STOPPED}")]
    model = replace(recipe.model, streams=streams, stop_gradient=[])
    if name.endswith(STOPPED):
        model.stop_gradient = [stream for stream in streams if stream == "flow" or stream == "semantic"]
    return replace(recipe, model=model, loss_weights=LossWeights())  # fixed: section 4.2.3


def plan(
    table: Table,
    recipe: Config,
    data: Sequence[str],
    labels: Path | None,
    seeds: int,
    evolved: Mapping[str, float] | None,
    out: Path,
) -> list[Job]:
    """The trainings that a table needs, finished or not; a seed of all runs after the other.

    InputError: a folder that holds a training of another recipe.
    """
    jobs = []
    for seed in range(recipe.seed, recipe.seed + seeds):
        for split, source in enumerate(data):
            for name in table.runs:
                config = replace(run_config(name, recipe, evolved), seed=seed)
                folder = out / "runs" / f"{_file_name(name)}-data{split}-seed{seed}"
                job = Job(name, source, labels, config, folder)
                if (folder / "config.yaml").is_file() and load_config(folder / "config.yaml") != config:
                    raise InputError(
                        f"{folder}: a training of another recipe or of other weights; give another --out, or delete it"
                    )
                jobs.append(job)
    return jobs


def multiply_adds(job: Job) -> int:
    """Of a training's forward passes, in all."""
    source = open_source(job.data, job.labels)
    segment_classes = source.label_store.classes if source.label_store else COCO_CLASSES
    clip = sum(cost.count(job.config, len(source.classes), len(segment_classes)).training.values())
    return clip * len(source.split("train")) * job.config.training.epochs


def hours_left(jobs: Sequence[Job]) -> float | None:
    """Of training, by the pace of what is finished; None where nothing is."""
    done = [job for job in jobs if job.done]
    if not done:
        return None
    pace = sum(_seconds(job) for job in done) / sum(multiply_adds(job) for job in done)
    return pace * sum(multiply_adds(job) for job in jobs if not job.done) / 3600


def run_jobs(jobs: Sequence[Job], workers: int, console: Console) -> None:
    """Do what is not done yet, `workers` at a time. RuntimeError: a worker died; what the jobs raise."""
    todo = [job for job in jobs if not job.done]
    if not todo:
        return
    context = multiprocessing.get_context("spawn")
    columns = (TextColumn("runs"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        Progress(*columns, console=console) as progress,
        ProcessPoolExecutor(workers, context, begin_work, (workers,)) as pool,
    ):
        task = progress.add_task("", total=len(jobs), completed=len(jobs) - len(todo))
        running = {pool.submit(_do, job): job for job in todo}
        try:
            for future in as_completed(running):
                future.result()
                progress.advance(task)
                job = running[future]
                console.print(f"{job.folder.name}: {_percent(_score(job))} in {_seconds(job):.0f} s", highlight=False)
        except BrokenProcessPool as error:
            raise RuntimeError("a worker died; the same call goes on, perhaps with fewer --workers") from error
        finally:
            pool.shutdown(cancel_futures=True)


def report(name: str, table: Table, jobs: Sequence[Job], command: str) -> tuple[dict[str, Any], str]:
    """The figures of a table, in 0..1, and the same as Markdown."""
    metric = _metric(jobs[0])
    outcome = Outcomes(jobs, metric)
    values = {run: outcome.values(run) for run in table.runs}
    drawn = outcome.bootstrap(table.runs)
    published = "charades" if metric == "map" else "hmdb51"
    cells: dict[str, dict[str, Any]] = {}
    for run in table.runs:
        difference = drawn[run] - drawn[table.reference]
        low, high = np.percentile(difference, [2.5, 97.5]).tolist()
        cells[run] = {
            "mean": float(np.mean(values[run])),
            "values": values[run],
            "interval": np.percentile(drawn[run], [2.5, 97.5]).tolist(),
            "difference": float(np.mean(values[run]) - np.mean(values[table.reference])),
            "difference_interval": [low, high],
            "undecided": low <= 0 <= high,
        }
    seconds = [_seconds(job) for job in jobs]
    result: dict[str, Any] = {
        "table": name,
        "metric": metric,
        "command": command,
        "data": list(dict.fromkeys(job.data for job in jobs)),
        "seeds": sorted({job.config.seed for job in jobs}),
        "videos": outcome.videos,
        "hardware": _hardware(),
        "torch": torch.__version__,
        "training_hours": sum(seconds) / 3600,
        "reference": table.reference,
        "runs": cells,
    }
    lines = [
        f"## {table.title}",
        "",
        f"`{command}`",
        "",
        f"{metric} on {outcome.videos} test videos of {', '.join(result['data'])}; seeds {result['seeds']}; "
        f"{result['hardware']}, torch {torch.__version__}; {result['training_hours']:.1f} h of training in all. "
        "Intervals are 95 % of a bootstrap over videos and seeds; differences are paired.",
        "",
        "| | " + " | ".join(f"{column} | minus {table.reference} | paper" for column in table.columns) + " |",
        "| --- |" + " --- | --- | --- |" * len(table.columns),
    ]
    for title, row in table.rows.items():
        texts = [_cell_text(cell, cells, table.reference, published) for cell in row]
        lines.append(f"| {title} | " + " | ".join(texts) + " |")
    if table.note:
        lines += ["", table.note]
    return result, "\n".join(lines) + "\n"


class Outcomes:
    """What each run said of each test video: with what the table's figures are made, and drawn anew.

    jobs: finished, of all runs with the same data and seeds.
    """

    def __init__(self, jobs: Sequence[Job], metric: str) -> None:
        self.metric = metric
        self.data = list(dict.fromkeys(job.data for job in jobs))
        self.seeds = sorted({job.config.seed for job in jobs})
        self._scores: dict[tuple[str, str, int], np.ndarray] = {}  # (N, K)
        self._targets: dict[str, np.ndarray] = {}
        self._names: dict[str, list[str]] = {}
        for job in jobs:
            names, scores_NK, targets = _read_scores(job)
            if self._names.setdefault(job.data, names) != names:
                raise InputError(f"{job.folder}: scored other videos than the other runs; delete it to do it again")
            self._targets[job.data] = targets
            self._scores[job.name, job.data, job.config.seed] = scores_NK

    @property
    def videos(self) -> int:
        """Scored ones, over all data."""
        return sum(len(names) for names in self._names.values())

    def values(self, run: str) -> list[float]:
        """A run's figure for each seed: the mean over the data (splits)."""
        return [
            float(np.mean([self._figure(self._scores[run, data, seed], self._targets[data]) for data in self.data]))
            for seed in self.seeds
        ]

    def bootstrap(self, runs: Sequence[str]) -> dict[str, np.ndarray]:
        """Each run's mean figure (R,) over videos and seeds that were drawn anew R times, the same for all runs."""
        rng = np.random.default_rng(0)
        replicates = MAP_REPLICATES if self.metric == "map" else REPLICATES
        drawn = {run: np.zeros(replicates) for run in runs}
        for replicate in range(replicates):
            seeds = rng.choice(self.seeds, len(self.seeds))
            for data in self.data:
                count = len(self._names[data])
                places = rng.integers(count, size=count)
                for run in runs:
                    figures = [self._drawn_figure(run, data, seed, places) for seed in seeds]
                    drawn[run][replicate] += np.mean(figures) / len(self.data)
        return drawn

    def _drawn_figure(self, run: str, data: str, seed: int, places: np.ndarray) -> float:
        return self._figure(self._scores[run, data, seed][places], self._targets[data][places])

    def _figure(self, scores_NK: np.ndarray, targets: np.ndarray) -> float:
        if self.metric == "top1":
            return float((scores_NK.argmax(axis=1) == targets).mean())
        return float(action_figures(scores_NK, targets)["map"] or 0.0)


def _do(job: Job) -> None:
    quiet = Console(quiet=True)
    source = open_source(job.data, job.labels)
    begun = (job.folder / "config.yaml").is_file()
    if not begun and not may_begin(job.folder):
        raise InputError(f"{job.folder}: holds something else; delete it, or give another --out")
    train(source, job.config, job.folder, begun, quiet)
    evaluate(job.folder, source, "test", quiet)


def _read_scores(job: Job) -> tuple[list[str], np.ndarray, np.ndarray]:
    with (job.figures.parent / "scores.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    classes = header[3:]
    scored = [row for row in rows if len(row) == len(header)]
    names = [row[0] for row in scored]
    scores_NK = np.array([row[3:] for row in scored], dtype=np.float64)
    labels = [row[1].split(";") if row[1] else [] for row in scored]
    if _metric(job) == "map":
        return names, scores_NK, np.array([[name in row for name in classes] for row in labels], dtype=np.int64)
    return names, scores_NK, np.array([classes.index(row[0]) for row in labels])


def _metric(job: Job) -> str:
    return "map" if json.loads(job.figures.read_text())["top1"] is None else "top1"


def _score(job: Job) -> float:
    return float(json.loads(job.figures.read_text())[_metric(job)])


def _seconds(job: Job) -> float:
    """Of its training; what an interruption cost is not in it."""
    lines = (job.folder / METRICS).read_text(encoding="utf-8").splitlines()
    return sum(entry["train"]["seconds"] for entry in map(json.loads, lines) if "train" in entry)


def _cell_text(cell: Cell | None, cells: Mapping[str, dict[str, Any]], reference: str, published: str) -> str:
    if cell is None:
        return " | | "
    found = cells[cell.run]
    low, high = found["interval"]
    paper = getattr(cell, published)
    text = f"{found['mean']:.1%} ({low:.1%} to {high:.1%}) | "
    if cell.run != reference:
        low, high = (100 * bound for bound in found["difference_interval"])
        undecided = ", undecided" if found["undecided"] else ""
        text += f"{100 * found['difference']:+.1f} ({low:+.1f} to {high:+.1f}{undecided})"
    return text + (" | -" if paper is None else f" | {paper:.2f} %")


def _file_name(run: str) -> str:
    return run.replace(STOPPED, "stopped").replace("+", "-").replace(" ", "-")


def _hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def _percent(value: float) -> str:
    return f"{value:.1%}"


def write(out: Path, name: str, result: Mapping[str, Any], markdown: str) -> None:
    """Leave a table in `out`, as Markdown and as JSON."""
    with replacing(out / f"{name}.md") as temporary:
        temporary.write_text(markdown, encoding="utf-8")
    with replacing(out / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
