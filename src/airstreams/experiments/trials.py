"""A worker of a search: it takes one trial after another, trains a model with the trial's weights, and scores it."""

import math
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import optuna
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from rich.console import Console

from airstreams.config import Config
from airstreams.data.listing import Source
from airstreams.data.splits import automatic_split, with_splits
from airstreams.errors import InputError, Stopped
from airstreams.experiments.search import POLL_INTERVAL, Search, open_storage, trial_folder, valid_trials
from airstreams.experiments.tournament import TournamentSampler
from airstreams.experiments.workers import show_steps
from airstreams.recipe import load_config, training_settings
from airstreams.runs.folder import RunFolder
from airstreams.runs.metrics_log import EpochRecord
from airstreams.training.loop import train
from airstreams.training.signals import asked_to_stop


class _SurplusError(Exception):
    """The study has all its trials: two workers took the last one at once, and this worker was the second."""


class _LostError(Exception):
    """This worker was taken to be dead, and another one repeats its trial."""


def run_worker(search: Search, study_name: str, trials: int, number: int, workers: int) -> None:
    """Take trials until the study has `trials` finished ones. It runs in a process of its own.

    Args:
        search: the search.
        study_name: of the search itself, or of its comparison with fresh seeds.
        trials: of the study, other workers' included.
        number: of this worker on this machine, from 0.
        workers: how many there are on this machine.
    """
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    storage = open_storage(search)
    pruner = make_pruner(search.config) if study_name == search.name else NopPruner()
    study = optuna.load_study(storage=storage, study_name=study_name, pruner=pruner)
    study.sampler = make_sampler(search, len(study.get_trials(deepcopy=False)) * workers + number)
    run_trials(search, study, trials)


def run_trials(search: Search, study: Study, trials: int) -> None:
    """Take trials until the study has `trials` finished ones, other workers' included."""
    searching = study.study_name == search.name
    first_seen: dict[int, float] = {}
    while True:
        if asked_to_stop.is_set():
            raise KeyboardInterrupt
        optuna.storages.fail_stale_trials(study)
        everything = study.get_trials(deepcopy=False)
        valid = valid_trials(everything)
        if sum(trial.state.is_finished() for trial in valid) >= trials:
            return
        reserved = _reserved(everything, first_seen)
        waiting = any(trial.state == TrialState.WAITING for trial in valid)
        if waiting or (searching and len(valid) + reserved < trials):
            _take_one(search, study, trials)
        elif reserved or any(not trial.state.is_finished() for trial in valid):
            time.sleep(POLL_INTERVAL)  # other workers run the rest; if one dies, its trial is to be repeated
        else:  # its worker died after the training failed and before `_repeat`
            raise RuntimeError("A training with a fresh seed was lost. Repeat the same call.")


def _reserved(everything: Sequence[FrozenTrial], first_seen: dict[int, float]) -> int:
    """How many failed trials are about to be repeated: the worker that notices a death enters the new trial next.

    first_seen: trial number to the time when this worker first saw it failed; it is updated.
    """
    repeated = {number for trial in everything for number in RetryHeartbeatStaleTrialCallback.retry_history(trial)}
    failed = {trial.number for trial in everything} - {trial.number for trial in valid_trials(everything)}
    now = time.monotonic()
    return sum(now - first_seen.setdefault(number, now) < 2 * POLL_INTERVAL for number in failed - repeated)


def _take_one(search: Search, study: Study, trials: int) -> None:
    """Take one trial and train it. An error ends the worker, unless another worker has already ended the trial.

    In the comparison with fresh seeds every training is needed: a failed one is entered again, for the other workers or
    the next call.
    """
    searching = study.study_name == search.name
    taken: Trial | None = None
    training_error: BaseException | None = None

    def objective(trial: Trial) -> float:
        nonlocal taken, training_error
        taken = trial
        number = _first_number(_stored(study, trial))
        before = sum(_first_number(other) < number for other in valid_trials(study.get_trials(deepcopy=False)))
        if before >= trials or not (searching or "weighting" in trial.user_attrs):
            raise _SurplusError
        try:
            return run_trial(search, study, trial)
        except BaseException as error:
            training_error = error
            raise

    def delete_weights(study: Study, trial: FrozenTrial) -> None:
        # Not earlier: until its value is stored, the trial may have to be resumed.
        folder = trial_folder(search, study, trial)
        for run in (folder, *folder.glob("seed-*")):
            _delete_weights(RunFolder(run))

    try:
        study.optimize(objective, n_trials=1, catch=(FloatingPointError, _SurplusError), callbacks=[delete_weights])
    except Exception as error:
        if isinstance(training_error, (Stopped, KeyboardInterrupt)):
            raise training_error from None
        if taken is not None and error is training_error and not searching:
            _repeat(study, taken)
        # If another worker has ended the trial, Optuna raises an error of its own.
        if taken is None or error is training_error or _stored(study, taken).state != TrialState.FAIL:
            raise
        _delete_remains(trial_folder(search, study, taken))


def run_trial(search: Search, study: Study, trial: Trial) -> float:
    """Train with a trial's weights; returns the answer's accuracy, or mAP, on the held-out videos, in 0..1.

    It is the mean over `evolution.seeds_per_trial` trainings. A training of the comparison has one seed.
    """
    weights = {name: trial.suggest_float(name, 0.0, 1.0) for name in search.config.searched_lambdas()}
    trial.set_user_attr("sum", sum(weights.values()))  # not normalised: under SGD, a small sum means small steps
    config = trial_config(search.config, weights, trial.user_attrs.get("seed", search.config.seed))
    folder = trial_folder(search, study, trial)
    _take_over_folder(study, trial, folder)
    source = trial_source(search.source, config)  # all seeds have the same videos
    trainings = 1 if "seed" in trial.user_attrs else config.evolution.seeds_per_trial
    values: list[float] = []
    try:
        for number in range(trainings):
            run = RunFolder(folder / f"seed-{config.seed + number}" if number else folder)
            of_seed = replace(config, seed=config.seed + number)
            values.append(_train_seed(search, study, trial, source, of_seed, run, values, trainings))
            if number + 1 < trainings:
                _delete_weights(run)
    except FloatingPointError as error:
        trial.set_user_attr("diverged", str(error))
        raise
    except (Stopped, KeyboardInterrupt):
        if not _is_lost(study, trial):
            _repeat(study, trial)
        raise
    finally:
        show_steps(0, 0)
    trial.set_user_attr("values", values)
    return sum(values) / trainings


def _train_seed(
    search: Search,
    study: Study,
    trial: Trial,
    source: Source,
    config: Config,
    run: RunFolder,
    earlier: Sequence[float],
    trainings: int,
) -> float:
    """Train with one seed; returns the score.

    earlier: the scores of the trial's seeds that are done.
    trainings: the number of the trial's seeds.
    """
    begun, metric, epochs = run.has_begun(), search.source.metric, config.training.epochs
    other = begun and training_settings(load_config(run.config)) != training_settings(config)
    if other or not (begun or run.may_begin()):
        raise InputError(f"{run.path}: the folder holds another training. Delete it, or give another --out.")

    def after_epoch(record: EpochRecord) -> None:
        if _is_lost(study, trial):
            raise _LostError
        step = len(earlier) * epochs + record.epoch
        if record.val is not None and step < trainings * epochs:
            trial.report((sum(earlier) + record.val[metric]) / (len(earlier) + 1), step)
            if trial.should_prune():
                raise optuna.TrialPruned

    def after_step(done: int, total: int) -> None:
        show_steps(len(earlier) * total + done, trainings * total)

    start = None if begun else search.read_init()
    record = train(source, config, run.path, begun, Console(quiet=True), start, after_epoch, after_step)
    assert record.val is not None  # the last epoch is validated in any case
    return float(record.val[metric])


def _delete_weights(run: RunFolder) -> None:
    shutil.rmtree(run.states, ignore_errors=True)
    run.weights.unlink(missing_ok=True)


def trial_source(source: Source, config: Config) -> Source:
    """The training videos alone, a part of them held out as `val`, drawn by the config's seed and apart by group.

    Of the others, `evolution.videos` is kept: drawn by class, in whole groups, by the same seed.

    InputError: too few groups.
    """
    videos, evolution = source.split("train"), config.evolution
    drawn = automatic_split(videos, config.seed, evolution.held_out, test_fraction=0.0)
    if not any(drawn[video.name] == "val" and video.labels for video in videos):
        raise InputError(
            f"{source.name}: no training video can be held out, because training needs every class or group. "
            "Give a class with two groups or more, or a larger evolution.held_out."
        )
    if evolution.videos < 1:
        learnt_from = [video for video in videos if drawn[video.name] == "train"]
        kept = automatic_split(learnt_from, config.seed, 1 - evolution.videos, test_fraction=0.0)
        videos = tuple(video for video in videos if kept.get(video.name, "train") == "train")
    return with_splits(replace(source, videos=videos), drawn)


def trial_config(config: Config, weights: dict[str, float], seed: int) -> Config:
    """The config of one trial's training. It scores the last epoch, or every epoch if a pruner needs the scores."""
    evolution = config.evolution
    epochs = evolution.epochs or config.training.epochs
    every = epochs if evolution.pruner == "none" else 1
    training = replace(config.training, epochs=epochs, min_steps=0, validate_every=every)
    return replace(config, seed=seed, training=training, loss_weights=config.loss_weights.updated(weights))


def make_sampler(search: Search, draw: int) -> BaseSampler:
    """A worker's sampler.

    draw: differs between workers and calls. Optuna's own samplers draw in a fixed order from their seed, and would
        repeat what another worker drew.
    """
    evolution, seed = search.config.evolution, search.config.seed
    if search.sampler == "tournament":
        return TournamentSampler(evolution.population_size, evolution.tournament_size, dies=evolution.dies, seed=seed)
    if search.sampler == "tpe":
        return TPESampler(n_startup_trials=evolution.population_size, constant_liar=True, seed=seed + 1000 * draw)
    return RandomSampler(seed=seed + 1000 * draw)


def make_pruner(config: Config) -> BasePruner:
    """The config's pruner.

    Halving looks at a quarter and at half of a trial. Optuna's own default looks after the first epoch and stops three
    of four trials there, when the scores say little.
    """
    if config.evolution.pruner == "median":
        return MedianPruner()
    if config.evolution.pruner == "none":
        return NopPruner()
    steps = trial_config(config, {}, config.seed).training.epochs * config.evolution.seeds_per_trial
    return SuccessiveHalvingPruner(min_resource=math.ceil(steps / 4), reduction_factor=2)


def _repeat(study: Study, trial: Trial) -> None:
    """Enter a trial again, to be resumed later. There is no limit, unlike for workers that die."""
    RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)(study, _stored(study, trial))


def _delete_remains(folder: Path) -> None:
    """Delete what a lost trial wrote after its folder was renamed. Such remains have no config."""
    if not RunFolder(folder).has_begun():
        shutil.rmtree(folder, ignore_errors=True)


def _take_over_folder(study: Study, trial: Trial, folder: Path) -> None:
    """If this trial repeats another one, rename that one's folder to `folder`, so that its training is resumed."""
    if folder.exists():
        return
    for number in reversed(RetryHeartbeatStaleTrialCallback.retry_history(_stored(study, trial))):
        before = folder.with_name(f"{number:04d}")
        if RunFolder(before).has_begun() or RunFolder(before).may_begin():
            with suppress(FileNotFoundError):
                before.rename(folder)
                return


def _is_lost(study: Study, trial: Trial) -> bool:
    return _stored(study, trial).state != TrialState.RUNNING


def _stored(study: Study, trial: Trial) -> FrozenTrial:
    """The trial as the database has it now."""
    return next(other for other in study.get_trials() if other.number == trial.number)


def _first_number(trial: FrozenTrial) -> int:
    """The number of the trial that this one repeats, or its own."""
    first = RetryHeartbeatStaleTrialCallback.retried_trial_number(trial)
    return trial.number if first is None else first
