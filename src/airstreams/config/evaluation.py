"""How videos are scored, and how loss weights are searched."""

from dataclasses import dataclass, field
from typing import Literal

from airstreams.config.limits import MOST_STEP
from airstreams.errors import require

LEAST_WINDOW = 0.01
"""The shortest window, in s."""


@dataclass
class EvaluationConfig:
    """The views of a video, whose scores are averaged. A saved model keeps these values."""

    views: int = 3
    """Clips per video, evenly spaced."""
    crops: int = 1
    """Square crops per clip, evenly spaced along the longer side. 1: the centre."""
    window: float = 10.0
    """The length of a window, in s. `predict` scores videos longer than two of these in windows."""

    def __post_init__(self) -> None:
        require(self.views >= 1, "evaluation.views", self.views, "at least 1")
        require(self.crops >= 1, "evaluation.crops", self.crops, "at least 1")
        least, most = LEAST_WINDOW, MOST_STEP
        require(least <= self.window <= most, "evaluation.window", self.window, f"{least} to {most} s")


@dataclass
class EvolutionConfig:
    """The search of `airstreams evolve` for loss weights (section 3.3). Training ignores it."""

    population_size: int = 10
    """The number of weightings in the population."""
    tournament_size: int = 3
    """The weightings drawn from the population. The best of them becomes the parent."""
    dies: Literal["worst", "oldest"] = "worst"
    """Which weighting leaves the population. oldest: regularised evolution (Real et al. 2019)."""
    epochs: int | None = None
    """The epochs of a trial. null: training.epochs."""
    seeds_per_trial: int = 1
    """The trainings of a trial, each with another seed. The trial's score is their mean."""
    held_out: float = 0.2
    """The fraction of the training videos that score the trials."""
    videos: float = 1.0
    """The share of the other training videos that the trials train on. All trials have the same ones."""
    pruner: Literal["none", "median", "halving"] = "none"
    """What stops trials that fall behind. halving: the lower half at a quarter of a trial, and again at half of it."""
    fresh_seeds: int = 3
    """The trainings that compare the winner with the references at the end."""
    fixed: list[str] = field(default_factory=list)
    """Losses whose weight is not searched, by the names in metrics.jsonl. They keep that of loss_weights."""

    def __post_init__(self) -> None:
        size = self.population_size
        require(size >= 1, "evolution.population_size", size, "at least 1")
        require(1 <= self.tournament_size <= size, "evolution.tournament_size", self.tournament_size, f"1 to {size}")
        require(self.epochs is None or self.epochs >= 1, "evolution.epochs", self.epochs, "at least 1, or null")
        require(self.seeds_per_trial >= 1, "evolution.seeds_per_trial", self.seeds_per_trial, "at least 1")
        require(0 < self.held_out < 1, "evolution.held_out", self.held_out, "between 0 and 1")
        require(0 < self.videos <= 1, "evolution.videos", self.videos, "over 0, and at most 1")
        require(self.fresh_seeds >= 1, "evolution.fresh_seeds", self.fresh_seeds, "at least 1")
