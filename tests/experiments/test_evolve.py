"""Searches with short trainings: on SQLite, and on a real PostgreSQL with workers that are killed."""

import json
import os
import pwd
import shutil
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import optuna
import psutil
import pytest
import torch
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial
from rich.console import Console
from sqlalchemy import create_engine

from airstreams.cli import main
from airstreams.config import Config, EvolutionConfig, LossWeights, ModelConfig
from airstreams.errors import InputError, Stopped
from airstreams.experiments import evolve as evolution
from airstreams.experiments import trials as worker_code
from airstreams.experiments.evolve import evolve
from airstreams.experiments.search import Search, open_storage
from airstreams.experiments.study import FreshSeeds, weights_from
from airstreams.experiments.trials import make_pruner, make_sampler, run_trials, run_worker, trial_config, trial_source
from airstreams.recipe import load_config, save_config
from airstreams.training.signals import asked_to_stop
from tests.experiments.work import run_search, take_all
from tests.processes import CONTEXT, Call

QUIET = Console(quiet=True)
NAMES = ["rgb", "flow", "semantic", "merged", "interm"]


def search_in(folder, few, recipe, **keys):
    return Search(few, recipe, folder, **{"url": f"sqlite:///{folder / 'study.db'}", **keys})


def trials_of(folder, name=None):
    return optuna.load_study(storage=f"sqlite:///{folder / 'study.db'}", study_name=name or folder.name).get_trials()


def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_every_trial_trains_with_the_weights_that_were_drawn(study, recipe):
    trials = trials_of(study)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 6
    for trial in trials:
        config = load_config(study / "trials" / f"{trial.number:04d}" / "config.yaml")
        assert config.active_loss_weights() == trial.params  # as drawn, not normalised
        assert sorted(trial.params) == sorted(NAMES)
        assert all(0 <= weight <= 1 for weight in trial.params.values())
        assert trial.user_attrs["sum"] == pytest.approx(sum(trial.params.values()))
        assert config.seed == recipe.seed


def test_children_differ_from_their_parent_in_one_weight(study):
    trials = trials_of(study)
    children = [trial for trial in trials if "parent" in trial.user_attrs]
    assert [trial.number for trial in children] == [3, 4, 5]
    for child in children:
        parent = trials[child.user_attrs["parent"]]
        assert sum(child.params[name] != parent.params[name] for name in NAMES) == 1


def test_the_results_are_those_of_the_database(study):
    found, trials = results(study), trials_of(study)
    best = max(trials, key=lambda trial: (trial.value, -trial.number))
    assert found["trials"] == 6
    assert (found["best"]["trial"], found["best"]["value"], found["best"]["weights"]) == (
        best.number, best.value, best.params,
    )  # fmt: skip
    assert sorted(found["values"]) == [[trial.number, trial.value] for trial in trials]
    assert [row["value"] for row in found["top"]] == sorted((trial.value for trial in trials), reverse=True)


def test_the_best_weights_and_the_references_are_compared_with_fresh_seeds(study, recipe):
    found = results(study)
    finals = trials_of(study, f"six-winner-{found['best']['trial']}")
    seen: dict[str, Any] = {}
    for trial in finals:
        run = study / f"winner-{found['best']['trial']}" / f"{trial.number:04d}"
        config = load_config(run / "config.yaml")
        assert config.seed == trial.user_attrs["seed"] != recipe.seed
        seen.setdefault(trial.user_attrs["weighting"], []).append((config.seed, config.active_loss_weights()))
    assert sorted(seen) == ["evolved", "fixed", "uniform"]
    for name, weights in {
        "evolved": found["best"]["weights"],
        "fixed": {"rgb": 1, "flow": 0, "semantic": 0, "merged": 1, "interm": 1},
        "uniform": dict.fromkeys(NAMES, 1),
    }.items():
        assert sorted(seed for seed, _ in seen[name]) == [recipe.seed + 1, recipe.seed + 2]
        assert all(used == weights for _, used in seen[name])
    assert found["references"]["fixed"]["mean"] == pytest.approx(sum(found["references"]["fixed"]["values"]) / 2)
    assert len(found["best"]["fresh"]["values"]) == 2


def test_a_failed_training_with_a_fresh_seed_is_repeated(study, few, recipe, tmp_path):
    folder = shutil.copytree(study, tmp_path / "six")
    name = f"winner-{results(study)['best']['trial']}"
    with closing(sqlite3.connect(folder / "study.db")) as storage, storage:
        storage.execute(
            "UPDATE trials SET state = 'FAIL' WHERE number = 3 AND study_id ="
            f" (SELECT study_id FROM studies WHERE study_name = 'six-{name}')"
        )
    (folder / name / "0006").write_text("another training's")
    search = search_in(folder, few, recipe, trials=6)
    printed = Call(run_search, search, 2, output=tmp_path / "output.txt").finish()
    assert "warning: 1 of 2 workers died" in printed
    assert str(folder / name / "0006") in printed
    found = results(folder)
    again = [trial for trial in trials_of(folder, f"six-{name}")[6:] if "weighting" in trial.user_attrs]
    assert [trial.state for trial in again] == [TrialState.FAIL, TrialState.COMPLETE]
    assert [len(row["values"]) for row in (found["best"]["fresh"], *found["references"].values())] == [2, 2, 2]


def test_a_diverged_training_with_a_fresh_seed_leaves_no_mean(few, recipe, tmp_path):
    weights = dict.fromkeys(NAMES, 0.5)
    given: dict[str, Any] = {"params": weights, "distributions": dict.fromkeys(NAMES, FloatDistribution(0, 1))}
    search, finals = optuna.create_study(direction="maximize"), optuna.create_study(direction="maximize")
    search.add_trial(create_trial(value=0.3, **given))
    for name, seed, value in (("evolved", 3, 0.4), ("evolved", 2, None), ("fixed", 2, 0.2), ("fixed", 3, 0.4)):
        attributes = {"weighting": name, "seed": seed} | ({"diverged": "nan"} if value is None else {})
        state = TrialState.FAIL if value is None else TrialState.COMPLETE
        finals.add_trial(create_trial(state=state, value=value, user_attrs=attributes, **given))
    found = evolution.results_of(search_in(tmp_path, few, recipe, trials=1), search, finals)
    assert found.best is not None
    assert found.best.fresh == FreshSeeds(weights, [None, 0.4], mean=None)
    assert found.references["fixed"] == FreshSeeds(weights, [0.2, 0.4], mean=(0.2 + 0.4) / 2)


def test_a_trial_leaves_no_weights(study):
    assert not list(study.rglob("*.safetensors"))
    assert not list(study.rglob("state"))
    assert len(list(study.rglob("metrics.jsonl"))) == 12


def test_a_finished_search_is_only_read_and_a_longer_one_continues(study, few, recipe, tmp_path, without_processes):
    folder = tmp_path / "six"
    shutil.copytree(study, folder)
    before = trials_of(folder)
    evolve(search_in(folder, few, recipe, trials=6), workers=1, console=QUIET)
    assert trials_of(folder) == before
    evolve(search_in(folder, few, recipe, trials=7), workers=1, console=QUIET)
    after = trials_of(folder)
    assert after[:6] == before
    assert len(after) == 7


def test_a_study_refuses_another_recipe_and_other_data(study, few, recipe, tmp_path):
    study = shutil.copytree(study, tmp_path / "six")
    other = replace(recipe, training=replace(recipe.training, lr=0.5))
    with pytest.raises(InputError, match="another training"):
        evolve(search_in(study, few, other, trials=6), workers=1, console=QUIET)
    fewer = replace(few, videos=few.videos[:-1])  # the names of training videos come last
    with pytest.raises(InputError, match="another videos"):
        evolve(search_in(study, fewer, recipe, trials=6), workers=1, console=QUIET)
    groups = {video.name: f"group {place // 3}" for place, video in enumerate(few.split("train"))}
    grouped = replace(few, videos=tuple(replace(video, group=groups.get(video.name)) for video in few.videos))
    with pytest.raises(InputError, match="another held-out videos"):
        evolve(search_in(study, grouped, recipe, trials=6), workers=1, console=QUIET)
    elsewhere = replace(recipe, data=replace(recipe.data, workers=1))  # keys of the machine may differ
    evolve(search_in(study, few, elsewhere, trials=6), workers=1, console=QUIET)


def test_a_study_whose_folder_was_renamed_is_refused(study, few, recipe, tmp_path):
    shutil.copytree(study, tmp_path / "other")
    with pytest.raises(InputError, match=r"--out .*other: .*--storage"):
        evolve(search_in(tmp_path / "other", few, recipe, trials=6), workers=1, console=QUIET)
    assert results(tmp_path / "other") == results(study)


def test_a_study_that_lacks_a_new_key_continues(study, few, recipe, tmp_path):
    shutil.copytree(study, tmp_path / "six")
    search = search_in(tmp_path / "six", few, recipe, trials=6)
    old = optuna.load_study(storage=search.url, study_name="six")
    settings = old.user_attrs["settings"]
    del settings["model"]["merge_levels"], settings["loss_weights"]["custom"]
    old.set_user_attr("settings", settings)
    assert evolve(search, workers=1, console=QUIET).trials == 6


@pytest.mark.parametrize("ends_by", [Stopped("asked"), OSError("its folder is gone"), None], ids=str)
def test_a_lost_trial_does_not_end_its_worker_unless_it_is_stopped(few, recipe, tmp_path, monkeypatch, ends_by):
    search = search_in(tmp_path / "s", few, recipe, trials=2)
    search.folder.mkdir()
    study = optuna.create_study(storage=open_storage(search), study_name="s", direction="maximize")
    taken = []

    def run_trial(search, study, trial):
        taken.append(trial.number)
        if trial.number == 0:  # another worker takes this one to be dead
            study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            worker_code._repeat(study, trial)
            if ends_by is not None:
                raise ends_by
        return 0.5

    monkeypatch.setattr(worker_code, "run_trial", run_trial)
    if isinstance(ends_by, Stopped):
        with pytest.raises(Stopped):
            run_trials(search, study, 2)
        assert taken == [0]
    else:
        run_trials(search, study, 2)
        assert taken == [0, 1, 2]


def test_one_worker_with_a_seed_draws_the_same_again(few, recipe, tmp_path):
    recipe = replace(recipe, evolution=replace(recipe.evolution, population_size=2))
    trials = []
    for name in ("a", "b"):
        search = search_in(tmp_path / name, few, recipe, trials=3)
        search.folder.mkdir()
        study = optuna.create_study(
            storage=open_storage(search), study_name=name, direction="maximize", sampler=make_sampler(search, 0)
        )
        run_trials(search, study, 3)
        trials.append([(trial.params, trial.value) for trial in study.get_trials()])
    assert len(trials[0]) == 3
    assert trials[0] == trials[1]


def test_trials_are_scored_on_held_out_training_videos_apart_by_group(few, recipe):
    pairs = {video.name: f"pair {number // 2}" for number, video in enumerate(few.split("train"))}
    grouped = replace(few, videos=tuple(replace(v, group=pairs.get(v.name)) for v in few.videos))
    scored = trial_source(grouped, recipe)
    assert {video.name for video in scored.videos} == set(pairs)
    splits: dict[str | None, Any] = {}
    for video in scored.videos:
        splits.setdefault(video.group, set()).add(video.split)
    assert all(len(split) == 1 for split in splits.values())
    held_out = [video for video in scored.videos if video.split == "val"]
    assert 0.15 <= len(held_out) / len(scored.videos) <= 0.45
    other_seed = trial_source(grouped, replace(recipe, seed=1))
    assert {v.name for v in other_seed.split("val")} != {v.name for v in held_out}


def test_a_pruner_gets_the_score_of_every_epoch(recipe):
    pruned = replace(recipe, training=replace(recipe.training, epochs=7), evolution=EvolutionConfig(pruner="median"))
    assert trial_config(pruned, {}, 0).training.validate_every == 1
    unpruned = replace(pruned, evolution=EvolutionConfig(epochs=5))
    assert trial_config(unpruned, {}, 0).training.validate_every == trial_config(unpruned, {}, 0).training.epochs == 5


def test_pruned_trials_are_counted_and_are_no_parents(few, recipe, tmp_path):
    """The first five trials are made up and perfect from their first epoch on: every real one is pruned."""
    training = replace(recipe.training, epochs=2)
    patient = replace(recipe, training=training, evolution=replace(recipe.evolution, pruner="median"))
    search = search_in(tmp_path / "p", few, patient, trials=7)
    search.folder.mkdir()
    study = optuna.create_study(
        storage=open_storage(search),
        study_name="p",
        direction="maximize",
        sampler=make_sampler(search, 0),
        pruner=make_pruner(patient),
    )
    uniform: dict[str, Any] = dict.fromkeys(NAMES, FloatDistribution(0.0, 1.0))
    for number in range(5):
        weights = dict.fromkeys(NAMES, (number + 1) / 6)
        perfect = create_trial(value=1.0, intermediate_values={1: 1.0, 2: 1.0}, params=weights, distributions=uniform)
        study.add_trial(perfect)
    run_trials(search, study, 7)
    trials = study.get_trials()
    assert [trial.state for trial in trials[5:]] == [TrialState.PRUNED] * 2
    found = evolution.results_of(search, study, None)
    assert (found.trials, found.pruned) == (7, 2)
    assert {trial.user_attrs["parent"] for trial in trials[5:]} <= set(range(5))


def test_a_search_whose_trials_all_diverge_fails(few, recipe, tmp_path, without_processes):
    wild = replace(recipe, training=replace(recipe.training, lr=1e30, optimizer="sgd", clip_norm=0.0, epochs=4))
    with pytest.raises(FloatingPointError, match=r"2 trials diverged.*--training\.lr"):
        evolve(search_in(tmp_path / "w", few, wild, trials=2), workers=1, console=QUIET)
    assert [trial.state for trial in trials_of(tmp_path / "w")] == [TrialState.FAIL] * 2
    assert results(tmp_path / "w")["diverged"] == 2


def test_a_search_that_cannot_run_is_refused_before_anything_is_written(few, recipe, tmp_path):
    lone = replace(recipe, model=replace(recipe.model, streams=["rgb"]))
    with pytest.raises(InputError, match=r"model\.streams"):
        evolve(search_in(tmp_path / "x", few, lone, trials=2), workers=1, console=QUIET)
    with pytest.raises(InputError, match="--labels LABELS"):
        evolve(search_in(tmp_path / "x", replace(few, label_store=None), recipe, trials=2), 1, QUIET)
    absent = replace(recipe, data=replace(recipe.data, segment_classes=["dog"]))
    with pytest.raises(InputError, match=r"segment_classes: .*dog"):
        evolve(search_in(tmp_path / "x", few, absent, trials=2), workers=1, console=QUIET)
    assert not (tmp_path / "x").exists()


def test_workers_that_begin_at_once_never_take_the_same_trial(few, recipe, tmp_path):
    search, waiting = search_in(tmp_path, few, recipe, trials=40), 40
    study = optuna.create_study(storage=open_storage(search), study_name="queue")
    for _ in range(waiting):
        study.enqueue_trial({})
    taken, together = CONTEXT.Queue(), CONTEXT.Barrier(3)
    processes = [CONTEXT.Process(target=take_all, args=(search, taken, together)) for _ in range(3)]
    for process in processes:
        process.start()
    numbers: list[int] = []
    ended = 0
    while ended < len(processes):
        number = taken.get(timeout=120)
        ended, numbers = (ended + 1, numbers) if number is None else (ended, [*numbers, number])
    for process in processes:
        process.join()
    assert len(numbers) == len(set(numbers))
    assert set(range(waiting)) <= set(numbers)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")
def test_two_workers_finish_their_trials_on_one_card(few, recipe, tmp_path):
    on_a_card = replace(recipe, training=replace(recipe.training, device="cuda"))
    found = evolve(search_in(tmp_path / "c", few, on_a_card, trials=4), workers=2, console=QUIET)
    assert (found.trials, found.diverged) == (4, 0)
    records = [json.loads(file.read_text().splitlines()[-1]) for file in (tmp_path / "c").rglob("metrics.jsonl")]
    assert len(records) == 4 + 3 * recipe.evolution.fresh_seeds
    assert {record["train"]["hardware"] for record in records} == {torch.cuda.get_device_name(0)}


def test_an_error_of_a_worker_reaches_the_caller(few, recipe, tmp_path):
    unreadable = [replace(video, path=tmp_path / video.name) for video in few.videos]
    with pytest.raises(InputError, match="training video"):
        evolve(search_in(tmp_path / "e", replace(few, videos=tuple(unreadable)), recipe, trials=2), 1, QUIET)


def test_weights_from_a_study(study):
    found = results(study)["top"]
    assert weights_from(study, 1, NAMES) == found[0]["weights"]
    assert weights_from(study, 3, ["rgb", "merged"]) == {
        name: pytest.approx(sum(row["weights"][name] for row in found[:3]) / 3) for name in ("rgb", "merged")
    }
    with pytest.raises(InputError, match="--top 7"):
        weights_from(study, 7, NAMES)
    with pytest.raises(InputError, match=r"results\.json"):
        weights_from(study / "trials", 1, NAMES)
    with pytest.raises(InputError, match=r"--weights-from .*depth"):
        weights_from(study, 1, ["rgb", "depth"])


def test_a_request_to_stop_between_two_trials_ends_the_worker(few, recipe, tmp_path):
    search = search_in(tmp_path / "more", few, recipe, trials=6)
    search.folder.mkdir()
    fresh = optuna.create_study(storage=open_storage(search), study_name="more", direction="maximize")
    asked_to_stop.set()
    with pytest.raises(KeyboardInterrupt):
        run_trials(search, fresh, 6)
    assert fresh.get_trials() == []


def test_the_command_evolves_and_training_takes_its_weights(study, few_videos, recipe, tmp_path, capsys):
    """The study is finished: the command only reads it."""
    save_config(recipe, tmp_path / "recipe.yaml")
    data = [
        str(few_videos / "videos"),
        "--labels",
        str(few_videos / "labels"),
        "--config",
        str(tmp_path / "recipe.yaml"),
    ]
    study = shutil.copytree(study, tmp_path / "lr=1?50%25" / "six")
    call = ["evolve", *data, "--out", str(study), "--trials", "6"]
    assert main([*call, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == results(study)
    assert found["trials"] == 6
    assert set(found["best"]["weights"]) == set(NAMES)
    assert set(found["references"]) == {"fixed", "uniform"}
    assert all((study / name).read_bytes().startswith(b"\x89PNG") for name in ("weights.png", "search.png"))
    # The scores of trainings of one epoch, on four videos, cannot be told apart.
    assert (found["distinguishable"], found["reason"]) in ((False, "chance"), (False, "noise"))
    assert found["baseline"] == 0.25
    assert main(call) == 0
    printed = capsys.readouterr().out
    assert "evolved" in printed
    assert "No weights are best" in printed

    run = tmp_path / "run"
    assert main(["train", *data, "--out", str(run), "--weights-from", str(study), "--top", "2"]) == 0
    assert f"warning: {study}: " in capsys.readouterr().err
    used = load_config(run / "config.yaml").active_loss_weights()
    assert used == {name: pytest.approx(sum(row["weights"][name] for row in found["top"][:2]) / 2) for name in NAMES}
    assert main([*call, "--trials", "0"]) == 2
    capsys.readouterr()
    assert main([*call, "--sampler", "tpe"]) == 2
    assert "sampler" in capsys.readouterr().err
    assert main(["evolve", *data, "--out", str(tmp_path / "n"), "--storage", "nosuchsql://x"]) == 2
    assert main(["evolve", *data, "--out", str(tmp_path / "n"), "--storage", "postgresql://u@127.0.0.1:1/x"]) == 2
    assert "--storage" in capsys.readouterr().err


def start(folder, few, recipe, trials, workers, **keys):
    """A search in a process group of its own. A death is noticed soon if the heartbeat comes every few seconds."""
    recipe = replace(recipe, evolution=replace(recipe.evolution, fresh_seeds=1))  # other tests look at the comparison
    search = search_in(folder, few, recipe, trials=trials, **{"heartbeat": 3, **keys})
    output = folder.parent / f"output-{uuid4()}.txt"
    return Call(run_search, search, workers, output=output, new_group=True)


def continue_here(folder, few, recipe):
    """Do what is left of a search of one trial, as a worker does it, in this process."""
    recipe = replace(recipe, evolution=replace(recipe.evolution, fresh_seeds=1))  # as in `start`
    run_worker(search_in(folder, few, recipe, trials=1, heartbeat=1), folder.name, trials=1, number=0, workers=1)


def end_after_its_trials(process, folder, trials):
    """Kill a search before the comparison with fresh seeds, which is not tested here; returns what it printed."""

    def all_done():
        assert process.poll() is None, process.output.read_text()
        return sum(trial.state == TrialState.COMPLETE for trial in trials_of(folder)) == trials

    wait_for(all_done, 240, pause=0.5)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return process.output.read_text()


def lines_of(run):
    path = run / "metrics.jsonl"
    return path.read_text().splitlines(keepends=True) if path.exists() else []


def newest_step(run):
    return max((int(path.stem[5:]) for path in run.glob("state/step-*.pt")), default=0)


def wait_for(condition, seconds=120, pause=0.05):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(pause)
    return found


def workers_of(process):
    return psutil.Process(process.pid).children()


def assert_none_lost_or_counted_twice(trials, expected):
    """Each trial that failed is repeated once, with the same weights, and the last repetition is complete."""
    attempts: dict[int, Any] = {}
    for trial in trials:
        if trial.state == TrialState.FAIL and not trial.params:
            continue  # surplus: two workers took the last trial at once, and this one drew no weights
        assert trial.state in (TrialState.COMPLETE, TrialState.FAIL)
        attempts.setdefault(trial.system_attrs.get("failed_trial", trial.number), []).append(trial)
    assert len(attempts) == expected
    for chain in attempts.values():
        assert [trial.state for trial in chain] == [TrialState.FAIL] * (len(chain) - 1) + [TrialState.COMPLETE]
        assert all(trial.params.items() <= chain[-1].params.items() for trial in chain)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill a process outright")
def test_a_killed_search_continues_and_resumes_its_training(few, recipe, tmp_path):
    longer = replace(recipe, training=replace(recipe.training, epochs=4, save_every=2))
    folder = tmp_path / "killed"
    first = start(folder, few, longer, trials=1, workers=1)
    wait_for(lambda: newest_step(folder / "trials/0000") >= 4)  # an epoch has three steps
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    written = lines_of(folder / "trials/0000")
    continue_here(folder, few, longer)
    trials = trials_of(folder)
    assert_none_lost_or_counted_twice(trials, 1)
    assert trials[0].state == TrialState.FAIL
    assert not (folder / "trials/0000").exists()
    found = lines_of(folder / f"trials/{trials[-1].number:04d}")
    assert found[0] == written[0]  # the first epoch, with its seconds: it was not trained again
    assert [line["epoch"] for line in map(json.loads, found) if "train" in line] == [1, 2, 3, 4]


@pytest.mark.skipif(not hasattr(signal, "SIGTERM"), reason="this system has no SIGTERM")
def test_a_stopped_search_continues(few, recipe, tmp_path):
    longer = replace(recipe, training=replace(recipe.training, epochs=12), data=replace(recipe.data, workers=1))
    folder = tmp_path / "stopped"
    first = start(folder, few, longer, trials=1, workers=1)
    wait_for(lambda: lines_of(folder / "trials/0000"))
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) != 0
    assert newest_step(folder / "trials/0000") >= 3
    written = lines_of(folder / "trials/0000")
    continue_here(folder, few, longer)
    trials = trials_of(folder)
    assert_none_lost_or_counted_twice(trials, 1)
    assert lines_of(folder / f"trials/{trials[-1].number:04d}")[: len(written)] == written


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="this system cannot suspend a process")
def test_a_suspended_worker_gives_its_trial_up(few, recipe, tmp_path):
    longer = replace(recipe, training=replace(recipe.training, epochs=4, save_every=2))
    folder = tmp_path / "suspended"
    search = start(folder, few, longer, trials=2, workers=2, heartbeat=2)
    (suspended,) = wait_for(lambda: [each for each in workers_of(search) if writes_in(each, folder / "trials/0000")])
    suspended.suspend()
    while is_locked(folder / "study.db"):  # by the suspended worker: nobody else could write
        suspended.resume()
        time.sleep(0.02)
        suspended.suspend()
    try:
        wait_for(lambda: trials_of(folder)[0].state == TrialState.FAIL, pause=0.5)  # a look takes long itself
        wait_for(lambda: not (folder / "trials/0000").exists())
    finally:
        suspended.resume()
    assert "died" not in end_after_its_trials(search, folder, 2)
    assert_none_lost_or_counted_twice(trials_of(folder), 2)
    assert not (folder / "trials/0000").exists()


def is_locked(database):
    with closing(sqlite3.connect(database, timeout=1, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
    return False


def writes_in(process, folder):
    """Whether a process has a file of this folder open."""
    return any(Path(file.path).is_relative_to(folder) for file in process.open_files())


@pytest.fixture(scope="module")
def postgresql():
    """A real server on the loopback address, with its data in a temporary folder. Root runs it as nobody."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))  # Debian's
    if not programs:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        nobody = pwd.getpwnam("nobody")
        user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # pytest's own folder is closed to other users.
    folder = Path(subprocess.check_output(["mktemp", "-d"], text=True, **user).strip())
    try:
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
        run: dict[str, Any] = {"check": True, "env": environment, "cwd": folder, "stdout": subprocess.DEVNULL, **user}
        subprocess.run([f"{programs[-1]}/initdb", "-D", f"{folder}/data", "-A", "trust", "-U", "evolver"], **run)
        options = f"-c listen_addresses=127.0.0.1 -p {port} -c unix_socket_directories={folder} -c fsync=off"
        control = [f"{programs[-1]}/pg_ctl", "-D", f"{folder}/data", "-w"]
        subprocess.run([*control, "-o", options, "-l", f"{folder}/log", "start"], **run)
        try:
            yield f"postgresql://evolver@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], **run)
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_workers_can_begin_with_one_empty_database_at_once(kind, request, few, recipe, tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    if kind == "postgresql":
        server = request.getfixturevalue(kind).rpartition("/")[0]
        engine = create_engine(f"{server.replace('://', '+pg8000://')}/postgres", isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql("CREATE DATABASE fresh")
        url = f"{server}/fresh"
    workers = 8
    at_once = threading.Barrier(workers)

    def begin(number):
        search = Search(few, recipe, tmp_path / "many", url, trials=1)
        at_once.wait()
        return optuna.create_study(storage=open_storage(search), study_name="many", load_if_exists=True).study_name

    with ThreadPoolExecutor(workers) as pool:
        assert list(pool.map(begin, range(workers))) == ["many"] * workers


def test_four_workers_on_postgresql_survive_two_kills(postgresql, few, recipe, tmp_path):
    trials, folder = 4, tmp_path / "many"
    longer = replace(recipe, training=replace(recipe.training, epochs=2, save_every=2))
    machines = [start(folder, few, longer, trials, workers=2, url=postgresql) for _ in range(2)]

    def training_worker(machine):
        assert machine.poll() is None, machine.output.read_text()
        return next((each for each in workers_of(machine) if writes_in(each, folder / "trials")), None)

    for machine in machines:
        wait_for(lambda machine=machine: training_worker(machine)).kill()
    for machine in machines:
        machine.finish(timeout=400)
    pool = optuna.storages.RDBStorage(postgresql.replace("://", "+pg8000://"))
    done = optuna.load_study(storage=pool, study_name="many").get_trials()
    assert_none_lost_or_counted_twice(done, trials)
    died = [trial for trial in done if trial.state == TrialState.FAIL and trial.params]
    assert 1 <= len(died) <= 2  # the second one may have completed its trial just before it was killed
    found = results(folder)
    assert found["trials"] == trials
    comparison = optuna.load_study(storage=pool, study_name=f"many-winner-{found['best']['trial']}").get_trials()
    assert_none_lost_or_counted_twice(comparison, 3)


def test_the_fixed_weights_are_those_of_the_paper():
    fixed = {"rgb": 1.0, "flow": 0.0, "semantic": 0.0, "merged": 1.0, "interm": 1.0}
    assert Config().active_loss_weights() == fixed
    assert evolution.references([*fixed, "rgb2"])["fixed"] == {**fixed, "rgb2": 0.0}


def test_a_trial_weighs_custom_streams_too():
    config = Config(model=ModelConfig(streams=["rgb", "rgb2"]), loss_weights=LossWeights(flow=0.5))
    drawn = {"rgb": 0.25, "rgb2": 0.75, "merged": 0.125}
    assert trial_config(config, drawn, seed=0).active_loss_weights() == drawn
    assert trial_config(config, drawn, seed=0).loss_weights.flow == 0.5
    assert evolution.references(list(drawn))["uniform"] == {"rgb": 1.0, "rgb2": 1.0, "merged": 1.0}
