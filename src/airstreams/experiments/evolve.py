"""Evolve the loss weights (section 3.3 of the paper): many short trainings that share one Optuna database.

A worker is a process that takes one trial after another. `evolve` starts workers and watches them. The same call on
another machine, with the same `--storage`, adds more. Workers never wait for each other: each reads the database, and
draws the next weights from the trials that are complete by then.

If a worker dies, its heartbeat stops. Another worker then repeats the trial, from its last saved state if the folder is
on a shared disk. The repeated trial renames the folder first. A worker that was only suspended can therefore do no harm
there, and it gives its trial up when it notices.

Each trial trains on a part of the training split and is scored on the rest, apart by group. The test split chooses
nothing: a few of its frames are only compared with training videos, to warn of copies. A search score is optimistic: it
is the best of many on the same few videos. The best, the fixed and the uniform weights are therefore compared at the
end, by trainings with fresh seeds. Fresh seeds also draw other held-out videos; some of these were scored during the
search too.

Optuna uses the clock of the database, so the clocks of the machines may differ.
"""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256

import optuna
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from airstreams.config import LossWeights, stream_of
from airstreams.console import Progress, warn
from airstreams.data.listing import Video, labels_digest
from airstreams.errors import InputError, require
from airstreams.estimate import TotalTime
from airstreams.experiments.display import TrainingsDisplay
from airstreams.experiments.noise import Verdict, baseline_of, independent_videos, judge_trials
from airstreams.experiments.search import POLL_INTERVAL, Search, best_first, open_storage, valid_trials
from airstreams.experiments.study import RESULTS, BestTrial, FreshSeeds, ScoredTrial, StudyResults, write_results
from airstreams.experiments.trials import run_worker, trial_source
from airstreams.experiments.workers import EndedWorker, WorkerPool
from airstreams.files import require_writable
from airstreams.recipe import from_dict, training_settings
from airstreams.representations.teaching import identities, open_targets, recorded_identities, require_targets
from airstreams.training.data import with_checked_splits, with_segment_classes
from airstreams.training.signals import interrupted_by_signals

TOP = 10  # trials that `results.json` lists with their weights
ENTERING_SECONDS = 30  # to wait for another machine that enters the trainings with fresh seeds


def evolve(search: Search, workers: int, console: Console) -> StudyResults:
    """Run a search, or continue it, until all its trials and the comparison at the end are done.

    It writes `results.json` into the study's folder, again after each trial.

    Args:
        search: the search.
        workers: processes on this machine.
        console: gets progress and warnings.

    Raises:
        InputError: data or a database that cannot be used, or a study that was begun with other settings.
        FloatingPointError: the training of every trial diverged.
        RuntimeError: all workers died.
    """
    search = _checked(search, console)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    require_writable(search.folder)
    search.folder.mkdir(parents=True, exist_ok=True)
    storage = open_storage(search)
    study = optuna.create_study(storage=storage, study_name=search.name, direction="maximize", load_if_exists=True)
    _require_same_settings(study, search)

    def update(comparison: Study | None = None) -> StudyResults:
        results = results_of(search, study, comparison)
        write_results(search.folder, results)
        return results

    with Progress(console) as progress:
        total_time = TotalTime()
        trials = TrainingsDisplay(progress, "searching", "trials", search.trials, total_time)
        weightings = 1 + len(references(search.config.searched_lambdas()))
        evolution = search.config.evolution
        trainings = evolution.fresh_seeds * weightings
        fresh = TrainingsDisplay(progress, "fresh seeds", "trainings", trainings, total_time)
        fresh.guess = lambda: trials.seconds_for(trainings / evolution.seeds_per_trial)
        _run_workers(search, study, search.trials, workers, trials, fresh.guess, update)
        comparison = _comparison(search, study, storage)
        _run_workers(search, comparison, trainings, workers, fresh, lambda: 0.0, lambda: update(comparison))
    return update(comparison)


def references(losses: Sequence[str]) -> dict[str, dict[str, float]]:
    """The weightings of these losses that the best trial is compared with (section 4.2.3 of the paper)."""
    return {"fixed": {name: LossWeights().of(name) for name in losses}, "uniform": dict.fromkeys(losses, 1.0)}


def results_of(search: Search, study: Study, comparison: Study | None) -> StudyResults:
    """The results so far.

    Args:
        search: the search.
        study: its trials.
        comparison: the trainings with fresh seeds; None before they are entered.
    """
    trials = study.get_trials(deepcopy=False)
    best = best_first(trials)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    top = [ScoredTrial(trial.number, trial.value or 0.0, trial.params) for trial in best[:TOP]]
    fresh = {} if comparison is None else _fresh_seeds(comparison)
    seeds = search.config.evolution.seeds_per_trial
    by_seed = [trial.user_attrs["values"] for trial in complete] if seeds > 1 else []
    verdict = _verdict(search, [trial.value or 0.0 for trial in best], fresh, by_seed)
    evolved = fresh.pop("evolved", None)
    return StudyResults(
        trials=sum(trial.state.is_finished() for trial in valid_trials(trials)),
        pruned=sum(trial.state == TrialState.PRUNED for trial in trials),
        diverged=sum("diverged" in trial.user_attrs for trial in trials),
        metric=search.source.metric,
        sampler=search.sampler,
        init=search.init,
        best=BestTrial(top[0].trial, top[0].value, top[0].weights, evolved) if top else None,
        references=fresh,
        top=top,
        values=[(trial.number, trial.value or 0.0) for trial in complete],
        by_seed=by_seed,
        distinguishable=verdict.distinguishable,
        reason=verdict.reason,
        baseline=verdict.baseline,
    )


def _verdict(
    search: Search,
    values: Sequence[float],
    fresh: Mapping[str, FreshSeeds],
    by_seed: Sequence[Sequence[float]],
) -> Verdict:
    """Whether the best trial stands out from the others and from chance."""
    source = trial_source(search.source, search.config)
    scores = [[value for value in row.values if value is not None] for row in fresh.values()]
    winner = fresh["evolved"].mean if "evolved" in fresh else None
    return judge_trials(values, scores, baseline_of(source), independent_videos(source), winner, by_seed)


def _fresh_seeds(comparison: Study) -> dict[str, FreshSeeds]:
    """The trainings with fresh seeds, by weighting."""
    weights: dict[str, dict[str, float]] = {}
    by_seed: dict[str, dict[int, float | None]] = {}
    for trial in _with_given_weights(comparison):
        name = trial.user_attrs["weighting"]
        weights.setdefault(name, trial.params or trial.system_attrs["fixed_params"])  # the latter if it still waits
        values = by_seed.setdefault(name, {})
        if trial.state == TrialState.COMPLETE or "diverged" in trial.user_attrs:
            values[trial.user_attrs["seed"]] = trial.value
    return {name: _with_mean(weights[name], [value for _, value in sorted(by_seed[name].items())]) for name in weights}


def _with_mean(weights: dict[str, float], values: list[float | None]) -> FreshSeeds:
    complete = [value for value in values if value is not None]
    mean = sum(complete) / len(complete) if complete and len(complete) == len(values) else None
    return FreshSeeds(weights, values, mean)


def _checked(search: Search, console: Console) -> Search:
    """The search, its data with splits. InputError: there is nothing to weigh, or the data do not fit."""
    streams, names = search.config.model.streams, search.config.lambdas()
    if len(search.config.model.heads) == 1:
        raise InputError(f"model.streams: {streams} leaves no losses to weigh. Give two or more streams.")
    unknown = ", ".join(name for name in search.config.evolution.fixed if name not in names)
    require(not unknown, "evolution.fixed", unknown, f"some of the losses {', '.join(names)}")
    searched = search.config.searched_lambdas()
    require(len(searched) > 0, "evolution.fixed", search.config.evolution.fixed, "a loss whose weight is searched")
    weighed = {stream for name in searched if (stream := stream_of(name)) is not None}
    require_targets(search.source, search.config, [*weighed, *search.config.taught])
    search = replace(search, source=with_checked_splits(search.source, search.config, console))
    for warning in search.source.warnings:
        warn(console, warning)
    if (start := search.read_init()) is not None:
        for warning in start.overlap_warnings(search.source.split("train"), "training videos, which score the trials"):
            warn(console, warning)
    # These two raise InputError before anything is written.
    trial_source(search.source, search.config)
    with_segment_classes(search.source, search.config)
    return search


def _require_same_settings(study: Study, search: Search) -> None:
    """InputError: the study was begun with another recipe or other data. Its trials could not be compared."""
    videos = search.source.split("train")
    held_out = trial_source(search.source, search.config).split("val")
    start = search.read_init()
    beside_config = {
        "sampler": search.sampler,
        "init": None if start is None else start.digest(),
        "videos": _names_digest(videos),
        "held-out videos": _names_digest(held_out),
        "labels": labels_digest([*videos, *search.source.unlabelled]),
        "targets": identities(open_targets(search.source, search.config)),
    }
    settings = beside_config | training_settings(search.config)
    before = study.user_attrs.get("settings")
    if before is None and (search.folder / RESULTS).exists():
        raise InputError(
            f"--out {search.folder}: the folder has results, but the database has no study named {search.name}. "
            "Give the folder its old name, give the study's --storage, or give another --out."
        )
    if before is None:
        study.set_user_attr("settings", settings)
        return
    before = {"init": None} | recorded_identities(before)  # studies up to version 0.2 had no --init
    # Keys that a later version added get their defaults.
    before |= training_settings(from_dict({name: value for name, value in before.items() if name not in beside_config}))
    different = [name for name, value in before.items() if settings.get(name) != value]
    if different:
        raise InputError(
            f"--out {search.folder}: the study {search.name} was begun with another {', '.join(different)}. "
            "Give the same settings as then, or another --out."
        )


def _names_digest(videos: Sequence[Video]) -> str:
    return sha256("\n".join(video.name for video in videos).encode()).hexdigest()


def _comparison(search: Search, study: Study, storage: RDBStorage) -> Study:
    """A study of the trainings with fresh seeds that compare the best weights with the references."""
    best = best_first(study.get_trials(deepcopy=False))
    if not best:
        raise FloatingPointError(
            f"The training of all {search.trials} trials diverged. Start again with another --out and a lower "
            "--training.lr."
        )
    weightings = {"evolved": best[0].params} | references(search.config.searched_lambdas())
    evolution = search.config.evolution
    trainings = [
        (weights, {"weighting": name, "seed": search.config.seed + evolution.seeds_per_trial + number})
        for number in range(evolution.fresh_seeds)
        for name, weights in weightings.items()
    ]
    name = f"{search.name}-winner-{best[0].number}"
    try:
        comparison = optuna.create_study(storage=storage, study_name=name, direction="maximize")
    except optuna.exceptions.DuplicatedStudyError:
        comparison = optuna.load_study(storage=storage, study_name=name)
        for _ in range(ENTERING_SECONDS):  # another machine may be entering the trainings
            if len(_with_given_weights(comparison)) >= len(trainings):
                break
            time.sleep(1)
    entered = {
        (trial.user_attrs["weighting"], trial.user_attrs["seed"])
        for trial in valid_trials(_with_given_weights(comparison))
    }
    for weights, attributes in trainings:
        if (attributes["weighting"], attributes["seed"]) not in entered:
            comparison.enqueue_trial(weights, user_attrs=attributes)
    return comparison


def _with_given_weights(comparison: Study) -> list[FrozenTrial]:
    """The trials of the comparison without surplus ones, which two workers began at once."""
    return [trial for trial in comparison.get_trials(deepcopy=False) if "weighting" in trial.user_attrs]


def _run_workers(
    search: Search,
    study: Study,
    trials: int,
    workers: int,
    display: TrainingsDisplay,
    later: Callable[[], float | None],
    update: Callable[[], StudyResults],
) -> None:
    """Run workers until the study has `trials` finished trials.

    Args:
        search: the search.
        study: its trials, or its comparison with fresh seeds.
        trials: how many there are to be.
        workers: processes on this machine.
        display: shows the trials.
        later: gives the seconds that other work takes after these trials.
        update: called after each trial.
    """
    died: list[EndedWorker] = []
    finished, started = -1, False
    with interrupted_by_signals(), WorkerPool(workers) as pool:
        while True:
            newly_died = [ended for ended in pool.wait(POLL_INTERVAL if started else 0.0) if ended.exit_code != 0]
            died += newly_died
            valid = valid_trials(study.get_trials(deepcopy=False))  # after the wait, so that it is the newer
            if (now := sum(trial.state.is_finished() for trial in valid)) != finished:
                finished = now
                update()
                best = best_first(valid)
                display.task.notes = [f"highest {best[0].value:.1%} (trial {best[0].number})"] if best else []
            display.update(min(finished, trials), [(*steps, 1.0) for steps in pool.steps.values()])
            display.say_total("evolve", later() or 0.0)
            if finished >= trials and not pool.running:
                return
            if finished < trials and not started:
                started = True
                for number in range(workers):
                    device = search.config.training.device
                    pool.start(device, run_worker, search, study.study_name, trials, number, workers)
            if finished < trials and len(died) == workers:
                raise _all_died(died)
            if newly_died:
                reason = f" ({newly_died[-1].error})" if newly_died[-1].error else ""
                warn(display.progress.console, f"{len(died)} of {workers} workers died{reason}. The others continue.")


def _all_died(died: Sequence[EndedWorker]) -> Exception:
    """The first error that a worker reported, or one that gives the exit codes."""
    reported = [worker.error for worker in died if worker.error is not None]
    codes = ", ".join(str(worker.exit_code) for worker in died)
    message = f"All workers died (exit codes {codes}). Repeat the same call, perhaps with fewer --workers."
    return reported[0] if reported else RuntimeError(message)
