"""Small trainings from the data on disk to the run's files: what a user relies on."""

import copy
import csv
import io
import itertools
import json
import multiprocessing
import os
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
from airstreams.data.sources import open_source
from airstreams.data.splits import learnt_from, read_splits
from airstreams.errors import InputError, Stopped
from airstreams.evaluation.evaluate import evaluate
from airstreams.models import saved as saved_models
from airstreams.models.airstreams import build
from airstreams.recipe import load_config
from airstreams.training import loop
from airstreams.training.learner import Learner, freeze, make_accelerator, make_learner, make_optimizer, make_schedule
from airstreams.training.loop import train
from airstreams.training.state import load_state

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


def test_an_error_leaves_no_process_behind_that_python_would_wait_for_at_its_end(synthetic, tiny, tmp_path):
    def fail(record):
        raise ZeroDivisionError

    config = replace(of_one_stream(tiny), data=replace(tiny.data, workers=1))
    with pytest.raises(ZeroDivisionError) as caught:
        train(open_source(str(synthetic / "videos")), config, tmp_path / "run", False, QUIET, after_epoch=fail)
    assert caught.tb is not None  # which a script that ends by this error keeps, too
    assert not multiprocessing.active_children()


def test_every_step_of_every_process_and_of_every_seed_draws_its_own_dropout():
    keys = list(itertools.product((0, 1, 2), repeat=3))
    assert len({loop.seed_of_step(*key) for key in keys}) == len(keys)


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


def test_tensorboard_shows_what_the_metrics_say(trained):
    board = EventAccumulator(str(trained / "tensorboard")).Reload()
    for name in ("losses/merged", "gradient_norms/rgb.early", "clips_per_second"):
        shown = {event.step: event.value for event in board.Scalars(f"train/{name}")}
        part, _, key = name.partition("/")
        said = {entry["step"]: entry["train"][part][key] if key else entry["train"][part] for entry in epochs(trained)}
        assert shown == pytest.approx(said, rel=1e-5)


def test_further_merges_have_losses_and_figures_of_their_own(synthetic, tiny, tmp_path):
    model = replace(tiny.model, streams=["rgb", "rgb2"], merge_levels=[3, 6])
    config = replace(tiny, model=model, training=replace(tiny.training, epochs=1))
    source = open_source(str(synthetic / "videos"))
    train(source, config, tmp_path / "run", False, QUIET)
    losses = epochs(tmp_path / "run")[0]["train"]["losses"]
    assert losses["total"] == pytest.approx(losses["rgb"] + losses["merged"] + losses["merged_after_6"], rel=1e-4)
    figures = evaluate(tmp_path / "run", source, "test", QUIET).figures
    assert figures["top1"] == figures["streams"]["merged"]["top1"]
    assert figures["streams"]["merged_after_6"]["top1"] is not None
    assert figures["streams"]["rgb2"]["top1"] is None


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


def test_it_validates_every_so_many_epochs_and_at_the_end_and_the_averaged_weights_at_that(learnt, tiny, tmp_path):
    config = of_one_stream(tiny, epochs=4, validate_every=3, ema=0.9)
    source = open_source(str(learnt[0]))
    train(source, config, tmp_path / "run", False, QUIET)
    found = epochs(tmp_path / "run")
    assert [entry["epoch"] for entry in found if "val" in entry] == [3, 4]
    best = max((entry["val"] for entry in found if "val" in entry), key=lambda val: val["top1"])
    kept = evaluate(tmp_path / "run", source, "val", QUIET).figures
    assert kept["top1"] == best["top1"]


def test_with_a_cache_training_comes_to_the_same_weights_and_reads_no_video(videos, tiny, tmp_path, monkeypatch):
    cached = replace(of_one_stream(tiny), data=replace(tiny.data, cache=str(tmp_path / "cache")))
    for name, config in (("without", of_one_stream(tiny)), ("with", cached), ("again", cached)):
        if name == "again":
            monkeypatch.setattr(dataset, "read_frames", None)
        train(open_source(str(videos)), config, tmp_path / name, False, QUIET)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("without", "with", "again")]
    for name, tensor in weights[0].items():
        assert torch.equal(weights[1][name], tensor), name
        assert torch.equal(weights[2][name], tensor), name


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


def test_of_epochs_that_validate_alike_the_later_one_is_kept(learnt, tiny, tmp_path):
    """The same file under each of four names: one of four is right, whatever the model says."""
    shutil.copytree(learnt[0] / "train", tmp_path / "videos" / "train")
    for folder in (tmp_path / "videos" / "train").iterdir():
        (tmp_path / "videos" / "val" / folder.name).mkdir(parents=True)
        shutil.copy(learnt[0] / "train/disc_up/000.mp4", tmp_path / "videos" / "val" / folder.name)
    train(open_source(str(tmp_path / "videos")), of_one_stream(tiny, epochs=2), tmp_path / "run", False, QUIET)
    assert [entry["val"]["top1"] for entry in epochs(tmp_path / "run")] == [0.25, 0.25]
    kept = load_file(tmp_path / "run" / "model.safetensors")
    last = load_state(tmp_path / "run")[0].learner["model"]
    assert all(torch.equal(tensor, kept[name]) for name, tensor in last.items())


def test_the_same_seed_gives_the_same_weights_and_another_one_others(synthetic, tiny, tmp_path):
    config = of_one_stream(tiny)
    weights = []
    for number, seed in enumerate((0, 0, 1)):
        run = tmp_path / str(number)
        train(open_source(str(synthetic / "videos")), replace(config, seed=seed), run, False, QUIET)
        weights.append(load_file(run / "model.safetensors"))
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert not all(torch.equal(tensor, weights[2][name]) for name, tensor in weights[0].items())


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


def test_a_resumed_run_wants_all_of_its_videos_but_for_those_that_it_left_out(videos, tiny, tmp_path):
    bad, good = videos / "train" / "disc_up" / "002.mp4", videos / "train" / "disc_up" / "003.mp4"
    bad.write_bytes(b"")
    run = tmp_path / "run"
    train(open_source(str(videos)), of_one_stream(tiny), run, False, QUIET)
    bad.unlink()
    train(open_source(str(videos)), of_one_stream(tiny), run, True, QUIET)
    good.unlink()
    with pytest.raises(InputError, match=r"such as train/disc_up/003\.mp4; give its own DATA, with all of its videos"):
        train(open_source(str(videos)), of_one_stream(tiny), run, True, QUIET)


def test_a_resumed_run_wants_its_labels_and_its_teacher(synthetic, videos, tiny, tmp_path):
    class Stops(Console):
        def print(self, *objects, **options):
            if objects and str(objects[0]).startswith("epoch 1/"):
                os.kill(os.getpid(), signal.SIGTERM)

    labels = shutil.copytree(synthetic / "labels", tmp_path / "labels")
    source = open_source(str(videos), labels)
    with pytest.raises(Stopped):
        train(source, tiny, tmp_path / "run", False, Stops(quiet=True))
    about = json.loads((labels / "labels.json").read_text())
    for other in ({"teacher": "another"}, {"settings": {**about["settings"], "stride": 7}}):
        (labels / "labels.json").write_text(json.dumps(about | other))
        with pytest.raises(InputError, match="other teacher than"):
            train(open_source(str(videos), labels), tiny, tmp_path / "run", True, QUIET)
    swapped = {"disc_up": "disc_left", "disc_left": "disc_up"}
    mislabelled = [
        replace(v, labels=(swapped.get(v.labels[0], v.labels[0]),)) if v.split == "train" else v for v in source.videos
    ]
    with pytest.raises(InputError, match="other labels than"):
        train(replace(source, videos=tuple(mislabelled)), tiny, tmp_path / "run", True, QUIET)
    train(source, tiny, tmp_path / "run", True, QUIET)


def test_what_is_refused_is_refused_before_any_video_is_opened(videos, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "prepare_videos", None)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="nothing can be written there"):
        train(open_source(str(videos)), of_one_stream(tiny), tmp_path / "file" / "run", False, QUIET)
    config = of_one_stream(tiny)
    config = replace(config, training=replace(config.training, freeze=["flow.early"]))
    with pytest.raises(InputError, match=r"training\.freeze"):
        train(open_source(str(videos)), config, tmp_path / "run", False, QUIET)


def test_label_maps_that_lack_many_videos_are_spoken_of(synthetic, tiny, tmp_path):
    labels = shutil.copytree(synthetic / "labels", tmp_path / "labels")
    shutil.rmtree(labels / "train" / "disc_up")
    said = io.StringIO()
    short = replace(tiny, training=replace(tiny.training, epochs=1))
    train(open_source(str(synthetic / "videos"), labels), short, tmp_path / "run", False, Console(file=said, width=200))
    assert "label maps of 18 of 24 training videos; the others teach no segments" in said.getvalue()


def test_without_a_validation_part_the_last_epoch_is_the_result(trained):
    state, _ = load_state(trained)
    assert state.epoch == 2
    kept = load_file(trained / "model.safetensors")
    assert all(torch.equal(tensor, kept[name]) for name, tensor in state.learner["model"].items())
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


def test_a_validation_part_without_any_action_chooses_no_epoch_but_the_last(videos, tiny, tmp_path):
    rows = [(path.relative_to(tmp_path), path.parent.name.replace("_", ";"), "train") for path in videos.rglob("*.mp4")]
    rows[:2] = [(path, "", "val") for path, _, _ in rows[:2]]
    listing = write_csv(tmp_path / "videos.csv", ("path", "label", "split"), rows)
    train(open_source(str(listing)), of_one_stream(tiny), tmp_path / "run", False, QUIET)
    assert epochs(tmp_path / "run")[-1]["val"]["map"] is None
    assert saved_models.load(tmp_path / "run").classes == ("disc", "left", "square", "up")


def test_charades_trains_from_its_official_files_to_a_mean_average_precision(synthetic, tiny, tmp_path):
    """Tiny videos under true names; two actions, one in each half of some videos."""
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
    assert (result.figures["videos"], result.figures["top1"]) == (3, None)
    assert 0 < result.figures["map"] <= 1


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


def test_deterministic_algorithms_can_be_asked_for(synthetic, tiny, tmp_path):
    """On a CPU the numbers stay what they are; that no operation refuses is what this can show."""
    source = open_source(str(synthetic / "videos"), synthetic / "labels")
    config = replace(tiny, training=replace(tiny.training, epochs=1, deterministic=True))
    try:
        train(source, config, tmp_path / "run", False, QUIET)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


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


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_fused_optimiser_takes_the_steps_that_a_plain_one_takes_also_when_resumed(tiny, tmp_path, optimizer):
    """Fused ones on a CPU go wrong in silence where weights, gradients and moments lie differently in memory."""
    config = replace(tiny, training=replace(tiny.training, optimizer=optimizer, lr=0.01))
    model = build(config.model, 4, 6)
    plain_model = copy.deepcopy(model)
    fused = make_optimizer(model, config.training)
    decay = config.training.weight_decay
    groups = [
        {"params": [p for p in plain_model.parameters() if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in plain_model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    plain: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=0.01, foreach=False)
    if optimizer == "sgd":
        plain = torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True, foreach=False)
    clip = torch.rand(2, 3, 4, 64, 64)
    for step in range(4):
        output = model(clip, config.model.heads)
        torch.stack([logits.square().sum() for logits in output.logits.values()]).sum().backward()
        for parameter, other in zip(model.parameters(), plain_model.parameters(), strict=True):
            other.grad = None if parameter.grad is None else parameter.grad.clone()
        for stepping in (fused, plain):
            stepping.step()
            stepping.zero_grad()
        for (name, parameter), other in zip(model.named_parameters(), plain_model.parameters(), strict=True):
            torch.testing.assert_close(parameter, other, atol=1e-6, rtol=1e-5, msg=name)
        if step == 1:
            torch.save({"model": model.state_dict(), "optimizer": fused.state_dict()}, tmp_path / "state.pt")
            state = torch.load(tmp_path / "state.pt", weights_only=True)
            model = build(config.model, 4, 6)
            model.load_state_dict(state["model"])
            fused = make_optimizer(model, config.training)
            fused.load_state_dict(state["optimizer"])


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


def test_balance_is_refused_where_a_video_has_several_labels(synthetic, tiny, tmp_path):
    source = replace(open_source(str(synthetic / "videos")), multi_label=True)
    config = replace(of_one_stream(tiny), data=replace(tiny.data, balanced=True))
    with pytest.raises(InputError, match=r"data\.balanced: got true for .*; expected one a video"):
        train(source, config, tmp_path / "run", False, QUIET)
    assert not (tmp_path / "run").exists()
    train(source, replace(config, data=tiny.data), tmp_path / "run", False, QUIET)
    train(source, config, tmp_path / "run", True, QUIET)  # one that an earlier version began goes on


def with_numbers_gone_wrong(monkeypatch, wrong):
    """Make the inputs of some steps, `wrong(step)`, not a number, as an overflow would the activations."""
    steps = iter(range(1, 1000))
    real = loop.augment

    def augment(frames, box, inside, flip, colour, size):
        clip = real(frames, box, inside, flip, colour, size)
        return clip * float("nan") if wrong(next(steps)) else clip

    monkeypatch.setattr(loop, "augment", augment)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_step_whose_numbers_are_not_finite_is_named_and_changes_nothing(
    synthetic, tiny, tmp_path, monkeypatch, optimizer
):
    config = of_one_stream(tiny, optimizer=optimizer, batch_size=8, save_every=1, keep=10, ema=0.5)
    source = open_source(str(synthetic / "videos"))
    names = {video.name for video in source.split("train")}
    with monkeypatch.context() as patched:
        with_numbers_gone_wrong(patched, lambda step: step == 2)
        said = io.StringIO()
        train(source, config, tmp_path / "run", False, Console(file=said, width=1000))
    told = [line for line in said.getvalue().splitlines() if "skipped:" in line]
    assert len(told) == 1
    assert told[0].startswith("step 2 skipped: losses/rgb is nan")
    assert len(set(told[0].split("clips: ")[1].split(", ")) & names) == 8
    (record,) = epochs(tmp_path / "run")
    assert record["train"]["skipped"] == 1
    assert record["train"]["clips"] == 16
    assert np.isfinite(record["train"]["losses"]["rgb"])
    for tensor in load_file(tmp_path / "run" / "model.safetensors").values():
        assert tensor.isfinite().all()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("first", [True, False], ids=["first step", "later step"])
def test_a_skipped_step_leaves_weights_optimiser_and_batch_statistics_alone(synthetic, tiny, optimizer, first):
    config = of_one_stream(tiny, optimizer=optimizer, lr=0.1)
    source = open_source(str(synthetic / "videos"))
    accelerator = make_accelerator(config.training)
    sampler, loader = loop.make_loader(list(source.split("train")), source, config, None, accelerator)
    model = build(config.model, 4, 6)
    learner = make_learner(model, freeze(model, config), config, sampler, accelerator, QUIET)
    learner.begin_training()
    batch = next(iter(loader))
    if not first:
        loop.training_step(learner, accelerator, [batch], 1, config)
    before = copy.deepcopy({"model": learner.model.state_dict(), "optimizer": learner.optimizer.state_dict()["state"]})
    broken = batch._replace(colour_B3=batch.colour_B3 * float("nan"))
    values = loop.training_step(learner, accelerator, [broken], 2, config)
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
    assert loop.training_step(learner, accelerator, [batch], 3, config)["good"]
    assert all(parameter.isfinite().all() for parameter in learner.model.parameters())


def test_a_step_of_finite_losses_is_skipped_where_a_gradient_is_not_finite(synthetic, tiny):
    config = of_one_stream(tiny)
    learner, accelerator, batch = one_step(synthetic, config)
    weight = next(learner.model.parts()["rgb.early"].parameters())
    weight.register_hook(lambda gradient: gradient * float("inf"))
    before = [parameter.detach().clone() for parameter in learner.model.parameters()]
    values = loop.training_step(learner, accelerator, [batch], 1, config)
    assert all(value.isfinite() for name, value in values.items() if name.startswith("losses/"))
    assert not values["good"]
    assert all(torch.equal(now, was) for now, was in zip(learner.model.parameters(), before, strict=True))


def load_learner(run, step):
    return torch.load(run / "state" / f"step-{step:09d}.pt", weights_only=True)["learner"]


def test_when_nothing_is_finite_any_more_training_stops_and_keeps_the_last_good_state(
    synthetic, tiny, tmp_path, monkeypatch
):
    source = open_source(str(synthetic / "videos"))
    config = of_one_stream(tiny, epochs=9, batch_size=8, save_every=2, keep=1)
    with_numbers_gone_wrong(monkeypatch, lambda step: step > 5)  # from the last step but one of epoch 2
    with pytest.raises(FloatingPointError, match=r"steps of this epoch skipped.* lower --training\.lr"):
        train(source, config, tmp_path / "run", False, QUIET)
    state, damaged = load_state(tmp_path / "run")
    assert (state.step, damaged) == (4, [])
    assert all(tensor.isfinite().all() for tensor in state.learner["model"].values())


def test_ten_wrong_steps_in_a_row_are_enough(synthetic, tiny, tmp_path, monkeypatch):
    """And not more than half of an epoch, as 24 steps would be to wait for."""
    config = of_one_stream(tiny, epochs=2, batch_size=1, save_every=100)
    with_numbers_gone_wrong(monkeypatch, lambda step: step > 8)
    with pytest.raises(FloatingPointError, match=r"\A1[0-2] steps of this epoch skipped"):
        train(open_source(str(synthetic / "videos")), config, tmp_path / "run", False, QUIET)


def one_step(synthetic, config):
    """A learner that is about to make its first step, and what it needs for that."""
    source = open_source(str(synthetic / "videos"))
    accelerator = make_accelerator(config.training)
    sampler, loader = loop.make_loader(list(source.split("train")), source, config, None, accelerator)
    torch.manual_seed(0)
    model = build(config.model, 4, 6)
    learner = make_learner(model, freeze(model, config), config, sampler, accelerator, QUIET)
    learner.begin_training()
    return learner, accelerator, next(iter(loader))


def test_the_gradient_is_clipped_to_its_norm_as_a_whole(synthetic, tiny):
    moved = {}
    for clip_norm in (0.0, 0.01):
        config = of_one_stream(tiny, optimizer="sgd", clip_norm=clip_norm, weight_decay=0.0, warmup_epochs=0.0)
        config.model = replace(config.model, dropout=0.0)
        learner, accelerator, batch = one_step(synthetic, config)
        before = [parameter.detach().clone() for parameter in learner.model.parameters()]
        norm = loop.training_step(learner, accelerator, [batch], 1, config)["gradient_norms/all"]
        moved[clip_norm] = [now.detach() - was for now, was in zip(learner.model.parameters(), before, strict=True)]
    assert norm > 0.05
    for free, clipped in zip(*moved.values(), strict=True):
        torch.testing.assert_close(clipped, free * (0.01 / norm), rtol=1e-3, atol=1e-7)


def test_a_step_without_any_labelled_pixel_is_taken_with_nothing_for_the_segmenter(synthetic, tiny):
    config = of_one_stream(tiny, "semantic")
    learner, accelerator, batch = one_step(synthetic, replace(config, loss_weights=LossWeights(interm=0.5)))
    assert batch.label_map is None
    unlabelled = batch._replace(label_map=torch.full((4, 4, 16, 16), 255, dtype=torch.uint8))
    for step, given in enumerate((batch, unlabelled), 1):
        values = loop.training_step(learner, accelerator, [given], step, config)
        assert values["good"]
        assert values["losses/interm"] == 0


def test_a_batch_of_which_nothing_could_be_read_changes_no_gradient(synthetic, tiny):
    found = []
    for alone in (True, False):
        config = of_one_stream(tiny, optimizer="sgd", clip_norm=0.0, warmup_epochs=0.0)
        learner, accelerator, batch = one_step(synthetic, config)
        source = open_source(str(synthetic / "videos"))
        clips = dataset.TrainingClips(source.videos, config, source.classes, source.multi_label, None)
        black = clips.collate([dataset.BadVideo(source.videos[0], "unreadable")] * 4)
        torch.manual_seed(0)
        values = loop.training_step(learner, accelerator, [batch] if alone else [batch, black], 1, config)
        found.append(values | dict(learner.model.named_parameters()))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, msg=name)


def test_of_one_frame_the_flow_layer_learns_nothing_and_no_process_waits_for_its_gradient(tiny):
    one, two = (replace(tiny, clip=replace(tiny.clip, frames=frames)) for frames in (1, 2))
    for config, learns in ((one, False), (two, True)):
        model = build(config.model, 4, 81)
        freeze(model, config)
        assert any(p.requires_grad for p in model.representations["flow"].parameters()) is learns


def test_labels_are_smoothed(synthetic, tiny):
    """At the first step, with all logits 0 but for the bias of the last layer."""
    found = []
    for smoothing in (0.0, 0.4):
        learner, accelerator, batch = one_step(synthetic, of_one_stream(tiny, label_smoothing=smoothing))
        last = [module for module in learner.model.modules() if isinstance(module, torch.nn.Linear)][-1]
        with torch.no_grad():
            last.weight.zero_()
            last.bias.copy_(torch.tensor([2.0, 0.0, -1.0, 0.5]))
        values = loop.training_step(learner, accelerator, [batch], 1, of_one_stream(tiny, label_smoothing=smoothing))
        found.append(float(values["losses/rgb"]))
        logs = np.log(np.exp([2.0, 0.0, -1.0, 0.5]) / np.exp([2.0, 0.0, -1.0, 0.5]).sum())
        shares = (1 - smoothing) * np.eye(4)[batch.target.numpy()] + smoothing / 4
        assert found[-1] == pytest.approx(-(shares @ logs).mean(), rel=1e-4)
    assert found[0] != pytest.approx(found[1], abs=0.01)


def test_a_learning_rate_that_explodes_leaves_no_model(synthetic, tiny, tmp_path):
    source = open_source(str(synthetic / "videos"))
    config = of_one_stream(tiny, optimizer="sgd", lr=1e30, clip_norm=0.0, warmup_epochs=0.0)
    with pytest.raises(FloatingPointError, match="not finite"):
        train(source, config, tmp_path / "run", False, QUIET)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_gradient_norms_are_told_part_by_part(trained, tiny):
    norms = epochs(trained)[-1]["train"]["gradient_norms"]
    model = build(tiny.model, 4, 6)
    assert set(norms) == {"all", *model.parts()} - {"semantic.late"}  # a head of weight 0
    assert all(value > 0 for value in norms.values())
    parts = [value for name, value in norms.items() if name != "all"]
    assert norms["all"] >= max(parts)


def test_averaged_weights_are_the_result_and_lie_between_first_and_last(synthetic, tiny, tmp_path):
    config = of_one_stream(tiny, ema=0.8, keep=100, save_every=1)
    source = open_source(str(synthetic / "videos"))
    train(source, config, tmp_path / "run", False, QUIET)
    states = [load_learner(tmp_path / "run", step) for step in range(7)]
    expected = {name: tensor.double() for name, tensor in states[0]["model"].items()}
    for step, state in enumerate(states[1:], 1):
        decay = min(0.8, (1 + step) / (10 + step))
        expected = {name: decay * tensor + (1 - decay) * state["model"][name] for name, tensor in expected.items()}
    result = load_file(tmp_path / "run" / "model.safetensors")
    for name, tensor in result.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, expected[name].float(), atol=1e-6, rtol=1e-5)
    assert not torch.equal(
        result["early.rgb.blocks.0.body.0.weight"], states[-1]["model"]["early.rgb.blocks.0.body.0.weight"]
    )


def test_accumulated_batches_make_the_step_that_one_batch_of_them_all_makes(synthetic, tiny, tmp_path, monkeypatch):
    """With batch statistics out of play. Half of the videos have label maps, so batches have more and fewer of them."""
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
    assert norms[1] == pytest.approx(norms[0], rel=1e-2)  # AdamW would not tell a gradient of the wrong scale
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=2e-5, rtol=1e-3)


def test_frozen_parts_stay_as_they_are_statistics_included(synthetic, tiny, tmp_path):
    config = replace(tiny, training=replace(tiny.training, epochs=1, freeze=["rgb.early", "semantic.representation"]))
    source = open_source(str(synthetic / "videos"), synthetic / "labels")
    train(source, config, tmp_path / "run", False, QUIET)
    torch.manual_seed(config.seed)
    assert source.label_store is not None
    first = build(config.model, 4, len(source.label_store.classes)).state_dict()
    for name, tensor in load_file(tmp_path / "run" / "model.safetensors").items():
        stays = name.startswith(("early.rgb.", "representations.semantic.", "late.semantic."))
        if tensor.is_floating_point() and tensor.numel() > 1:
            assert torch.equal(tensor, first[name]) == stays, name
    norms = epochs(tmp_path / "run")[0]["train"]["gradient_norms"]
    assert not {"rgb.early", "semantic.representation"} & set(norms)


def test_a_part_to_freeze_that_the_model_lacks_is_refused_with_those_it_has(synthetic, tiny, tmp_path):
    source = open_source(str(synthetic / "videos"))
    with pytest.raises(InputError, match=r"got rgb.tower; expected some of rgb.early, rgb.late"):
        train(source, of_one_stream(tiny, freeze=["rgb.tower"]), tmp_path / "run", False, QUIET)
    with pytest.raises(InputError, match="a part left to learn"):
        train(source, of_one_stream(tiny, freeze=["rgb.early", "rgb.late"]), tmp_path / "run", False, QUIET)
    assert not (tmp_path / "run").exists()  # nothing is written


@pytest.mark.parametrize("stopped", [[], ["semantic"], ["flow", "semantic"]])
@pytest.mark.parametrize("interm", [0.0, 1.0])
def test_every_parameter_that_is_to_learn_gets_a_gradient(tiny, stopped, interm):
    """Processes that train together wait for each of them."""
    config = replace(tiny, model=replace(tiny.model, stop_gradient=stopped), loss_weights=LossWeights(interm=interm))
    model = build(config.model, 4, 6)
    freeze(model, config)
    output = model(torch.rand(2, 3, 4, 64, 64), config.trained_heads())
    total = sum(logits.sum() for logits in output.logits.values())
    if interm:
        total = total + output.representations["semantic"].shown.square().sum()
    total.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_a_model_starts_from_another_runs_weights(trained, synthetic, tiny, tmp_path):
    source = open_source(str(synthetic / "videos"), synthetic / "labels")
    config = replace(tiny, training=replace(tiny.training, epochs=1, lr=1e-12, weight_decay=0.0))
    said = io.StringIO()
    train(source, config, tmp_path / "run", False, Console(file=said, width=200), trained)
    assert "rgb.early" in said.getvalue()
    assert "beware" not in said.getvalue()
    before, after = (load_file(run / "model.safetensors") for run in (trained, tmp_path / "run"))
    for name, tensor in after.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(tensor, before[name], atol=1e-6, rtol=0)


def test_what_a_run_to_start_from_learnt_is_known_to_the_last_run_that_starts_from_it(trained, videos, tiny, tmp_path):
    rows = [
        f"train/{name}/{number:03d}.mp4,{name},{'test' if number == 0 else 'train'}"
        for name in ("disc_up", "disc_left")
        for number in range(4)
    ]
    (videos / "other.csv").write_text("\n".join(["path,label,split", *rows]))
    other = open_source(str(videos / "other.csv"))
    config = of_one_stream(tiny)
    said = io.StringIO()
    train(other, config, tmp_path / "second", False, Console(file=said, width=300), trained)
    assert (
        f"beware: {trained} learnt from 2 of the 2 validation and test videos, by their names, such as train/disc_"
        in said.getvalue()
    )
    assert evaluate(tmp_path / "second", other, "test", QUIET).figures["trained_on"] == 2
    whole = open_source(str(videos))
    train(whole, config, tmp_path / "third", False, QUIET, tmp_path / "second")
    assert learnt_from(tmp_path / "third") == {video.name for video in whole.split("train")}
    (tmp_path / "alone").mkdir()
    shutil.copy(tmp_path / "second" / "learnt_before.csv", tmp_path / "alone")  # of a start that was killed
    train(other, config, tmp_path / "alone", False, QUIET)
    assert learnt_from(tmp_path / "alone") == {video.name for video in other.split("train")}
    assert evaluate(tmp_path / "alone", other, "test", QUIET).figures["trained_on"] == 0


def test_where_the_compiler_fails_training_goes_on_without_it(synthetic, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (str(tmp_path / "no-compiler"),))
    source = open_source(str(synthetic / "videos"))
    said = io.StringIO()
    train(source, of_one_stream(tiny, compile=True), tmp_path / "run", False, Console(file=said, width=200))
    assert "torch.compile failed, going on without it" in said.getvalue()
    train(source, of_one_stream(tiny), tmp_path / "plain", False, QUIET)
    plain = load_file(tmp_path / "plain" / "model.safetensors")
    for name, tensor in load_file(tmp_path / "run" / "model.safetensors").items():
        assert torch.equal(tensor, plain[name]), name


def test_a_device_that_is_not_there_is_refused_with_what_to_give_instead(synthetic, tiny, tmp_path):
    source = open_source(str(synthetic / "videos"))
    with pytest.raises(InputError, match=r"give --training\.device cpu"):
        train(source, of_one_stream(tiny, device="mps"), tmp_path / "run", False, QUIET)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match=r"give --training\.device cpu"):
            train(source, of_one_stream(tiny, device="cuda"), tmp_path / "run", False, QUIET)


def test_classes_that_need_not_be_told_apart_are_one_for_the_segmenter(synthetic, tiny, tmp_path):
    data = replace(tiny.data, segment_classes=["disc"], compact_classes=True)
    config = replace(tiny, data=data, training=replace(tiny.training, epochs=1))
    source = open_source(str(synthetic / "videos"), synthetic / "labels")
    run, told = tmp_path / "run", io.StringIO()
    train(source, config, run, False, QUIET)
    saved = saved_models.load(run)
    assert saved.segment_classes == ("background", "disc", "other")
    train(source, load_config(run / "config.yaml"), run, True, QUIET)
    scored = evaluate(run, source, "test", Console(file=told, width=200)).figures["segmentation"]
    assert "has no class for is scored as other" in told.getvalue()
    assert source.label_store is not None
    grouped = replace(source, label_store=source.label_store.apart(["disc"]))
    assert evaluate(run, grouped, "test", QUIET).figures["segmentation"] == scored
    absent = replace(config, data=replace(data, segment_classes=["dog"], compact_classes=False))
    with pytest.raises(InputError, match="segment_classes: got dog; expected some of the classes"):
        train(source, absent, tmp_path / "dog", False, QUIET)
    assert not (tmp_path / "dog").exists()
    train(source, of_one_stream(absent), tmp_path / "rgb", False, QUIET)  # nothing reads the label maps
    told = io.StringIO()
    assert evaluate(tmp_path / "rgb", source, "test", Console(file=told, width=200)).figures["segmentation"] is None
    assert "segmentation" not in told.getvalue()


def test_classes_that_never_occur_are_left_out_of_the_segmenter_and_named(synthetic, tiny, tmp_path):
    config = replace(tiny, data=replace(tiny.data, compact_classes=True), training=replace(tiny.training, epochs=1))
    source = open_source(str(synthetic / "videos"), synthetic / "labels")
    run, told = tmp_path / "run", io.StringIO()
    train(source, config, run, False, Console(file=told, width=200))
    said = told.getvalue()
    assert "segmenter: 3 of 6 classes; in no training label map: " in said
    assert all(name in said for name in ("triangle", "ring", "cross"))  # discs and squares are all that was drawn
    saved = saved_models.load(run)
    assert saved.segment_classes == ("background", "disc", "square")
    assert len(saved.model.state_dict()["representations.semantic.segmenter.classifier.weight"]) == 3
    train(source, load_config(run / "config.yaml"), run, True, QUIET)
    figures = evaluate(run, source, "test", QUIET).figures
    assert figures["segmentation"]["pixel_accuracy"] > 0
