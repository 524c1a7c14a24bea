"""A plot of accuracy against cost, for models that were trained with the same budget."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from airstreams.errors import InputError
from airstreams.viewing.pictures import save_picture

NAMES_PER_LINE = 2  # of the legend, whose names are long
BARS = "Bars: 95 % intervals. Bars may overlap although a paired comparison finds a difference: see the table."


@dataclass(frozen=True)
class Peer:
    """One model: its score in 0..1 with its interval, and the cost of scoring one clip."""

    name: str
    score: float
    interval: tuple[float, float]
    parameters: int
    multiply_adds: int


def peers_plot(path: Path, peers: Sequence[Peer], metric: str) -> None:
    """Write a PNG with two plots: the score against multiply-adds and against parameters. Bars are the intervals.

    Raises:
        InputError: there are no models.
    """
    if not peers:
        raise InputError("There are no models to draw. Give at least one.")
    height = 3.2 + 0.2 * math.ceil(len(peers) / NAMES_PER_LINE)
    figure = Figure(figsize=(8.4, height), facecolor="white", layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for number, peer in enumerate(peers):
        across = (peer.multiply_adds / 1e9, peer.parameters / 1e6)
        below, above = peer.score - peer.interval[0], peer.interval[1] - peer.score
        for ax, x in zip(axes, across, strict=True):
            ax.errorbar(x, peer.score, [[below], [above]], fmt="o", color=f"C{number}", capsize=3, label=peer.name)
    for ax, title in zip(axes, ("multiply-adds per clip, G", "parameters, M"), strict=True):
        ax.margins(x=0.1)
        ax.set_xlim(left=0)
        ax.set_xlabel(title)
        ax.locator_params(axis="x", nbins=6)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color="0.9", linewidth=0.6)
    figure.suptitle(BARS, fontsize=8, x=0.01, ha="left")
    axes[0].set_ylabel(metric)
    axes[0].yaxis.set_major_formatter(PercentFormatter(xmax=1))
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=NAMES_PER_LINE, fontsize=9, frameon=False)
    save_picture(figure, path)
