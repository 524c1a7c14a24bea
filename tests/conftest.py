"""Fixtures that many tests share: real data if there is any, a small rendered data set, and one small trained run."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

import airstreams
from airstreams.cli import main
from airstreams.config import (
    ClipConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    FlowConfig,
    LossWeights,
    ModelConfig,
    TrainingConfig,
)
from airstreams.data.sources import open_source
from airstreams.data.synthetic import render
from airstreams.recipe import save_config
from airstreams.training.loop import train
from airstreams.training.signals import asked_to_stop

# Runs that tests train are remembered here, not in the home of whoever runs the tests.
_STATE = tempfile.TemporaryDirectory()
os.environ["XDG_STATE_HOME"] = _STATE.name

# A shell that starts the tests in the background makes them, and the processes that they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """`make quick` leaves out the tests that need a trained run or real data."""
    for item in items:
        if {"trained", "test_data"} & set(item.fixturenames):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def clear_stop_requests():
    """A stop signal in one test does not stop the trainings of later tests."""
    yield
    asked_to_stop.clear()


HOLD = """
import sys
from pathlib import Path
from airstreams.files import exclusive_lock
with exclusive_lock(Path(sys.argv[1]), "working"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def held():
    """A context in which another process holds the exclusive lock of a folder."""
    if sys.platform == "win32":
        pytest.skip("this system has no exclusive locks")

    @contextmanager
    def hold(folder):
        environment = {**os.environ, "PYTHONPATH": str(Path(airstreams.__file__).parents[1])}
        command = [sys.executable, "-c", HOLD, str(folder)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            yield process

    return hold


@pytest.fixture(scope="session")
def test_data():
    """The folder of real data."""
    root = os.environ.get("AIRSTREAMS_TEST_DATA")
    if not root:
        pytest.skip("AIRSTREAMS_TEST_DATA is not set")
    return Path(root)


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory):
    """Four classes with six training and two test videos each, of 8 frames of 64 px, in `videos/` and `labels/`."""
    root = tmp_path_factory.mktemp("synthetic")
    render(root, ("disc", "square"), ("left", "up"), {"train": 6, "test": 2}, frames=8, size=64, seed=0)
    return root


@pytest.fixture
def videos(synthetic, tmp_path):
    """A copy of the videos, which a test may damage."""
    return shutil.copytree(synthetic / "videos", tmp_path / "videos")


@pytest.fixture(scope="session")
def source(synthetic):
    return open_source(str(synthetic / "videos"), synthetic / "labels")


@pytest.fixture(scope="session")
def tiny():
    """A config that trains for about a second per epoch. It is shared: change a copy by `dataclasses.replace`."""
    return Config(
        clip=ClipConfig(frames=4, stride=1, size=64),
        data=DataConfig(crop_scale=[0.8, 1.0], flip=False, workers=0),
        model=ModelConfig(width=0.25, segmenter_width=0.125, flow=FlowConfig(iterations=3)),
        loss_weights=LossWeights(flow=0.3),
        training=TrainingConfig(epochs=2, batch_size=4, warmup_epochs=0.5, device="cpu"),
        evaluation=EvaluationConfig(views=2),
    )


@pytest.fixture(scope="session")
def trained(source, tiny, tmp_path_factory):
    """A run of the tiny config on the synthetic data, read only. Its semantic head is untrained.

    The accuracy means nothing after so few steps.
    """
    run = tmp_path_factory.mktemp("runs") / "tiny"
    train(source, tiny, run, resume=False, console=Console(quiet=True))
    return run


@pytest.fixture
def run(trained, tmp_path):
    """A copy of `trained` that a test may write to."""
    return shutil.copytree(trained, tmp_path / "run")


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
