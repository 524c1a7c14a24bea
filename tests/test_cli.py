"""The command line as a process: exit statuses, stdout and stderr, torchrun."""

import io
import json
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch

import airstreams
from airstreams import distributed
from airstreams.cli import main
from airstreams.errors import InputError
from tests.calls import complaint
from tests.python import python_words


def test_debug_shows_the_traceback(call, tmp_path):
    for words in (["--debug", "check-data", tmp_path / "absent"], ["check-data", "--debug", tmp_path / "absent"]):
        status, _, said = call(*words)
        assert status == 2
        assert "in open_source" in said
        assert "does not exist" in said.splitlines()[-1]


def test_names_are_printed_on_an_ascii_terminal(synthetic, tmp_path):
    shutil.copytree(synthetic / "videos" / "train", tmp_path / "v")
    (tmp_path / "v" / "disc_up").rename(tmp_path / "v" / "Läufe")
    done = in_a_process("check-data", tmp_path / "v", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "L\\xe4ufe" in done.stdout


def test_stdout_may_be_redirected_in_python(synthetic):
    with redirect_stdout(io.StringIO()) as out:
        assert main(["check-data", str(synthetic / "videos"), "--json"]) == 0
    assert json.loads(out.getvalue())["videos"] == 32


@pytest.fixture(scope="module")
def few(synthetic, tmp_path_factory):
    """Six of the videos, for trainings whose result does not matter."""
    root = tmp_path_factory.mktemp("few")
    for split, count in (("train", 2), ("test", 1)):
        for label in ("disc_left", "disc_up"):
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                shutil.copy(synthetic / "videos" / split / label / f"00{number}.mp4", root / split / label)
    return root


LIBRARY_PRINTS = """
import os, sys
from airstreams.cli import main
from airstreams.data import check
def check_videos(*arguments):
    os.write(1, b"[Gloo] Rank 0 is connected")
    return real(*arguments)
real, check.check_videos = check.check_videos, check_videos
raise SystemExit(main(["check-data", sys.argv[1], "--json"]))
"""


def test_under_torchrun_stdout_has_the_json_alone(synthetic):
    environment = {**os.environ, "PYTHONPATH": str(Path(airstreams.__file__).parents[1]), "WORLD_SIZE": "1"}
    command = [sys.executable, "-c", LIBRARY_PRINTS, str(synthetic / "videos")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["good"] == 32
    assert "[Gloo]" in done.stderr


def test_verbs_that_torchrun_cannot_share_out_are_refused(call, run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert "--workers" not in complaint(call("info", run), "torchrun", "info")
    complaint(call("evolve", "videos", "--out", "study"), "torchrun", "evolve", "--workers")


def test_a_deleted_current_folder_is_reported(call, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    complaint(call("check-data", tmp_path), "current folder")


def in_a_process(*argv, python=(sys.executable,), **environment):
    environment = {**os.environ, "PYTHONPATH": str(Path(airstreams.__file__).parents[1]), **environment}
    command = [*python, "-m", "airstreams", *map(str, argv)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_a_process_prints_its_version_and_complains_on_one_line(tmp_path):
    done = in_a_process("--version")
    assert (done.returncode, done.stdout.split()[-1]) == (0, airstreams.__version__)
    failed = in_a_process("check-data", tmp_path / "absent")
    complaint((failed.returncode, failed.stdout, failed.stderr), tmp_path / "absent")


def test_a_process_with_workers_prints_one_json_object(few, recipe, tmp_path):
    options = ("--config", recipe, "--model.streams", "[rgb]", "--training.epochs", "1", "--data.workers", "2")
    done = in_a_process("train", few, "--out", tmp_path / "run", *options, "--json", python=python_words())
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["epoch"] == 1
    assert "epoch 1/1" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="memory is handed over in another way")
def test_a_missing_socket_for_shared_memory_is_reported(few, recipe, tmp_path):
    temporary = tmp_path / ("x" * 100)
    temporary.mkdir()
    options = ("--config", recipe, "--model.streams", "[rgb]", "--training.epochs", "1", "--data.workers", "1")
    done = in_a_process("train", few, "--out", tmp_path / "run", *options, TMPDIR=str(temporary))
    said = done.stderr.splitlines()[-1]
    reported = "socket" in said and str(temporary) in said and "TMPDIR" in said
    assert (done.returncode, reported) in {(1, True), (0, False)}, (
        said
    )  # newer Pythons go to another folder by themselves


@pytest.mark.parametrize("gone", ["reader", "disk"])
def test_training_goes_on_when_stderr_is_lost(few, recipe, tmp_path, gone):
    command = [sys.executable, "-m", "airstreams", "train", str(few), "--out", str(tmp_path / "run")]
    command += ["--config", str(recipe), "--model.streams", "[rgb]", "--training.epochs", "1"]
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


@pytest.mark.parametrize("kind", [NotImplementedError, TypeError])
def test_an_operation_that_mps_lacks_ends_with_one_line(call, monkeypatch, kind):
    def load(*_):
        raise kind("The operator 'aten::_fft_r2c' is not currently implemented for the MPS device. If you want this")

    monkeypatch.setattr("airstreams.api.load", load)
    complaint(call("predict", "run", "a.mp4"), "aten::_fft_r2c", "--device cpu", status=1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_an_absent_device_ends_every_verb_with_one_line(call, run, recipe, synthetic, tmp_path):
    data, out = (synthetic / "videos", "--labels", synthetic / "labels"), ("--out", tmp_path / "out")
    calls = [
        ("train", *data, *out, "--config", recipe),
        ("evolve", *data, *out, "--config", recipe),
        ("evaluate", run, *data),
        ("predict", run, tmp_path / "a.mp4"),
        ("annotate", data[0], *out, "--teacher", "onnx:no.onnx"),
        ("reproduce", "table1", "--data", *data, *out, "--config", recipe),
    ]
    for words in calls:
        for device in ("cuda:1", "mps"):
            found = complaint(call(*words, "--device", device), f"--device: got {device}", "cpu")
            assert "training" not in found
    complaint(call("predict", run, "a.mp4", "--device", "gpu"), "got gpu", "cuda:N or mps")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("device", ["mps", "cuda:0"])
def test_one_device_is_not_shared_by_processes(monkeypatch, device):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "device_named", lambda name, key: torch.device(name))
    with pytest.raises(InputError, match=rf"device: got {device}.* 2 processes"):
        distributed.device_of_process(device)
