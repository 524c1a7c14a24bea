"""Small trainings from the data on disk to the run's files: what a user and `--resume` rely on."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import airstreams
from airstreams.config import LossWeights, TrainingConfig, load_config, save_config
from airstreams.data.sources import open_source, read_splits
from airstreams.errors import InputError
from airstreams.evaluation.evaluate import evaluate
from airstreams.models import saved as saved_models
from airstreams.models.airstreams import build
from airstreams.training.loop import make_optimizer, make_schedule, train

QUIET = Console(quiet=True)


@pytest.fixture
def videos(synthetic, tmp_path):
    """A copy of the videos that may be damaged."""
    return shutil.copytree(synthetic / "videos", tmp_path / "videos")


def of_one_stream(config, stream="rgb", **training):
    return replace(
        config,
        model=replace(config.model, streams=[stream]),
        training=replace(config.training, **{"epochs": 1, **training}),
    )


def entries(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def epochs(run):
    return [entry for entry in entries(run) if "train" in entry]


def test_a_run_holds_every_file_that_people_rely_on(trained, tiny):
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
    assert any((trained / "tensorboard").glob("events.out.tfevents.*"))
    assert load_config(trained / "config.yaml") == tiny
    # Complete: it means the same when a later version has other defaults.
    written = (trained / "config.yaml").read_text()
    for key in ("stop_gradient", "clip_norm", "crop_aspect", "interm", "window", "tower", "rate"):
        assert f"{key}:" in written
    description = json.loads((trained / "model.json").read_text())
    assert description["classes"] == ["disc_left", "disc_up", "square_left", "square_up"]
    assert description["segment_classes"][:3] == ["background", "disc", "square"]
    assert {"config", "preprocessing", "versions"} <= set(description)
    assert set(read_splits(trained / "split.csv").values()) == {"train", "test"}


def test_metrics_tell_each_loss_the_speed_and_the_wait_for_data(trained):
    found = epochs(trained)
    assert [entry["epoch"] for entry in found] == [1, 2]
    assert [entry["step"] for entry in found] == [6, 12]
    for entry in found:
        losses = entry["train"]["losses"]
        assert set(losses) == {"rgb", "flow", "merged", "interm", "total"}  # semantic has weight 0
        weighted = losses["rgb"] + 0.3 * losses["flow"] + losses["merged"] + losses["interm"]
        assert losses["total"] == pytest.approx(weighted, rel=1e-4)
        assert entry["train"]["clips"] == 24
        assert entry["train"]["clips_per_second"] > 0
        assert 0 <= entry["train"]["waiting"] <= 1


@pytest.fixture(scope="module")
def learnt(synthetic, tiny, tmp_path_factory):
    """A training on eight videos, validated on the same videos under wrong names: what it learns makes it worse there.

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


def test_training_learns_a_handful_of_videos_by_heart(learnt):
    losses = [entry["train"]["losses"]["rgb"] for entry in epochs(learnt[1])]
    assert losses[0] > 1.2  # chance is log 4 = 1.39
    assert losses[-1] < 0.7


def test_the_validation_part_chooses_the_epoch_that_is_kept(learnt):
    videos, run = learnt
    validated = [entry["val"]["top1"] for entry in epochs(run)]
    assert max(validated) > validated[-1]
    kept = evaluate(run, open_source(str(videos)), "val", QUIET)
    assert kept.figures["top1"] == max(validated)


def test_the_same_seed_gives_the_same_weights_and_another_one_others(synthetic, tiny, tmp_path):
    config = of_one_stream(tiny)
    weights = []
    for number, seed in enumerate((0, 0, 1)):
        run = tmp_path / str(number)
        train(open_source(str(synthetic / "videos")), replace(config, seed=seed), run, False, QUIET)
        weights.append(load_file(run / "model.safetensors"))
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert not all(torch.equal(tensor, weights[2][name]) for name, tensor in weights[0].items())


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill a process outright")
def test_a_killed_training_resumes_to_the_weights_of_one_that_was_left_alone(synthetic, tiny, tmp_path):
    config = of_one_stream(tiny, epochs=3)
    source = open_source(str(synthetic / "videos"))
    train(source, config, tmp_path / "whole", False, QUIET)

    save_config(config, tmp_path / "tiny.yaml")
    run = tmp_path / "killed"
    options = ["--out", str(run), "--config", str(tmp_path / "tiny.yaml")]
    command = [sys.executable, "-m", "airstreams", "train", str(synthetic / "videos"), *options]
    # As this process has it: sums come out the same only on as many threads.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": _package_root()}
    with subprocess.Popen(
        [*command, "--config", str(tmp_path / "tiny.yaml")], env=environment, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and epochs_done(run) < 1:
            time.sleep(0.02)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    done = epochs_done(run)
    assert done < 3, "killed too late to prove anything"
    with (run / "metrics.jsonl").open("a") as metrics:  # as if the kill had come within the next epoch's last step
        metrics.write(json.dumps({"epoch": done + 1, "step": 6 * done + 5, "losses": {}}) + "\n")
        metrics.write(json.dumps({"epoch": done + 1, "step": 6 * done + 6, "train": {}}) + "\n")

    train(source, load_config(run / "config.yaml"), run, True, QUIET)
    assert [entry["epoch"] for entry in epochs(run)] == [1, 2, 3]
    assert all(entry["train"] for entry in epochs(run))
    steps = [entry["step"] for entry in entries(run)]
    assert steps == sorted(steps)
    resumed = load_file(run / "model.safetensors")
    for name, tensor in load_file(tmp_path / "whole" / "model.safetensors").items():
        assert torch.equal(tensor, resumed[name]), name


def epochs_done(run):
    state = run / "state" / "last.pt"
    return torch.load(state, weights_only=True)["epoch"] if state.exists() else 0


def test_a_resumed_run_keeps_its_splits_so_that_no_test_clip_is_trained_on(synthetic, tiny, tmp_path):
    videos = open_source(str(synthetic / "videos")).videos
    rows = ["path,label,split", *(f"{video.path},{video.labels[0]},{video.split}" for video in videos)]
    (tmp_path / "a.csv").write_text("\n".join(rows))
    (tmp_path / "b.csv").write_text("\n".join([*rows[:1], *(row.replace(",test", ",train") for row in rows[1:])]))
    config = of_one_stream(tiny)
    train(open_source(str(tmp_path / "a.csv")), config, tmp_path / "run", False, QUIET)
    with pytest.raises(InputError, match="other videos or splits"):
        train(open_source(str(tmp_path / "b.csv")), config, tmp_path / "run", True, QUIET)
    assert set(read_splits(tmp_path / "run" / "split.csv").values()) == {"train", "test"}


def _package_root():
    return str(Path(airstreams.__file__).parents[1])


def test_a_damaged_or_missing_state_is_no_place_to_resume_from(trained, synthetic, tiny, tmp_path):
    source = open_source(str(synthetic / "videos"), synthetic / "labels")
    with pytest.raises(InputError, match="nothing to resume"):
        train(source, tiny, tmp_path / "absent", True, QUIET)
    run = shutil.copytree(trained, tmp_path / "run")
    state = run / "state" / "last.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(InputError, match="damaged"):
        train(source, tiny, run, True, QUIET)


def test_without_a_validation_part_the_last_epoch_is_the_result(trained):
    state = torch.load(trained / "state" / "last.pt", weights_only=True)
    assert state["epoch"] == 2
    kept = load_file(trained / "model.safetensors")
    assert all(torch.equal(tensor, kept[name]) for name, tensor in state["model"].items())
    assert all("val" not in entry for entry in epochs(trained))


def test_test_videos_are_never_opened_in_training(videos, tiny, tmp_path):
    for path in (videos / "test").rglob("*.mp4"):
        path.write_bytes(b"not a video")
    said = io.StringIO()
    run = tmp_path / "run"
    train(open_source(str(videos)), of_one_stream(tiny), run, False, Console(file=said, width=200))
    assert "left out" not in said.getvalue()
    assert (run / "left_out.csv").read_text().splitlines() == ["name,reason"]
    assert epochs(run)[0]["train"]["clips"] == 24


def test_a_bad_training_video_is_left_out_counted_and_named(videos, tiny, tmp_path):
    cut = videos / "train" / "disc_up" / "002.mp4"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    said = io.StringIO()
    run = tmp_path / "run"
    config = of_one_stream(tiny, batch_size=23)
    train(open_source(str(videos)), config, run, False, Console(file=said, width=200))
    with (run / "left_out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["train/disc_up/002.mp4"]
    assert "truncated" in rows[0]["reason"]
    assert "1 of 24 videos left out" in said.getvalue()
    assert "train/disc_up/002.mp4: truncated" in said.getvalue()
    assert epochs(run)[0]["train"]["clips"] == 23


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


def test_a_class_whose_training_videos_are_all_bad_stops_the_training_before_it_begins(videos, tiny, tmp_path):
    for path in (videos / "train" / "disc_up").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match="no readable training video of disc_up"):
        train(open_source(str(videos)), of_one_stream(tiny), tmp_path / "run", False, QUIET)
    assert not (tmp_path / "run").exists()


def write_csv(path, header, rows):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def test_data_without_splits_gets_a_seeded_split_that_keeps_groups_together(videos, tiny, tmp_path):
    rows = [
        (path.relative_to(tmp_path), path.parent.name, f"{path.parent.name}-{int(path.stem) // 2}")
        for path in sorted((videos / "train").rglob("*.mp4"))
    ]
    listing = write_csv(tmp_path / "videos.csv", ("path", "label", "group"), rows)
    config = of_one_stream(tiny)
    drawn = []
    for number, seed in enumerate((0, 0, 5)):
        run = tmp_path / f"run{number}"
        train(open_source(str(listing)), replace(config, seed=seed), run, False, QUIET)
        drawn.append(read_splits(run / "split.csv"))
    assert drawn[0] == drawn[1] != drawn[2]
    assert set(drawn[0]) == {str(path) for path, _, _ in rows}
    for split in drawn:
        of_group: dict[str, set[str]] = {}
        for path, _, group in rows:
            of_group.setdefault(group, set()).add(split[str(path)])
        assert all(len(found) == 1 for found in of_group.values())
        assert {"train", "test"} <= set(split.values())
    train_part = [name for name, split in drawn[0].items() if split == "train"]
    assert epochs(tmp_path / "run0")[0]["train"]["clips"] == len(train_part) // 4 * 4  # batches of 4, the rest dropped
    evaluated = evaluate(tmp_path / "run0", open_source(str(listing)), "test", QUIET)
    assert evaluated.figures["videos"] == list(drawn[0].values()).count("test")


def test_multi_label_data_trains_and_evaluates_to_a_mean_average_precision(videos, tiny, tmp_path):
    rows = [
        (path.relative_to(tmp_path), path.parent.name.replace("_", ";"), path.parts[-3])
        for path in sorted(videos.rglob("*.mp4"))
    ]
    rows[0] = (rows[0][0], "", rows[0][2])  # a video without actions
    listing = write_csv(tmp_path / "videos.csv", ("path", "label", "split"), rows)
    config = replace(tiny, model=replace(tiny.model, streams=["rgb", "flow"]), training=TrainingConfig(1, 4))
    run = tmp_path / "run"
    train(open_source(str(listing)), config, run, False, QUIET)
    assert epochs(run)[0]["train"]["losses"]["merged"] == pytest.approx(np.log(2), abs=0.4)  # sigmoid, chance at first
    result = evaluate(run, open_source(str(listing)), "test", QUIET)
    assert result.classes == ("disc", "left", "square", "up")
    assert 0 < result.figures["map"] <= 1
    assert result.figures["top1"] is None
    assert result.confusion is None
    assert not (result.folder / "confusion.json").exists()
    probabilities = airstreams.load(run).predict(tmp_path / rows[-1][0]).probabilities
    assert all(0 < value < 1 for value in probabilities.values())
    assert sum(probabilities.values()) != pytest.approx(1, abs=0.01)  # each class for itself


@pytest.mark.parametrize("stream", ["flow", "semantic"])
def test_one_stream_trains_and_answers_alone(synthetic, tiny, tmp_path, stream):
    config = replace(of_one_stream(tiny, stream), loss_weights=LossWeights(interm=0.5))
    source = open_source(str(synthetic / "videos"), synthetic / "labels")
    train(source, config, tmp_path / "run", False, QUIET)
    expected = {"semantic": {"semantic", "interm", "total"}, "flow": {"flow", "total"}}[stream]
    assert set(epochs(tmp_path / "run")[0]["train"]["losses"]) == expected
    result = evaluate(tmp_path / "run", source, "test", QUIET)
    assert list(result.figures["streams"]) == [stream]
    assert result.figures["streams"][stream]["top1"] == result.figures["top1"]
    assert (result.figures["segmentation"] is not None) == (stream == "semantic")


def test_a_head_of_weight_zero_keeps_its_first_weights_and_nothing_else_does(trained, tiny):
    segment_classes = saved_models.load(trained).segment_classes
    torch.manual_seed(tiny.seed)
    untouched = build(tiny.model, 4, len(segment_classes)).state_dict()
    for name, tensor in load_file(trained / "model.safetensors").items():
        if name.startswith("late.semantic."):
            assert torch.equal(tensor, untouched[name]), name
        elif tensor.is_floating_point() and tensor.numel() > 1:
            assert not torch.equal(tensor, untouched[name]), name


def test_weight_decay_spares_norms_biases_and_the_flows_parameters(tiny):
    model = build(tiny.model, 4, 6)
    decayed = {
        id(parameter)
        for group in make_optimizer(model, tiny.training).param_groups
        if group["weight_decay"] > 0
        for parameter in group["params"]
    }
    spared = [name for name, parameter in model.named_parameters() if id(parameter) not in decayed]
    held = [name for name, parameter in model.named_parameters() if id(parameter) in decayed]
    assert all(name.endswith(".weight") for name in held)
    assert {name for name, _ in model.named_parameters() if name.startswith("representations.flow.")} <= set(spared)
    norms = {
        f"{name}."
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.modules.batchnorm._BatchNorm, torch.nn.LayerNorm, torch.nn.GroupNorm))
    }
    assert norms
    assert not any(name.startswith(norm) for name in held for norm in norms)
    assert len(held) > 20
    for optimizer in ("adamw", "sgd"):
        groups = make_optimizer(model, replace(tiny.training, optimizer=optimizer)).param_groups
        assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_the_learning_rate_rises_to_its_peak_and_falls_to_nothing():
    config = TrainingConfig(epochs=10, lr=0.4, warmup_epochs=2)
    parameter = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = torch.optim.SGD([parameter], lr=config.lr)
    schedule = make_schedule(optimizer, config, steps_per_epoch=5)
    rates = []
    for _ in range(50):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert 0 < rates[0] < 0.05
    assert rates[:11] == sorted(rates[:11])
    assert rates[10] == max(rates) == pytest.approx(0.4)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[30] == pytest.approx(0.2)  # half-way down the cosine
    assert schedule.get_last_lr()[0] == pytest.approx(0, abs=1e-6)


def test_a_semantic_stream_without_label_maps_is_refused_unless_its_loss_has_no_weight(synthetic, tiny, tmp_path):
    source = open_source(str(synthetic / "videos"))
    with pytest.raises(InputError, match="no label maps"):
        train(source, tiny, tmp_path / "run", False, QUIET)
    assert not (tmp_path / "run").exists()
    config = of_one_stream(replace(tiny, loss_weights=LossWeights(interm=0)), "semantic")
    train(source, config, tmp_path / "run", False, QUIET)


def test_a_loss_that_is_not_finite_stops_the_training_and_keeps_the_last_good_state(synthetic, tiny, tmp_path):
    source = open_source(str(synthetic / "videos"))
    config = of_one_stream(tiny, optimizer="sgd", lr=1e30, clip_norm=0.0, warmup_epochs=0.0)
    with pytest.raises(FloatingPointError, match="not finite"):
        train(source, config, tmp_path / "run", False, QUIET)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_device_that_is_not_there_is_refused_with_what_to_give_instead(synthetic, tiny, tmp_path):
    source = open_source(str(synthetic / "videos"))
    with pytest.raises(InputError, match=r"give --training\.device cpu"):
        train(source, of_one_stream(tiny, device="mps"), tmp_path / "run", False, QUIET)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match=r"give --training\.device cpu"):
            train(source, of_one_stream(tiny, device="cuda"), tmp_path / "run", False, QUIET)
