"""Trackers of a training: TensorBoard, and Weights & Biases and MLflow where they are installed."""

import io
import json

import numpy as np
import pytest
from matplotlib.image import imsave
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from airstreams.errors import InputError
from airstreams.runs import trackers
from airstreams.runs.folder import RunFolder
from airstreams.runs.trackers import PACKAGES, Trackers, require_trackers

QUIET = Console(quiet=True)


@pytest.fixture
def picture(tmp_path):
    imsave(tmp_path / "step-000000010.png", np.full((8, 9, 3), 0.5))
    return tmp_path / "step-000000010.png"


def test_unknown_trackers_are_rejected():
    for names in (["tensorboard", "comet"], [""]):
        with pytest.raises(InputError, match=r"--log-to.*tensorboard, wandb, mlflow"):
            require_trackers(names)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named(name, monkeypatch, call, synthetic, tmp_path):
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: ["tensorboard"])
    status, _, said = call("train", synthetic / "videos", "--out", tmp_path / "run", "--log-to", f"tensorboard,{name}")
    assert status == 2
    assert f"pip install {PACKAGES[name]}" in said
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_fails_is_left_out_with_a_warning(tiny, tmp_path):
    said = io.StringIO()
    shown = Trackers(["tensorboard"], RunFolder(tmp_path), 0, tiny, Console(file=said, width=200))

    def fail(*arguments, **options):
        raise OSError("no space")

    shown._trackers["tensorboard"].log = fail
    shown.log({"loss/total": 1.0}, step=10)
    shown.log({"loss/total": 1.0}, step=20)
    shown.close()
    assert said.getvalue().count("warning: tensorboard") == 1
    assert "no space" in said.getvalue()


def test_tensorboard_shows_scalars_and_pictures(tiny, picture, tmp_path):
    shown = Trackers(["tensorboard"], RunFolder(tmp_path), 0, tiny, QUIET)
    shown.log({"loss/total": 1.5}, step=10)
    shown.log_picture("representations", picture, step=10)
    shown.close()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss/total")] == [(10, 1.5)]
    assert [(event.step, event.width, event.height) for event in board.Images("representations")] == [(10, 9, 8)]
    assert not RunFolder(tmp_path).trackers.exists()


def test_mlflow_gets_everything_and_a_resumed_training_goes_on_in_its_run(tiny, picture, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed: pip install mlflow-skinny")
    monkeypatch.chdir(tmp_path)  # pictures go below
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    folder = RunFolder(tmp_path / "run")
    for step in (10, 20):
        shown = Trackers(["mlflow"], folder, step - 10, tiny, QUIET)
        shown.log({"loss/total": 1.0 / step}, step=step)
        shown.log_picture("representations", picture, step=step)
        shown.close()
    client = mlflow.MlflowClient()
    run = client.get_run(json.loads(folder.trackers.read_text())["mlflow"])
    assert run.data.params["training.lr"] == "0.001"
    history = client.get_metric_history(run.info.run_id, "loss/total")
    assert [(metric.step, metric.value) for metric in history] == [(10, 0.1), (20, 0.05)]
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["representations"]


def test_wandb_gets_everything_and_a_resumed_training_goes_on_in_its_run(tiny, picture, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed: pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    for step in (10, 20):
        shown = Trackers(["wandb"], folder, step - 10, tiny, QUIET)
        shown.log({"loss/total": 1.0 / step}, step=step)
        shown.log_picture("representations", picture, step=step)
        shown.close()
    name = json.loads(folder.trackers.read_text())["wandb"]
    logs = list(folder.path.glob(f"wandb/offline-run-*-{name}/run-{name}.wandb"))
    assert logs
    assert len(list(folder.path.glob("wandb/offline-run-*/files/media/images/representations_*.png"))) == 2
    assert any(b"loss/total" in log.read_bytes() for log in logs)
