"""The paper's figures, from runs that are finished or from a study. They alone need matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from airstreams.evaluation.published import NAMES
from airstreams.experiments.reproduce import Job
from airstreams.experiments.study import read_results
from airstreams.experiments.tables import STOPPED, Table
from airstreams.runs import saved_model as saved_models
from airstreams.viewing.evolution import search_plot, weights_plot
from airstreams.viewing.peers import Peer, peers_plot
from airstreams.viewing.representations import learned_flow_picture, require_learned_flow, segmenters_picture

VIDEOS = {"figure3": 4, "figure4": 6, "figure6": 6}
BEST = 5  # trials, in Figure 5


def require_fitting(name: str, jobs: Sequence[Job]) -> None:
    """InputError: these runs will have nothing to show in the figure."""
    if name == "figure3":
        require_learned_flow(jobs[0].config)


def draw(name: str, jobs: Sequence[Job], picture: Path, console: Console) -> dict[str, Any]:
    """Draw a figure from its finished runs into a PNG; returns what is to be said of it.

    InputError or VideoError: nothing to show.
    """
    trained = {job.name: saved_models.load(job.folder) for job in jobs}
    source = jobs[0].source
    videos = source.split("test")
    if name == "figure3":
        (saved,) = trained.values()
        flow = learned_flow_picture(picture, saved, videos, VIDEOS[name], console)
        return {"videos": flow.videos, "flow": {**flow.parameters, "mean, px": flow.mean_px}}
    assert source.label_store is not None  # or nothing could have been trained
    titles = {"all": "learned segmentation"}
    if name == "figure6":
        titles = {"all": "gradient of the\naction losses", f"all {STOPPED}": "gradient stopped"}
    models = {title: trained[run] for run, title in titles.items()}
    shown = segmenters_picture(picture, models, name == "figure4", source.label_store, videos, VIDEOS[name], console)
    return {"videos": shown}


def draw_study(name: str, study: Path, picture: Path) -> dict[str, Any]:
    """Draw a figure of a search for loss weights into a PNG; returns what is to be said of it. InputError: no study."""
    results = read_results(study)
    if name == "figure5":
        best = [trial["weights"] for trial in results["top"][:BEST]]
        weights_plot(picture, best)
        return {"study": str(study), "weights": best}
    search_plot(picture, {results["sampler"]: results["values"]}, NAMES[results["metric"]])
    return {"study": str(study), "metric": results["metric"], "best": results["best"]["value"]}


def draw_peers(result: dict[str, Any], table: Table, picture: Path) -> None:
    """Draw a table with costs, as `report` gives it, into a PNG."""
    metric = result["metric"]
    peers = []
    for name, row in table.rows.items():
        for cell in row:
            if cell is not None and cell.run is not None:
                found = result["runs"][cell.run][metric]
                peers.append(Peer(name, found["mean"], tuple(found["interval"]), **result["costs"][cell.run]))
    peers_plot(picture, peers, NAMES[metric])
