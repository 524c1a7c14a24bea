"""What the processes of a test do. They import this module, not the test's, which would take them seconds."""

import optuna
from optuna.trial import TrialState
from rich.console import Console

from airstreams.experiments.evolve import evolve
from airstreams.experiments.reproduce import run_jobs
from airstreams.experiments.search import open_storage


def take_all(search, taken, together):
    """Take trials until none waits; puts their numbers into `taken`, then None."""
    study = optuna.load_study(storage=open_storage(search), study_name="queue")
    together.wait()
    while any(trial.state == TrialState.WAITING for trial in study.get_trials(deepcopy=False)):
        taken.put(study.ask().number)
    taken.put(None)


def run_search(search, workers):
    evolve(search, workers, Console(stderr=True))


def run_side_by_side(jobs, workers):
    run_jobs(jobs, workers, Console(stderr=True, width=300))
