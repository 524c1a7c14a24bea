"""The paper's figures, drawn from finished runs or from a study, and the plots of tables."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from airstreams.config import SUPERVISED
from airstreams.data.targets import Targets
from airstreams.data.time_blind import SHAPES
from airstreams.evaluation.published import NAMES
from airstreams.experiments.reproduce import Job
from airstreams.experiments.study import read_results
from airstreams.experiments.table_results import TableResults
from airstreams.experiments.tables import STOPPED, Table, run_of
from airstreams.experiments.time_blind import Score
from airstreams.representations.make import target_kind
from airstreams.runs import saved_model as saved_models
from airstreams.viewing.evolution import search_plot, weights_plot
from airstreams.viewing.learning_curve import Point, curves_plot
from airstreams.viewing.peers import Peer, peers_plot
from airstreams.viewing.representations import learned_flow_picture, require_learned_flow, segmenters_picture

VIDEOS = {"figure3": 4, "figure4": 6, "figure6": 6}
BEST = 5  # trials in Figure 5


@dataclass(frozen=True)
class DrawnFigure:
    """What a figure shows. None where a figure has no such thing.

    videos: their names.
    flow: parameter or mean length in pixels to its values before and after training.
    study: its folder.
    weights: those of the best trials.
    metric: of the study's scores.
    best: the highest score, in 0..1.
    distinguishable, reason: of the study, as in `StudyResults`.
    """

    videos: list[str] | None = None
    flow: dict[str, tuple[float, float]] | None = None
    study: str | None = None
    weights: list[dict[str, float]] | None = None
    metric: str | None = None
    best: float | None = None
    distinguishable: bool | None = None
    reason: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """What `airstreams reproduce --json` prints of it."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def require_fitting(name: str, jobs: Sequence[Job]) -> None:
    """InputError: these runs will have nothing to show in the figure."""
    if name == "figure3":
        require_learned_flow(jobs[0].config)


def draw(name: str, jobs: Sequence[Job], picture: Path, console: Console) -> DrawnFigure:
    """Draw a figure of finished runs into a PNG.

    Args:
        name: of the figure.
        jobs: its runs.
        picture: the PNG.
        console: gets the videos that are left out.

    Raises:
        InputError or VideoError: there is nothing to show.
    """
    trained = {job.name: saved_models.load(job.folder) for job in jobs}
    source = jobs[0].source
    videos = source.split("test")
    if name == "figure3":
        (saved,) = trained.values()
        flow = learned_flow_picture(picture, saved, videos, VIDEOS[name], console)
        return DrawnFigure(videos=flow.videos, flow={**flow.parameters, "mean, px": flow.mean_px})
    assert source.label_store is not None  # no run of these figures trains without it
    titles = {"all": "learned segmentation"}
    if name == "figure6":
        titles = {"all": "gradient of the\naction losses", f"all {STOPPED}": "gradient stopped"}
    models = {title: trained[run] for run, title in titles.items()}
    stream, with_teacher = SUPERVISED[0], name == "figure4"
    kind = target_kind(stream, jobs[0].config.model)
    assert kind is not None
    targets = Targets(kind, source.label_store)
    shown = segmenters_picture(picture, models, stream, with_teacher, targets, videos, VIDEOS[name], console)
    return DrawnFigure(videos=shown)


def draw_study(name: str, study: Path, picture: Path) -> DrawnFigure:
    """Draw a figure of a search for loss weights into a PNG. InputError: no study."""
    results = read_results(study)
    drawn = DrawnFigure(study=str(study), distinguishable=results.distinguishable, reason=results.reason)
    if name == "figure5":
        best = [trial.weights for trial in results.top[:BEST]]
        weights_plot(picture, best, results.no_best())
        return replace(drawn, weights=best)
    search_plot(picture, {results.sampler: results.values}, NAMES[results.metric], results.no_best())
    return replace(drawn, metric=results.metric, best=results.top[0].value)


def draw_table(results: TableResults, table: Table, picture: Path) -> None:
    """Draw the plot of a table that has one into a PNG."""
    if table.plot == "clips":
        _draw_curves(results, table, picture)
    else:
        _draw_peers(results, table, picture)


def _draw_curves(results: TableResults, table: Table, picture: Path) -> None:
    """One curve for each column: the accuracy against the training videos per class."""
    curves: dict[str, list[Point]] = {}
    for row in table.rows.values():
        for column, cell in zip(table.columns, row, strict=True):
            if cell is not None and cell.run is not None:
                found, clips = results.runs[cell.run][results.metric], run_of(cell.run).clips
                assert clips is not None
                curves.setdefault(column, []).append(Point(clips, found.mean, (found.interval[0], found.interval[1])))
    curves_plot(picture, curves, NAMES[results.metric], results.baseline)


def draw_speeds(scores: Sequence[Score], table: Table, picture: Path) -> None:
    """One curve for each run: the accuracy against the speed of the noise."""
    curves: dict[str, list[Point]] = {}
    for score in scores:
        if score.speed[0] == score.speed[1]:
            point = Point(score.speed[0], score.top1, score.interval)
            curves.setdefault(table.rows_of([score.run])[0], []).append(point)
    curves_plot(picture, curves, "top-1", 1 / len(SHAPES), "speed of the noise, px per frame")


def _draw_peers(results: TableResults, table: Table, picture: Path) -> None:
    costs = results.costs or {}
    peers = []
    for name, row in table.rows.items():
        for cell in row:
            if cell is not None and cell.run is not None:
                found, cost = results.runs[cell.run][results.metric], costs[cell.run]
                low, high = found.interval
                peers.append(Peer(name, found.mean, (low, high), cost.parameters, cost.multiply_adds))
    peers_plot(picture, peers, NAMES[results.metric])
