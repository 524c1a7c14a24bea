"""Plots of a search for loss weights: its best trials (the paper's Figure 5) and its progress (Figure 8)."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from airstreams.errors import InputError
from airstreams.viewing.pictures import save_picture


def weights_plot(path: Path, best: Sequence[Mapping[str, float]], no_best: str | None = None) -> None:
    """Write a PNG of grouped bars: for each loss its weight in the best trials.

    Args:
        path: of the PNG.
        best: the loss weights of each trial, the best trial first.
        no_best: why none of them is called the best; None: they are.

    Raises:
        InputError: there are no trials.
    """
    if not best:
        raise InputError("There are no trials to draw. Give at least one.")
    names = list(best[0])
    figure = Figure(figsize=(1.3 * len(names) + 0.8, 2.8), facecolor="white", layout="constrained")
    ax = figure.add_subplot()
    width = 0.8 / len(best)
    for rank, weights in enumerate(best):
        positions = np.arange(len(names)) + (rank - (len(best) - 1) / 2) * width
        shade = 0.15 + 0.6 * rank / max(1, len(best) - 1)
        ax.bar(positions, [weights[name] for name in names], 0.9 * width, color=str(shade), label=f"{rank + 1}.")
    ax.set_xticks(range(len(names)), names)
    ax.tick_params(axis="x", length=0)
    ax.set_ylabel("loss weight")
    ax.set_ylim(0, 1)
    ax.spines[["top", "right"]].set_visible(False)
    title = "best trials" if no_best is None else "highest scores"
    _say_above(figure, no_best)
    ax.legend(title=title, frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    save_picture(figure, path)


def search_plot(
    path: Path, searches: Mapping[str, Sequence[tuple[int, float]]], metric: str, no_best: str | None = None
) -> None:
    """Write a PNG of the best score so far against the number of trials, with a dot for each trial's score.

    Args:
        path: of the PNG.
        searches: name to (trial, score in 0..1), in the order of the trials.
        metric: the name of the score.
        no_best: why no score is called the best, which leaves out the line; None: the highest one is.

    Raises:
        InputError: there are no trials.
    """
    if not any(len(values) for values in searches.values()):
        raise InputError("There are no trials to draw. Give at least one.")
    figure = Figure(figsize=(5.2, 3.2), facecolor="white", layout="constrained")
    ax = figure.add_subplot()
    for name, values in searches.items():
        scores = np.array([score for _, score in values])
        evaluated = np.arange(1, len(scores) + 1)
        colour = None
        if no_best is None:
            (line,) = ax.step(evaluated, np.maximum.accumulate(scores), where="post", label=name)
            colour = line.get_color()
        label = None if colour else name
        ax.plot(evaluated, scores, ".", markersize=3, alpha=0.5 if colour else 1, color=colour, label=label)
    ax.set_xlabel("trials evaluated")
    shown = "best so far (line), each trial (dot)" if no_best is None else "each trial"
    ax.set_ylabel(f"held-out {metric}: {shown}", fontsize=8)
    _say_above(figure, no_best)
    ax.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    ax.spines[["top", "right"]].set_visible(False)
    if len(searches) > 1:
        ax.legend(frameon=False, fontsize=8)
    save_picture(figure, path)


def _say_above(figure: Figure, text: str | None) -> None:
    if text is not None:
        lines = textwrap.fill(text, width=int(16 * figure.get_figwidth()))
        figure.suptitle(lines, fontsize=7, x=0.01, ha="left", parse_math=False)
