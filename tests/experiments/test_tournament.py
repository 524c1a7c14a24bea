"""The sampler against its definition: draws, parents and populations are recomputed from the finished study."""

import doctest
import os
import shutil
import signal
import subprocess
import sys
from datetime import timedelta
from math import comb
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import PartialFixedSampler, RandomSampler
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import TrialState

from airstreams.experiments import tournament
from airstreams.experiments.tournament import TournamentSampler

NAMES = ["rgb", "flow", "semantic", "merged", "interm"]
OPTIMUM = [0.9, 0.1, 0.7, 0.2, 0.6]
X: dict[str, BaseDistribution] = {"x": FloatDistribution(0, 1)}

# A worker that imports a copy of the one module, without the package. It kills itself after the trial `last`.
WORKER = """
import os, signal, sys, time
from pathlib import Path
import optuna
from tournament import TournamentSampler

assert "airstreams" not in sys.modules and "torch" not in sys.modules
storage, worker, workers, trials, last = sys.argv[1], *map(int, sys.argv[2:])

def objective(trial):
    trial.set_user_attr("worker", worker)
    if workers > 1:
        time.sleep(0.02)
    names = ["rgb", "flow", "semantic", "merged", "interm"]
    return sum((trial.suggest_float(name, 0, 1) - 0.3) ** 2 for name in names)

def die(study, trial):
    if trial.number == last:
        os.kill(os.getpid(), signal.SIGKILL)

study = optuna.load_study(study_name="shared", storage=storage, sampler=TournamentSampler(seed=7))
Path(f"ready{worker}").touch()
while len(list(Path().glob("ready*"))) < workers:
    time.sleep(0.01)
study.optimize(objective, n_trials=trials, callbacks=[die])
"""


@pytest.fixture(autouse=True)
def quiet():
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(before)


def quadratic(trial):
    return sum((trial.suggest_float(name, 0, 1) - best) ** 2 for name, best in zip(NAMES, OPTIMUM, strict=True))


def search(objective, trials, direction="minimize", catch=(), **options):
    study = optuna.create_study(sampler=TournamentSampler(**options), direction=direction)
    study.optimize(objective, n_trials=trials, catch=catch)
    return study.trials


def scored(values, **options):
    """A study of finished trials with these values."""
    study = optuna.create_study(sampler=TournamentSampler(**options))
    for place, value in enumerate(values):
        study.add_trial(optuna.create_trial(value=value, params={"x": place / 100}, distributions=X))
    return study


def parent_of_next(study):
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    trials = study.get_trials(deepcopy=False)
    return trials[trial.number].user_attrs.get("parent")  # a running trial does not show what its sampler wrote


def drawn(trials):
    return [(trial.params, trial.user_attrs.get("parent")) for trial in trials]


def differing(child, trials):
    parent = trials[child.user_attrs["parent"]]
    assert child.params.keys() == parent.params.keys()
    return [name for name in child.params if child.params[name] != parent.params[name]]


def children(trials):
    return [trial for trial in trials if "parent" in trial.user_attrs]


def chi_square(counts, expected):
    return float(((np.asarray(counts) - expected) ** 2 / expected).sum())


# What is drawn


def test_the_same_seed_gives_the_same_draws():
    once, again, other = (drawn(search(quadratic, 40, seed=seed)) for seed in (1, 1, 2))
    assert once == again
    assert all(one != two for one, two in zip(once, other, strict=True))


def test_samplers_without_a_seed_draw_differently():
    assert search(quadratic, 1)[0].params != search(quadratic, 1)[0].params


def test_each_trial_after_the_first_ones_differs_from_its_parent_in_one_weight():
    trials = search(quadratic, 400, population_size=10, seed=3)
    assert [trial.number for trial in children(trials)] == list(range(10, 400))
    differences = [differing(child, trials) for child in children(trials)]
    assert all(len(names) == 1 for names in differences)
    # The changed weight is uniform over the five. 18.5: the 99.9th percentile of chi-square, 4 degrees of freedom.
    mutated = [names[0] for names in differences]
    assert chi_square([mutated.count(name) for name in NAMES], 390 / 5) < 18.5
    # Its new value is uniform over the whole range. 27.9: the same with 9 degrees of freedom.
    values = [child.params[name] for child, name in zip(children(trials), mutated, strict=True)]
    assert chi_square(np.histogram(values, bins=10, range=(0, 1))[0], 39) < 27.9
    assert len({tuple(trial.params.values()) for trial in trials}) == 400


def test_all_kinds_of_distributions_are_drawn():
    space = {
        "log": FloatDistribution(1e-5, 1e-1, log=True),
        "step": FloatDistribution(0, 1, step=0.25),
        "int": IntDistribution(1, 2),
        "int_step": IntDistribution(0, 30, step=10),
        "int_log": IntDistribution(1, 8, log=True),
        "category": CategoricalDistribution(["adam", "sgd"]),
        "flag": CategoricalDistribution([True, False]),
    }
    # A single possible value is never mutated. Optuna sets it before it asks for the others: test it first and last.
    for names in (["single", *space], [*space, "single"]):
        whole = {**space, "single": IntDistribution(4, 4)}
        sampler = TournamentSampler(population_size=3, tournament_size=2, seed=5)
        study = optuna.create_study(sampler=sampler)
        for number in range(120):
            study.tell(study.ask({name: whole[name] for name in names}), (number * 7) % 11)
        differences = [differing(child, study.trials) for child in children(study.trials)]
        assert len(differences) == 117
        assert all(len(changed) == 1 for changed in differences)
        assert {name for (name,) in differences} == space.keys()
        # Half of the draws are in the lower half of the decades; on a linear scale it would be one in a hundred.
        drawn_anew = zip(children(study.trials), differences, strict=True)
        rates = [child.params["log"] for child, (name,) in drawn_anew if name == "log"]
        assert 0.2 < np.mean(np.array(rates) < 1e-3) < 0.8


def test_a_choice_of_equal_values_ends():
    trials = search(
        lambda trial: float(trial.suggest_categorical("c", [1, True])), 5, population_size=1, tournament_size=1
    )
    assert len(children(trials)) == 4


def test_a_child_keeps_the_parameters_that_it_shares_with_its_parent():
    def objective(trial):
        model = trial.suggest_categorical("model", ["small", "large"])
        extra = trial.suggest_float("width" if model == "large" else "rate", 0, 1)
        return extra + trial.suggest_float("common", 0, 1)

    trials = search(objective, 80, population_size=5, seed=2)
    switched = 0
    for child in children(trials):
        parent = trials[child.user_attrs["parent"]]
        shared = child.params.keys() & parent.params.keys()
        assert sum(child.params[name] != parent.params[name] for name in shared) == 1
        if child.params["model"] != parent.params["model"]:
            switched += 1
            assert child.params["common"] == parent.params["common"]
    assert len(children(trials)) == 75
    assert switched > 5


def test_a_fixed_parameter_is_never_mutated():
    inner = TournamentSampler(3, 2, seed=0)
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        sampler = PartialFixedSampler({"rgb": 0.5}, inner)
    study = optuna.create_study(sampler=sampler)
    study.optimize(quadratic, n_trials=30)
    assert {trial.params["rgb"] for trial in study.trials} == {0.5}
    assert len(children(study.trials)) == 27
    assert all(len(differing(child, study.trials)) == 1 for child in children(study.trials))


# Who is the parent


@pytest.mark.parametrize(("direction", "best"), [("minimize", min), ("maximize", max)])
def test_the_best_wins_a_tournament_of_the_whole_population(direction, best):
    trials = search(quadratic, 60, direction, population_size=6, tournament_size=6, seed=4)
    for child in children(trials):
        assert trials[child.user_attrs["parent"]].value == best(trial.value for trial in trials[: child.number])


def test_the_older_of_equal_members_wins():
    trials = search(lambda trial: 0 * quadratic(trial), 30, population_size=4, tournament_size=4, seed=0)
    assert {child.user_attrs["parent"] for child in children(trials)} == {0}


def test_winners_have_the_frequencies_of_tournaments_without_replacement():
    values = [4.0, 9.0, 0.0, 7.0, 2.0, 8.0, 1.0, 6.0, 3.0, 5.0]  # the rank of each trial
    study = scored(values, seed=0)
    asked = 1000
    counts = np.bincount([int(values[parent_of_next(study)]) for _ in range(asked)], minlength=10)
    # The winner has rank r if the other two of the three are among the 9 - r worse ones.
    expected = np.array([asked * comb(9 - rank, 2) / comb(10, 3) for rank in range(10)])
    assert counts[8:].tolist() == expected[8:].tolist() == [0, 0]
    assert chi_square(counts[:8], expected[:8]) < 24.3  # the 99.9th percentile, 7 degrees of freedom


def test_the_worst_dies():
    study = scored([5, 0, 4, 1, 3, 2], population_size=3, tournament_size=1, seed=0)
    assert {parent_of_next(study) for _ in range(60)} == {1, 3, 5}


def test_the_oldest_dies_even_if_it_is_the_best():
    def objective(trial):
        return quadratic(trial) - (100 if trial.number == 0 else 0)

    options = {"population_size": 5, "tournament_size": 5, "seed": 0}
    kept = search(objective, 30, dies="worst", **options)
    assert {child.user_attrs["parent"] for child in children(kept)} == {0}
    lost = search(objective, 30, dies="oldest", **options)
    for child in children(lost):
        last_five = lost[child.number - 5 : child.number]
        assert child.user_attrs["parent"] == min(last_five, key=lambda trial: trial.value).number
    assert [child.number for child in children(lost) if child.user_attrs["parent"] == 0] == [5]


def test_age_starts_with_completion():
    study = optuna.create_study(sampler=TournamentSampler(2, 1, dies="oldest", seed=0))
    slow, first, second = (study.ask(X) for _ in range(3))
    for trial in (first, second, slow):
        study.tell(trial, 0)
    assert {parent_of_next(study) for _ in range(30)} == {slow.number, second.number}


def test_failed_and_pruned_trials_are_no_parents():
    def objective(trial):
        value = trial.suggest_float("x", 0, 1) + trial.suggest_float("y", 0, 1)
        if trial.params["x"] < 0.2:
            trial.report(-100, step=1)  # it would be the best by far
            raise optuna.TrialPruned
        if trial.params["y"] < 0.2:
            raise FloatingPointError
        return value

    trials = search(objective, 120, population_size=5, catch=(FloatingPointError,), seed=1)
    states = [trial.state for trial in trials]
    assert states.count(TrialState.PRUNED) > 10
    assert states.count(TrialState.FAIL) > 10
    assert len(children(trials)) == 115
    assert {trials[child.user_attrs["parent"]].state for child in children(trials)} == {TrialState.COMPLETE}


def test_draws_are_random_until_a_trial_is_complete():
    study = optuna.create_study(sampler=TournamentSampler(3, 2, seed=0))
    running = [study.ask(X) for _ in range(8)]
    assert not children(study.trials)
    study.tell(running[0], state=TrialState.FAIL)
    assert parent_of_next(study) is None
    study.tell(running[4], 1.0)
    assert parent_of_next(study) == 4  # a population of one


# Trials that were given their values


def test_enqueued_trials_have_no_parent():
    study = scored([1, 2, 3], population_size=3, tournament_size=2, seed=0)
    study.enqueue_trial(dict.fromkeys(NAMES, 0.5))
    study.enqueue_trial({"rgb": 0.25})
    study.enqueue_trial({})
    study.optimize(quadratic, n_trials=3)
    whole, part, nothing = study.trials[3:]
    assert whole.params == dict.fromkeys(NAMES, 0.5)
    assert part.params["rgb"] == 0.25
    assert "parent" not in whole.user_attrs
    assert "parent" not in part.user_attrs
    assert "parent" in nothing.user_attrs  # it has no given values


def test_a_repeated_trial_keeps_its_values_and_its_parent():
    study = optuna.create_study(sampler=TournamentSampler(3, 2, seed=0))
    study.optimize(quadratic, n_trials=6)
    lost = study.ask()
    quadratic(lost)
    study.tell(lost, state=TrialState.FAIL)
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        retry = RetryHeartbeatStaleTrialCallback()
    retry(study, study.trials[lost.number])
    study.optimize(quadratic, n_trials=4)
    first, again = study.trials[lost.number : lost.number + 2]
    assert (again.params, again.user_attrs) == (first.params, first.user_attrs)
    assert len(differing(again, study.trials)) == 1
    assert len(children(study.trials)) == 8


# Many processes


@pytest.fixture
def shared(tmp_path):
    """An empty study in a file, beside a copy of the sampler's module."""
    shutil.copy(tournament.__file__, tmp_path / "tournament.py")
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    optuna.create_study(study_name="shared", storage=storage)
    return storage


def start(shared, worker=0, workers=1, trials=1, last=-1):
    command = [sys.executable, "-c", WORKER, shared, *map(str, (worker, workers, trials, last))]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    folder = Path(shared.removeprefix("sqlite:///")).parent
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def load(shared):
    return optuna.load_study(study_name="shared", storage=shared).trials


@pytest.mark.slow
def test_a_killed_search_continues_with_the_same_draws(shared):
    killed = start(shared, trials=40, last=22)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert len(load(shared)) == 23
    resumed = start(shared, trials=17)
    errors = resumed.communicate()[1]
    assert resumed.returncode == 0, errors
    whole = search(lambda trial: sum((trial.suggest_float(name, 0, 1) - 0.3) ** 2 for name in NAMES), 40, seed=7)
    assert drawn(load(shared)) == drawn(whole)


@pytest.mark.slow
def test_four_workers_with_one_seed_share_a_study(shared):
    workers = [start(shared, worker, workers=4, trials=15) for worker in range(4)]
    errors = [worker.communicate()[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 4, errors
    trials = load(shared)
    assert [trial.number for trial in trials] == list(range(60))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert len({value for trial in trials[:10] for value in trial.params.values()}) == 50
    assert len({tuple(trial.params.values()) for trial in trials}) == 60
    # A trial lacks a parent only if none was complete yet, so only before the first one completed.
    first = min(trial.datetime_complete for trial in trials)
    assert all(
        "parent" in trial.user_attrs for trial in trials[10:] if trial.datetime_start > first + timedelta(seconds=1)
    )
    assert len(children(trials)) >= 40
    for child in children(trials):
        parent = trials[child.user_attrs["parent"]]
        assert len(differing(child, trials)) == 1
        assert parent.datetime_complete < child.datetime_complete
        # It was a member of the population: at most nine of those that had surely completed are better.
        surely = [trial for trial in trials if trial.datetime_complete < child.datetime_start - timedelta(seconds=1)]
        assert sum(trial.value < parent.value for trial in surely) < 10
    assert any(
        trials[child.user_attrs["parent"]].user_attrs["worker"] != child.user_attrs["worker"]
        for child in children(trials)
    )


# Errors, the example, and what it is for


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"population_size": 0}, "population_size: got 0"),
        ({"tournament_size": 0}, "tournament_size: got 0"),
        ({"population_size": 4, "tournament_size": 5}, "tournament_size: got 5"),
        ({"dies": "youngest"}, "dies: got 'youngest'"),
        ({"seed": -1}, "seed: got -1"),
    ],
)
def test_wrong_options_are_refused(options, key):
    with pytest.raises(ValueError, match=f"^{key}"):
        TournamentSampler(**options)


def test_a_study_with_several_objectives_is_refused():
    study = optuna.create_study(sampler=TournamentSampler(), directions=["minimize", "maximize"])
    with pytest.raises(ValueError, match=r"TournamentSampler: .* 2 objectives"):
        study.ask(X)


def test_the_example_runs():
    found = doctest.testmod(tournament)
    assert found.attempted > 0
    assert found.failed == 0


def test_it_beats_random_search_in_100_trials():
    best = np.empty((2, 30))
    for seed in range(30):
        for row, sampler in enumerate((TournamentSampler(seed=seed), RandomSampler(seed=seed))):
            study = optuna.create_study(sampler=sampler)
            study.optimize(quadratic, n_trials=100)
            best[row, seed] = study.best_value
    assert best[0].mean() < 0.5 * best[1].mean()
    assert (best[0] < best[1]).sum() >= 25
