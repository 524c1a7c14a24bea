"""`airstreams train`: new runs, resumed runs, warnings, and data that it refuses."""

import math
import shutil
from dataclasses import replace

import av
import pytest
import torch

import airstreams
from airstreams import Config, InputError
from airstreams.data.video import probe, read_frames
from airstreams.recipe import load_config, recipe_path
from airstreams.runs import saved_model as saved_models
from tests.calls import complaint, with_json
from tests.training.runs import entries, epochs


def test_a_folder_of_videos_becomes_a_recogniser(call, videos, recipe, tmp_path):
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


def test_a_finished_run_resumes_by_its_own_config(call, run, synthetic):
    before = (run / "model.safetensors").read_bytes()
    data = (synthetic / "videos", "--labels", synthetic / "labels")
    status, out, said = call("train", *data, "--out", run, "--resume")
    assert status == 0
    assert out.startswith(f"trained: {run}\n")
    assert said == f"{run}: all 2 epochs are done already\n"
    assert (run / "model.safetensors").read_bytes() == before
    found = with_json(call("train", *data, "--out", run, "--resume", "--json"))
    assert (found["run"], found["epoch"], found["step"]) == (str(run), 2, 12)


def test_training_ends_with_a_summary(call, run, synthetic):
    """A finished run that is resumed prints it again."""
    data = (synthetic / "videos", "--labels", synthetic / "labels", "--out", run, "--resume")
    _, out, _ = call("train", *data)
    summary, _, commands = out.partition("Next:\n")
    state = run / "state" / "step-000000012.pt"
    for expected in ("epoch 2 of 2", "the last one", run / "model.safetensors", state, run / "tensorboard", "thread"):
        assert str(expected) in summary
    found = with_json(call("train", *data, "--json"))
    assert (found["kept"]["epoch"], found["kept"]["why"], found["kept"]["value"]) == (2, "last", None)
    assert (found["model"], found["state"]) == (str(run / "model.safetensors"), str(state))
    assert found["seconds"] == pytest.approx(sum(entry["train"]["seconds"] for entry in epochs(run)))
    assert [line.strip() for line in commands.splitlines()] == found["next"]
    evaluate = found["next"][0].split()
    assert evaluate == ["airstreams", "evaluate", *map(str, (run, synthetic / "videos", *data[1:3]))]
    assert call(*evaluate[1:])[0] == 0


def test_init_and_compact_classes_start_from_weights_of_a_run(call, trained, recipe, synthetic, tmp_path):
    data = (synthetic / "videos", "--labels", synthetic / "labels", "--config", recipe)
    still = ("--training.lr", "1e-12", "--training.epochs", "1", "--compact-classes")
    assert call("train", *data, "--out", tmp_path / "run", "--init", trained, *still)[0] == 0
    before, after = (saved_models.load(run) for run in (trained, tmp_path / "run"))
    assert set(after.segment_classes) < set(before.segment_classes)
    name = "early.rgb.blocks.0.body.0.weight"
    assert torch.equal(before.model.state_dict()[name], after.model.state_dict()[name].detach())


def test_resume_refuses_other_settings(call, run, synthetic):
    data = (synthetic / "videos", "--labels", synthetic / "labels")
    complaint(call("train", *data, "--out", run, "--resume", "--training.lr", "9"), "--resume", "config.yaml")
    complaint(call("train", *data, "--out", run, "--resume", "--training.epochs", "1"), "training.epochs", "at least 2")
    complaint(call("train", *data, "--out", run, "--resume", "--data.compact_classes", "true"), "--resume")
    assert call("train", *data, "--out", run, "--resume", "--training.epochs", "2")[0] == 0  # as the run has it
    elsewhere = ("--data.workers", "1", "--training.device=cpu")  # which changes no model
    assert call("train", *data, "--out", run, "--resume", *elsewhere)[0] == 0
    complaint(call("train", *data, "--out", run, "--resume", *elsewhere, "--data.flip", "true"), "all keys but data.c")


def test_keys_override_the_recipe_wherever_they_stand(call, recipe, synthetic, tmp_path):
    keys = ("--training.epochs", "1", "--model.streams", "[rgb]")
    status, _, said = call("train", synthetic / "videos", *keys, "--out", tmp_path / "run", "--config", recipe)
    assert status == 0
    config = load_config(tmp_path / "run" / "config.yaml")
    assert (config.training.epochs, config.model.streams) == (1, ["rgb"])
    assert config.model.width == 0.25  # the recipe's
    assert "24 training, 0 validation and 8 test videos of 4 classes\n" in said


def test_another_frame_rate_gives_a_warning_unless_clips_have_a_rate(call, videos, run, recipe, tmp_path):
    """The run has learnt from 30 frames per second."""
    test_videos = sorted((videos / "test").rglob("*.mp4"))
    for path in test_videos[:3]:
        at_60_frames_a_second(path)
    assert "frame rates: 30 (29), 60 (3)\n" in call("check-data", videos)[1]
    assert "warning: 3 of 8 videos" in call("evaluate", run, videos)[2]
    assert "warning: 1 of 2 videos" in call("predict", run, test_videos[0], test_videos[3])[2]
    assert "warning" not in call("predict", run, test_videos[3])[2]

    one = next((videos / "train").rglob("*.mp4"))
    at_60_frames_a_second(one)
    options = ("--config", recipe, "--model.streams", "[rgb]", "--training.epochs", "1", "--clip.stride", "2")
    said = call("train", videos, "--out", tmp_path / "by frames", *options)[2]
    assert "warning: 1 of 24 videos" in said
    assert "--clip.rate 15" in said
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


def test_few_steps_from_random_weights_give_a_warning(call, videos, run, recipe, tmp_path):
    options = ("--config", recipe, "--model.streams", "[rgb]", "--training.epochs", "1")
    said = call("train", videos, "--out", tmp_path / "few", *options)[2]
    warning = next(line for line in said.splitlines() if line.startswith("warning: 6 "))
    assert "--training.epochs" in warning
    assert "--init" in warning
    assert "warning: 6 " not in call("train", videos, "--out", tmp_path / "from", *options, "--init", run)[2]
    assert "warning: 6 " not in call("train", videos, "--out", tmp_path / "few", "--resume")[2]


def test_empty_folders_and_unused_labels_give_warnings(call, videos, synthetic, recipe, tmp_path):
    (videos / "train" / "empty").mkdir()
    status, _, said = call("check-data", videos)
    assert status == 0
    assert said.splitlines()[0].startswith("warning: ")
    assert "train/empty" in said.splitlines()[0]
    options = ("--config", recipe, "--model.streams", "[rgb]", "--training.epochs", "1")
    said = call("train", videos, "--labels", synthetic / "labels", "--out", tmp_path / "run", *options)[2]
    assert "train/empty" in said
    assert "--labels" in said
    said = call("evaluate", tmp_path / "run", videos, "--labels", synthetic / "labels", "--json")[2]
    assert "train/empty" in said
    assert "--labels" in said


def test_a_folder_that_is_no_run_is_not_offered_to_resume(call, synthetic, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    said = complaint(call("train", synthetic / "videos", "--out", tmp_path / "out"), tmp_path / "out")
    assert "--resume" not in said


def test_a_folder_with_one_class_is_refused(call, videos, tmp_path):
    shutil.copytree(videos / "train" / "disc_up", tmp_path / "one" / "disc_up")
    complaint(call("train", tmp_path / "one", "--out", tmp_path / "run"), tmp_path / "one", "disc_up", "2 classes")


def write_rows(path, *rows):
    path.write_text("".join(row + "\n" for row in rows))
    return path


def test_a_csv_with_a_missing_column_is_refused(call, videos, tmp_path):
    listing = write_rows(videos / "list.csv", "path,kind", "train/disc_up/000.mp4,disc_up")
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


def test_an_existing_run_is_not_overwritten(call, run, synthetic):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    complaint(call("train", synthetic / "videos", "--out", run), run, "--resume")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_one_repeated_call_begins_a_run_goes_on_and_lengthens_it(call, trained, recipe, synthetic, tmp_path):
    """As a scheduler does it."""
    run = tmp_path / "run"
    data = (synthetic / "videos", "--out", run, "--config", recipe, "--model.streams", "rgb")
    words = ("train", *data, "--resume", "--init", trained, "--training.epochs")
    status, _, said = call(*words, "1")
    assert status == 0
    assert f"{run} holds no run yet" in said
    status, _, said = call(*words, "1")
    assert status == 0
    assert any("--init" in line for line in said.splitlines())
    assert "all 1 epochs are done already" in said
    assert call(*words, "3")[0] == 0
    assert load_config(run / "config.yaml").training.epochs == 3
    assert saved_models.read_description(run).config.training.epochs == 3
    assert [entry["epoch"] for entry in epochs(run)] == [1, 2, 3]
    rates = {line["step"]: line["lr"] for line in entries(run) if "lr" in line}
    peak, warmup, total = 1e-3, 3, 18  # of the new length
    assert rates[10] == pytest.approx(peak * 0.5 * (1 + math.cos(math.pi * (10 - warmup) / (total - warmup))))
    complaint(call(*words, "2"), "training.epochs", "at least 3")


def test_resuming_a_folder_of_other_files_is_refused(call, synthetic, tmp_path):
    (tmp_path / "mine.txt").touch()
    complaint(call("train", synthetic / "videos", "--out", tmp_path, "--resume"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_without_a_card_a_recipe_and_label_maps_training_is_small_and_has_no_semantics(
    call, synthetic, tmp_path, monkeypatch
):
    asked = {}

    def train(source, config, run, *_, **__):
        asked[run.name] = config
        raise InputError("asked")

    monkeypatch.setattr("airstreams.training.loop.train", train)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    videos, labels = synthetic / "videos", ("--labels", synthetic / "labels")
    small, full = load_config(recipe_path("small")), Config()
    said = {}
    for name, words in {
        "first": (),
        "labelled": (*labels, "--training.epochs", "3", "--seed", "4"),
        "recipe": ("--config", "jhmdb"),
        "explicit": ("--model.streams", "rgb,semantic"),
        "unweighted": ("--loss_weights.interm", "0"),
    }.items():
        said[name] = call("train", videos, "--out", tmp_path / name, *words)[2]
    assert asked["first"] == replace(small, model=replace(small.model, streams=["rgb", "flow"]))
    assert asked["labelled"] == replace(small, training=replace(small.training, epochs=3), seed=4)
    assert asked["recipe"].clip == full.clip
    assert asked["recipe"].model.streams == ["rgb", "flow"]
    assert asked["explicit"].model.streams == ["rgb", "semantic"]  # the training refuses it
    assert asked["unweighted"].model.streams == ["rgb", "flow", "semantic"]
    assert {name for name, text in said.items() if "airstreams annotate" in text} == {"first", "recipe"}
    assert {name for name, text in said.items() if "--config jhmdb" in text} == said.keys() - {"recipe"}
    with pytest.raises(InputError, match="asked"):
        airstreams.train(videos, tmp_path / "in python")
    assert asked["in python"] == asked["first"]


def test_a_semantic_stream_without_label_maps_is_refused(call, synthetic, recipe, tmp_path):
    told = ("--labels", "--loss_weights.interm 0", "--model.streams")
    result = call("train", synthetic / "videos", "--out", tmp_path / "run", "--config", recipe)
    complaint(result, synthetic / "videos", *told)
    no_store = ("--labels", tmp_path)
    complaint(call("train", synthetic / "videos", "--out", tmp_path / "run", *no_store), tmp_path, "labels.json")


def test_training_on_bad_files_alone_is_refused(call, videos, recipe, tmp_path):
    for path in videos.rglob("*.mp4"):
        path.write_bytes(b"")
    rgb_alone = ("--config", recipe, "--model.streams", "[rgb]")
    status, out, err = call("train", videos, "--out", tmp_path / "run", *rgb_alone)
    assert status == 2
    assert out == ""
    assert "Traceback" not in err
    assert "no readable training video of disc_left" in err.splitlines()[-1]


def test_a_second_training_in_a_folder_is_refused(call, synthetic, recipe, held, tmp_path):
    with held(tmp_path / "run"):
        told = call("train", synthetic / "videos", "--out", tmp_path / "run", "--config", recipe)
    complaint(told, f"{tmp_path / 'run'}: another process is training there")


@pytest.mark.parametrize("words", [("train",), ("evolve",), ("reproduce", "table1", "--data"), ("evaluate",)])
def test_a_wrong_expression_of_group_by_is_refused(call, words, trained, synthetic, tmp_path):
    where = () if words == ("evaluate",) else ("--out", tmp_path / "out")
    run = (trained,) if words == ("evaluate",) else ()
    complaint(call(*words, *run, synthetic / "videos", *where, "--group-by", "([^/"), "data.group_by", "([^/")
    assert not (tmp_path / "out").exists()


def test_a_run_is_resumed_with_its_own_groups_only(call, run, synthetic):
    """The fixture's run has no `data.group_by`."""
    words = ("train", synthetic / "videos", "--labels", synthetic / "labels", "--out", run, "--resume")
    complaint(call(*words, "--group-by", "auto"), "--resume")
    assert call(*words)[0] == 0
