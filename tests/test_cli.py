"""The command line as people and scripts meet it: exit statuses, one JSON object, and one line for each mistake."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path

import av
import pytest
import torch

import airstreams
from airstreams.cli import main
from airstreams.commands import COMMANDS
from airstreams.config import Config
from airstreams.data import label_maps as labels
from airstreams.data.video import probe, read_frames
from airstreams.recipe import load_config, save_config
from airstreams.runs import saved_model as saved_models


@pytest.fixture
def recipe(tiny, tmp_path):
    save_config(tiny, tmp_path / "tiny.yaml")
    return tmp_path / "tiny.yaml"


@pytest.fixture
def call(capsys):
    """Runs a command: its exit status, and what it printed on stdout and stderr."""

    def run_main(*argv):
        capsys.readouterr()
        status = main([str(word) for word in argv])
        return status, *capsys.readouterr()

    return run_main


def with_json(result, status=0):
    found, out, err = result
    assert found == status, err
    assert len(out.splitlines()) == 1, out
    return json.loads(out)


def complaint(result, *told, status=2):
    """The one line on stderr, which must name what it was told."""
    found, out, err = result
    assert found == status, (out, err)
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert "Traceback" not in err
    assert err.startswith("airstreams: ")
    for words in told:
        assert str(words) in err
    return err


def test_check_data_counts_classes_and_splits(call, synthetic):
    assert with_json(call("check-data", synthetic / "videos", "--json")) == {
        "videos": 32,
        "good": 32,
        "bad": [],
        "classes": {"disc_left": 8, "disc_up": 8, "square_left": 8, "square_up": 8},
        "splits": {"train": 24, "test": 8},
        "frame_rates": {"lowest": 30.0, "highest": 30.0},
    }


def test_check_data_lists_each_bad_file_with_its_reason_and_fails(call, videos):
    text, cut = videos / "train" / "disc_up" / "000.mp4", videos / "test" / "square_up" / "001.mp4"
    text.write_text("Not a film at all.\n" * 40)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    found = with_json(call("check-data", videos, "--json"), status=1)
    assert (found["videos"], found["good"]) == (32, 30)
    reasons = {item["path"]: item["reason"] for item in found["bad"]}
    assert set(reasons) == {str(text), str(cut)}
    assert "not a video" in reasons[str(text)]
    assert "truncated" in reasons[str(cut)]
    assert found["classes"] == {"disc_left": 8, "disc_up": 7, "square_left": 8, "square_up": 7}
    assert found["splits"] == {"train": 23, "test": 7}
    status, out, _ = call("check-data", videos)
    assert status == 1
    for path, reason in reasons.items():
        assert f"{path}: {reason}" in out


def test_check_data_lists_all_files_that_are_missing_and_training_refuses_them(call, videos, tmp_path):
    names = sorted(path.relative_to(videos).as_posix() for path in (videos / "train").rglob("*.mp4"))
    for name in names[:3]:
        (videos / name).unlink()
    listed = videos / "list.csv"
    listed.write_text("path,label\n" + "".join(f"{name},{name.split('/')[1]}\n" for name in names))
    found = with_json(call("check-data", listed, "--json"), status=1)
    assert (found["videos"], found["good"]) == (24, 21)
    assert [(item["name"], item["reason"]) for item in found["bad"]] == [(name, "does not exist") for name in names[:3]]
    complaint(call("train", listed, "--out", tmp_path / "run"), "3 of 24 rows", "`airstreams check-data` lists them")


def test_square_brackets_in_names_are_shown_as_they_are(call, videos):
    (videos / "train" / "disc_up").rename(videos / "train" / "walk [slow]")
    (videos / "test" / "disc_up").rename(videos / "test" / "walk [slow]")
    assert "walk [slow]" in call("check-data", videos)[1]


def test_train_evaluate_predict_from_a_folder_of_videos(call, videos, recipe, tmp_path):
    """What the README promises: class folders become a recogniser, here of one stream and without splits or labels."""
    run = tmp_path / "new run"
    options = ("--config", recipe, "--model.streams", "[rgb]", "--training.epochs", "1", "--seed", "3")
    record = with_json(call("train", videos / "train", "--out", run, *options, "--json"))
    assert record["run"] == str(run)
    figures = with_json(call("evaluate", run, videos / "train", "--json"))
    assert figures["videos"] == 5  # a fifth of 24
    assert figures["left_out"] == 0
    assert list(figures["streams"]) == ["rgb"]
    assert figures["segmentation"] is None
    assert (run / "evaluation" / "test" / "confusion.png").stat().st_size > 1000
    assert not (run / "evaluation" / "test" / "representations.png").exists()
    film = videos / "test" / "disc_up" / "000.mp4"
    found = with_json(call("predict", run, film, "--json"))
    assert found["videos"][0]["path"] == str(film)
    status, out, _ = call("predict", run, film)
    assert status == 0
    best = found["videos"][0]["top"][0]
    assert f"{film}: {best['label']} {best['probability']:.1%}" in out


def test_evaluate_prints_the_figures_of_every_head_and_of_the_segmentation(call, run, synthetic):
    data = (synthetic / "videos", "--labels", synthetic / "labels")
    figures = with_json(call("evaluate", run, *data, "--json"))
    assert {"videos", "left_out", "top1", "top5", "mean_per_class", "map", "streams", "segmentation"} <= set(figures)
    assert figures["videos"] == 8
    assert figures["map"] is None
    assert figures["streams"]["semantic"]["top1"] is None
    assert figures["streams"]["merged"]["top1"] == figures["top1"]
    assert {"pixel_accuracy", "miou"} <= set(figures["segmentation"])
    assert with_json(call("evaluate", run, *data, "--split", "train", "--json"))["videos"] == 24
    status, out, _ = call("evaluate", run, *data)
    assert status == 0
    for words in ("merged", "semantic", "pixel_accuracy", "8 videos scored, 0 left out", f"{figures['top1']:.1%}"):
        assert words in out
    assert (run / "evaluation" / "test" / "representations.png").stat().st_size > 10_000


def test_predict_leaves_a_bad_file_out_scores_the_others_and_fails(call, trained, videos):
    good, text = videos / "test" / "disc_up" / "000.mp4", videos / "notes.mp4"
    text.write_text("Not a film at all.\n" * 40)
    found = with_json(call("predict", trained, text, good, "--json"), status=1)
    assert [item["path"] for item in found["videos"]] == [str(good)]
    assert set(found["videos"][0]) == {"path", "top", "windows"}
    assert all(set(item) == {"label", "probability"} for item in found["videos"][0]["top"])
    assert sum(item["probability"] for item in found["videos"][0]["top"]) == pytest.approx(1, abs=1e-5)
    assert found["left_out"][0]["path"] == str(text)
    assert "not a video" in found["left_out"][0]["reason"]
    status, out, err = call("predict", trained, text, good)
    assert status == 1
    assert str(good) in out
    assert len(err.splitlines()) == 1
    assert "notes.mp4" in err
    assert "not a video" in err


def test_predict_names_the_windows_of_a_long_video(call, run, synthetic):
    saved = saved_models.load(run)
    saved.config.evaluation.window = 0.1
    saved_models.save(saved, run)
    video = synthetic / "videos" / "test" / "disc_up" / "000.mp4"
    windows = with_json(call("predict", run, video, "--json"))["videos"][0]["windows"]
    assert [set(window) for window in windows] == [{"start", "end", "top"}] * 3
    assert windows[0]["start"] == 0
    assert windows[0]["end"] == windows[1]["start"]


def test_info_counts_a_recipe_and_a_run_part_by_part(call, trained):
    assert with_json(call("info", "jhmdb", "--json"))["segment_classes"] == 81
    assert with_json(call("info", "jhmdb-small", "--json"))["segment_classes"] == 3  # background, person, all others
    for what in ("jhmdb-small", trained):
        found = with_json(call("info", what, "--json"))
        cost = found["multiply_adds"]
        assert found["parameters"] > 0
        assert 0 < cost["inference"] < cost["training"]
        assert sum(part["inference"] for part in cost["parts"].values()) == cost["inference"]
        assert sum(part["training"] for part in cost["parts"].values()) == cost["training"]
        status, out, _ = call("info", what)
        assert status == 0
        assert all(name.split(".")[0] in out for name in cost["parts"])
    assert found["classes"] == 4  # the run's own, not a data set's


def test_a_finished_run_resumes_without_a_word_of_its_config(call, run, synthetic):
    before = (run / "model.safetensors").read_bytes()
    data = (synthetic / "videos", "--labels", synthetic / "labels")
    status, out, said = call("train", *data, "--out", run, "--resume")
    assert (status, out) == (0, f"trained: {run}\n")
    assert said == f"{run}: all 2 epochs are done already\n"
    assert (run / "model.safetensors").read_bytes() == before
    found = with_json(call("train", *data, "--out", run, "--resume", "--json"))
    assert (found["run"], found["epoch"], found["step"]) == (str(run), 2, 12)


def test_a_training_starts_from_another_runs_weights_and_with_fewer_classes(call, trained, recipe, synthetic, tmp_path):
    data = (synthetic / "videos", "--labels", synthetic / "labels", "--config", recipe)
    still = ("--training.lr", "1e-12", "--training.epochs", "1", "--compact-classes")
    assert call("train", *data, "--out", tmp_path / "run", "--init", trained, *still)[0] == 0
    before, after = (saved_models.load(run) for run in (trained, tmp_path / "run"))
    assert set(after.segment_classes) < set(before.segment_classes)
    name = "early.rgb.blocks.0.body.0.weight"
    assert torch.equal(before.model.state_dict()[name], after.model.state_dict()[name].detach())


def test_other_settings_beside_resume_are_refused_and_not_ignored(call, run, synthetic):
    data = (synthetic / "videos", "--labels", synthetic / "labels")
    complaint(call("train", *data, "--out", run, "--resume", "--training.epochs", "9"), "--resume", "config.yaml")
    complaint(call("train", *data, "--out", run, "--resume", "--weights-from", run), "--resume", "--weights-from")
    elsewhere = ("--data.workers", "1", "--training.device=cpu")  # which changes no model
    assert call("train", *data, "--out", run, "--resume", *elsewhere)[0] == 0
    complaint(call("train", *data, "--out", run, "--resume", *elsewhere, "--data.flip", "true"), "all keys but data.c")


def test_keys_go_before_the_recipe_wherever_they_stand(call, recipe, synthetic, tmp_path):
    keys = ("--training.epochs", "1", "--model.streams", "[rgb]")
    status, _, said = call("train", synthetic / "videos", *keys, "--out", tmp_path / "run", "--config", recipe)
    assert status == 0
    config = load_config(tmp_path / "run" / "config.yaml")
    assert (config.training.epochs, config.model.streams) == (1, ["rgb"])
    assert config.model.width == 0.25  # the recipe's
    assert "24 training, 0 validation and 8 test videos of 4 classes\n" in said


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("training:", "training: got nothing, expected keys below it"),
        ("training: 5", "training: got 5, expected keys below it"),
        ("model: {flow: }", "model.flow: got nothing, expected keys below it"),
        ("training: {optimizer: }", "training.optimizer: got nothing, expected a value"),
        ("model: {flow: {iterations: }}", "model.flow.iterations: got nothing, expected a value"),
        ("training: {epochs: 2}\nclip: {size: 64}\ntraining: {lr: 0.1}", "training occurs twice"),
        ("training: {epochs: {{ n }}}", "not YAML"),
    ],
)
def test_a_recipe_that_says_nothing_or_twice_is_refused(call, tmp_path, lines, words):
    (tmp_path / "mine.yaml").write_text(lines + "\n")
    complaint(call("info", tmp_path / "mine.yaml"), tmp_path / "mine.yaml", words)
    complaint(call("train", "x", "--out", tmp_path / "run", "--config", tmp_path / "mine.yaml"), words)


def test_another_frame_rate_than_trainings_is_told_unless_clips_go_by_time(call, videos, run, recipe, tmp_path):
    """The run has learnt from 30 frames a second."""
    test_videos = sorted((videos / "test").rglob("*.mp4"))
    for path in test_videos[:3]:
        at_60_frames_a_second(path)
    assert "30 to 60\n" in call("check-data", videos)[1]
    other = "videos have another frame rate, such as 60 a second, than the usual 30"
    assert f"beware: 3 of 8 {other}" in call("evaluate", run, videos)[2]
    assert f"beware: 1 of 2 {other}" in call("predict", run, test_videos[0], test_videos[3])[2]
    assert "beware" not in call("predict", run, test_videos[3])[2]

    one = next((videos / "train").rglob("*.mp4"))
    at_60_frames_a_second(one)
    options = ("--config", recipe, "--model.streams", "[rgb]", "--training.epochs", "1", "--clip.stride", "2")
    said = call("train", videos, "--out", tmp_path / "by frames", *options)[2]
    assert f"beware: 1 of 24 {other}" in said
    assert "--clip.rate 15 takes frames by time" in said
    train = ("train", videos, "--out", tmp_path / "by time", *options, "--clip.rate", "15")
    for calling in (train, ("evaluate", tmp_path / "by time", videos)):
        status, _, said = call(*calling)
        assert status == 0
        assert "frame rate" not in said


def at_60_frames_a_second(path):
    frames = read_frames(path, range(probe(path).frames))
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=60)
        stream.height, stream.width = frames.shape[1:3]
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode(None))


def test_so_few_steps_that_little_can_be_learnt_are_told(call, videos, run, recipe, tmp_path):
    options = ("--config", recipe, "--model.streams", "[rgb]", "--training.epochs", "1")
    said = call("train", videos, "--out", tmp_path / "few", *options)[2]
    assert "beware: 6 steps are few to learn in from random weights; give more --training.epochs than 1, or" in said
    assert "steps are few" not in call("train", videos, "--out", tmp_path / "from", *options, "--init", run)[2]
    assert "steps are few" not in call("train", videos, "--out", tmp_path / "few", "--resume")[2]


def test_what_is_of_no_use_is_told(call, videos, synthetic, recipe, tmp_path):
    (videos / "train" / "empty").mkdir()
    status, _, said = call("check-data", videos)
    assert (status, said.splitlines()[0]) == (0, "no class, since there is no video in it: train/empty")
    options = ("--config", recipe, "--model.streams", "[rgb]", "--training.epochs", "1")
    said = call("train", videos, "--labels", synthetic / "labels", "--out", tmp_path / "run", *options)[2]
    assert "train/empty" in said
    assert "--labels" in said
    said = call("evaluate", tmp_path / "run", videos, "--labels", synthetic / "labels", "--json")[2]
    assert "train/empty" in said
    assert "--labels" in said


def test_the_parsers_complaints_call_things_what_help_calls_them(call):
    complaint(call("train"), "DATA", "--out", "`airstreams train --help`")
    complaint(call("labels"), "LABELS", "`airstreams labels --help`")
    words = ("--teacher", "t", "--out", "o", "--batch-size", "z")
    assert "--batch-size: got z, expected a whole number" in complaint(call("annotate", "x", *words))
    for key, given, expected in (
        ("training.epochs", "z", "a whole number"),
        ("training.device", "gpu", "one of 'auto', 'cpu',"),
        ("clip.rate", "z", "a number or null"),
        ("data.flip", "3", "true or false"),
    ):
        told = complaint(call("train", "x", "--out", "y", f"--{key}", given))
        assert f"--{key}: got {given}, expected {expected}" in told
    complaint(call(), "a verb", "`airstreams --help`")


def test_debug_shows_the_traceback_wherever_it_stands_and_changes_nothing_else(call, tmp_path):
    for words in (["--debug", "check-data", tmp_path / "absent"], ["check-data", "--debug", tmp_path / "absent"]):
        status, _, said = call(*words)
        assert status == 2
        assert "in open_source" in said
        assert "does not exist" in said.splitlines()[-1]


def test_names_are_printed_whatever_letters_the_terminal_has(synthetic, tmp_path):
    shutil.copytree(synthetic / "videos" / "train", tmp_path / "v")
    (tmp_path / "v" / "disc_up").rename(tmp_path / "v" / "Läufe")
    done = in_a_process("check-data", tmp_path / "v", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "L\\xe4ufe" in done.stdout


def test_what_is_called_from_python_may_print_anywhere():
    with redirect_stdout(io.StringIO()) as out:
        assert main(["info", "demo", "--json"]) == 0
    assert json.loads(out.getvalue())["frames"] == 8


def test_a_folder_with_a_recipes_name_hides_it_only_if_it_is_a_run(call, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("demo").mkdir()
    found = with_json(call("info", "demo", "--json"))
    assert found["classes"] == 51
    Path("demo").rmdir()
    run.rename("demo")
    assert with_json(call("info", "demo", "--json"))["classes"] == 4


def test_a_run_without_a_model_yet_says_so(call, run, synthetic):
    weights = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").unlink()
    copied = "no model.safetensors in it; expected the folder that `airstreams train --out` wrote"
    complaint(call("evaluate", run, synthetic / "videos"), run, copied)
    (run / "model.json").unlink()
    complaint(call("evaluate", run, synthetic / "videos"), run, "its training has not got so far")
    (run / "model.safetensors").write_bytes(weights)
    complaint(call("evaluate", run, synthetic / "videos"), run, "no model.json in it; expected the folder")


def test_a_folder_that_is_no_run_is_not_offered_to_resume(call, synthetic, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    said = complaint(call("train", synthetic / "videos", "--out", tmp_path / "out"), tmp_path / "out")
    assert "--resume" not in said


def test_a_folder_with_one_class_is_refused(call, videos, tmp_path):
    shutil.copytree(videos / "train" / "disc_up", tmp_path / "one" / "disc_up")
    complaint(call("train", tmp_path / "one", "--out", tmp_path / "run"), tmp_path / "one", "disc_up", "2 classes")


def test_an_empty_folder_is_refused(call, tmp_path):
    (tmp_path / "empty").mkdir()
    complaint(call("train", tmp_path / "empty", "--out", tmp_path / "run"), tmp_path / "empty", "no videos")
    complaint(call("check-data", tmp_path / "empty"), tmp_path / "empty", "no videos")


def test_data_that_does_not_exist_is_refused(call, tmp_path):
    complaint(call("check-data", tmp_path / "absent"), tmp_path / "absent", "does not exist")
    complaint(call("check-data", "imagenet:" + str(tmp_path)), "imagenet", "jhmdb")


def write_rows(path, *rows):
    path.write_text("".join(row + "\n" for row in rows))
    return path


def test_a_csv_with_a_missing_column_is_refused(call, videos, tmp_path):
    listing = write_rows(videos / "list.csv", "path,class", "train/disc_up/000.mp4,disc_up")
    complaint(call("train", listing, "--out", tmp_path / "run"), listing, "'label'")


def test_a_csv_with_an_unknown_file_is_refused(call, videos, tmp_path):
    rows = ("train/disc_up/000.mp4,up", "train/disc_left/999.mp4,left")
    listing = write_rows(videos / "list.csv", "path,label", *rows)
    complaint(call("train", listing, "--out", tmp_path / "run"), listing, "line 3", "999.mp4")


def test_a_csv_with_a_label_only_in_the_test_split_is_refused(call, videos, tmp_path):
    rows = (
        "train/disc_up/000.mp4,up,train",
        "train/disc_left/000.mp4,left,train",
        "test/square_up/000.mp4,square,test",
    )
    listing = write_rows(videos / "list.csv", "path,label,split", *rows)
    complaint(call("train", listing, "--out", tmp_path / "run"), listing, "square")


def test_an_unknown_config_key_is_refused(call, synthetic, tmp_path):
    data = synthetic / "videos"
    complaint(call("train", data, "--out", tmp_path / "run", "--training.epoch", "3"), "training.epoch")
    (tmp_path / "mine.yaml").write_text("training: {epohcs: 3}\n")
    complaint(
        call("train", data, "--out", tmp_path / "run", "--config", tmp_path / "mine.yaml"),
        "training.epohcs",
        "expected epochs",
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("clip: {size: 7}", ("clip.size", "7", "at least 64")),
        ("training: {epochs: 0}", ("training.epochs", "0", "at least 1")),
        ("training: {epochs: many}", ("training.epochs", "many")),
        ("model: {streams: [rgb, sound]}", ("model.streams", "sound")),
        ("data: {crop_scale: [0.9, 0.1]}", ("data.crop_scale", "0.9")),
        ("loss_weights: {merged: 0}", ("loss_weights.merged", "over 0")),
        ("- not\n- keys", ("mine.yaml",)),
        ("training: [", ("mine.yaml",)),
    ],
)
def test_a_recipe_with_an_impossible_value_is_refused(call, synthetic, tmp_path, text, told):
    (tmp_path / "mine.yaml").write_text(text + "\n")
    data, recipe = synthetic / "videos", tmp_path / "mine.yaml"
    complaint(call("train", data, "--out", tmp_path / "run", "--config", recipe), *told)
    complaint(call("info", recipe), *told)
    assert not (tmp_path / "run").exists()


def test_an_impossible_value_on_the_command_line_is_refused(call, synthetic, tmp_path):
    call_with = ("train", synthetic / "videos", "--out", tmp_path / "run")
    complaint(call(*call_with, "--clip.size", "7"), "clip.size", "7")
    complaint(call(*call_with, "--training.epochs", "many"), "training.epochs", "many")
    complaint(call(*call_with, "--loss_weights.flow", "-1"), "loss_weights.flow", "-1")


def test_an_unknown_recipe_is_refused_with_the_names_of_the_known_ones(call, synthetic, tmp_path):
    known = ("demo", "jhmdb", "jhmdb-small")
    complaint(call("train", synthetic, "--out", tmp_path / "run", "--config", "nosuch"), "nosuch", *known)
    complaint(call("train", synthetic, "--out", tmp_path / "run", "--config=nosuch"), "nosuch", *known)
    complaint(call("info", "nosuch"), "nosuch", *known)


def test_predict_on_what_is_no_run_or_no_file_is_refused(call, trained, synthetic, tmp_path):
    video = synthetic / "videos" / "test" / "disc_up" / "000.mp4"
    complaint(call("predict", tmp_path, video), tmp_path, "model.json", "train")
    url = "https://example.com/a.mp4"
    complaint(call("predict", trained, url), url)
    complaint(call("predict", tmp_path / "absent", video), tmp_path / "absent")
    complaint(call("evaluate", tmp_path, synthetic / "videos"), tmp_path, "model.json")
    complaint(call("info", tmp_path), tmp_path, "model.json")


def test_a_run_that_is_there_is_not_written_over(call, run, synthetic):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    complaint(call("train", synthetic / "videos", "--out", run), run, "--resume")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_resuming_what_is_no_run_is_refused(call, synthetic, tmp_path):
    complaint(call("train", synthetic / "videos", "--out", tmp_path / "absent", "--resume"), "--resume", "absent")
    assert not (tmp_path / "absent").exists()


def test_a_semantic_stream_without_label_maps_is_refused_with_three_ways_out(call, synthetic, recipe, tmp_path):
    told = ("--labels", "--loss_weights.interm 0", "--model.streams")
    result = call("train", synthetic / "videos", "--out", tmp_path / "run", "--config", recipe)
    complaint(result, synthetic / "videos", *told)
    no_store = ("--labels", tmp_path)
    complaint(call("train", synthetic / "videos", "--out", tmp_path / "run", *no_store), tmp_path, "labels.json")


@pytest.fixture
def label_maps(synthetic, tmp_path):
    """A copy of the label maps that may be damaged."""
    return shutil.copytree(synthetic / "labels", tmp_path / "labels")


def test_labels_counts_and_writes_the_contact_sheet_into_the_store(call, synthetic, label_maps, tmp_path):
    found = with_json(call("labels", label_maps, "--json"))
    assert (found["videos"], found["frames"], found["truth"], found["bad"]) == (32, 32 * 8, None, [])
    assert found["teacher"] == json.loads((label_maps / "labels.json").read_text())["teacher"]
    shares = [row["pixels"] for row in found["classes"].values()] + [found["pixels_without_label"]]
    assert sum(shares) == pytest.approx(1)
    assert 0 < found["raw_share"] < 1
    sheet = label_maps / "contact_sheet.png"
    assert found["picture"] == str(sheet)
    alone = sheet.read_bytes()
    assert with_json(call("labels", label_maps, "--json")) == found  # its own picture disturbs nothing
    assert sheet.read_bytes() == alone
    other = tmp_path / "new" / "sheet.png"
    status, out, err = call("labels", label_maps, "--data", synthetic / "videos", "--picture", other)
    assert status == 0, err
    assert "32 videos, 256 frames labelled" in " ".join(out.split())
    assert str(other) in out
    assert sheet.read_bytes() == alone
    assert other.read_bytes() != alone  # it has the frames as well


def test_labels_lists_broken_label_maps_and_videos_and_fails(call, videos, label_maps):
    broken = next(label_maps.rglob("*.npz"))
    broken.write_bytes(b"no archive")
    found = with_json(call("labels", label_maps, "--json"), status=1)
    assert found["videos"] == 31
    assert [item["path"] for item in found["bad"]] == [str(broken)]
    status, out, _ = call("labels", label_maps)
    assert status == 1
    assert [line for line in out.splitlines() if line.startswith("bad: ") and str(broken) in line]
    for path in videos.rglob("*.mp4"):
        path.write_bytes(b"")
    found = with_json(call("labels", label_maps, "--data", videos, "--json"), status=1)
    assert found["videos"] == 31
    assert len(found["bad"]) == 1 + 12  # the videos to show
    assert (label_maps / "contact_sheet.png").is_file()


def test_labels_scores_against_masks(call, synthetic, label_maps, test_data, tmp_path):
    complaint(call("labels", label_maps, "--truth", synthetic / "videos"), "masks")
    assert not (label_maps / "contact_sheet.png").exists()
    delivered = test_data / "jhmdb" / "teacher" / "wave"
    shutil.copytree(delivered, tmp_path / "wave" / "wave")
    labels.create(tmp_path / "wave", "delivered", labels.COCO_CLASSES, {})
    data = f"jhmdb:{test_data / 'jhmdb'}?split=1"
    found = with_json(call("labels", tmp_path / "wave", "--truth", data, "--json"))
    count = len(list(delivered.glob("*.npz")))
    assert (found["truth"]["videos"], found["truth"]["videos_with_masks"]) == (count, 928)
    assert found["truth"]["frames"] == found["frames"]
    assert 0.3 < found["truth"]["person_iou"] < 0.95


def test_labels_refuses_what_is_no_store_or_has_no_place_for_the_picture(call, videos, label_maps, tmp_path):
    complaint(call("labels", tmp_path), tmp_path, "labels.json")
    complaint(call("labels", label_maps, "--data", tmp_path / "absent"), tmp_path / "absent")
    label_maps.chmod(0o500)
    if os.access(label_maps, os.W_OK):
        label_maps.chmod(0o700)
        pytest.skip("this user may write everywhere")
    complaint(call("labels", label_maps), label_maps, "--picture")
    status, _, err = call("labels", label_maps, "--picture", tmp_path / "sheet.png")
    label_maps.chmod(0o700)
    assert status == 0, err


def test_an_unknown_verb_or_option_or_no_verb_is_refused(call, tmp_path):
    complaint(call("tarin", tmp_path), "tarin", "train")
    complaint(call("check-data", tmp_path, "--jsno"), "--jsno")
    complaint(call("train", tmp_path), "out")
    complaint(call())


def test_training_on_nothing_but_bad_files_is_refused_in_a_line(call, videos, recipe, tmp_path):
    for path in videos.rglob("*.mp4"):
        path.write_bytes(b"")
    rgb_alone = ("--config", recipe, "--model.streams", "[rgb]")
    status, out, err = call("train", videos, "--out", tmp_path / "run", *rgb_alone)
    assert status == 2
    assert out == ""
    assert "Traceback" not in err
    assert "no readable training video of disc_left" in err.splitlines()[-1]


PRINTS_AS_A_LIBRARY_DOES = """
import os
from airstreams.cli import main
from airstreams.models import cost
def count(*arguments):
    os.write(1, b"[Gloo] Rank 0 is connected")
    return real(*arguments)
real, cost.count = cost.count, count
raise SystemExit(main(["info", "demo", "--json"]))
"""


def test_under_torchrun_json_is_alone_on_stdout_whatever_libraries_print():
    environment = {**os.environ, "PYTHONPATH": str(Path(airstreams.__file__).parents[1]), "WORLD_SIZE": "1"}
    command = [sys.executable, "-c", PRINTS_AS_A_LIBRARY_DOES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["parameters"] > 0
    assert "[Gloo]" in done.stderr


def test_verbs_that_would_do_the_same_in_every_process_are_refused_under_torchrun(call, run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert "--workers" not in complaint(call("predict", run, "a.mp4"), "torchrun", "predict")
    complaint(call("evolve", "videos", "--out", "study"), "torchrun", "evolve", "--workers")


def test_a_folder_that_was_deleted_under_the_feet_is_told(call, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    complaint(call("check-data", tmp_path), "current folder")


def in_a_process(*argv, **environment):
    environment = {**os.environ, "PYTHONPATH": str(Path(airstreams.__file__).parents[1]), **environment}
    command = [sys.executable, "-m", "airstreams", *map(str, argv)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_a_real_process_says_its_version_and_complains_without_a_traceback(tmp_path):
    done = in_a_process("--version")
    assert (done.returncode, done.stdout.split()[-1]) == (0, airstreams.__version__)
    failed = in_a_process("check-data", tmp_path / "absent")
    complaint((failed.returncode, failed.stdout, failed.stderr), tmp_path / "absent")


def test_a_real_process_with_decoding_workers_prints_one_json_object_and_nothing_else_on_stdout(
    synthetic, recipe, tmp_path
):
    options = ("--config", recipe, "--model.streams", "[rgb]", "--training.epochs", "1", "--data.workers", "2")
    done = in_a_process("train", synthetic / "videos", "--out", tmp_path / "run", *options, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["epoch"] == 1
    assert "epoch 1/1" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="memory is handed over in another way")
def test_no_room_for_the_socket_by_which_memory_is_handed_over_is_told_and_not_awaited(synthetic, recipe, tmp_path):
    temporary = tmp_path / ("x" * 100)
    temporary.mkdir()
    options = ("--config", recipe, "--model.streams", "[rgb]", "--data.workers", "1")
    done = in_a_process("train", synthetic / "videos", "--out", tmp_path / "run", *options, TMPDIR=str(temporary))
    said = done.stderr.splitlines()[-1]
    told = said.startswith(f"airstreams: no socket in the temporary folder {temporary}")
    assert (done.returncode, told) in {(1, True), (0, False)}, said  # newer Pythons go to another folder by themselves


def test_a_training_is_alone_in_its_folder(call, synthetic, recipe, held, tmp_path):
    with held(tmp_path / "run"):
        told = call("train", synthetic / "videos", "--out", tmp_path / "run", "--config", recipe)
    complaint(told, f"{tmp_path / 'run'}: another process is training there")


@pytest.mark.parametrize("gone", ["reader", "disk"])
def test_training_goes_on_when_nobody_can_hear_it_any_more(synthetic, recipe, tmp_path, gone):
    command = [sys.executable, "-m", "airstreams", "train", str(synthetic / "videos"), "--out", str(tmp_path / "run")]
    command += ["--config", str(recipe), "--model.streams", "[rgb]"]
    environment = {**os.environ, "PYTHONPATH": str(Path(airstreams.__file__).parents[1])}
    full = Path("/dev/full")
    if gone == "disk" and not full.exists():
        pytest.skip("this system has no device that is always full")
    with (full if gone == "disk" else Path(os.devnull)).open("w") as disk:
        heard = subprocess.PIPE if gone == "reader" else disk
        process = subprocess.Popen(command, env=environment, stderr=heard, stdout=subprocess.DEVNULL)
        if process.stderr is not None:
            process.stderr.readline()
            process.stderr.close()
        assert process.wait(timeout=120) == 0
    assert (tmp_path / "run" / "model.safetensors").is_file()


@pytest.mark.parametrize("verb", [*COMMANDS])
def test_every_verb_has_help_with_an_example(capsys, verb):
    with pytest.raises(SystemExit) as stopped:
        main([verb, "--help"])
    assert stopped.value.code == 0
    assert f"Example: airstreams {verb} " in " ".join(capsys.readouterr().out.split())


def test_help_says_of_every_key_what_it_does(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")  # what is said of a key fits on a line
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    lines = re.sub(r"\n {8,}", "  ", capsys.readouterr().out).splitlines()
    said = {found[1]: found[2] for line in lines if (found := re.match(r"  --(\w+\.[\w.]+),? .*?  +(\S.*)", line))}
    sections = {name: values for name, values in asdict(Config()).items() if isinstance(values, dict)}
    keys = {f"{section}.{key}" for section, values in sections.items() for key in values}
    assert keys <= said.keys()
    assert not [key for key in keys if said[key].startswith("(type:")]
