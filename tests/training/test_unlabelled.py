"""Trainings with unlabelled videos: they learn from the teacher alone, and resume to the same bits."""

import csv
import io
import shutil

import pytest
from rich.console import Console
from safetensors.torch import load_file

import airstreams
from airstreams.data.sources import open_source
from airstreams.runs.folder import RunFolder
from airstreams.training.loop import train
from tests.training.runs import of_one_stream

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def mixed(synthetic, tmp_path_factory):
    """Half of the training videos are unlabelled. The teacher has seen all but one of these."""
    root = tmp_path_factory.mktemp("mixed")
    shutil.copytree(synthetic / "videos", root / "videos")
    shutil.copytree(synthetic / "labels", root / "labels")
    for path in sorted((root / "videos" / "train").glob("*/00[345].mp4")):
        name = f"{path.parent.name} {path.stem}"
        path.rename(made(root / "videos" / "_unlabelled") / f"{name}.mp4")
        label_map = root / "labels" / "train" / path.parent.name / f"{path.stem}.npz"
        label_map.rename(made(root / "labels" / "_unlabelled") / f"{name}.npz")
    next((root / "labels" / "_unlabelled").glob("*.npz")).unlink()
    return root


def made(folder):
    folder.mkdir(exist_ok=True)
    return folder


def test_a_mixed_training_resumes_in_mid_epoch_to_the_same_bits(mixed, tiny, tmp_path):
    source = open_source(str(mixed / "videos"), mixed / "labels")
    config = of_one_stream(tiny, "semantic", save_every=3)
    said = io.StringIO()
    train(source, config, tmp_path / "whole", False, Console(file=said, width=300))
    assert "1 of 12 unlabelled" in said.getvalue()
    assert "11 unlabelled videos for training" in said.getvalue()

    def stop(done, total):
        if done == 5:  # the state is that of step 3
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(source, config, tmp_path / "run", False, QUIET, after_step=stop)
    train(source, config, tmp_path / "run", True, QUIET)
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "run"))
    assert all(whole[name].equal(resumed[name]) for name in whole)
    folder = RunFolder(tmp_path / "run")
    assert folder.split_sizes() == {"train": 12, "_unlabelled": 11, "test": 8}
    assert len(folder.training_labels()) == 12
    scored = airstreams.evaluate(tmp_path / "run", source, split="train")
    assert scored.metrics.videos == 12


def test_without_a_teacher_unlabelled_videos_are_left_out_with_one_line(mixed, tiny, tmp_path):
    said = io.StringIO()
    train(
        open_source(str(mixed / "videos")), of_one_stream(tiny), tmp_path / "run", False, Console(file=said, width=300)
    )
    (line,) = (line for line in said.getvalue().splitlines() if "unlabelled" in line)
    assert "--labels" in line
    alone = shutil.copytree(mixed / "videos", tmp_path / "alone")
    shutil.rmtree(alone / "_unlabelled")
    train(open_source(str(alone)), of_one_stream(tiny), tmp_path / "alone run", False, QUIET)
    with (tmp_path / "run" / "split.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 20
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("run", "alone run")]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
