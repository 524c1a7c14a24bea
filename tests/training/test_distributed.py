"""Processes of a torchrun job, over gloo, give the results of one process.

tests/teachers/test_annotate.py calls torchrun itself, and looks at its stdout.
"""

import json
import shutil
import time
from dataclasses import replace

import psutil
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from airstreams.cli import main
from airstreams.data.sources import open_source
from airstreams.recipe import load_config, save_config
from airstreams.runs.checkpoint import load_state
from airstreams.training import loop
from tests.processes import Call
from tests.training.jobs import exit_as_main, run_job, train_exactly
from tests.training.runs import EVERY_LAYER, SHAPES, entries, epochs


@pytest.fixture(scope="module")
def config(tiny):
    """Six steps per epoch with four clips each. There is no dropout, because each process draws its own."""
    training = replace(tiny.training, epochs=2, batch_size=4, sync_batch_norm=True)
    return replace(tiny, model=replace(tiny.model, dropout=0.0, width=0.125, tower=EVERY_LAYER), training=training)


def launch(processes, function, *arguments, output):
    """Start a job whose processes call a function."""
    return Call(run_job, processes, function, *arguments, output=output)


def train_words(synthetic, run):
    return ["train", str(synthetic / "videos"), "--labels", str(synthetic / "labels"), "--out", str(run)]


def train(processes, synthetic, run, config):
    """Start a training in a job."""
    recipe = run.parent / f"{run.name}.yaml"
    save_config(config, recipe)
    words = [*train_words(synthetic, run), "--config", str(recipe)]
    return launch(processes, exit_as_main, words, output=run.parent / f"{run.name}.txt")


def train_here(synthetic, run, config, resume=False):
    """Train in the process of the test."""
    source = open_source(str(synthetic / "videos"), synthetic / "labels")
    loop.train(source, config, run, resume, Console(quiet=True))


def test_two_processes_give_the_loss_curve_of_one(synthetic, config, tmp_path):
    """In float32 with synchronised batch normalisation. The next test covers the segmenter, which rounds more."""
    config = replace(config, model=replace(config.model, streams=["rgb", "flow"]))
    train_here(synthetic, tmp_path / "one", config)
    train(2, synthetic, tmp_path / "two", config).finish()
    for one, two in zip(entries(tmp_path / "one"), entries(tmp_path / "two"), strict=True):
        assert one["step"] == two["step"]
        metrics = (one.get("train", one), two.get("train", two))
        assert metrics[1]["losses"] == pytest.approx(metrics[0]["losses"], rel=1e-4)
    assert [epoch["train"]["clips"] for epoch in epochs(tmp_path / "two")] == [24] * 2


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
    save_config(config, tmp_path / "config.yaml")
    given = [str(path) for path in (tmp_path / "config.yaml", videos, labels)]
    Call(train_exactly, *given, str(tmp_path / "1"), output=tmp_path / "1.txt").finish()
    printed = launch(2, train_exactly, *given, str(tmp_path / "2"), output=tmp_path / "2.txt").finish()
    assert "training.batch_size: got 5" in printed
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
            out = launch(processes, exit_as_main, command, output=tmp_path / "output.txt").finish()
        (line,) = (line for line in out.splitlines() if line.startswith("{"))
        found.append((json.loads(line), (run / "evaluation" / "test" / "scores.csv").read_text()))
    metrics, scores = found[0]
    assert metrics["videos"] == 8
    assert found[1] == (metrics, scores)


def second_of_two(job):
    """The second training process of a job."""
    _, second = sorted(psutil.Process(job.pid).children(), key=lambda process: process.pid)
    return second


def wait_for_a_line(job, run, after=0):
    deadline = time.monotonic() + 300
    while not (entries(run) and entries(run)[-1]["step"] > after):
        assert job.poll() is None, job.output.read_text()
        assert time.monotonic() < deadline, "no line came"
        time.sleep(0.02)


def test_a_job_with_a_killed_process_ends_and_resumes_to_the_same_bits(synthetic, config, tmp_path):
    """With dropout, and without synchronised batch normalisation."""
    training = replace(config.training, epochs=4, save_every=4, sync_batch_norm=False)
    config = replace(config, model=replace(config.model, dropout=0.5), training=training)
    train(2, synthetic, tmp_path / "undisturbed", config).finish()
    run = tmp_path / "run"
    job = train(2, synthetic, run, config)
    wait_for_a_line(job, run)
    second_of_two(job).kill()
    assert job.wait() != 0
    printed = job.output.read_text()
    assert "SIGKILL" in printed or "exitcode  : -9" in printed
    assert entries(run)[-1]["step"] < 24
    launch(2, exit_as_main, [*train_words(synthetic, run), "--resume"], output=tmp_path / "resumed.txt").finish()
    expected = load_file(tmp_path / "undisturbed" / "model.safetensors")
    for name, tensor in load_file(run / "model.safetensors").items():
        assert torch.equal(tensor, expected[name]), name


def test_a_signal_to_one_process_stops_all_and_one_process_resumes(synthetic, config, tmp_path):
    config = replace(config, training=replace(config.training, epochs=5, save_every=10_000))
    run = tmp_path / "run"
    job = train(2, synthetic, run, config)
    wait_for_a_line(job, run)
    second_of_two(job).terminate()
    job.wait()
    assert "stopped at step" in job.output.read_text()
    stopped = load_state(run)[0]
    assert entries(run)[-1]["step"] <= stopped.step < 30
    train_here(synthetic, run, load_config(run / "config.yaml"), resume=True)
    assert [entry["epoch"] for entry in entries(run) if "train" in entry] == [1, 2, 3, 4, 5]
    assert load_state(run)[0].step == 30
