"""Accuracy against what it costs, for models that were trained with the same budget."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from airstreams.errors import InputError
from airstreams.viewing.pictures import save_picture

NAMES_A_LINE = 2  # of the legend: they are sentences, nearly
BARS = "Bars: each figure's 95 % interval. They may overlap where models, compared in pairs, differ: see the table."


@dataclass(frozen=True)
class Peer:
    """One model: its score in 0..1 with its interval, and what scoring a clip takes."""

    name: str
    score: float
    interval: tuple[float, float]
    parameters: int
    multiply_adds: int


def peers_plot(path: Path, peers: Sequence[Peer], metric: str) -> None:
    """Writes a PNG of the score against multiply-adds and, beside it, against parameters; bars are the intervals.

    Raises:
        InputError: no models.
    """
    if not peers:
        raise InputError("no models to draw: expected at least one")
    height = 3.2 + 0.2 * math.ceil(len(peers) / NAMES_A_LINE)
    figure = Figure(figsize=(8.4, height), facecolor="white", layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for place, peer in enumerate(peers):
        across = (peer.multiply_adds / 1e9, peer.parameters / 1e6)
        below, above = peer.score - peer.interval[0], peer.interval[1] - peer.score
        for ax, x in zip(axes, across, strict=True):
            ax.errorbar(x, peer.score, [[below], [above]], fmt="o", color=f"C{place}", capsize=3, label=peer.name)
    for ax, title in zip(axes, ("multiply-adds a clip, G", "parameters, M"), strict=True):
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
    figure.legend(handles, names, loc="outside lower center", ncols=NAMES_A_LINE, fontsize=9, frameon=False)
    save_picture(figure, path)
