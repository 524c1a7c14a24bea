"""Evolve the loss weights (section 3.3): many short trainings that share one Optuna storage.

A *worker* is a process that takes trial after trial. `evolve` starts some and watches them; the same call on another
machine, with the same `--storage`, adds more. Nobody waits for anybody: what a worker needs to know it reads from the
storage, and it draws the next weights from the trials that are finished by then. A worker that dies is noticed by its
missing heartbeat, and its trial is done again, from its last saved state where that lies on a disk that is shared. The
new try takes the folder away under another name: a worker that was not dead but held up (a suspended machine) can do no
harm there, and gives its trial up when it finds that it is another's.

Each trial trains on a part of the training split and is scored on the rest of it, kept apart by group; the test split
is never looked at. A search score flatters: it is the best of many on the same few videos. Hence the winner, the fixed
and the uniform weights are compared in the end by trainings with fresh seeds, which also draw another held-out part.

Optuna keeps time by the clock of the database, so the clocks of the machines may differ.
"""

import json
import multiprocessing
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from multiprocessing.context import SpawnProcess
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sqlalchemy import Engine, event
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from airstreams.config import Config, LossWeights, comparable, from_dict, load_config
from airstreams.data.listing import Source, labels_digest
from airstreams.data.splits import automatic_split, with_drawn_splits, with_splits
from airstreams.errors import InputError, Stopped
from airstreams.experiments.study import RESULTS
from airstreams.experiments.tournament import TournamentSampler
from airstreams.experiments.workers import as_told, begin_work, end
from airstreams.files import replacing
from airstreams.training.loop import train
from airstreams.training.prepare import may_begin, with_segment_classes
from airstreams.training.signals import interrupted_by_signals
from airstreams.training.state import FOLDER as STATE_FOLDER

HEARTBEAT = 20  # s
RETRIES = 3  # of a trial whose worker died; after that another one is drawn in its place
LOOK_EVERY = 1.0  # s

SamplerName = Literal["tournament", "tpe", "random"]


@dataclass(frozen=True)
class Search:
    """What a worker has to know.

    source: the data, with splits.
    config: the recipe.
    folder: STUDY, for trainings and results.
    url: of the storage.
    trials: that are evaluated in all.
    sampler: of weights.
    heartbeat: s from one sign of life of a trial to the next; four of them missed, it is taken to be dead.
    """

    source: Source
    config: Config
    folder: Path
    url: str
    trials: int
    sampler: SamplerName = "tournament"
    heartbeat: int = HEARTBEAT

    @property
    def name(self) -> str:
        """Of the study in its storage."""
        return self.folder.resolve().name


class _SurplusError(Exception):
    """Two workers took the last trial at once, and this one drew another."""


class _LostError(Exception):
    """This worker was taken for dead, and its trial is done again by another."""


def evolve(search: Search, workers: int, console: Console) -> dict[str, Any]:
    """Run or go on with a search until it has all its trials and the comparison at the end; returns its results.

    Leaves `results.json` in the study's folder, which is written anew after each trial.

    Raises:
        InputError: a source or storage that cannot be used, or a study that was begun with something else.
        FloatingPointError: the training of every trial diverged.
        RuntimeError: all workers died.
    """
    if len(search.config.model.heads) == 1:
        raise InputError(f"model.streams: got {search.config.model.streams}; expected two or more streams to weigh")
    if "semantic" in search.config.model.streams and search.source.label_store is None:
        raise InputError(
            f"{search.source.name}: no label maps for the semantic stream; give --labels LABELS, or leave semantic out "
            "of --model.streams"
        )
    search = replace(search, source=with_drawn_splits(search.source, search.config))
    scored_source(search.source, search.config)  # these two complain before anything is begun
    with_segment_classes(search.source, search.config)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    search.folder.mkdir(parents=True, exist_ok=True)
    storage = open_storage(search)
    study = optuna.create_study(storage=storage, study_name=search.name, direction="maximize", load_if_exists=True)
    _refuse_another_search(study, search)

    def tell(finals: Study | None = None) -> dict[str, Any]:
        results = results_of(search, study, finals)
        with replacing(search.folder / RESULTS) as temporary:
            temporary.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        return results

    _run_workers(search, study, search.trials, workers, console, "evolving", tell)
    finals, jobs = _finals(search, study, storage)
    _run_workers(search, finals, jobs, workers, console, "fresh seeds", lambda: tell(finals))
    return tell(finals)


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


def references(losses: Sequence[str]) -> dict[str, dict[str, float]]:
    """The weightings of these losses with which the winner is compared (section 4.2.3)."""
    return {"fixed": {name: LossWeights().of(name) for name in losses}, "uniform": dict.fromkeys(losses, 1.0)}


def open_storage(search: Search) -> RDBStorage:
    """The storage of a search, with heartbeats. InputError: it cannot be reached."""
    url = search.url
    if url.startswith("postgresql://"):  # the driver whose licence is permissive
        url = url.replace("postgresql://", "postgresql+pg8000://", 1)
    # SQLite lets one process write at a time; the others are to wait, not to fail.
    options = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    retry = RetryHeartbeatStaleTrialCallback(max_retry=RETRIES, inherit_intermediate_values=True)
    try:
        storage = RDBStorage(
            url,
            options,
            heartbeat_interval=search.heartbeat,
            grace_period=4 * search.heartbeat,
            heartbeat_stale_trial_callback=retry,
        )
        if storage.engine.dialect.name == "sqlite":
            _lock_while_reading(storage.engine)
        return storage
    except ImportError as error:
        raise InputError(
            f"--storage {search.url.split('://')[0]}: no driver for it ({error}); pip install pg8000"
        ) from error
    except (ArgumentError, SQLAlchemyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"--storage: the database cannot be used ({reason}); expected a URL such as "
            "postgresql://user:password@host/database of a database that runs"
        ) from error


def _lock_while_reading(engine: Engine) -> None:
    """Let SQLite lock the database when a transaction begins, not when it first writes.

    Optuna asks databases to lock the row of a waiting trial that it is about to take. SQLite has no such lock, so two
    workers could read that the trial waits and both take it.
    """
    event.listen(engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    engine.dispose()  # of the connections that were made before


def results_of(search: Search, study: Study, finals: Study | None) -> dict[str, Any]:
    """What stands in `results.json`; see docs/evolution.md. Nothing of the end's comparison before there is one."""
    trials = study.get_trials(deepcopy=False)
    best = _best(trials)
    fresh: dict[str, dict[str, Any]] = {}
    for trial in [] if finals is None else _given(finals):
        row = fresh.setdefault(trial.user_attrs["weighting"], {"weights": _fixed_weights(trial), "values": {}})
        if trial.state == TrialState.COMPLETE:
            row["values"][trial.user_attrs["seed"]] = trial.value
    for row in fresh.values():
        row["values"] = [value for _, value in sorted(row["values"].items())]
        row["mean"] = sum(row["values"]) / len(row["values"]) if row["values"] else None
    top = [{"trial": trial.number, "value": trial.value, "weights": trial.params} for trial in best[:10]]
    return {
        "trials": sum(trial.state.is_finished() for trial in _counted(trials)),
        "pruned": sum(trial.state == TrialState.PRUNED for trial in trials),
        "diverged": sum("diverged" in trial.user_attrs for trial in trials),
        "metric": search.source.metric,
        "sampler": search.sampler,
        "best": {**top[0], "fresh": fresh.pop("evolved", None)} if top else None,
        "references": fresh,
        "top": top,
        "values": [[trial.number, trial.value] for trial in trials if trial.state == TrialState.COMPLETE],
    }


def _refuse_another_search(study: Study, search: Search) -> None:
    """Trials of different recipes or data do not compare."""
    videos, store = search.source.split("train"), search.source.label_store
    names = "\n".join(video.name for video in videos)
    others = {"sampler": search.sampler, "videos": sha256(names.encode()).hexdigest(), "labels": labels_digest(videos)}
    others["teacher"] = store.identity if store and search.config.needs_labels else ""
    settings = others | comparable(search.config)
    before = study.user_attrs.get("settings")
    if before is None and (search.folder / RESULTS).exists():
        raise InputError(
            f"--out {search.folder}: holds the results of a study that the storage does not know by the name of "
            f"{search.name}; call the folder what it was called, give its --storage, or give another --out"
        )
    if before is None:
        study.set_user_attr("settings", settings)
        return
    # Through a config, in which keys that a later version brought have their defaults.
    before |= comparable(from_dict({name: value for name, value in before.items() if name not in others}))
    different = [name for name, value in before.items() if settings.get(name) != value]
    if different:
        raise InputError(
            f"--out {search.folder}: the study {search.name} was begun with another {', '.join(different)}; "
            "give what it was begun with, or another --out"
        )


def _finals(search: Search, study: Study, storage: RDBStorage) -> tuple[Study, int]:
    """The trainings with fresh seeds that compare the winner with the references, as a study of given weights, and how
    many trials it is to have.
    """
    best = _best(study.get_trials(deepcopy=False))
    if not best:
        raise FloatingPointError(
            f"the training of all {search.trials} trials diverged; start again with another --out and a lower "
            "--training.lr"
        )
    weightings = {"evolved": best[0].params} | references(search.config.lambdas())
    jobs = [
        (weights, {"weighting": name, "seed": search.config.seed + 1 + number})
        for number in range(search.config.evolution.fresh_seeds)
        for name, weights in weightings.items()
    ]
    name = f"{search.name}-winner-{best[0].number}"
    try:
        finals = optuna.create_study(storage=storage, study_name=name, direction="maximize")
    except optuna.exceptions.DuplicatedStudyError:
        finals = optuna.load_study(storage=storage, study_name=name)
        for _ in range(30):  # another machine may be at the lines below
            if len(_given(finals)) >= len(jobs):
                break
            time.sleep(1)
    there = {(trial.user_attrs["weighting"], trial.user_attrs["seed"]) for trial in _counted(_given(finals))}
    for weights, attributes in jobs:
        if (attributes["weighting"], attributes["seed"]) not in there:
            finals.enqueue_trial(weights, user_attrs=attributes)
    return finals, len(jobs)


def _given(finals: Study) -> list[FrozenTrial]:
    """Its trials but for surplus ones, which two workers began at once."""
    return [trial for trial in finals.get_trials(deepcopy=False) if "weighting" in trial.user_attrs]


def _run_workers(
    search: Search,
    study: Study,
    trials: int,
    workers: int,
    console: Console,
    title: str,
    tell: Callable[[], dict[str, Any]],
) -> None:
    """Workers until the study has so many trials."""
    context = multiprocessing.get_context("spawn")
    errors: SimpleQueue[Exception] = context.SimpleQueue()
    causes: list[Exception] = []
    processes: list[SpawnProcess] = []
    columns = (TextColumn(title), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn())
    progress = Progress(*columns, TextColumn("{task.fields[note]}"), console=console)
    with progress, interrupted_by_signals():
        task = progress.add_task("", total=trials, note="")
        finished, known_dead = -1, 0
        try:
            while True:
                counted = _counted(study.get_trials(deepcopy=False))
                if (now := sum(trial.state.is_finished() for trial in counted)) != finished:
                    finished = now
                    tell()
                    best = _best(counted)
                    note = f"best {best[0].value:.1%} (trial {best[0].number})" if best else ""
                    progress.update(task, completed=min(finished, trials), note=note)
                    if not console.is_terminal:
                        console.print(f"{title}: {finished} of {trials} trials, {note}")
                if finished >= trials and not any(process.is_alive() for process in processes):
                    return
                if finished < trials and not processes:
                    for number in range(workers):
                        process = context.Process(
                            target=_work, args=(search, study.study_name, trials, number, workers, errors)
                        )
                        process.start()
                        processes.append(process)
                died = [process for process in processes if process.exitcode]
                while not errors.empty():
                    causes.append(errors.get())
                if finished < trials and died and len(died) == len(processes):
                    raise causes[0] if causes else RuntimeError(_how_they_died(died))
                if len(died) > known_dead:
                    known_dead = len(died)
                    why = f" ({causes[-1]})" if causes else ""
                    console.print(f"{known_dead} of {workers} workers died{why}; the others go on", soft_wrap=True)
                time.sleep(LOOK_EVERY)
        finally:
            end(processes)


def _how_they_died(processes: Sequence[SpawnProcess]) -> str:
    codes = ", ".join(str(process.exitcode) for process in processes)
    return f"all workers died (exit codes {codes}); the same call goes on, perhaps with fewer --workers"


def _work(
    search: Search, study_name: str, trials: int, number: int, workers: int, errors: "SimpleQueue[Exception]"
) -> None:
    """One worker's life."""
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        begin_work(workers)
        storage = open_storage(search)
        pruner = make_pruner(search.config) if study_name == search.name else NopPruner()
        study = optuna.load_study(storage=storage, study_name=study_name, pruner=pruner)
        study.sampler = make_sampler(search, len(study.get_trials(deepcopy=False)) * workers + number)
        _work_off(search, study, trials)
    except (KeyboardInterrupt, Stopped):
        raise SystemExit(1) from None
    except Exception as error:
        errors.put(as_told(error))
        raise SystemExit(1) from error


def _work_off(search: Search, study: Study, trials: int) -> None:
    """Take trials until the study has so many, others' included.

    Where the weights are given, each is to be trained: what failed is done again, by the others or the next call.
    """
    searching = study.study_name == search.name
    taken: Trial | None = None
    failed_by: BaseException | None = None

    def objective(trial: Trial) -> float:
        nonlocal taken, failed_by
        taken = trial
        number = _original(_frozen(study, trial))
        before = sum(_original(other) < number for other in _counted(study.get_trials(deepcopy=False)))
        if before >= trials or not (searching or "weighting" in trial.user_attrs):
            raise _SurplusError
        try:
            return run_trial(search, study, trial)
        except BaseException as error:
            failed_by = error
            raise

    def tidy(study: Study, trial: FrozenTrial) -> None:
        # Only now: until its value is told, a trial may have to go on from there.
        run = _run_of(search, study, trial)
        shutil.rmtree(run / STATE_FOLDER, ignore_errors=True)
        (run / "model.safetensors").unlink(missing_ok=True)

    first_seen: dict[int, float] = {}
    while True:
        optuna.storages.fail_stale_trials(study)
        everything = study.get_trials(deepcopy=False)
        counted = _counted(everything)
        if sum(trial.state.is_finished() for trial in counted) >= trials:
            return
        # Who notices a death enters the new try a moment later; until then the dead trial keeps its place.
        retried = {number for trial in everything for number in RetryHeartbeatStaleTrialCallback.retry_history(trial)}
        dying = [
            trial
            for trial in everything
            if trial.state == TrialState.FAIL and trial not in counted and trial.number not in retried
            if time.monotonic() - first_seen.setdefault(trial.number, time.monotonic()) < 2 * LOOK_EVERY
        ]
        waiting = any(trial.state == TrialState.WAITING for trial in counted)
        if waiting or (searching and len(counted) + len(dying) < trials):
            taken = failed_by = None
            try:
                study.optimize(objective, n_trials=1, catch=(FloatingPointError, _SurplusError), callbacks=[tidy])
            except Exception as error:
                if isinstance(failed_by, (Stopped, KeyboardInterrupt)):
                    raise failed_by from error
                # Of a trial that others have ended, Optuna complains by an error of its own.
                if taken is None or error is failed_by or _frozen(study, taken).state != TrialState.FAIL:
                    if taken is not None and error is failed_by and not searching:
                        _do_again(study, taken)
                    raise
                _clear_away(_run_of(search, study, taken))
        elif dying or any(not trial.state.is_finished() for trial in counted):
            time.sleep(LOOK_EVERY)  # the others have the rest in hand, unless one dies
        else:  # who did the last one was killed when it had failed
            raise RuntimeError("a training with a fresh seed was lost; the same call does it again")


def run_trial(search: Search, study: Study, trial: Trial) -> float:
    """Train with a trial's weights and score the held-out part: the accuracy, or mAP, of the merged head."""
    weights = {name: trial.suggest_float(name, 0.0, 1.0) for name in search.config.lambdas()}
    trial.set_user_attr("sum", sum(weights.values()))  # used as drawn: near 0 is a tiny step under SGD
    config = trial_config(search.config, weights, trial.user_attrs.get("seed", search.config.seed))
    run = _run_of(search, study, trial)
    _take_over(search, study, trial, run)
    begun = (run / "config.yaml").is_file()
    other = begun and comparable(load_config(run / "config.yaml")) != comparable(config)
    if other or not (begun or may_begin(run)):
        raise InputError(f"{run}: there is another training in it; delete it, or give another --out")

    def after_epoch(record: dict[str, Any]) -> None:
        if _is_lost(study, trial):
            raise _LostError
        if "val" in record and record["epoch"] < config.training.epochs:
            trial.report(record["val"][search.source.metric], record["epoch"])
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
    return float(record["val"][search.source.metric])


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
    if not (run / "config.yaml").is_file():
        shutil.rmtree(run, ignore_errors=True)


def _take_over(search: Search, study: Study, trial: Trial, run: Path) -> None:
    """Give the folder of the try before, if there was one, the name of this one's."""
    if run.exists():
        return
    for number in reversed(RetryHeartbeatStaleTrialCallback.retry_history(_frozen(study, trial))):
        before = run.with_name(f"{number:04d}")
        if (before / "config.yaml").is_file() or may_begin(before):
            with suppress(FileNotFoundError):
                before.rename(run)
                return


def _is_lost(study: Study, trial: Trial) -> bool:
    return _frozen(study, trial).state != TrialState.RUNNING


def _frozen(study: Study, trial: Trial) -> FrozenTrial:
    """The trial as it stands in the storage."""
    return next(other for other in study.get_trials() if other.number == trial.number)


def _counted(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """All trials but those that died and are done again as another one, and surplus ones."""
    return [trial for trial in trials if trial.state != TrialState.FAIL or "diverged" in trial.user_attrs]


def _best(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The completed trials, the best first; of equal ones the older."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return sorted(complete, key=lambda trial: (-(trial.value or 0.0), trial.number))


def _original(trial: FrozenTrial) -> int:
    """The number of the trial that this one does again, or its own."""
    first = RetryHeartbeatStaleTrialCallback.retried_trial_number(trial)
    return trial.number if first is None else first


def _run_of(search: Search, study: Study, trial: Trial | FrozenTrial) -> Path:
    folder = "trials" if study.study_name == search.name else study.study_name.removeprefix(f"{search.name}-")
    return search.folder / folder / f"{trial.number:04d}"


def _fixed_weights(trial: FrozenTrial) -> dict[str, float]:
    """Of a trial that was enqueued, whether it has begun or not."""
    return trial.params or trial.system_attrs["fixed_params"]
