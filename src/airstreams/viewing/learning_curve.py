"""A plot of accuracy against one property of the videos."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from airstreams.viewing.pictures import save_picture


@dataclass(frozen=True)
class Point:
    """A score in 0..1 with its interval.

    x: the property, such as the number of training videos per class.
    """

    x: float
    score: float
    interval: tuple[float, float]


def curves_plot(
    path: Path,
    curves: Mapping[str, Sequence[Point]],
    metric: str,
    baseline: float | None = None,
    x_label: str = "training videos per class",
) -> None:
    """Write a PNG with one curve for each name. Bars are the intervals.

    baseline: a score that needs no look at the videos, drawn as a dashed line.
    """
    figure = Figure(figsize=(6.4, 4.2), facecolor="white", layout="constrained")
    ax = figure.subplots()
    for number, (name, points) in enumerate(curves.items()):
        below = [point.score - point.interval[0] for point in points]
        above = [point.interval[1] - point.score for point in points]
        x = [point.x * 1.02**number for point in points]  # so that bars do not hide each other
        y = [point.score for point in points]
        ax.errorbar(x, y, [below, above], fmt="o-", color=f"C{number}", capsize=3, label=name)
    if baseline is not None:
        ax.axhline(baseline, color="0.5", linestyle="--", linewidth=1, label="chance, or always one class")
    counts = sorted({point.x for points in curves.values() for point in points})
    ax.set_xscale("log")
    ax.set_xticks(counts, [f"{count:g}" for count in counts])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel(x_label)
    ax.set_ylabel(metric)
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="0.9", linewidth=0.6)
    ax.legend(frameon=False, fontsize=9)
    figure.suptitle("Bars: 95 % intervals.", fontsize=8, x=0.01, ha="left")
    save_picture(figure, path)
