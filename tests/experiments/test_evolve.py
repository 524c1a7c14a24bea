"""Searches that really train: on SQLite in this process, and on a real PostgreSQL with workers that are killed."""

import io
import json
import multiprocessing
import os
import pwd
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import torch
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial
from rich.console import Console
from sqlalchemy import create_engine

import airstreams
from airstreams.cli import main
from airstreams.config import Config, EvolutionConfig, LossWeights, ModelConfig
from airstreams.errors import InputError, Stopped
from airstreams.experiments import evolve as evolution
from airstreams.experiments import trials as worker
from airstreams.experiments.evolve import evolve
from airstreams.experiments.search import Search, open_storage
from airstreams.experiments.study import weights_from
from airstreams.experiments.trials import scored_source, trial_config
from airstreams.recipe import load_config, save_config
from airstreams.training.signals import asked_to_stop

QUIET = Console(quiet=True)
NAMES = ["rgb", "flow", "semantic", "merged", "interm"]


@pytest.fixture(scope="module")
def recipe(tiny):
    return replace(
        tiny,
        training=replace(tiny.training, epochs=1),
        evaluation=replace(tiny.evaluation, views=1),
        evolution=EvolutionConfig(population_size=3, tournament_size=2, held_out=0.3, fresh_seeds=2),
    )


@pytest.fixture(scope="module")
def study(source, recipe, tmp_path_factory):
    """A finished search of six trials by two workers."""
    folder = tmp_path_factory.mktemp("studies") / "six"
    evolve(search_in(folder, source, recipe, trials=6), workers=2, console=QUIET)
    return folder


def search_in(folder, source, recipe, **keys):
    return Search(source, recipe, folder, f"sqlite:///{folder / 'study.db'}", **keys)


def trials_of(folder, name=None):
    return optuna.load_study(storage=f"sqlite:///{folder / 'study.db'}", study_name=name or folder.name).get_trials()


def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_every_trial_is_a_training_with_the_weights_that_were_drawn(study, recipe):
    trials = trials_of(study)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 6
    for trial in trials:
        config = load_config(study / "trials" / f"{trial.number:04d}" / "config.yaml")
        assert config.active_loss_weights() == trial.params  # as drawn: no normalisation
        assert sorted(trial.params) == sorted(NAMES)
        assert all(0 <= weight <= 1 for weight in trial.params.values())
        assert trial.user_attrs["sum"] == pytest.approx(sum(trial.params.values()))
        assert config.seed == recipe.seed


def test_children_differ_from_their_parent_in_one_weight(study):
    trials = trials_of(study)
    children = [trial for trial in trials if "parent" in trial.user_attrs]
    assert {trial.number for trial in children} >= {4, 5}  # two workers: trial 3 may begin before any has finished
    for child in children:
        parent = trials[child.user_attrs["parent"]]
        assert sum(child.params[name] != parent.params[name] for name in NAMES) == 1


def test_results_say_what_the_storage_holds(study):
    found, trials = results(study), trials_of(study)
    best = max(trials, key=lambda trial: (trial.value, -trial.number))
    assert found["trials"] == 6
    assert (found["best"]["trial"], found["best"]["value"], found["best"]["weights"]) == (
        best.number, best.value, best.params,
    )  # fmt: skip
    assert sorted(found["values"]) == [[trial.number, trial.value] for trial in trials]
    assert [row["value"] for row in found["top"]] == sorted((trial.value for trial in trials), reverse=True)


def test_the_winner_and_the_references_are_compared_with_fresh_seeds(study, recipe):
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


def test_a_training_with_a_fresh_seed_that_failed_is_done_again(study, source, recipe, tmp_path):
    folder = shutil.copytree(study, tmp_path / "six")
    name = f"winner-{results(study)['best']['trial']}"
    with closing(sqlite3.connect(folder / "study.db")) as storage, storage:
        storage.execute(
            "UPDATE trials SET state = 'FAIL' WHERE number = 3 AND study_id ="
            f" (SELECT study_id FROM studies WHERE study_name = 'six-{name}')"
        )
    (folder / name / "0006").write_text("in the way of the next try")
    said = io.StringIO()
    found = evolve(search_in(folder, source, recipe, trials=6), workers=2, console=Console(file=said, width=500))
    assert f"1 of 2 workers died ({folder / name / '0006'}: there is another training in it" in said.getvalue()
    again = [trial for trial in trials_of(folder, f"six-{name}")[6:] if "weighting" in trial.user_attrs]
    assert [trial.state for trial in again] == [TrialState.FAIL, TrialState.COMPLETE]
    assert [len(row["values"]) for row in (found["best"]["fresh"], *found["references"].values())] == [2, 2, 2]


def test_a_fresh_training_that_diverged_keeps_its_place_and_leaves_no_mean(source, recipe, tmp_path):
    weights = dict.fromkeys(NAMES, 0.5)
    given: dict[str, Any] = {"params": weights, "distributions": dict.fromkeys(NAMES, FloatDistribution(0, 1))}
    search, finals = optuna.create_study(direction="maximize"), optuna.create_study(direction="maximize")
    search.add_trial(create_trial(value=0.3, **given))
    for name, seed, value in (("evolved", 3, 0.4), ("evolved", 2, None), ("fixed", 2, 0.2), ("fixed", 3, 0.4)):
        told: dict[str, Any] = {"weighting": name, "seed": seed} | ({"diverged": "nan"} if value is None else {})
        state = TrialState.FAIL if value is None else TrialState.COMPLETE
        finals.add_trial(create_trial(state=state, value=value, user_attrs=told, **given))
    found = evolution.results_of(search_in(tmp_path, source, recipe, trials=1), search, finals)
    assert found["best"]["fresh"] == {"weights": weights, "values": [None, 0.4], "mean": None}
    assert found["references"]["fixed"] == {"weights": weights, "values": [0.2, 0.4], "mean": pytest.approx(0.3)}


def test_no_weights_are_kept_of_a_trial(study):
    assert not list(study.rglob("*.safetensors"))
    assert not list(study.rglob("state"))
    assert len(list(study.rglob("metrics.jsonl"))) == 12


def test_a_finished_search_is_only_read_and_a_longer_one_goes_on(study, source, recipe, tmp_path):
    folder = tmp_path / "six"
    shutil.copytree(study, folder)
    before = trials_of(folder)
    evolve(search_in(folder, source, recipe, trials=6), workers=1, console=QUIET)
    assert trials_of(folder) == before
    evolve(search_in(folder, source, recipe, trials=7), workers=1, console=QUIET)
    after = trials_of(folder)
    assert after[:6] == before
    assert len(after) == 7


def test_another_recipe_in_the_same_study_is_refused(study, source, recipe, tmp_path):
    study = shutil.copytree(study, tmp_path / "six")
    other = replace(recipe, training=replace(recipe.training, lr=0.5))
    with pytest.raises(InputError, match="begun with another training"):
        evolve(search_in(study, source, other, trials=6), workers=1, console=QUIET)
    fewer = replace(source, videos=source.videos[:-1])  # the names of training videos come last
    with pytest.raises(InputError, match="begun with another videos"):
        evolve(search_in(study, fewer, recipe, trials=6), workers=1, console=QUIET)
    groups = {video.name: f"group {place // 3}" for place, video in enumerate(source.split("train"))}
    grouped = replace(source, videos=tuple(replace(video, group=groups.get(video.name)) for video in source.videos))
    with pytest.raises(InputError, match="begun with another held-out videos"):
        evolve(search_in(study, grouped, recipe, trials=6), workers=1, console=QUIET)
    elsewhere = replace(recipe, data=replace(recipe.data, workers=1))  # where and how it runs may differ
    evolve(search_in(study, source, elsewhere, trials=6), workers=1, console=QUIET)


def test_a_study_whose_folder_was_renamed_is_not_begun_anew(study, source, recipe, tmp_path):
    shutil.copytree(study, tmp_path / "other")
    with pytest.raises(InputError, match="does not know by the name of other; call the folder what it was called"):
        evolve(search_in(tmp_path / "other", source, recipe, trials=6), workers=1, console=QUIET)
    assert results(tmp_path / "other") == results(study)


def test_a_study_of_before_a_key_was_there_goes_on(study, source, recipe, tmp_path):
    shutil.copytree(study, tmp_path / "six")
    search = search_in(tmp_path / "six", source, recipe, trials=6)
    old = optuna.load_study(storage=search.url, study_name="six")
    settings = old.user_attrs["settings"]
    del settings["model"]["merge_levels"], settings["loss_weights"]["custom"]
    old.set_user_attr("settings", settings)
    assert evolve(search, workers=1, console=QUIET)["trials"] == 6


@pytest.mark.parametrize("ends_by", [Stopped("asked"), OSError("its folder is gone"), None], ids=str)
def test_a_lost_trial_ends_its_worker_only_when_that_was_asked_to_stop(source, recipe, tmp_path, monkeypatch, ends_by):
    search = search_in(tmp_path / "s", source, recipe, trials=2)
    search.folder.mkdir()
    study = optuna.create_study(storage=open_storage(search), study_name="s", direction="maximize")
    taken = []

    def run_trial(search, study, trial):
        taken.append(trial.number)
        if trial.number == 0:  # somebody takes this worker for dead
            study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            worker._do_again(study, trial)
            if ends_by is not None:
                raise ends_by
        return 0.5

    monkeypatch.setattr(worker, "run_trial", run_trial)
    if isinstance(ends_by, Stopped):
        with pytest.raises(Stopped):
            worker._work_off(search, study, 2)
        assert taken == [0]
    else:
        worker._work_off(search, study, 2)
        assert taken == [0, 1, 2]


def test_one_worker_with_a_seed_draws_the_same_again(source, recipe, tmp_path):
    alone = []
    for name in ("a", "b"):
        search = search_in(tmp_path / name, source, recipe, trials=5)
        search.folder.mkdir()
        sampler = worker.make_sampler(search, 0)
        study = optuna.create_study(
            storage=open_storage(search), study_name=name, direction="maximize", sampler=sampler
        )
        worker._work_off(search, study, 5)
        alone.append([(trial.params, trial.value) for trial in study.get_trials()])
    assert len(alone[0]) == 5
    assert alone[0] == alone[1]


def test_trials_are_scored_on_training_videos_alone_kept_apart_by_group(source, recipe):
    pairs = {video.name: f"pair {number // 2}" for number, video in enumerate(source.split("train"))}
    grouped = replace(source, videos=tuple(replace(v, group=pairs.get(v.name)) for v in source.videos))
    scored = scored_source(grouped, recipe)
    assert {video.name for video in scored.videos} == set(pairs)
    splits: dict[str | None, Any] = {}
    for video in scored.videos:
        splits.setdefault(video.group, set()).add(video.split)
    assert all(len(split) == 1 for split in splits.values())
    held_out = [video for video in scored.videos if video.split == "val"]
    assert 0.15 <= len(held_out) / len(scored.videos) <= 0.45
    other_seed = scored_source(grouped, replace(recipe, seed=1))
    assert {v.name for v in other_seed.split("val")} != {v.name for v in held_out}


def test_a_pruner_hears_of_every_epoch(recipe):
    pruned = replace(recipe, training=replace(recipe.training, epochs=7), evolution=EvolutionConfig(pruner="median"))
    assert trial_config(pruned, {}, 0).training.validate_every == 1
    unpruned = replace(pruned, evolution=EvolutionConfig(epochs=5))
    assert trial_config(unpruned, {}, 0).training.validate_every == trial_config(unpruned, {}, 0).training.epochs == 5


def test_pruned_trials_count_and_are_no_parents(source, recipe, tmp_path):
    """After five trials that were perfect from their first epoch on, which every real one falls behind."""
    training = replace(recipe.training, epochs=2)
    patient = replace(recipe, training=training, evolution=replace(recipe.evolution, pruner="median"))
    search = search_in(tmp_path / "p", source, patient, trials=7)
    search.folder.mkdir()
    study = optuna.create_study(
        storage=open_storage(search),
        study_name="p",
        direction="maximize",
        sampler=worker.make_sampler(search, 0),
        pruner=worker.make_pruner(patient),
    )
    uniform: dict[str, Any] = dict.fromkeys(NAMES, FloatDistribution(0.0, 1.0))
    for number in range(5):
        weights = dict.fromkeys(NAMES, (number + 1) / 6)
        perfect = create_trial(value=1.0, intermediate_values={1: 1.0, 2: 1.0}, params=weights, distributions=uniform)
        study.add_trial(perfect)
    worker._work_off(search, study, 7)
    trials = study.get_trials()
    assert [trial.state for trial in trials[5:]] == [TrialState.PRUNED] * 2
    found = evolution.results_of(search, study, None)
    assert (found["trials"], found["pruned"]) == (7, 2)
    assert {trial.user_attrs["parent"] for trial in trials[5:]} <= set(range(5))


def test_a_search_whose_trials_all_diverge_says_so(source, recipe, tmp_path):
    # A learning rate at which every training diverges, so that nothing but the search itself is left to look at.
    wild = replace(recipe, training=replace(recipe.training, lr=1e30, optimizer="sgd", clip_norm=0.0, epochs=4))
    with pytest.raises(FloatingPointError, match="all 2 trials diverged"):
        evolve(search_in(tmp_path / "w", source, wild, trials=2), workers=1, console=QUIET)
    assert [trial.state for trial in trials_of(tmp_path / "w")] == [TrialState.FAIL] * 2
    assert results(tmp_path / "w")["diverged"] == 2


def test_what_cannot_be_evolved_is_refused_before_anything_is_written(source, recipe, tmp_path):
    lone = replace(recipe, model=replace(recipe.model, streams=["rgb"]))
    with pytest.raises(InputError, match="two or more streams"):
        evolve(search_in(tmp_path / "x", source, lone, trials=2), workers=1, console=QUIET)
    with pytest.raises(InputError, match="no label maps"):
        evolve(search_in(tmp_path / "x", replace(source, label_store=None), recipe, trials=2), 1, QUIET)
    absent = replace(recipe, data=replace(recipe.data, segment_classes=["dog"]))
    with pytest.raises(InputError, match="segment_classes: got dog"):
        evolve(search_in(tmp_path / "x", source, absent, trials=2), workers=1, console=QUIET)
    assert not (tmp_path / "x").exists()


def take_all(search, took, together):
    study = optuna.load_study(storage=open_storage(search), study_name="queue")
    together.wait()
    while any(trial.state == TrialState.WAITING for trial in study.get_trials(deepcopy=False)):
        took.put(study.ask().number)
    took.put(None)


def test_workers_that_begin_at_once_never_take_the_same_trial(source, recipe, tmp_path):
    search = search_in(tmp_path, source, recipe, trials=60)
    study = optuna.create_study(storage=open_storage(search), study_name="queue")
    for _ in range(60):
        study.enqueue_trial({})
    context = multiprocessing.get_context("spawn")
    took, together = context.Queue(), context.Barrier(3)
    processes = [context.Process(target=take_all, args=(search, took, together)) for _ in range(3)]
    for process in processes:
        process.start()
    numbers: list[int] = []
    ended = 0
    while ended < len(processes):
        number = took.get(timeout=120)
        ended, numbers = (ended + 1, numbers) if number is None else (ended, [*numbers, number])
    for process in processes:
        process.join()
    assert len(numbers) == len(set(numbers))
    assert set(range(60)) <= set(numbers)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")
def test_two_workers_finish_their_trials_on_one_card(source, recipe, tmp_path):
    on_a_card = replace(recipe, training=replace(recipe.training, device="cuda"))
    found = evolve(search_in(tmp_path / "c", source, on_a_card, trials=4), workers=2, console=QUIET)
    assert (found["trials"], found["diverged"]) == (4, 0)
    told = [json.loads(file.read_text().splitlines()[-1]) for file in (tmp_path / "c").rglob("metrics.jsonl")]
    assert len(told) == 4 + 3 * recipe.evolution.fresh_seeds
    assert {record["train"]["hardware"] for record in told} == {torch.cuda.get_device_name(0)}


def test_an_error_of_a_worker_reaches_the_caller(source, recipe, tmp_path):
    unreadable = [replace(video, path=tmp_path / video.name) for video in source.videos]
    with pytest.raises(InputError, match="no readable training video"):
        evolve(search_in(tmp_path / "e", replace(source, videos=tuple(unreadable)), recipe, trials=2), 1, QUIET)


def test_weights_from_a_study(study):
    found = results(study)["top"]
    assert weights_from(study, 1, NAMES) == found[0]["weights"]
    assert weights_from(study, 3, ["rgb", "merged"]) == {
        name: pytest.approx(sum(row["weights"][name] for row in found[:3]) / 3) for name in ("rgb", "merged")
    }
    with pytest.raises(InputError, match="expected 1 to 6"):
        weights_from(study, 7, NAMES)
    with pytest.raises(InputError, match="no results"):
        weights_from(study / "trials", 1, NAMES)
    with pytest.raises(InputError, match="no weight of depth"):
        weights_from(study, 1, ["rgb", "depth"])


def test_a_search_ends_where_a_request_to_stop_came_after_a_trainings_last_step(study, source, recipe, tmp_path):
    search = search_in(tmp_path / "more", source, recipe, trials=6)
    search.folder.mkdir()
    fresh = optuna.create_study(storage=open_storage(search), study_name="more", direction="maximize")
    asked_to_stop.set()
    with pytest.raises(KeyboardInterrupt):
        worker._work_off(search, fresh, 6)
    assert fresh.get_trials() == []


def test_command_line(study, synthetic, recipe, tmp_path, capsys):
    """It finds a study that is finished: the same call made it, but for the command line."""
    save_config(recipe, tmp_path / "recipe.yaml")
    data = [str(synthetic / "videos"), "--labels", str(synthetic / "labels"), "--config", str(tmp_path / "recipe.yaml")]
    study = shutil.copytree(study, tmp_path / "lr=1?50%25" / "six")
    call = ["evolve", *data, "--out", str(study), "--trials", "6"]
    assert main([*call, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == results(study)
    assert found["trials"] == 6
    assert set(found["best"]["weights"]) == set(NAMES)
    assert set(found["references"]) == {"fixed", "uniform"}
    assert all((study / name).read_bytes().startswith(b"\x89PNG") for name in ("weights.png", "search.png"))
    assert main(call) == 0
    assert "evolved" in capsys.readouterr().out

    run = tmp_path / "run"
    assert main(["train", *data, "--out", str(run), "--weights-from", str(study), "--top", "2"]) == 0
    used = load_config(run / "config.yaml").active_loss_weights()
    assert used == {name: pytest.approx(sum(row["weights"][name] for row in found["top"][:2]) / 2) for name in NAMES}
    assert main([*call, "--trials", "0"]) == 2
    capsys.readouterr()
    assert main([*call, "--sampler", "tpe"]) == 2
    assert "another sampler" in capsys.readouterr().err
    assert main(["evolve", *data, "--out", str(tmp_path / "n"), "--storage", "nosuchsql://x"]) == 2
    assert main(["evolve", *data, "--out", str(tmp_path / "n"), "--storage", "postgresql://u@127.0.0.1:1/x"]) == 2
    assert "--storage" in capsys.readouterr().err


def start(folder, synthetic, recipe, trials, workers, url=None, heartbeat=3):
    """The command in a process group of its own."""
    recipe = replace(recipe, evolution=replace(recipe.evolution, fresh_seeds=1))  # others look at the end
    folder.parent.mkdir(parents=True, exist_ok=True)
    save_config(recipe, folder.parent / "recipe.yaml")
    command = [sys.executable, "-c", RUN, str(synthetic), str(folder), str(trials), str(workers)]
    command += [url or f"sqlite:///{folder / 'study.db'}", str(folder.parent / "recipe.yaml"), str(heartbeat)]
    environment = {**os.environ, "PYTHONPATH": str(Path(airstreams.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


# Heartbeats every few seconds, so that a death is noticed soon. The command line has no key for that.
RUN = """
if __name__ == "__main__":
    import sys
    from pathlib import Path
    from rich.console import Console
    from airstreams.recipe import load_config
    from airstreams.data.sources import open_source
    from airstreams.experiments.evolve import evolve
    from airstreams.experiments.search import Search
    data, folder, trials, workers, url, recipe, heartbeat = sys.argv[1:]
    source = open_source(data + "/videos", Path(data) / "labels")
    search = Search(source, load_config(Path(recipe)), Path(folder), url, int(trials), heartbeat=int(heartbeat))
    evolve(search, int(workers), Console(stderr=True))
"""


def finish(process):
    _, said = process.communicate(timeout=400)
    assert process.returncode == 0, said
    return said


def end_after_its_trials(process, folder, budget):
    """Ends a search before the comparison with fresh seeds, which is not looked at here; returns what it said."""

    def all_done():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.3)
        return sum(trial.state == TrialState.COMPLETE for trial in trials_of(folder)) == budget

    wait_for(all_done, 240)
    os.killpg(process.pid, signal.SIGKILL)
    return process.communicate(timeout=120)[1]


def lines_of(run):
    path = run / "metrics.jsonl"
    return path.read_text().splitlines(keepends=True) if path.exists() else []


def newest_step(run):
    return max((int(path.stem[5:]) for path in run.glob("state/step-*.pt")), default=0)


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)
    return found


def workers_of(process):
    """The processes that take trials, as the one that started them sees them."""
    children = psutil.Process(process.pid).children()
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def assert_none_lost_or_counted_twice(trials, budget):
    """Each death has one new try with the same weights; what was never tried again had an end of its own."""
    tries: dict[int, Any] = {}
    for trial in trials:
        if trial.state == TrialState.FAIL and not trial.params:
            continue  # surplus: two workers took the last trial at once, and it stopped before it drew any weight
        assert trial.state in (TrialState.COMPLETE, TrialState.FAIL)
        tries.setdefault(trial.system_attrs.get("failed_trial", trial.number), []).append(trial)
    assert len(tries) == budget
    for chain in tries.values():
        assert [trial.state for trial in chain] == [TrialState.FAIL] * (len(chain) - 1) + [TrialState.COMPLETE]
        assert all(trial.params.items() <= chain[-1].params.items() for trial in chain)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill a process outright")
def test_a_search_that_was_killed_whole_goes_on_and_its_training_is_resumed(synthetic, recipe, tmp_path):
    longer = replace(recipe, training=replace(recipe.training, epochs=5, save_every=2))
    folder = tmp_path / "killed"
    first = start(folder, synthetic, longer, trials=1, workers=1)
    wait_for(lambda: newest_step(folder / "trials/0000") >= 6)  # an epoch has four steps
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    written = lines_of(folder / "trials/0000")
    end_after_its_trials(start(folder, synthetic, longer, trials=1, workers=1), folder, 1)
    trials = trials_of(folder)
    assert_none_lost_or_counted_twice(trials, 1)
    assert trials[0].state == TrialState.FAIL
    assert not (folder / "trials/0000").exists()
    found = lines_of(folder / f"trials/{trials[-1].number:04d}")
    assert found[0] == written[0]  # of the first epoch, with its seconds: it was not done again
    assert [line["epoch"] for line in map(json.loads, found) if "train" in line] == [1, 2, 3, 4, 5]


@pytest.mark.skipif(not hasattr(signal, "SIGTERM"), reason="this system has no SIGTERM")
def test_a_search_that_was_asked_to_stop_goes_on(synthetic, recipe, tmp_path):
    longer = replace(recipe, training=replace(recipe.training, epochs=5), data=replace(recipe.data, workers=1))
    folder = tmp_path / "stopped"
    first = start(folder, synthetic, longer, trials=1, workers=1)
    wait_for(lambda: lines_of(folder / "trials/0000"))
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) != 0
    assert newest_step(folder / "trials/0000") >= 4
    written = lines_of(folder / "trials/0000")
    end_after_its_trials(start(folder, synthetic, longer, trials=1, workers=1), folder, 1)
    trials = trials_of(folder)
    assert_none_lost_or_counted_twice(trials, 1)
    assert lines_of(folder / f"trials/{trials[-1].number:04d}")[: len(written)] == written


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="this system cannot hold a process up")
def test_a_worker_that_was_held_up_gives_its_trial_away(synthetic, recipe, tmp_path):
    longer = replace(recipe, training=replace(recipe.training, epochs=4, save_every=2))
    folder = tmp_path / "held"
    search = start(folder, synthetic, longer, trials=3, workers=2, heartbeat=2)
    (held,) = wait_for(lambda: [each for each in workers_of(search) if writes_in(each, folder / "trials/0000")])
    held.suspend()
    while is_locked(folder / "study.db"):  # by the worker that is held: then nobody could go on
        held.resume()
        time.sleep(0.02)
        held.suspend()
    try:
        wait_for(lambda: trials_of(folder)[0].state == TrialState.FAIL)
        wait_for(lambda: not (folder / "trials/0000").exists())
    finally:
        held.resume()
    assert "workers died" not in end_after_its_trials(search, folder, 3)
    assert_none_lost_or_counted_twice(trials_of(folder), 3)
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
    """A real server on loopback, with a data folder of its own; it runs as somebody without rights."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))  # Debian's
    if not programs:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # it refuses to run as root
        nobody = pwd.getpwnam("nobody")
        user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Not pytest's own folder, whose parents only their owner may enter.
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
def test_workers_that_begin_with_one_empty_database_at_once(kind, request, source, recipe, tmp_path):
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
        search = Search(source, recipe, tmp_path / "many", url, trials=1)
        at_once.wait()
        return optuna.create_study(storage=open_storage(search), study_name="many", load_if_exists=True).study_name

    with ThreadPoolExecutor(workers) as pool:
        assert list(pool.map(begin, range(workers))) == ["many"] * workers


def test_four_workers_on_postgresql_of_which_two_are_killed(postgresql, synthetic, recipe, tmp_path):
    trials, folder = 6, tmp_path / "many"
    longer = replace(recipe, training=replace(recipe.training, epochs=2, save_every=2))
    machines = [start(folder, synthetic, longer, trials, workers=2, url=postgresql) for _ in range(2)]
    pool = optuna.storages.RDBStorage(postgresql.replace("://", "+pg8000://"))

    def all_have_begun():
        for machine in machines:
            assert machine.poll() is None, machine.stderr.read()
        names = [summary.study_name for summary in optuna.get_all_study_summaries(pool)]
        if "many" not in names:
            return False
        begun = optuna.load_study(storage=pool, study_name="many").get_trials()
        return sum(trial.state == TrialState.RUNNING for trial in begun) >= 4

    wait_for(all_have_begun)
    for machine in machines:
        os.kill(workers_of(machine)[0].pid, signal.SIGKILL)
    for machine in machines:
        finish(machine)
    done = optuna.load_study(storage=pool, study_name="many").get_trials()
    assert_none_lost_or_counted_twice(done, trials)
    died = [trial for trial in done if trial.state == TrialState.FAIL and trial.params]
    assert 1 <= len(died) <= 2  # the second may have finished its trial in the moment before it was killed
    found = results(folder)
    assert found["trials"] == trials
    finals = optuna.load_study(storage=pool, study_name=f"many-winner-{found['best']['trial']}").get_trials()
    assert_none_lost_or_counted_twice(finals, 3)


def test_fixed_weights_are_the_papers():
    fixed = {"rgb": 1.0, "flow": 0.0, "semantic": 0.0, "merged": 1.0, "interm": 1.0}
    assert Config().active_loss_weights() == fixed
    assert evolution.references([*fixed, "rgb2"])["fixed"] == {**fixed, "rgb2": 0.0}


def test_a_trials_weights_reach_the_losses_of_further_streams_too():
    config = Config(model=ModelConfig(streams=["rgb", "rgb2"]), loss_weights=LossWeights(flow=0.5))
    drawn = {"rgb": 0.25, "rgb2": 0.75, "merged": 0.125}
    assert trial_config(config, drawn, seed=0).active_loss_weights() == drawn
    assert trial_config(config, drawn, seed=0).loss_weights.flow == 0.5
    assert evolution.references(list(drawn))["uniform"] == {"rgb": 1.0, "rgb2": 1.0, "merged": 1.0}
