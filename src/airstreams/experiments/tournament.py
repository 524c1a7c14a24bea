"""Tournament selection as an Optuna sampler: how the paper evolves the loss weights (section 3.3).

The sampler keeps no state. What it draws depends on its seed, on the trial's number and on the trials that are complete
by then. A killed study can therefore be continued, and any number of workers can share a study without a coordinator.
In return, each new trial reads all complete ones: about 1 ms for 1000 trials.
"""

from typing import Any, Literal
from zlib import crc32

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

PARENT = "parent"
ATTEMPTS = 100  # to draw another value than the parent's; all choices may be equal, such as (1, True)


class TournamentSampler(BaseSampler):
    """Evolution by tournaments (Goldberg and Deb 1991), asynchronous as in Real et al. (2019).

    The first `population_size` trials are drawn at random. Each later trial is a child. A tournament draws
    `tournament_size` members of the population without replacement, and the best of them is the parent. The child has
    the parent's parameters, except one that is drawn again from its whole range. Only complete trials are members of
    the population, not pruned or failed ones. A child's user attribute `parent` is the number of its parent.

    All distributions of Optuna are supported. If one parameter decides which others there are, the parent may lack
    some: these are drawn at random.

    Args:
        population_size: how many trials are drawn at random first, and the size of the population after that.
        tournament_size: how many members compete to be the parent. A larger number is greedier.
        dies: which member leaves the population when a trial completes.
            "worst": the population is the best of all trials. So we read the paper: "the best performing combination of
            weights are preserved" (section 3.3).
            "oldest": the population is the trials that completed last, so that a lucky score is forgotten (Real et al.
            2019).
        seed: the same seed gives the same draws; None takes one from the operating system.

    Raises:
        ValueError: sizes that do not fit, or a study with several objectives.

    Example:
        >>> import optuna
        >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
        >>> study = optuna.create_study(sampler=TournamentSampler(population_size=10, tournament_size=3, seed=0))
        >>> study.optimize(lambda trial: trial.suggest_float("x", -1, 1) ** 2, n_trials=100)
        >>> study.best_value < 0.001
        True
    """

    def __init__(
        self,
        population_size: int = 10,
        tournament_size: int = 3,
        *,
        dies: Literal["worst", "oldest"] = "worst",
        seed: int | None = None,
    ) -> None:
        if population_size < 1:
            raise ValueError(f"population_size: got {population_size}, expected at least 1")
        if not 1 <= tournament_size <= population_size:
            raise ValueError(f"tournament_size: got {tournament_size}, expected 1 to population_size {population_size}")
        if dies not in ("worst", "oldest"):
            raise ValueError(f"dies: got {dies!r}, expected 'worst' or 'oldest'")
        if seed is not None and seed < 0:
            raise ValueError(f"seed: got {seed}, expected at least 0")
        self._population_size = population_size
        self._tournament_size = tournament_size
        self._dies = dies
        self._seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        self._parents: dict[int, FrozenTrial] = {}  # trial id to parent, between the two calls for a trial

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The parameters of the trial's parent; none for a trial that is drawn at random or has given values."""
        if len(study.directions) > 1:
            raise ValueError(f"TournamentSampler: got a study with {len(study.directions)} objectives, expected one")
        # A repeated trial and an enqueued one have given values. Parameters with a single possible value do not count:
        # Optuna sets them before it asks the sampler.
        given = trial.system_attrs.get("fixed_params") or any(not one.single() for one in trial.distributions.values())
        if trial.number < self._population_size or given:
            return {}
        members = self._population(study)
        if not members:
            return {}
        draw = self._generator(trial, "tournament")
        competitors = draw.choice(len(members), min(self._tournament_size, len(members)), replace=False)
        parent = self._parents[trial._trial_id] = members[min(competitors)]
        return dict(parent.distributions)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The parent's parameters, with one of them drawn again."""
        parent = self._parents.pop(trial._trial_id, None)
        if parent is None:
            return {}
        study._storage.set_trial_user_attr(trial._trial_id, PARENT, parent.number)
        child = {name: parent.params[name] for name in search_space}  # PartialFixedSampler removes some names
        names = sorted(name for name, distribution in search_space.items() if not distribution.single())
        if names:
            name = names[self._generator(trial, "mutation").integers(len(names))]
            for attempt in range(ATTEMPTS):
                child[name] = self._draw(study, trial, name, search_space[name], attempt)
                if child[name] != parent.params[name]:
                    break
        return child

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A value from the whole range, for a parameter that the parent lacks."""
        return self._draw(study, trial, param_name, param_distribution, 0)

    def _population(self, study: Study) -> list[FrozenTrial]:
        """The members, the best first; of equal ones, the older first."""
        complete = study._get_trials(deepcopy=False, states=(TrialState.COMPLETE,), use_cache=True)
        sign = -1 if study.direction == StudyDirection.MAXIMIZE else 1
        if self._dies == "oldest":
            by_age = sorted(complete, key=lambda trial: (trial.datetime_complete, trial.number))
            complete = by_age[-self._population_size :]
        ranked = sorted(complete, key=lambda trial: (sign * (trial.value or 0.0), trial.number))
        return ranked[: self._population_size]

    def _draw(self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution, attempt: int) -> Any:
        seed = int(self._generator(trial, name, attempt).integers(2**32))
        return RandomSampler(seed).sample_independent(study, trial, name, distribution)

    def _generator(self, trial: FrozenTrial, *use: str | int) -> np.random.Generator:
        return np.random.default_rng((self._seed, trial.number, crc32(repr(use).encode())))
