"""Processes under torchrun, over gloo, give the results of one process."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import airstreams
from airstreams.cli import main
from airstreams.data.sources import open_source
from airstreams.recipe import load_config, save_config
from airstreams.runs.checkpoint import load_state
from airstreams.training import loop
from tests.training.runs import SHAPES, entries, epochs


@pytest.fixture(scope="module")
def config(tiny):
    """Six steps per epoch with four clips each. There is no dropout, because each process draws its own."""
    training = replace(tiny.training, epochs=2, batch_size=4, sync_batch_norm=True)
    return replace(tiny, model=replace(tiny.model, dropout=0.0, width=0.125), training=training)


def launch(processes, *command):
    """Start a command under torchrun, with one thread per process."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(airstreams.__file__).parents[1])}
    return subprocess.Popen(
        [*(torchrun if processes > 1 else [sys.executable]), *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, stderr = process.communicate(timeout=180)
    assert process.returncode == 0, stderr
    return out


def train_arguments(synthetic, run):
    data = [str(synthetic / "videos"), "--labels", str(synthetic / "labels")]
    return ["-m", "airstreams", "train", *data, "--out", str(run)]


def train(processes, synthetic, run, config):
    """Start a training under torchrun."""
    recipe = run.parent / f"{run.name}.yaml"
    save_config(config, recipe)
    return launch(processes, *train_arguments(synthetic, run), "--config", str(recipe))


def train_here(synthetic, run, config, resume=False):
    """Train in the process of the test."""
    source = open_source(str(synthetic / "videos"), synthetic / "labels")
    loop.train(source, config, run, resume, Console(quiet=True))


def test_two_processes_give_the_loss_curve_of_one(synthetic, config, tmp_path):
    """In float32 with synchronised batch normalisation. The next test covers the segmenter, which rounds more."""
    config = replace(config, model=replace(config.model, streams=["rgb", "flow"]))
    train_here(synthetic, tmp_path / "one", config)
    finish(train(2, synthetic, tmp_path / "two", config))
    for one, two in zip(entries(tmp_path / "one"), entries(tmp_path / "two"), strict=True):
        assert one["step"] == two["step"]
        metrics = (one.get("train", one), two.get("train", two))
        assert metrics[1]["losses"] == pytest.approx(metrics[0]["losses"], rel=1e-4)
    assert [epoch["train"]["clips"] for epoch in epochs(tmp_path / "two")] == [24] * 2


EXACT = """
    # In double precision only the algorithm can differ. Fused optimisers need float32, so this uses a plain one.
    import os
    import sys
    from pathlib import Path

    import torch

    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double
    import airstreams.training.learner as learner
    import airstreams.training.loop as loop
    import airstreams.training.step as step
    from airstreams.cli import main
    from airstreams.recipe import load_config
    from airstreams.data.sources import open_source
    from rich.console import Console

    class Sgd(torch.optim.SGD):
        def step(self, closure=None):
            self.__dict__.pop("found_inf", None)
            return super().step(closure)

    def augment(frames, box, inside, flip, colour, size):
        return real(frames, box.double(), inside, flip, colour.double(), size)

    real, step.augment = step.augment, augment
    learner.make_optimizer = lambda model, config, taken: Sgd(
        [parameter for parameter in model.parameters() if parameter.requires_grad], config.lr, momentum=0.9
    )
    config, videos, labels, run = sys.argv[1:]
    if "WORLD_SIZE" in os.environ:  # a batch that two processes cannot share
        words = ["train", videos, "--labels", labels, "--config", config, "--out", run]
        words += ["--targets", f"shapes={labels}", "--trust-module", "shape_streams"]
        assert main([*words, "--training.batch_size", "5", "--training.accumulate", "1"]) == 2
        assert not Path(run, "config.yaml").exists()
    source = open_source(videos, Path(labels), targets={"shapes": labels})
    loop.train(source, load_config(Path(config)), Path(run), False, Console(quiet=True))
"""


def test_two_processes_match_one_in_double_precision(synthetic, config, tmp_path):
    """With all losses, and with different numbers of labelled pixels per process and per accumulated batch.

    The two processes first refuse a batch that they cannot share. Two streams learn from a teacher.
    """
    (tmp_path / "shape_streams.py").write_text(SHAPES)
    streams = [*config.model.streams, "shapes"]
    model = replace(config.model, streams=streams, representations={"shapes": "shape_streams:Shapes"})
    weights = replace(config.loss_weights, interm={"semantic": 1.0, "shapes": 0.5})
    training = replace(config.training, accumulate=2, epochs=1)
    config = replace(config, model=model, loss_weights=weights, training=training)
    labels = shutil.copytree(synthetic / "labels", tmp_path / "labels")
    for path in (labels / "train" / "disc_left").glob("*.npz"):
        path.unlink()
    videos = shutil.copytree(synthetic / "videos", tmp_path / "videos")
    for path in videos.glob("train/*/00[3-5].mp4"):  # double precision is slow
        path.unlink()
    assert len(list(videos.glob("train/*/*.mp4"))) == 12
    (tmp_path / "exact.py").write_text(textwrap.dedent(EXACT))
    save_config(config, tmp_path / "config.yaml")
    data = [str(tmp_path / "config.yaml"), str(videos), str(labels)]
    for processes in (1, 2):
        job = launch(processes, str(tmp_path / "exact.py"), *data, str(tmp_path / str(processes)))
        _, stderr = job.communicate(timeout=180)
        assert job.returncode == 0, stderr
    assert "training.batch_size: got 5" in stderr
    for one, two in zip(epochs(tmp_path / "1"), epochs(tmp_path / "2"), strict=True):
        assert two["train"]["losses"] == pytest.approx(one["train"]["losses"], rel=1e-10)
        assert two["train"]["gradient_norms"] == pytest.approx(one["train"]["gradient_norms"], rel=1e-8)
    weights = load_file(tmp_path / "2" / "model.safetensors")
    for name, tensor in load_file(tmp_path / "1" / "model.safetensors").items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-8, atol=1e-10, msg=name)


@pytest.fixture
def one_thread():
    """Sums come out the same only with as many threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_three_processes_evaluate_each_video_once(synthetic, trained, tmp_path, capsys):
    """3 processes do not divide the 8 videos."""
    found = []
    for processes in (1, 3):
        run = shutil.copytree(trained, tmp_path / str(processes))
        command = ["evaluate", str(run), str(synthetic / "videos"), "--labels", str(synthetic / "labels"), "--json"]
        if processes == 1:
            assert main(command) == 0
            out = capsys.readouterr().out
        else:
            out = finish(launch(processes, "-m", "airstreams", *command))
        (line,) = out.splitlines()
        found.append((json.loads(line), (run / "evaluation" / "test" / "scores.csv").read_text()))
    metrics, scores = found[0]
    assert metrics["videos"] == 8
    assert found[1] == (metrics, scores)


def workers_of(job):
    """The training processes of a job that has written log lines."""
    return [child for child in psutil.Process(job.pid).children() if "train" in child.cmdline()]


def wait_for_a_line(job, run, after=0):
    deadline = time.monotonic() + 120
    while not (entries(run) and entries(run)[-1]["step"] > after):
        assert job.poll() is None, job.stderr.read()
        assert time.monotonic() < deadline, "no line came"
        time.sleep(0.02)


def test_a_job_with_a_killed_process_ends_and_resumes_to_the_same_bits(synthetic, config, tmp_path):
    """With dropout, and without synchronised batch normalisation."""
    training = replace(config.training, epochs=4, save_every=4, sync_batch_norm=False)
    config = replace(config, model=replace(config.model, dropout=0.5), training=training)
    finish(train(2, synthetic, tmp_path / "undisturbed", config))
    run = tmp_path / "run"
    job = train(2, synthetic, run, config)
    wait_for_a_line(job, run)
    victim = workers_of(job)[1]
    victim.send_signal(signal.SIGKILL)
    _, stderr = job.communicate(timeout=60)
    assert job.returncode != 0
    assert "SIGKILL" in stderr or "exitcode  : -9" in stderr
    assert entries(run)[-1]["step"] < 24
    finish(launch(2, *train_arguments(synthetic, run), "--resume"))
    expected = load_file(tmp_path / "undisturbed" / "model.safetensors")
    for name, tensor in load_file(run / "model.safetensors").items():
        assert torch.equal(tensor, expected[name]), name


def test_a_signal_to_one_process_stops_all_and_one_process_resumes(synthetic, config, tmp_path):
    config = replace(config, training=replace(config.training, epochs=5, save_every=10_000))
    run = tmp_path / "run"
    job = train(2, synthetic, run, config)
    wait_for_a_line(job, run)
    workers_of(job)[1].send_signal(signal.SIGTERM)
    _, stderr = job.communicate(timeout=60)
    assert "stopped at step" in stderr
    stopped = load_state(run)[0]
    assert entries(run)[-1]["step"] <= stopped.step < 30
    train_here(synthetic, run, load_config(run / "config.yaml"), resume=True)
    assert [entry["epoch"] for entry in entries(run) if "train" in entry] == [1, 2, 3, 4, 5]
    assert load_state(run)[0].step == 30
