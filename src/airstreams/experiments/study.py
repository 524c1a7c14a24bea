"""The results of a search for loss weights: `results.json` of a study. Reading them needs no Optuna."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from airstreams.errors import InputError
from airstreams.files import write_json
from airstreams.percent import percent
from airstreams.plural import count_of

RESULTS = "results.json"


@dataclass(frozen=True)
class ScoredTrial:
    """A completed trial: its number, its score in 0..1 and its loss weights."""

    trial: int
    value: float
    weights: dict[str, float]


@dataclass(frozen=True)
class FreshSeeds:
    """The trainings of one weighting with fresh seeds.

    values: a score in 0..1 for each seed that is done, by seed; None where the training diverged.
    mean: of the values; None if there are none yet, or if a training diverged: the mean of the others would flatter.
    """

    weights: dict[str, float]
    values: list[float | None]
    mean: float | None


@dataclass(frozen=True)
class BestTrial(ScoredTrial):
    """The best trial, with its trainings with fresh seeds once they have begun."""

    fresh: FreshSeeds | None


@dataclass(frozen=True)
class StudyResults:
    """What `results.json` holds, in the order of its keys (docs/evolution.md).

    trials: how many have finished; pruned and diverged ones are included.
    metric: a key of `evaluation.published.NAMES`.
    best: None before a trial is complete.
    references: the weightings that the best trial is compared with, by name.
    top: the ten best trials, the best first.
    values: the number and the score of each complete trial.
    by_seed: the scores of each complete trial by seed, in the order of `values`; empty with one seed per trial.
    init: what each training started from, as `--init` was given; None: random weights.
    distinguishable: whether the best trial stands out from noise and is above chance; None: unknown, as in files of
        earlier versions.
    reason: why not: `chance` or `noise` (`experiments/noise.py`).
    baseline: the score that needs no look at the videos, in 0..1.
    """

    trials: int
    pruned: int
    diverged: int
    metric: str
    sampler: str
    best: BestTrial | None
    references: dict[str, FreshSeeds]
    top: list[ScoredTrial]
    values: list[tuple[int, float]]
    by_seed: list[list[float]] = field(default_factory=list)
    init: str | None = None
    distinguishable: bool | None = None
    reason: Literal["chance", "noise"] | None = None
    baseline: float | None = None

    def no_best(self) -> str | None:
        """Why no trial is called the best, in a sentence; None: there is a best one, or it is not known."""
        if self.best is None or self.distinguishable is not False:
            return None
        trials, score = count_of(len(self.values), "trial"), percent(self.best.value)
        if self.reason == "chance":
            return (
                f"No weights are best: the scores of {trials} are not above chance. {percent(self.baseline)} needs no "
                f"look at the videos, and the highest score is {score}."
            )
        return (
            f"No weights are best: the scores of {trials} lie within noise of each other. The highest of as many "
            f"equally good trials may well be {score}."
        )

    def as_dict(self) -> dict[str, Any]:
        """The content of `results.json`."""
        return asdict(self)


def write_results(folder: Path, results: StudyResults) -> None:
    """Write `results.json` of a study."""
    write_json(folder / RESULTS, results.as_dict())


def read_results(folder: Path) -> StudyResults:
    """The results of a study with at least one complete trial. InputError: there is none."""
    path = folder / RESULTS
    try:
        results = _from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: not a study: no {RESULTS}. Give the --out of `airstreams evolve`.") from error
    if not results.top:
        raise InputError(f"{folder}: the study has no complete trial yet. Repeat its `airstreams evolve` first.")
    return results


def warning_of(folder: Path) -> str | None:
    """What to warn of before loss weights are taken from a study. InputError: as `read_results`."""
    no_best = read_results(folder).no_best()
    if no_best is None:
        return None
    return f"{folder}: {no_best} Leave out --weights-from, or search again with more videos or longer trials."


def weights_from(folder: Path, top: int, wanted: Sequence[str]) -> dict[str, float]:
    """Loss weights of a study: those of its best trial, or the mean of its `top` best ones.

    Args:
        folder: of the study.
        top: from 1 to the number of trials that `results.json` lists.
        wanted: the losses.

    Raises:
        InputError: no study, not so many trials, or a loss that the study did not weigh.
    """
    trials = read_results(folder).top
    if not 1 <= top <= len(trials):
        raise InputError(f"--top {top}: {folder / RESULTS} lists {len(trials)} trials. Give a number from 1 to that.")
    # Studies up to version 0.2 have one weight for all merges.
    shared = [name for name in wanted if name not in trials[0].weights and name.startswith("merged_after_")]
    wanted = [name for name in wanted if name not in shared]
    missing = [name for name in wanted if name not in trials[0].weights]
    if missing:
        raise InputError(
            f"--weights-from {folder}: the study has no weight for {', '.join(missing)}. "
            "Give a study of the same streams (model.streams)."
        )
    return {name: sum(trial.weights[name] for trial in trials[:top]) / top for name in wanted}


def _from_json(content: dict[str, Any]) -> StudyResults:
    best = content["best"]
    if best is not None:
        best = BestTrial(**best | {"fresh": best["fresh"] and FreshSeeds(**best["fresh"])})
    return StudyResults(
        **content
        | {
            "best": best,
            "references": {name: FreshSeeds(**row) for name, row in content["references"].items()},
            "top": [ScoredTrial(**trial) for trial in content["top"]],
            "values": [(number, value) for number, value in content["values"]],
        }
    )
