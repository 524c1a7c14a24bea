"""The reliability plot: how often the answer is right, by its probability."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from airstreams.evaluation.calibration import Calibration
from airstreams.percent import percent
from airstreams.viewing.colours import LINE_COLOURS
from airstreams.viewing.pictures import save_picture


def reliability_plot(path: Path, calibration: Calibration) -> None:
    """Write a PNG with a point per bin: its accuracy, with its 95 % interval, over the mean probability of its answers.

    Points below the diagonal are answers that are too sure.
    """
    bins = calibration.bins
    probability_B = np.array([row.probability for row in bins])
    accuracy_B = np.array([row.accuracy for row in bins])
    intervals_B2 = np.array([row.interval for row in bins])
    figure = Figure(figsize=(3.9, 3.9), facecolor="white", layout="constrained")
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", label="perfectly calibrated")
    ends_2B = np.abs(intervals_B2 - accuracy_B[:, None]).T
    title = f"the answer, {sum(row.videos for row in bins)} videos in {len(bins)} bins"
    ax.errorbar(
        probability_B, accuracy_B, ends_2B, color=LINE_COLOURS[0], marker="o", markersize=4, linewidth=1, label=title
    )
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(-0.02, 1.02)
    ax.set_aspect("equal")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(PercentFormatter(xmax=1))
    ax.set_xlabel("probability of the answer, mean of the bin")
    ax.set_ylabel("share of right answers")
    divided = "" if calibration.temperature == 1 else f", temperature {calibration.temperature:.3g}"
    ax.set_title(f"calibration error {percent(calibration.error)}{divided}", fontsize=10, loc="left")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8, loc="upper left")
    save_picture(figure, path)
