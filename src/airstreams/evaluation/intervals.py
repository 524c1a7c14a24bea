"""How far a figure would move with other videos of the same kind: 95 % intervals by a bootstrap over the videos."""

from collections.abc import Iterable

import numpy as np

from airstreams.evaluation.metrics import Outcomes

REPLICATES = 1000
BOUNDS = (2.5, 97.5)  # percentiles


def intervals(outcomes: Outcomes) -> dict[str, list[float] | None]:
    """Each figure's 95 % interval, [low, high] in 0..1; the same ones every time. None for what does not apply.

    The figures are computed again for as many videos drawn with replacement, `REPLICATES` times. Their spread around
    their own mean is laid around the figure. Plain percentiles of them will not do for mAP: a video of a class that is
    drawn twice stands beside itself in the ranking, which raises average precision, and an interval of Charades' size
    would lie too high by half its width.
    """
    rng = np.random.default_rng(0)
    N = outcomes.videos
    drawn = [outcomes.figures(np.bincount(rng.integers(N, size=N), minlength=N)) for _ in range(REPLICATES)]
    return {
        name: None if figure is None else around(figure, [values[name] for values in drawn])
        for name, figure in outcomes.figures(np.ones(N, dtype=np.int64)).items()
    }


def around(figure: float, drawn: Iterable[float | None]) -> list[float]:
    """The 95 % interval of a figure in 0..1 by what the draws came to; None: one that came to nothing."""
    values = np.array([value for value in drawn if value is not None])  # None: no class of it was drawn
    bounds = figure + np.percentile(values, BOUNDS) - values.mean()
    return np.clip(bounds, 0, 1).tolist()
