"""Evolve the loss weights (section 3.3): many short trainings that share one Optuna storage.

A *worker* is a process that takes trial after trial. `evolve` starts some and watches them; the same call on another
machine, with the same `--storage`, adds more. Nobody waits for anybody: what a worker needs to know it reads from the
storage, and it draws the next weights from the trials that are finished by then. A worker that dies is noticed by its
missing heartbeat, and its trial is done again, from its last saved state where that lies on a disk that is shared. The
new try takes the folder away under another name: a worker that was not dead but held up (a suspended machine) can do no
harm there, and gives its trial up when it finds that it is another's.

Each trial trains on a part of the training split and is scored on the rest of it, kept apart by group; the test split
is never looked at. A search score flatters: it is the best of many on the same few videos. Hence the winner, the fixed
and the uniform weights are compared in the end by trainings with fresh seeds, which also draw another held-out part
(some of whose videos have scored the search as well).

Optuna keeps time by the clock of the database, so the clocks of the machines may differ.
"""

import multiprocessing
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from multiprocessing.context import SpawnProcess
from multiprocessing.queues import SimpleQueue
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from airstreams.config import LossWeights
from airstreams.data.listing import Video, labels_digest
from airstreams.data.splits import with_drawn_splits
from airstreams.errors import InputError
from airstreams.experiments.search import LOOK_EVERY, Search, best_first, counted, open_storage
from airstreams.experiments.study import RESULTS
from airstreams.experiments.trials import scored_source, work
from airstreams.experiments.workers import end, start
from airstreams.files import require_writable, write_json
from airstreams.recipe import comparable, from_dict
from airstreams.training.prepare import with_segment_classes
from airstreams.training.signals import interrupted_by_signals


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
    require_writable(search.folder)
    search.folder.mkdir(parents=True, exist_ok=True)
    storage = open_storage(search)
    study = optuna.create_study(storage=storage, study_name=search.name, direction="maximize", load_if_exists=True)
    _refuse_another_search(study, search)

    def tell(finals: Study | None = None) -> dict[str, Any]:
        results = results_of(search, study, finals)
        write_json(search.folder / RESULTS, results)
        return results

    _run_workers(search, study, search.trials, workers, console, "evolving", tell)
    finals, jobs = _finals(search, study, storage)
    _run_workers(search, finals, jobs, workers, console, "fresh seeds", lambda: tell(finals))
    return tell(finals)


def references(losses: Sequence[str]) -> dict[str, dict[str, float]]:
    """The weightings of these losses with which the winner is compared (section 4.2.3)."""
    return {"fixed": {name: LossWeights().of(name) for name in losses}, "uniform": dict.fromkeys(losses, 1.0)}


def results_of(search: Search, study: Study, finals: Study | None) -> dict[str, Any]:
    """What stands in `results.json`; see docs/evolution.md. Nothing of the end's comparison before there is one."""
    trials = study.get_trials(deepcopy=False)
    best = best_first(trials)
    fresh: dict[str, dict[str, Any]] = {}
    for trial in [] if finals is None else _given(finals):
        row = fresh.setdefault(trial.user_attrs["weighting"], {"weights": _fixed_weights(trial), "values": {}})
        if trial.state == TrialState.COMPLETE or "diverged" in trial.user_attrs:
            row["values"][trial.user_attrs["seed"]] = trial.value
    for row in fresh.values():
        row["values"] = values = [value for _, value in sorted(row["values"].items())]
        # Of fewer seeds than another weighting's, and the luckier ones, no mean would compare.
        row["mean"] = sum(values) / len(values) if values and None not in values else None
    top = [{"trial": trial.number, "value": trial.value, "weights": trial.params} for trial in best[:10]]
    return {
        "trials": sum(trial.state.is_finished() for trial in counted(trials)),
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
    held_out = scored_source(search.source, search.config).split("val")
    others = {"sampler": search.sampler, "videos": _digest(videos), "held-out videos": _digest(held_out)}
    others["labels"] = labels_digest(videos)
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


def _digest(videos: Sequence[Video]) -> str:
    return sha256("\n".join(video.name for video in videos).encode()).hexdigest()


def _finals(search: Search, study: Study, storage: RDBStorage) -> tuple[Study, int]:
    """The trainings with fresh seeds that compare the winner with the references, as a study of given weights, and how
    many trials it is to have.
    """
    best = best_first(study.get_trials(deepcopy=False))
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
    there = {(trial.user_attrs["weighting"], trial.user_attrs["seed"]) for trial in counted(_given(finals))}
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
                there = counted(study.get_trials(deepcopy=False))
                if (now := sum(trial.state.is_finished() for trial in there)) != finished:
                    finished = now
                    tell()
                    best = best_first(there)
                    note = f"best {best[0].value:.1%} (trial {best[0].number})" if best else ""
                    progress.update(task, completed=min(finished, trials), note=note)
                    if not console.is_terminal:
                        console.print(f"{title}: {finished} of {trials} trials, {note}")
                if finished >= trials and not any(process.is_alive() for process in processes):
                    return
                if finished < trials and not processes:
                    for number in range(workers):
                        process = context.Process(
                            target=work, args=(search, study.study_name, trials, number, workers, errors)
                        )
                        processes.append(process)
                        start(process)
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


def _fixed_weights(trial: FrozenTrial) -> dict[str, float]:
    """Of a trial that was enqueued, whether it has begun or not."""
    return trial.params or trial.system_attrs["fixed_params"]
