"""The options of a search against luck: several seeds, a share of the videos, a start, halving. No model is trained."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from rich.console import Console

from airstreams.config import EvolutionConfig, LossWeights
from airstreams.data.listing import Source, Video
from airstreams.errors import InputError
from airstreams.experiments import trials as worker_code
from airstreams.experiments.evolve import evolve
from airstreams.experiments.search import Search
from airstreams.experiments.study import read_results
from airstreams.experiments.trials import make_pruner, trial_source
from airstreams.runs.metrics_log import EpochRecord

QUIET = Console(quiet=True)


@pytest.fixture
def begun(monkeypatch, without_processes):
    """Lets trainings take no time. What they began with: config, source, folder and start."""
    trainings = []

    def train(source, config, run, resume, console, init, after_epoch, after_step):
        trainings.append((config, source, run, init))
        run.mkdir(parents=True)
        (run / "model.safetensors").write_bytes(b"")
        score = min(1.0, config.loss_weights.merged / 2 + config.seed / 100)
        record = EpochRecord(config.training.epochs, 1, {}, {"top1": score})
        after_epoch(record)
        after_step(1, 1)
        return record

    monkeypatch.setattr(worker_code, "train", train)
    return trainings


def search_in(folder, few, recipe, trials=2, init=None, **evolution):
    recipe = replace(recipe, evolution=replace(recipe.evolution, fresh_seeds=1, **evolution))
    return Search(few, recipe, folder, f"sqlite:///{folder / 'study.db'}", trials, init=init)


def test_the_score_of_a_trial_is_the_mean_over_its_seeds(few, recipe, tmp_path, begun):
    found = evolve(search_in(tmp_path / "s", few, recipe, seeds_per_trial=3), 1, QUIET)
    assert [len(values) for values in found.by_seed] == [3, 3]
    for (number, value), by_seed in zip(found.values, found.by_seed, strict=True):
        assert value == pytest.approx(sum(by_seed) / 3)
        assert by_seed[2] - by_seed[0] == pytest.approx(0.02)
        folder = tmp_path / "s/trials" / f"{number:04d}"
        configs = {run: config for config, _, run, _ in begun if run.is_relative_to(folder)}
        assert {run: config.seed for run, config in configs.items()} == {
            folder: 5,
            folder / "seed-6": 6,
            folder / "seed-7": 7,
        }
        assert len({str(config.loss_weights) for config in configs.values()}) == 1
    assert len({source.split("val") for _, source, run, _ in begun if "trials" in run.parts}) == 1
    assert {config.seed for config, _, run, _ in begun if "trials" not in run.parts} == {8}  # no seed of a trial
    assert not list((tmp_path / "s").rglob("model.safetensors"))
    assert read_results(tmp_path / "s") == found
    assert optuna.load_study(storage=f"sqlite:///{tmp_path}/s/study.db", study_name="s").trials[0].user_attrs[
        "values"
    ] == pytest.approx(found.by_seed[0])


def test_trials_train_on_a_share_of_the_videos_in_whole_groups(recipe):
    names = [(label, f"{label}{number:02d}") for label in "ab" for number in range(40)]
    videos = tuple(Video(Path(name), name, (label,), "train", group=name[:-1]) for label, name in names)  # tens
    source = Source("made up", ("a", "b"), tuple(replace(video, group=None) for video in videos))
    whole, half = (replace(recipe, evolution=EvolutionConfig(held_out=0.25, videos=share)) for share in (1.0, 0.5))
    part = trial_source(source, half)
    assert part.split("val") == trial_source(source, whole).split("val")
    assert set(part.split("train")) < set(trial_source(source, whole).split("train"))
    assert Counter(video.labels for video in part.split("train")) == {("a",): 15, ("b",): 15}
    assert part == trial_source(source, replace(half, loss_weights=LossWeights(rgb=0.1)))
    assert part.split("train") != trial_source(source, replace(half, seed=6)).split("train")
    grouped = trial_source(replace(source, videos=videos), half)
    assert len(grouped.split("train")) in (20, 30, 40)
    assert set(Counter(video.group for video in grouped.split("train")).values()) == {10}


def test_each_training_of_a_search_starts_from_init(few, recipe, trained, tmp_path, begun, capsys):
    search = search_in(tmp_path / "s", few, recipe, trials=1, init=str(trained))
    assert evolve(search, 1, Console(stderr=True)).init == str(trained)
    assert len(begun) == 4
    assert {init.given for *_, init in begun} == {str(trained)}
    assert "was trained on" in " ".join(capsys.readouterr().err.split())  # the names of its videos are the same
    with pytest.raises(InputError, match="another init"):
        evolve(replace(search, init=None), 1, QUIET)


def test_a_study_of_an_earlier_version_goes_on_without_init(few, recipe, trained, tmp_path, begun):
    search = search_in(tmp_path / "s", few, recipe, trials=1)
    evolve(search, 1, QUIET)
    old = optuna.load_study(storage=search.url, study_name="s")
    settings = old.user_attrs["settings"]
    del settings["init"], settings["evolution"]["seeds_per_trial"], settings["evolution"]["videos"]
    old.set_user_attr("settings", settings)
    content = json.loads((tmp_path / "s/results.json").read_text())
    del content["init"], content["by_seed"]
    (tmp_path / "s/results.json").write_text(json.dumps(content))
    assert (read_results(tmp_path / "s").init, read_results(tmp_path / "s").by_seed) == (None, [])
    with pytest.raises(InputError, match="another init"):
        evolve(replace(search, init=str(trained)), 1, QUIET)
    assert evolve(search, 1, QUIET).trials == 1


def test_halving_stops_half_at_a_quarter_and_half_of_the_rest_at_half_of_a_trial(recipe):
    epochs, trials = 8, 400
    config = replace(recipe, evolution=EvolutionConfig(pruner="halving", epochs=epochs))
    study = optuna.create_study(direction="maximize", pruner=make_pruner(config))
    sampler = optuna.samplers.RandomSampler(seed=0)
    study.sampler = sampler

    def objective(trial):
        score = trial.suggest_float("score", 0, 1)
        for epoch in range(1, epochs):
            trial.report(score, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return score

    study.optimize(objective, n_trials=trials)
    stopped = Counter(max(trial.intermediate_values) for trial in study.trials if trial.state == TrialState.PRUNED)
    assert set(stopped) == {2, 4}
    assert 0.4 < stopped[2] / trials < 0.6
    assert 0.4 < stopped[4] / (trials - stopped[2]) < 0.6
    assert study.best_value == max(trial.params["score"] for trial in study.trials)


@pytest.mark.parametrize(
    ("key", "value"), [("seeds_per_trial", 0), ("videos", 0.0), ("videos", 1.5)], ids=lambda value: str(value)
)
def test_values_out_of_range_are_refused(key, value):
    with pytest.raises(InputError, match=rf"evolution\.{key}"):
        EvolutionConfig(**{key: value})
