"""What the processes of a test do. They import this module, not the test's, which would take them seconds."""

import optuna
from optuna.trial import TrialState

from airstreams.experiments.search import open_storage


def take_all(search, taken, together):
    """Take trials until none waits; puts their numbers into `taken`, then None."""
    study = optuna.load_study(storage=open_storage(search), study_name="queue")
    together.wait()
    while any(trial.state == TrialState.WAITING for trial in study.get_trials(deepcopy=False)):
        taken.put(study.ask().number)
    taken.put(None)
