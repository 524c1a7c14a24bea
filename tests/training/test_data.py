"""The data of a training before its first step: splits, unreadable videos, the segmenter's classes."""

import csv
import io
import shutil
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from airstreams.config import ClipConfig, LossWeights
from airstreams.data.label_maps import save
from airstreams.data.sources import open_source
from airstreams.errors import InputError
from airstreams.evaluation.evaluate import evaluate
from airstreams.files import write_rows
from airstreams.recipe import load_config
from airstreams.runs import saved_model as saved_models
from airstreams.runs.folder import RunFolder
from airstreams.training import data as training_data
from airstreams.training import setup
from airstreams.training.data import prepare_source
from airstreams.training.loop import train
from tests.training.runs import epochs, of_one_stream

QUIET = Console(quiet=True)


def test_a_resumed_run_keeps_its_splits(synthetic, tiny, tmp_path):
    videos = open_source(str(synthetic / "videos")).videos
    rows = ["path,label,split", *(f"{video.path},{video.labels[0]},{video.split}" for video in videos)]
    (tmp_path / "a.csv").write_text("\n".join(rows))
    (tmp_path / "b.csv").write_text("\n".join([*rows[:1], *(row.replace(",test", ",train") for row in rows[1:])]))
    config = of_one_stream(tiny)
    train(open_source(str(tmp_path / "a.csv")), config, tmp_path / "run", False, QUIET)
    with pytest.raises(InputError, match=r"--resume: .*split\.csv.* is in train, and was in test"):
        train(open_source(str(tmp_path / "b.csv")), config, tmp_path / "run", True, QUIET)
    assert set(RunFolder(tmp_path / "run").read_splits().values()) == {"train", "test"}


def test_a_source_made_in_python_is_checked(source, trained, tiny, tmp_path):
    twice = replace(source, videos=(*source.videos, source.videos[0]))
    for work in (
        lambda: train(twice, of_one_stream(tiny), tmp_path / "run", False, QUIET),
        lambda: evaluate(trained, twice, "test", QUIET),
    ):
        with pytest.raises(InputError, match=source.videos[0].name):
            work()
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_needs_all_videos_but_those_left_out(videos, tiny, tmp_path):
    bad, good = videos / "train" / "disc_up" / "002.mp4", videos / "train" / "disc_up" / "003.mp4"
    bad.write_bytes(b"")
    run = tmp_path / "run"
    train(open_source(str(videos)), of_one_stream(tiny), run, False, QUIET)
    bad.unlink()
    train(open_source(str(videos)), of_one_stream(tiny), run, True, QUIET)
    new = shutil.copy(good, good.with_name("900.mp4"))
    with pytest.raises(InputError, match=r"--resume: .*train/disc_up/900\.mp4, which is new"):
        train(open_source(str(videos)), of_one_stream(tiny), run, True, QUIET)
    new.unlink()
    good.unlink()
    with pytest.raises(InputError, match=r"--resume: .*train/disc_up/003\.mp4, which is missing"):
        train(open_source(str(videos)), of_one_stream(tiny), run, True, QUIET)


def test_a_bad_folder_or_config_is_rejected_before_any_video_is_opened(videos, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "prepare_videos", None)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        train(open_source(str(videos)), of_one_stream(tiny), tmp_path / "file" / "run", False, QUIET)
    config = of_one_stream(tiny)
    config = replace(config, training=replace(config.training, freeze=["flow.early"]))
    with pytest.raises(InputError, match=r"training\.freeze"):
        train(open_source(str(videos)), config, tmp_path / "run", False, QUIET)


def test_an_unwritable_cache_is_rejected_before_any_video_is_opened(videos, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(training_data, "check_distributed", None)
    (tmp_path / "file").touch()
    config = replace(tiny, data=replace(tiny.data, cache=str(tmp_path / "file" / "cache")))
    with pytest.raises(InputError, match=r"cache: got .* expected a folder for decoded frames"):
        train(open_source(str(videos)), of_one_stream(config), tmp_path / "run", False, QUIET)


def test_videos_without_label_maps_are_counted(synthetic, tiny, tmp_path):
    labels = shutil.copytree(synthetic / "labels", tmp_path / "labels")
    shutil.rmtree(labels / "train" / "disc_up")
    said = io.StringIO()
    source = open_source(str(synthetic / "videos"), labels)
    train(source, of_one_stream(tiny, "semantic"), tmp_path / "run", False, Console(file=said, width=200))
    assert "18 of 24" in said.getvalue()


def test_label_maps_of_test_videos_only_are_rejected_before_any_video_is_opened(synthetic, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "prepare_videos", None)
    labels = shutil.copytree(synthetic / "labels", tmp_path / "labels")
    shutil.rmtree(labels / "train")
    with pytest.raises(InputError, match=r"labels: .*annotate.*loss_weights\.interm"):
        train(open_source(str(synthetic / "videos"), labels), tiny, tmp_path / "none", False, QUIET)


def test_label_maps_of_unreadable_videos_do_not_count(videos, synthetic, tiny, tmp_path):
    labels = shutil.copytree(synthetic / "labels", tmp_path / "labels")
    shutil.rmtree(labels / "train")
    save(labels, "train/disc_up/002", np.zeros((1, 4, 4), np.uint8), [0])
    (videos / "train" / "disc_up" / "002.mp4").write_bytes(b"no video")
    with pytest.raises(InputError, match=r"labels: .*annotate.*loss_weights\.interm"):
        train(open_source(str(videos), labels), tiny, tmp_path / "none", False, QUIET)


def test_a_label_map_with_unknown_classes_leaves_out_its_video(synthetic, tiny, tmp_path):
    labels = shutil.copytree(synthetic / "labels", tmp_path / "labels")
    save(labels, "train/disc_up/002", np.full((1, 4, 4), 99, np.uint8), [0])
    source = open_source(str(synthetic / "videos"), labels)
    train(source, of_one_stream(tiny, "semantic"), tmp_path / "run", False, QUIET)
    (left_out,) = epochs(tmp_path / "run")[0]["train"]["left_out"]
    assert "train/disc_up/002" in left_out
    assert "99" in left_out


def test_an_unreadable_training_video_is_left_out_and_named(videos, tiny, tmp_path):
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
    assert "1 of 24 videos" in said.getvalue()
    assert "train/disc_up/002.mp4: truncated" in said.getvalue()
    assert epochs(run)[0]["train"]["clips"] == 23


def test_a_class_without_a_readable_training_video_is_rejected(videos, tiny, tmp_path):
    for path in (videos / "train" / "disc_up").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"disc_up.*check-data"):
        train(open_source(str(videos)), of_one_stream(tiny), tmp_path / "run", False, QUIET)
    assert not (tmp_path / "run").exists()


def test_data_without_splits_gets_seeded_splits_that_keep_groups_together(videos, tiny, tmp_path):
    rows = [
        (path.relative_to(tmp_path), path.parent.name, f"{path.parent.name}-{int(path.stem) // 2}")
        for path in sorted((videos / "train").rglob("*.mp4"))
    ]
    listing = tmp_path / "videos.csv"
    write_rows(listing, ("path", "label", "group"), rows)
    config, run = of_one_stream(tiny), tmp_path / "run"
    source = open_source(str(listing))
    drawn = []
    for seed in (0, 0, 5):
        prepared = prepare_source(source, replace(config, seed=seed), RunFolder(run), False, QUIET)
        drawn.append({video.name: video.split or "" for video in prepared.videos})
    assert drawn[0] == drawn[1] != drawn[2]
    train(source, config, run, False, QUIET)
    assert RunFolder(run).read_splits() == drawn[0]
    assert set(drawn[0]) == {str(path) for path, _, _ in rows}
    for split in drawn[::2]:
        of_group: dict[str, set[str]] = {}
        for path, _, group in rows:
            of_group.setdefault(group, set()).add(split[str(path)])
        assert all(len(found) == 1 for found in of_group.values())
        assert {"train", "test"} <= set(split.values())
    train_part = [name for name, split in drawn[0].items() if split == "train"]
    assert epochs(run)[0]["train"]["clips"] == len(train_part) // 4 * 4  # batches of 4, the rest dropped
    evaluated = evaluate(run, source, "test", QUIET)
    assert evaluated.metrics.videos == list(drawn[0].values()).count("test")


def test_a_semantic_stream_without_label_maps_needs_interm_0(synthetic, tiny, tmp_path):
    source = open_source(str(synthetic / "videos"))
    with pytest.raises(InputError, match=r"loss_weights\.interm"):
        train(source, tiny, tmp_path / "run", False, QUIET)
    assert not (tmp_path / "run").exists()
    config = of_one_stream(replace(tiny, loss_weights=LossWeights(interm=0)), "semantic")
    train(source, config, tmp_path / "run", False, QUIET)


def test_balance_works_for_multi_label_data(synthetic, trained, tiny, tmp_path):
    source = replace(open_source(str(synthetic / "videos")), multi_label=True)
    config = replace(of_one_stream(tiny), data=replace(tiny.data, balanced=True))
    prepare_source(source, config, RunFolder(tmp_path / "run"), False, QUIET)
    prepare_source(source, config, RunFolder(trained), True, QUIET)


def test_warnings_about_the_data_are_printed_and_kept(synthetic, tiny, tmp_path):
    config = replace(of_one_stream(tiny), clip=ClipConfig(9, stride=1, size=64), data=replace(tiny.data, flip=True))
    config = replace(config, training=replace(config.training, epochs=1))
    said = io.StringIO()
    train(open_source(synthetic / "videos"), config, tmp_path / "run", False, Console(file=said, width=200))
    flip, length = RunFolder(tmp_path / "run").read_data_warnings()
    assert "data.flip" in flip
    assert "clip.frames" in length
    assert all(f"warning: {warning}\n" in said.getvalue() for warning in (flip, length))


def test_the_groups_of_the_config_are_used(synthetic, tiny, tmp_path, monkeypatch):
    """The files `NNN.mp4` of all classes with one number form a group."""
    monkeypatch.setattr(setup, "prepare_videos", None)
    source = open_source(synthetic / "videos")
    source = replace(source, videos=tuple(replace(video, split=None) for video in source.split("train")))
    config = replace(of_one_stream(tiny), data=replace(tiny.data, group_by=r"\d+$", val_fraction=0.3))
    split = {
        video.name: video.split for video in prepare_source(source, config, RunFolder(tmp_path), False, QUIET).videos
    }
    for number in range(6):
        assert len({use for name, use in split.items() if f"{number:03}" in name}) == 1
    assert set(split.values()) == {"train", "val", "test"}


def test_segment_classes_merges_the_other_classes(synthetic, tiny, tmp_path):
    data = replace(tiny.data, segment_classes=["disc"], compact_classes=True)
    config = replace(of_one_stream(tiny, "semantic"), data=data)
    source = open_source(str(synthetic / "videos"), synthetic / "labels")
    run, said = tmp_path / "run", io.StringIO()
    train(source, config, run, False, QUIET)
    saved = saved_models.load(run)
    assert saved.segment_classes == ("background", "disc", "other")
    train(source, load_config(run / "config.yaml"), run, True, QUIET)
    scored = evaluate(run, source, "test", Console(file=said, width=200)).metrics.segmentation
    assert "scored as other" in said.getvalue()
    assert source.label_store is not None
    grouped = replace(source, label_store=source.label_store.with_others_merged(["disc"]))
    assert evaluate(run, grouped, "test", QUIET).metrics.segmentation == scored
    absent = replace(config, data=replace(data, segment_classes=["dog"], compact_classes=False))
    with pytest.raises(InputError, match="segment_classes: got dog"):
        train(source, absent, tmp_path / "dog", False, QUIET)
    assert not (tmp_path / "dog").exists()
    train(source, of_one_stream(absent), tmp_path / "rgb", False, QUIET)  # nothing reads the label maps
    said = io.StringIO()
    assert evaluate(tmp_path / "rgb", source, "test", Console(file=said, width=200)).metrics.segmentation is None
    assert "segmentation" not in said.getvalue()


def test_compact_classes_leaves_out_absent_classes_and_names_them(synthetic, tiny, tmp_path):
    config = replace(of_one_stream(tiny, "semantic"), data=replace(tiny.data, compact_classes=True))
    source = open_source(str(synthetic / "videos"), synthetic / "labels")
    run, said = tmp_path / "run", io.StringIO()
    train(source, config, run, False, Console(file=said, width=200))
    assert "3 of 6 classes" in said.getvalue()
    assert all(name in said.getvalue() for name in ("triangle", "ring", "cross"))  # only discs and squares were drawn
    saved = saved_models.load(run)
    assert saved.segment_classes == ("background", "disc", "square")
    assert len(saved.model.state_dict()["representations.semantic.segmenter.classifier.weight"]) == 3
    train(source, load_config(run / "config.yaml"), run, True, QUIET)
    segmentation = evaluate(run, source, "test", QUIET).metrics.segmentation
    assert segmentation is not None
    assert segmentation.pixel_accuracy > 0
