"""The functions of `import airstreams`: paths as text or Path, no output unless asked, wrong arguments by name."""

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

import airstreams
from airstreams import Config, InputError, VideoError
from airstreams.recipe import save_config

NAMES = ("Config", "InputError", "VideoError", "evaluate", "load", "open_source", "train")


@pytest.fixture(scope="module")
def small(tiny):
    """The tiny config with one stream and one epoch."""
    return replace(
        tiny, model=replace(tiny.model, streams=["rgb"]), training=replace(tiny.training, epochs=1, warmup_epochs=0)
    )


@pytest.fixture(scope="module")
def small_run(small, synthetic, tmp_path_factory):
    """What `train` leaves, by paths that are text."""
    run = tmp_path_factory.mktemp("api") / "run"
    airstreams.train(str(synthetic / "videos"), str(run), config=small)
    return run


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, airstreams; print([name for name in ('torch', 'numpy', 'rich') if name in sys.modules])"
    environment = {"PYTHONPATH": str(Path(airstreams.__file__).parents[1])}
    assert subprocess.check_output([sys.executable, "-c", code], text=True, env=environment) == "[]\n"


def test_every_public_name_is_there():
    assert set(airstreams.__all__) == set(NAMES)
    assert all(getattr(airstreams, name).__name__ == name for name in NAMES)
    assert set(NAMES) <= set(dir(airstreams))
    with pytest.raises(AttributeError, match="no_such_name"):
        airstreams.no_such_name  # noqa: B018


def test_a_training_is_quiet_and_can_be_scored_and_loaded(small_run, synthetic, capsys):
    evaluation = airstreams.evaluate(small_run, synthetic / "videos")
    assert evaluation.metrics.videos == 8
    assert (
        evaluation.metrics.as_dict() == airstreams.evaluate(str(small_run), str(synthetic / "videos")).metrics.as_dict()
    )
    assert airstreams.load(str(small_run)).classes == ("disc_left", "disc_up", "square_left", "square_up")
    assert capsys.readouterr() == ("", "")


def test_a_console_receives_progress_and_warnings(small_run, synthetic):
    file = io.StringIO()
    console = Console(file=file, width=200)
    airstreams.evaluate(small_run, synthetic / "videos", labels=synthetic / "labels", split="train", console=console)
    assert "warning: --labels" in file.getvalue()


def test_a_source_of_open_source_is_data_too(small_run, synthetic):
    source = airstreams.open_source(synthetic / "videos")
    assert airstreams.evaluate(small_run, source).metrics.videos == 8
    labelled = airstreams.open_source(str(synthetic / "videos"), labels=str(synthetic / "labels"))
    assert labelled.label_store is not None
    with pytest.raises(InputError, match=r"^labels: "):
        airstreams.evaluate(small_run, source, labels=synthetic / "labels")


def test_a_config_may_be_a_recipe_file_and_a_run_is_resumed_by_its_own(small_run, small, synthetic, tmp_path):
    save_config(small, tmp_path / "small.yaml")
    record = airstreams.train(synthetic / "videos", tmp_path / "run", config=tmp_path / "small.yaml")
    assert record.epoch == 1
    assert (tmp_path / "run/model.safetensors").read_bytes() == (small_run / "model.safetensors").read_bytes()
    again = airstreams.train(synthetic / "videos", tmp_path / "run", resume=True)
    assert again.epoch == 1
    airstreams.train(
        synthetic / "videos",
        tmp_path / "run",
        resume=True,
        config=replace(small, data=replace(small.data, workers=1)),
    )
    with pytest.raises(InputError, match=r"^config: "):
        airstreams.train(synthetic / "videos", tmp_path / "run", resume=True, config=Config())


def test_a_folder_in_use_is_not_overwritten_and_an_empty_one_not_resumed(small_run, small, synthetic, tmp_path):
    before = (small_run / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="already there"):
        airstreams.train(synthetic / "videos", small_run, config=small)
    assert (small_run / "model.safetensors").read_bytes() == before
    with pytest.raises(InputError, match="already there"):
        airstreams.train(synthetic / "videos", synthetic, config=small, resume=True)
    assert not (synthetic / "config.yaml").exists()


def test_an_argument_of_a_wrong_type_is_an_input_error_that_names_it(small_run, synthetic, tmp_path):
    videos = synthetic / "videos"
    calls = {
        "data": lambda: airstreams.train(["a.mp4"], tmp_path / "run"),  # type: ignore[arg-type]
        "run": lambda: airstreams.train(videos, None),  # type: ignore[arg-type]
        "config": lambda: airstreams.train(videos, tmp_path / "run", config={"seed": 1}),  # type: ignore[arg-type]
        "labels": lambda: airstreams.open_source(videos, labels=3),  # type: ignore[arg-type]
        "init": lambda: airstreams.train(videos, tmp_path / "run", init=3),  # type: ignore[arg-type]
        "console": lambda: airstreams.evaluate(small_run, videos, console=print),  # type: ignore[arg-type]
        "videos": lambda: airstreams.load(small_run).predict(3),  # type: ignore[call-overload]
    }
    for name, call in calls.items():
        with pytest.raises(InputError, match=f"^{name}: got "):
            call()
    with pytest.raises(InputError, match=r"^run: got NoneType"):
        airstreams.load(None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="nosuch"):
        airstreams.train(videos, tmp_path / "run", config="nosuch")
    assert not (tmp_path / "run").exists()


def test_a_recogniser_says_what_it_is(small_run, small):
    recogniser = airstreams.load(small_run)
    assert repr(recogniser) == f"Recogniser({str(small_run)!r}, 4 classes, streams: rgb)"
    assert recogniser.config.model.streams == small.model.streams


def test_many_videos_get_a_prediction_each_in_their_order(small_run, synthetic, tmp_path):
    recogniser = airstreams.load(small_run)
    paths = sorted((synthetic / "videos/test").rglob("*.mp4"))[:3]
    predictions = recogniser.predict([paths[2], str(paths[0])])
    assert predictions == [recogniser.predict(paths[2]), recogniser.predict(str(paths[0]))]
    assert predictions[0] != predictions[1]
    assert [prediction.fps for prediction in predictions] == [30.0, 30.0]
    assert recogniser.predict([]) == []
    with pytest.raises(InputError, match=r"^videos: got int"):
        recogniser.predict([paths[0], 3])  # type: ignore[list-item]
    with pytest.raises(VideoError) as raised:
        recogniser.predict([paths[0], tmp_path / "absent.mp4"])
    assert (str(raised.value.path), raised.value.reason) == (str(tmp_path / "absent.mp4"), "does not exist")
