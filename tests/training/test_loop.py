"""Small trainings from the data on disk to the run's files: what a user relies on."""

import copy
import io
import itertools
import json
import multiprocessing
import os
import re
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import airstreams
from airstreams.config import LossWeights, TrainingConfig
from airstreams.data import dataset
from airstreams.data.check import Checked
from airstreams.data.sources import open_source
from airstreams.errors import InputError, Stopped
from airstreams.evaluation.calibration import fit_temperature
from airstreams.evaluation.evaluate import evaluate
from airstreams.evaluation.scoring import score_videos, targets_of
from airstreams.files import write_rows
from airstreams.models.airstreams import build
from airstreams.recipe import load_config
from airstreams.runs import saved_model as saved_models
from airstreams.runs.checkpoint import load_state
from airstreams.runs.folder import RunFolder
from airstreams.runs.saved_model import KeptEpoch
from airstreams.training import loop, step
from airstreams.training.data import TrainingVideos, make_loader
from airstreams.training.learner import Learner, freeze, make_accelerator, make_learner
from airstreams.training.loop import train
from airstreams.training.start import Start
from airstreams.training.step import training_step
from airstreams.viewing.representations import streams_picture
from tests.training.runs import epochs, of_one_stream

QUIET = Console(quiet=True)


def test_an_error_leaves_no_decoding_process_behind(synthetic, tiny, tmp_path):
    def fail(record):
        raise ZeroDivisionError

    config = replace(of_one_stream(tiny), data=replace(tiny.data, workers=1))
    with pytest.raises(ZeroDivisionError) as caught:
        train(open_source(str(synthetic / "videos")), config, tmp_path / "run", False, QUIET, after_epoch=fail)
    assert caught.tb is not None  # a script that this error ends keeps the traceback too
    assert not multiprocessing.active_children()


def test_the_seed_of_dropout_differs_by_seed_step_and_process():
    keys = list(itertools.product((0, 1, 2), repeat=3))
    assert len({loop.seed_of_step(*key) for key in keys}) == len(keys)


def test_a_run_has_every_documented_file(trained, tiny):
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "model.safetensors",
        "model.json",
        "split.csv",
        "state",
        "tensorboard",
    ):
        assert (trained / name).exists(), name
    assert load_config(trained / "config.yaml") == tiny
    # The config is complete, so it keeps its meaning if a later version changes a default.
    written = (trained / "config.yaml").read_text()
    for key in ("stop_gradient", "clip_norm", "crop_aspect", "interm", "window", "tower", "rate"):
        assert f"{key}:" in written
    description = json.loads((trained / "model.json").read_text())
    assert description["classes"] == ["disc_left", "disc_up", "square_left", "square_up"]
    assert description["segment_classes"][:3] == ["background", "disc", "square"]
    assert {"config", "preprocessing", "versions"} <= set(description)
    assert set(RunFolder(trained).read_splits().values()) == {"train", "test"}


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"optimizer": "adam"}, "training.optimizer: got adam"),
        ({"epochs": 2.5}, "training.epochs: got 2.5"),
        ({"freeze": "rgb.early"}, "training.freeze: got rgb.early"),
    ],
)
def test_a_config_made_in_python_is_checked_first(source, tiny, tmp_path, changed, key):
    with pytest.raises(InputError, match=re.escape(key)):
        train(source, replace(tiny, training=replace(tiny.training, **changed)), tmp_path / "run", False, QUIET)
    assert not (tmp_path / "run").exists()


def test_each_merge_has_its_own_loss_and_metrics(synthetic, tiny, tmp_path):
    model = replace(tiny.model, streams=["rgb", "rgb2"], merge_levels=[3, 6])
    config = replace(tiny, model=model, training=replace(tiny.training, epochs=1))
    source = open_source(str(synthetic / "videos"))
    train(source, config, tmp_path / "run", False, QUIET)
    losses = epochs(tmp_path / "run")[0]["train"]["losses"]
    assert losses["total"] == pytest.approx(losses["rgb"] + losses["merged"] + losses["merged_after_6"], rel=1e-4)
    metrics = evaluate(tmp_path / "run", source, "test", QUIET).metrics
    assert metrics.top1 == metrics.streams["merged"].top1
    assert metrics.streams["merged_after_6"].top1 is not None
    assert metrics.streams["rgb2"].top1 is None


@pytest.fixture(scope="module")
def learnt(synthetic, tiny, tmp_path_factory):
    """A training on eight videos. Validation has the same videos with wrong labels, so learning lowers its metrics.

    Returns the data and the run.
    """
    root = tmp_path_factory.mktemp("learnt")
    names = ("disc_left", "disc_up", "square_left", "square_up")
    for name, wrong in zip(names, reversed(names), strict=True):
        for split, label in (("train", name), ("val", wrong)):
            (root / "videos" / split / label).mkdir(parents=True)
            for number in ("000.mp4", "001.mp4"):
                shutil.copy(synthetic / "videos" / "train" / name / number, root / "videos" / split / label)
    config = of_one_stream(tiny, epochs=20, lr=3e-3, label_smoothing=0.0)
    config.data = replace(config.data, crop_scale=[1.0, 1.0], crop_aspect=1.0, colour=0.0)
    config.model = replace(config.model, dropout=0.0)
    train(open_source(str(root / "videos")), config, root / "run", False, QUIET)
    return root / "videos", root / "run"


def test_validation_runs_every_n_epochs_and_after_the_last(learnt, tiny, tmp_path):
    config = of_one_stream(tiny, epochs=4, validate_every=3)
    source = open_source(str(learnt[0]))
    train(source, config, tmp_path / "run", False, QUIET)
    found = epochs(tmp_path / "run")
    assert [entry["epoch"] for entry in found if "val" in entry] == [3, 4]
    best = max((entry["val"] for entry in found if "val" in entry), key=lambda val: val["top1"])
    kept = evaluate(tmp_path / "run", source, "val", QUIET).metrics
    assert kept.top1 == best["top1"]


def test_few_videos_get_more_epochs(learnt, tiny, tmp_path):
    source = open_source(str(learnt[0]))
    steps_per_epoch = len(source.split("train")) // 4
    config = of_one_stream(tiny, batch_size=4, min_steps=steps_per_epoch + 1)
    train(source, config, tmp_path / "run", False, QUIET)
    assert [entry["epoch"] for entry in epochs(tmp_path / "run")] == [1, 2]
    assert load_config(RunFolder(tmp_path / "run").config).training.epochs == 2  # so --resume knows it
    record = train(source, load_config(RunFolder(tmp_path / "run").config), tmp_path / "run", True, QUIET)
    assert record.epoch == 2


@pytest.fixture(scope="module")
def rgb_weights(synthetic, tiny, tmp_path_factory):
    """The weights of a training with one stream and seed 0."""
    run = tmp_path_factory.mktemp("rgb") / "run"
    train(open_source(str(synthetic / "videos")), of_one_stream(tiny), run, False, QUIET)
    return load_file(run / "model.safetensors")


def test_a_cache_gives_the_same_weights_without_reading_videos(synthetic, rgb_weights, tiny, tmp_path, monkeypatch):
    config = replace(of_one_stream(tiny), data=replace(tiny.data, cache=str(tmp_path / "cache")))
    for name in ("filled", "again"):
        if name == "again":
            monkeypatch.setattr(dataset, "read_frames", None)
        train(open_source(str(synthetic / "videos")), config, tmp_path / name, False, QUIET)
        weights = load_file(tmp_path / name / "model.safetensors")
        for key, tensor in rgb_weights.items():
            assert torch.equal(weights[key], tensor), key


def test_training_fits_a_few_videos(learnt):
    losses = [entry["train"]["losses"]["rgb"] for entry in epochs(learnt[1])]
    assert losses[0] > 1.2  # chance is log 4 = 1.39
    assert losses[-1] < 0.7


def test_validation_chooses_the_epoch(learnt):
    videos, run = learnt
    validated = [entry["val"]["top1"] for entry in epochs(run)]
    assert max(validated) > validated[-1]
    kept = evaluate(run, open_source(str(videos)), "val", QUIET)
    assert kept.metrics.top1 == max(validated)
    noted = kept.saved.kept
    assert noted is not None
    assert (noted.why, noted.metric, noted.value, noted.videos) == ("best", "top1", max(validated), 8)
    assert validated[noted.epoch - 1] == max(validated) > max(validated[noted.epoch :])
    assert noted.interval == kept.metrics.intervals["top1"]
    scores = score_videos(kept.saved, kept.videos)
    assert noted.temperature == pytest.approx(fit_temperature(scores.logits_NVK, targets_of(kept.saved, kept.videos)))
    assert kept.metrics.calibration is not None
    assert kept.metrics.calibration.fitted is None  # of the videos that it was fitted on


def test_the_later_of_two_equally_good_epochs_is_kept(learnt, tiny, tmp_path):
    """Validation has one file under all four labels, so exactly one of four answers is right."""
    shutil.copytree(learnt[0] / "train", tmp_path / "videos" / "train")
    for folder in (tmp_path / "videos" / "train").iterdir():
        (tmp_path / "videos" / "val" / folder.name).mkdir(parents=True)
        shutil.copy(learnt[0] / "train/disc_up/000.mp4", tmp_path / "videos" / "val" / folder.name)
    train(open_source(str(tmp_path / "videos")), of_one_stream(tiny, epochs=2), tmp_path / "run", False, QUIET)
    assert [entry["val"]["top1"] for entry in epochs(tmp_path / "run")] == [0.25, 0.25]
    kept = load_file(tmp_path / "run" / "model.safetensors")
    last = load_state(tmp_path / "run")[0].learner["model"]
    assert all(torch.equal(tensor, kept[name]) for name, tensor in last.items())


def test_the_seed_decides_the_weights(synthetic, rgb_weights, tiny, tmp_path):
    for seed in (0, 1):
        run = tmp_path / str(seed)
        train(open_source(str(synthetic / "videos")), replace(of_one_stream(tiny), seed=seed), run, False, QUIET)
        weights = load_file(run / "model.safetensors")
        assert all(torch.equal(tensor, weights[name]) for name, tensor in rgb_weights.items()) == (seed == 0)


def test_a_resumed_run_needs_the_same_labels_and_teacher(synthetic, videos, tiny, tmp_path):
    class Stops(Console):
        def print(self, *objects, **options):
            if objects and str(objects[0]).startswith("epoch 1/"):
                os.kill(os.getpid(), signal.SIGTERM)

    labels = shutil.copytree(synthetic / "labels", tmp_path / "labels")
    source = open_source(str(videos), labels)
    tiny = of_one_stream(tiny, "semantic", epochs=2)
    with pytest.raises(Stopped):
        train(source, tiny, tmp_path / "run", False, Stops(quiet=True))
    about = json.loads((labels / "labels.json").read_text())
    for other in ({"teacher": "another"}, {"settings": {**about["settings"], "stride": 7}}):
        (labels / "labels.json").write_text(json.dumps(about | other))
        with pytest.raises(InputError, match=r"--resume: .*teacher"):
            train(open_source(str(videos), labels), tiny, tmp_path / "run", True, QUIET)
    swapped = {"disc_up": "disc_left", "disc_left": "disc_up"}
    mislabelled = [
        replace(v, labels=(swapped.get(v.labels[0], v.labels[0]),)) if v.split == "train" else v for v in source.videos
    ]
    with pytest.raises(InputError, match=r"--resume: .*labels"):
        train(replace(source, videos=tuple(mislabelled)), tiny, tmp_path / "run", True, QUIET)
    train(source, tiny, tmp_path / "run", True, QUIET)


def test_without_validation_the_last_epoch_is_kept(trained):
    state, _ = load_state(trained)
    assert state.epoch == 2
    kept = load_file(trained / "model.safetensors")
    weights = state.learner["model"]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in kept.items())
    not_kept = weights.keys() - kept.keys()
    assert not_kept == {name for name in weights if name.startswith("late.semantic.")}  # a head of weight 0
    assert all("val" not in entry for entry in epochs(trained))
    assert saved_models.load(trained).kept == KeptEpoch(2, "last")


def test_test_videos_are_never_opened_in_training(videos, tiny, tmp_path):
    for path in (videos / "test").rglob("*.mp4"):
        path.write_bytes(b"not a video")
    said = io.StringIO()
    run = tmp_path / "run"
    train(open_source(str(videos)), of_one_stream(tiny), run, False, Console(file=said, width=200))
    assert "left out" not in said.getvalue()
    assert (run / "left_out.csv").read_text().splitlines() == ["name,reason"]
    assert epochs(run)[0]["train"]["clips"] == 24


def test_a_video_that_breaks_during_training_is_counted_in_its_epoch(videos, tiny, tmp_path):
    """It passed the check before the first epoch, and is overwritten when the first is done."""

    class Breaks(Console):
        def print(self, *objects, **options):
            if objects and str(objects[0]).startswith("epoch 1/"):
                (videos / "train" / "disc_up" / "002.mp4").write_bytes(b"overwritten")

    run = tmp_path / "run"
    train(open_source(str(videos)), of_one_stream(tiny, epochs=2, batch_size=24), run, False, Breaks(quiet=True))
    first, second = (entry["train"] for entry in epochs(run))
    assert (first["clips"], first["left_out"]) == (24, [])
    assert second["clips"] == 23
    assert len(second["left_out"]) == 1
    assert "train/disc_up/002.mp4" in second["left_out"][0]
    assert "not a video" in second["left_out"][0]


def test_multi_label_data_trains_and_gets_a_map(videos, tiny, tmp_path):
    rows = [
        (path.relative_to(tmp_path), path.parent.name.replace("_", ";"), path.parts[-3])
        for path in sorted(videos.rglob("*.mp4"))
    ]
    rows[0] = (rows[0][0], "", rows[0][2])  # a video without actions
    listing = tmp_path / "videos.csv"
    write_rows(listing, ("path", "label", "split"), rows)
    config = replace(tiny, model=replace(tiny.model, streams=["rgb", "flow"]), training=TrainingConfig(1, 4))
    run = tmp_path / "run"
    train(open_source(str(listing)), config, run, False, QUIET)
    assert epochs(run)[0]["train"]["losses"]["merged"] == pytest.approx(np.log(2), abs=0.4)  # sigmoid, chance at first
    result = evaluate(run, open_source(str(listing)), "test", QUIET)
    assert result.saved.classes == ("disc", "left", "square", "up")
    assert 0 < (result.metrics.map or 0) <= 1
    assert result.metrics.top1 is None
    assert result.confusion is None
    assert not (result.folder.path / "confusion.json").exists()
    probabilities = airstreams.load(run).predict(tmp_path / rows[-1][0]).probabilities
    assert all(0 < value < 1 for value in probabilities.values())
    assert sum(probabilities.values()) != pytest.approx(1, abs=0.01)  # classes do not compete


def test_validation_without_any_action_keeps_the_last_epoch(videos, tiny, tmp_path):
    rows = [(path.relative_to(tmp_path), path.parent.name.replace("_", ";"), "train") for path in videos.rglob("*.mp4")]
    rows[:2] = [(path, "", "val") for path, _, _ in rows[:2]]
    listing = tmp_path / "videos.csv"
    write_rows(listing, ("path", "label", "split"), rows)
    train(open_source(str(listing)), of_one_stream(tiny), tmp_path / "run", False, QUIET)
    assert epochs(tmp_path / "run")[-1]["val"]["map"] is None
    assert saved_models.load(tmp_path / "run").classes == ("disc", "left", "square", "up")


def test_charades_trains_from_its_official_files(synthetic, tiny, tmp_path):
    """Small videos under official names. Some have two actions, one in each half."""
    (tmp_path / "videos").mkdir()
    (tmp_path / "Charades_v1_classes.txt").write_text("c000 Holding some clothes\nc001 Running somewhere\n")
    header = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length\n"
    both = "c000 0.00 0.20;c001 0.15 9.00"
    for split, actions in (("train", (both, "c000 0.00 9.00", both, "")), ("test", (both, "c001 0.00 0.10", ""))):
        rows = []
        for number, (path, action) in enumerate(
            zip(sorted((synthetic / "videos" / split).rglob("*.mp4")), actions, strict=False)
        ):
            name = f"{split[:2].upper()}{number:03}"
            shutil.copy(path, tmp_path / "videos" / f"{name}.mp4")
            rows.append(f'{name},S{number},Kitchen,6,7,Yes,"A person, who runs",bag,"holds, runs",{action},0.27\n')
        (tmp_path / f"Charades_v1_{split}.csv").write_text(header + "".join(rows))
    source = open_source(f"charades:{tmp_path}")
    train(source, of_one_stream(tiny), tmp_path / "run", False, QUIET)
    assert epochs(tmp_path / "run")[0]["train"]["losses"]["rgb"] == pytest.approx(np.log(2), abs=0.4)
    result = evaluate(tmp_path / "run", source, "test", QUIET)
    assert (result.metrics.videos, result.metrics.top1) == (3, None)
    assert 0 < (result.metrics.map or 0) <= 1


def test_pictures_of_the_representations_change_no_weights(trained, source, tiny, tmp_path):
    """`trained` has the same config and data, and no pictures."""

    def draw(*arguments):
        torch.rand(1)
        streams_picture(*arguments)

    train(source, tiny, tmp_path / "run", False, QUIET, draw=draw)
    expected, found = (load_file(run / "model.safetensors") for run in (trained, tmp_path / "run"))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in board.Images("representations")] == [6, 12]


@pytest.mark.parametrize("stream", ["flow", "semantic"])
def test_a_single_stream_trains_and_predicts(synthetic, tiny, tmp_path, stream):
    config = replace(of_one_stream(tiny, stream), loss_weights=LossWeights(interm=0.5))
    source = open_source(str(synthetic / "videos"), synthetic / "labels")
    train(source, config, tmp_path / "run", False, QUIET)
    expected = {"semantic": {"semantic", "interm", "total"}, "flow": {"flow", "total"}}[stream]
    assert set(epochs(tmp_path / "run")[0]["train"]["losses"]) == expected
    result = evaluate(tmp_path / "run", source, "test", QUIET)
    assert list(result.metrics.streams) == [stream]
    assert result.metrics.streams[stream].top1 == result.metrics.top1
    assert (result.metrics.segmentation is not None) == (stream == "semantic")


def test_only_a_head_of_weight_zero_stays_untrained(trained, tiny):
    segment_classes = saved_models.load(trained).segment_classes
    torch.manual_seed(tiny.seed)
    untouched = build(tiny.model, 4, len(segment_classes)).state_dict()
    for name, tensor in load_state(trained)[0].learner["model"].items():
        if name.startswith("late.semantic."):
            assert torch.equal(tensor, untouched[name]), name
        elif tensor.is_floating_point() and tensor.numel() > 1:
            assert not torch.equal(tensor, untouched[name]), name


def make_inputs_nan(monkeypatch, wrong):
    """Make the inputs NaN in the steps for which `wrong(step)` is true."""
    numbers = iter(range(1, 1000))
    real = step.augment

    def augment(frames, box, inside, flip, colour, size):
        clip = real(frames, box, inside, flip, colour, size)
        return clip * float("nan") if wrong(next(numbers)) else clip

    monkeypatch.setattr(step, "augment", augment)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_step_with_nan_is_skipped_and_named(synthetic, tiny, tmp_path, monkeypatch, optimizer):
    config = of_one_stream(tiny, optimizer=optimizer, batch_size=8, save_every=1, keep=10)
    source = open_source(str(synthetic / "videos"))
    names = {video.name for video in source.split("train")}
    with monkeypatch.context() as patched:
        make_inputs_nan(patched, lambda step: step == 2)
        said = io.StringIO()
        train(source, config, tmp_path / "run", False, Console(file=said, width=1000))
    lines = [line for line in said.getvalue().splitlines() if "was skipped" in line]
    assert len(lines) == 1
    assert lines[0].startswith("warning: step 2 was skipped: losses/rgb is nan")
    assert len(set(lines[0].split("clips: ")[1].split(", ")) & names) == 8
    (record,) = epochs(tmp_path / "run")
    assert record["train"]["skipped"] == 1
    assert record["train"]["clips"] == 16
    assert np.isfinite(record["train"]["losses"]["rgb"])
    for tensor in load_file(tmp_path / "run" / "model.safetensors").values():
        assert tensor.isfinite().all()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("first", [True, False], ids=["first step", "later step"])
def test_a_skipped_step_changes_no_weights_optimiser_or_batch_statistics(synthetic, tiny, optimizer, first):
    config = of_one_stream(tiny, optimizer=optimizer, lr=0.1)
    source = open_source(str(synthetic / "videos"))
    accelerator = make_accelerator(config.training)
    sampler, loader = make_loader(training_videos(source), source, config, accelerator)
    model = build(config.model, 4, 6)
    learner = make_learner(model, freeze(model, config), config, sampler, accelerator)
    learner.begin_training()
    batch = next(iter(loader))
    if not first:
        training_step(learner, accelerator, [batch], config)
    before = copy.deepcopy({"model": learner.model.state_dict(), "optimizer": learner.optimizer.state_dict()["state"]})
    broken = batch._replace(colour_B3=batch.colour_B3 * float("nan"))
    values = training_step(learner, accelerator, [broken], config)
    assert not values["good"]
    after = {"model": learner.model.state_dict(), "optimizer": learner.optimizer.state_dict()["state"]}
    for name, tensor in after["model"].items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, before["model"][name]), name
    for number, held in before["optimizer"].items():
        for name, value in held.items():
            assert torch.equal(after["optimizer"][number][name], value), name
    moved = any(value.any() for held in after["optimizer"].values() for value in held.values())
    assert moved != first
    assert training_step(learner, accelerator, [batch], config)["good"]
    assert all(parameter.isfinite().all() for parameter in learner.model.parameters())


def test_a_step_with_an_infinite_gradient_is_skipped(synthetic, tiny):
    config = of_one_stream(tiny)
    learner, accelerator, batch = one_step(synthetic, config)
    weight = next(learner.model.parts()["rgb.early"].parameters())
    weight.register_hook(lambda gradient: gradient * float("inf"))
    before = [parameter.detach().clone() for parameter in learner.model.parameters()]
    values = training_step(learner, accelerator, [batch], config)
    assert all(value.isfinite() for name, value in values.items() if name.startswith("losses/"))
    assert not values["good"]
    assert all(torch.equal(now, was) for now, was in zip(learner.model.parameters(), before, strict=True))


def test_training_stops_if_most_steps_are_skipped_and_keeps_the_last_good_state(synthetic, tiny, tmp_path, monkeypatch):
    source = open_source(str(synthetic / "videos"))
    config = of_one_stream(tiny, epochs=9, batch_size=8, save_every=2, keep=1)
    make_inputs_nan(monkeypatch, lambda step: step > 5)  # from the last step but one of epoch 2
    with pytest.raises(FloatingPointError, match=r"--training\.lr"):
        train(source, config, tmp_path / "run", False, QUIET)
    state, damaged = load_state(tmp_path / "run")
    assert (state.step, damaged) == (4, [])
    assert all(tensor.isfinite().all() for tensor in state.learner["model"].values())


def test_ten_skipped_steps_in_a_row_stop_training(synthetic, tiny, tmp_path, monkeypatch):
    """Half of the epoch would be twelve steps or more."""
    config = of_one_stream(tiny, epochs=2, batch_size=1, save_every=100)
    make_inputs_nan(monkeypatch, lambda step: step > 8)
    with pytest.raises(FloatingPointError, match=r"\A1[0-2] steps"):
        train(open_source(str(synthetic / "videos")), config, tmp_path / "run", False, QUIET)


def training_videos(source):
    videos = list(source.split("train"))
    return TrainingVideos(videos, [], Checked(videos, [], {}), None)


def one_step(synthetic, config):
    """A learner before its first step, its accelerator and a batch."""
    source = open_source(str(synthetic / "videos"))
    accelerator = make_accelerator(config.training)
    sampler, loader = make_loader(training_videos(source), source, config, accelerator)
    torch.manual_seed(0)
    model = build(config.model, 4, 6)
    learner = make_learner(model, freeze(model, config), config, sampler, accelerator)
    learner.begin_training()
    return learner, accelerator, next(iter(loader))


def test_the_norm_of_the_whole_gradient_is_clipped(synthetic, tiny):
    moved = {}
    for clip_norm in (0.0, 0.01):
        config = of_one_stream(tiny, optimizer="sgd", clip_norm=clip_norm, weight_decay=0.0, warmup_epochs=0.0)
        config.model = replace(config.model, dropout=0.0)
        learner, accelerator, batch = one_step(synthetic, config)
        before = [parameter.detach().clone() for parameter in learner.model.parameters()]
        norm = training_step(learner, accelerator, [batch], config)["gradient_norms/all"]
        moved[clip_norm] = [now.detach() - was for now, was in zip(learner.model.parameters(), before, strict=True)]
    assert norm > 0.05
    for free, clipped in zip(*moved.values(), strict=True):
        torch.testing.assert_close(clipped, free * (0.01 / norm), rtol=1e-3, atol=1e-7)


def test_a_step_without_labelled_pixels_has_a_segmentation_loss_of_0(synthetic, tiny):
    config = of_one_stream(tiny, "semantic")
    learner, accelerator, batch = one_step(synthetic, replace(config, loss_weights=LossWeights(interm=0.5)))
    assert batch.teachers == {}
    unlabelled = batch._replace(teachers={"semantic": torch.full((4, 4, 16, 16), 255, dtype=torch.uint8)})
    for given in (batch, unlabelled):
        values = training_step(learner, accelerator, [given], config)
        assert values["good"]
        assert values["losses/interm"] == 0


def test_an_unreadable_batch_changes_no_gradient(synthetic, tiny):
    found = []
    for alone in (True, False):
        config = of_one_stream(tiny, optimizer="sgd", clip_norm=0.0, warmup_epochs=0.0)
        learner, accelerator, batch = one_step(synthetic, config)
        source = open_source(str(synthetic / "videos"))
        clips = dataset.TrainingClips(source.videos, config, source.classes, source.multi_label, {})
        black = clips.collate([dataset.BadVideo(source.videos[0], "unreadable")] * 4)
        torch.manual_seed(0)
        values = training_step(learner, accelerator, [batch] if alone else [batch, black], config)
        found.append(values | dict(learner.model.named_parameters()))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, msg=name)


def test_labels_are_smoothed(synthetic, tiny):
    """In the first step. The last layer has weights of 0, so its bias gives the logits."""
    found = []
    for smoothing in (0.0, 0.4):
        learner, accelerator, batch = one_step(synthetic, of_one_stream(tiny, label_smoothing=smoothing))
        last = [module for module in learner.model.modules() if isinstance(module, torch.nn.Linear)][-1]
        with torch.no_grad():
            last.weight.zero_()
            last.bias.copy_(torch.tensor([2.0, 0.0, -1.0, 0.5]))
        values = training_step(learner, accelerator, [batch], of_one_stream(tiny, label_smoothing=smoothing))
        found.append(float(values["losses/rgb"]))
        logs = np.log(np.exp([2.0, 0.0, -1.0, 0.5]) / np.exp([2.0, 0.0, -1.0, 0.5]).sum())
        shares = (1 - smoothing) * np.eye(4)[batch.target.numpy()] + smoothing / 4
        assert found[-1] == pytest.approx(-(shares @ logs).mean(), rel=1e-4)
    assert found[0] != pytest.approx(found[1], abs=0.01)


def test_a_diverging_training_leaves_no_model(synthetic, tiny, tmp_path):
    source = open_source(str(synthetic / "videos"))
    config = of_one_stream(tiny, optimizer="sgd", lr=1e30, clip_norm=0.0, warmup_epochs=0.0)
    with pytest.raises(FloatingPointError, match="not finite"):
        train(source, config, tmp_path / "run", False, QUIET)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_gradient_norms_are_logged_by_part(trained, tiny):
    norms = epochs(trained)[-1]["train"]["gradient_norms"]
    model = build(tiny.model, 4, 6)
    assert set(norms) == {"all", *model.parts()} - {"semantic.late"}  # a head of weight 0
    assert all(value > 0 for value in norms.values())
    parts = [value for name, value in norms.items() if name != "all"]
    assert norms["all"] >= max(parts)


def test_accumulated_batches_give_the_step_of_one_large_batch(synthetic, tiny, tmp_path, monkeypatch):
    """Batch statistics are switched off. Some videos lack label maps, so batches differ in their labelled pixels."""
    labels = shutil.copytree(synthetic / "labels", tmp_path / "labels")
    for path in (labels / "train" / "disc_left").glob("*.npz"):
        path.unlink()
    source = open_source(str(synthetic / "videos"), labels)
    monkeypatch.setattr(Learner, "begin_training", lambda learner: learner.prepared.eval())
    losses, norms, weights = [], [], []
    for accumulate in (1, 4):
        run = tmp_path / str(accumulate)
        config = replace(tiny, model=replace(tiny.model, dropout=0.0))
        config.training = replace(config.training, batch_size=8, accumulate=accumulate, epochs=1, lr=1e-4)
        train(source, config, run, False, QUIET)
        losses.append([entry["train"]["losses"] for entry in epochs(run)])
        norms.append(epochs(run)[0]["train"]["gradient_norms"])
        weights.append(load_file(run / "model.safetensors"))
    for one, four in zip(*losses, strict=True):
        assert four == pytest.approx(one, rel=1e-4)
    assert norms[1] == pytest.approx(norms[0], rel=1e-2)  # AdamW's weights would hide a wrong scale
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=2e-5, rtol=1e-3)


def test_init_starts_from_the_weights_of_another_run(trained, synthetic, tiny, tmp_path):
    source = open_source(str(synthetic / "videos"), synthetic / "labels")
    config = replace(tiny, training=replace(tiny.training, epochs=1, lr=1e-12, weight_decay=0.0))
    said = io.StringIO()
    train(source, config, tmp_path / "run", False, Console(file=said, width=200), Start("run", trained))
    assert "rgb.early" in said.getvalue()
    assert "warning" not in said.getvalue()
    before, after = (load_file(run / "model.safetensors") for run in (trained, tmp_path / "run"))
    for name, tensor in after.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(tensor, before[name], atol=1e-6, rtol=0)


def names_trained_on(run):
    return {video.name for video in RunFolder(run).trained_on()}


def test_the_training_videos_of_init_runs_are_passed_on(trained, videos, tiny, tmp_path):
    rows = [
        f"train/{name}/{number:03d}.mp4,{name},{'test' if number == 0 else 'train'}"
        for name in ("disc_up", "disc_left")
        for number in range(4)
    ]
    (videos / "other.csv").write_text("\n".join(["path,label,split", *rows]))
    other = open_source(str(videos / "other.csv"))
    config = of_one_stream(tiny)
    said = io.StringIO()
    train(other, config, tmp_path / "second", False, Console(file=said, width=300), Start("run", trained))
    assert re.search(rf"warning: {trained} .* 2 of the 2 .* train/disc_", said.getvalue())
    assert evaluate(tmp_path / "second", other, "test", QUIET).metrics.trained_on == 2
    whole = open_source(str(videos))
    train(whole, config, tmp_path / "third", False, QUIET, Start("second", tmp_path / "second"))
    assert names_trained_on(tmp_path / "third") == {video.name for video in whole.split("train")}
    (tmp_path / "alone").mkdir()
    shutil.copy(tmp_path / "second" / "learnt_before.csv", tmp_path / "alone")  # of a start that was killed
    train(other, config, tmp_path / "alone", False, QUIET)
    assert names_trained_on(tmp_path / "alone") == {video.name for video in other.split("train")}
    assert evaluate(tmp_path / "alone", other, "test", QUIET).metrics.trained_on == 0
