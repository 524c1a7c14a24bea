"""A worker of a search: it takes trial after trial, trains each with its weights, and scores it."""

import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.queues import SimpleQueue
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
from airstreams.experiments.search import LOOK_EVERY, Search, counted, open_storage, run_of
from airstreams.experiments.tournament import TournamentSampler
from airstreams.experiments.workers import worker_process
from airstreams.recipe import comparable, load_config
from airstreams.runs.folder import RunFolder
from airstreams.runs.metrics_log import EpochRecord
from airstreams.training.loop import train
from airstreams.training.signals import asked_to_stop


class _SurplusError(Exception):
    """Two workers took the last trial at once, and this one drew another."""


class _LostError(Exception):
    """This worker was taken for dead, and its trial is done again by another."""


def work(
    search: Search, study_name: str, trials: int, number: int, workers: int, errors: "SimpleQueue[Exception]"
) -> None:
    """One worker's life."""
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    with worker_process(number, workers, search.config.training.device, errors.put):
        storage = open_storage(search)
        pruner = make_pruner(search.config) if study_name == search.name else NopPruner()
        study = optuna.load_study(storage=storage, study_name=study_name, pruner=pruner)
        study.sampler = make_sampler(search, len(study.get_trials(deepcopy=False)) * workers + number)
        _work_off(search, study, trials)


def _work_off(search: Search, study: Study, trials: int) -> None:
    """Take trials until the study has so many, others' included."""
    searching = study.study_name == search.name
    first_seen: dict[int, float] = {}
    while True:
        if asked_to_stop.is_set():
            raise KeyboardInterrupt
        optuna.storages.fail_stale_trials(study)
        everything = study.get_trials(deepcopy=False)
        there = counted(everything)
        if sum(trial.state.is_finished() for trial in there) >= trials:
            return
        dying = _dying(everything, first_seen)
        waiting = any(trial.state == TrialState.WAITING for trial in there)
        if waiting or (searching and len(there) + dying < trials):
            _take_one(search, study, trials)
        elif dying or any(not trial.state.is_finished() for trial in there):
            time.sleep(LOOK_EVERY)  # the others have the rest in hand, unless one dies
        else:  # its worker died after the training failed and before `_do_again`
            raise RuntimeError("a training with a fresh seed was lost; the same call does it again")


def _dying(everything: Sequence[FrozenTrial], first_seen: dict[int, float]) -> int:
    """How many dead trials keep their place: who notices a death enters the new try only a moment later.

    first_seen: by number, when this worker first saw them dead.
    """
    retried = {number for trial in everything for number in RetryHeartbeatStaleTrialCallback.retry_history(trial)}
    dead = {trial.number for trial in everything} - {trial.number for trial in counted(everything)}
    now = time.monotonic()
    return sum(now - first_seen.setdefault(number, now) < 2 * LOOK_EVERY for number in dead - retried)


def _take_one(search: Search, study: Study, trials: int) -> None:
    """Take one trial and train it. What ends it ends the worker too, unless others have ended that trial meanwhile.

    Where the weights are given, each is to be trained: what failed is done again, by the others or the next call.
    """
    searching = study.study_name == search.name
    taken: Trial | None = None
    ended_by: BaseException | None = None

    def objective(trial: Trial) -> float:
        nonlocal taken, ended_by
        taken = trial
        number = _original(_frozen(study, trial))
        before = sum(_original(other) < number for other in counted(study.get_trials(deepcopy=False)))
        if before >= trials or not (searching or "weighting" in trial.user_attrs):
            raise _SurplusError
        try:
            return run_trial(search, study, trial)
        except BaseException as error:
            ended_by = error
            raise

    def tidy(study: Study, trial: FrozenTrial) -> None:
        # Only now: until its value is told, a trial may have to go on from there.
        run = RunFolder(run_of(search, study, trial))
        shutil.rmtree(run.states, ignore_errors=True)
        run.weights.unlink(missing_ok=True)

    try:
        study.optimize(objective, n_trials=1, catch=(FloatingPointError, _SurplusError), callbacks=[tidy])
    except Exception as error:
        if isinstance(ended_by, (Stopped, KeyboardInterrupt)):
            raise ended_by from None
        if taken is not None and error is ended_by and not searching:
            _do_again(study, taken)
        # Of a trial that others have ended, Optuna complains by an error of its own.
        if taken is None or error is ended_by or _frozen(study, taken).state != TrialState.FAIL:
            raise
        _clear_away(run_of(search, study, taken))


def run_trial(search: Search, study: Study, trial: Trial) -> float:
    """Train with a trial's weights and score the held-out part: the accuracy, or mAP, of the merged head."""
    weights = {name: trial.suggest_float(name, 0.0, 1.0) for name in search.config.lambdas()}
    trial.set_user_attr("sum", sum(weights.values()))  # used as drawn: near 0 is a tiny step under SGD
    config = trial_config(search.config, weights, trial.user_attrs.get("seed", search.config.seed))
    run = run_of(search, study, trial)
    _take_over(search, study, trial, run)
    folder = RunFolder(run)
    begun = folder.has_begun()
    other = begun and comparable(load_config(folder.config)) != comparable(config)
    if other or not (begun or folder.may_begin()):
        raise InputError(f"{run}: there is another training in it; delete it, or give another --out")

    def after_epoch(record: EpochRecord) -> None:
        if _is_lost(study, trial):
            raise _LostError
        if record.val is not None and record.epoch < config.training.epochs:
            trial.report(record.val[search.source.metric], record.epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

    try:
        quiet = Console(quiet=True)
        record = train(scored_source(search.source, config), config, run, begun, quiet, after_epoch=after_epoch)
    except FloatingPointError as error:
        trial.set_user_attr("diverged", str(error))
        raise
    except (Stopped, KeyboardInterrupt):
        if not _is_lost(study, trial):
            _do_again(study, trial)
        raise
    assert record.val is not None  # the last epoch is validated in any case
    return float(record.val[search.source.metric])


def scored_source(source: Source, config: Config) -> Source:
    """The training videos alone, some of them held out as `val`, by the config's seed. InputError: too few groups."""
    videos = source.split("train")
    drawn = automatic_split(videos, config.seed, config.evolution.held_out, test_fraction=0.0)
    if not any(drawn[video.name] == "val" and video.labels for video in videos):
        raise InputError(
            f"{source.name}: no training video can be held out, as each class or group is needed for training; "
            "expected two groups at least of some class, or a larger evolution.held_out"
        )
    return with_splits(replace(source, videos=videos), drawn)


def trial_config(config: Config, weights: dict[str, float], seed: int) -> Config:
    """The config of one trial's training: only the last epoch is scored, unless a pruner has to be told of each."""
    evolution = config.evolution
    epochs = evolution.epochs or config.training.epochs
    training = replace(config.training, epochs=epochs, validate_every=epochs if evolution.pruner == "none" else 1)
    return replace(config, seed=seed, training=training, loss_weights=config.loss_weights.updated(weights))


def make_sampler(search: Search, draw: int) -> BaseSampler:
    """The sampler of a worker; `draw` keeps those of Optuna, which draw in a fixed order, from repeating another's."""
    evolution, seed = search.config.evolution, search.config.seed
    if search.sampler == "tournament":
        return TournamentSampler(evolution.population_size, evolution.tournament_size, dies=evolution.dies, seed=seed)
    if search.sampler == "tpe":
        return TPESampler(n_startup_trials=evolution.population_size, constant_liar=True, seed=seed + 1000 * draw)
    return RandomSampler(seed=seed + 1000 * draw)


def make_pruner(config: Config) -> BasePruner:
    """The pruner that the config asks for."""
    pruners = {"none": NopPruner, "median": MedianPruner, "halving": SuccessiveHalvingPruner}
    return pruners[config.evolution.pruner]()


def _do_again(study: Study, trial: Trial) -> None:
    """Let a trial whose worker was asked to stop go on later, however often that happens."""
    RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)(study, _frozen(study, trial))


def _clear_away(run: Path) -> None:
    """Delete what a lost trial still wrote after its folder was taken away, which has no config any more."""
    if not RunFolder(run).has_begun():
        shutil.rmtree(run, ignore_errors=True)


def _take_over(search: Search, study: Study, trial: Trial, run: Path) -> None:
    """Give the folder of the try before, if there was one, the name of this one's."""
    if run.exists():
        return
    for number in reversed(RetryHeartbeatStaleTrialCallback.retry_history(_frozen(study, trial))):
        before = run.with_name(f"{number:04d}")
        if RunFolder(before).has_begun() or RunFolder(before).may_begin():
            with suppress(FileNotFoundError):
                before.rename(run)
                return


def _is_lost(study: Study, trial: Trial) -> bool:
    return _frozen(study, trial).state != TrialState.RUNNING


def _frozen(study: Study, trial: Trial) -> FrozenTrial:
    """The trial as it stands in the storage."""
    return next(other for other in study.get_trials() if other.number == trial.number)


def _original(trial: FrozenTrial) -> int:
    """The number of the trial that this one does again, or its own."""
    first = RetryHeartbeatStaleTrialCallback.retried_trial_number(trial)
    return trial.number if first is None else first
