"""Real processes under torchrun, over gloo: what several do together is what one would do alone."""

import json
import os
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
from safetensors.torch import load_file

import airstreams
from airstreams.recipe import save_config
from airstreams.runs.checkpoint import load_state
from tests.training.runs import entries, epochs


@pytest.fixture(scope="module")
def config(tiny):
    """Six steps an epoch of four clips each, without dropout, whose draws are each process's own."""
    training = replace(tiny.training, epochs=2, batch_size=4, sync_batch_norm=True)
    return replace(tiny, model=replace(tiny.model, dropout=0.0), training=training)


def launch(processes, *command):
    """The command under torchrun, one thread a process."""
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
    out, said = process.communicate(timeout=180)
    assert process.returncode == 0, said
    return out


def train(processes, synthetic, run, config):
    save_config(config, run.parent / f"{run.name}.yaml")
    data = [str(synthetic / "videos"), "--labels", str(synthetic / "labels")]
    options = ["--out", str(run), "--config", str(run.parent / f"{run.name}.yaml")]
    return launch(processes, "-m", "airstreams", "train", *data, *options)


def test_two_processes_give_the_loss_curve_of_one_with_the_same_global_batch(synthetic, config, tmp_path):
    """float32, with synchronised batch normalisation. What a segmenter adds to rounding is left to the next test."""
    training = replace(config.training, epochs=4)  # 24 steps
    config = replace(config, model=replace(config.model, streams=["rgb", "flow"]), training=training)
    finish(train(1, synthetic, tmp_path / "one", config))
    finish(train(2, synthetic, tmp_path / "two", config))
    for one, two in zip(entries(tmp_path / "one"), entries(tmp_path / "two"), strict=True):
        assert one["step"] == two["step"]
        figures = (one.get("train", one), two.get("train", two))
        assert figures[1]["losses"] == pytest.approx(figures[0]["losses"], rel=1e-4)
    assert [epoch["train"]["clips"] for epoch in epochs(tmp_path / "two")] == [24] * 4


EXACT = """
    # In double precision nothing but the algorithm can differ. Fused optimisers take float32 only, so a plain one here.
    import sys
    from pathlib import Path

    import torch

    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double
    import airstreams.training.learner as learner
    import airstreams.training.loop as loop
    import airstreams.training.step as step
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
    learner.make_optimizer = lambda model, config: Sgd(
        [parameter for parameter in model.parameters() if parameter.requires_grad], config.lr, momentum=0.9
    )
    config, videos, labels, run = sys.argv[1:]
    loop.train(open_source(videos, Path(labels)), load_config(Path(config)), Path(run), False, Console(quiet=True))
"""


def test_two_processes_are_exactly_one_in_double_precision_with_all_losses(synthetic, config, tmp_path):
    """Also where a process, or one of the batches that it adds up, has fewer labelled pixels than the other."""
    config = replace(config, training=replace(config.training, accumulate=2))
    labels = tmp_path / "labels"
    subprocess.run(["cp", "-r", str(synthetic / "labels"), str(labels)], check=True)
    for path in (labels / "train" / "disc_left").glob("*.npz"):
        path.unlink()
    (tmp_path / "exact.py").write_text(textwrap.dedent(EXACT))
    save_config(config, tmp_path / "config.yaml")
    data = [str(tmp_path / "config.yaml"), str(synthetic / "videos"), str(labels)]
    for processes in (1, 2):
        finish(launch(processes, str(tmp_path / "exact.py"), *data, str(tmp_path / str(processes))))
    for one, two in zip(epochs(tmp_path / "1"), epochs(tmp_path / "2"), strict=True):
        assert two["train"]["losses"] == pytest.approx(one["train"]["losses"], rel=1e-10)
        assert two["train"]["gradient_norms"] == pytest.approx(one["train"]["gradient_norms"], rel=1e-8)
    weights = load_file(tmp_path / "2" / "model.safetensors")
    for name, tensor in load_file(tmp_path / "1" / "model.safetensors").items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-8, atol=1e-10, msg=name)


def test_three_processes_evaluate_each_video_once(synthetic, trained, tmp_path):
    command = ["-m", "airstreams", "evaluate", None, str(synthetic / "videos"), "--labels", str(synthetic / "labels")]
    found = []
    for processes in (1, 3):  # 3 do not divide the 8 videos
        run = tmp_path / str(processes)
        subprocess.run(["cp", "-r", str(trained), str(run)], check=True)
        command[3] = str(run)
        (line,) = finish(launch(processes, *command, "--json")).splitlines()
        found.append((json.loads(line), (run / "evaluation" / "test" / "scores.csv").read_text()))
    figures, scores = found[0]
    assert figures["videos"] == 8
    assert found[1] == (figures, scores)


def workers_of(job):
    """The processes that train, once there are log lines."""
    return [child for child in psutil.Process(job.pid).children() if "train" in child.cmdline()]


def wait_for_a_line(job, run, after=0):
    deadline = time.monotonic() + 120
    while not (entries(run) and entries(run)[-1]["step"] > after):
        assert job.poll() is None, job.stderr.read()
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


def test_a_process_that_is_killed_ends_the_job_within_a_minute_and_it_resumes_to_the_same_bits(
    synthetic, config, tmp_path
):
    """With dropout, and each process's own batch statistics."""
    training = replace(config.training, epochs=6, save_every=4, sync_batch_norm=False)
    config = replace(config, model=replace(config.model, dropout=0.5), training=training)
    finish(train(2, synthetic, tmp_path / "undisturbed", config))
    run = tmp_path / "run"
    job = train(2, synthetic, run, config)
    wait_for_a_line(job, run)
    victim = workers_of(job)[1]
    victim.send_signal(signal.SIGKILL)
    _, said = job.communicate(timeout=60)
    assert job.returncode != 0
    assert "SIGKILL" in said or "exitcode  : -9" in said
    assert entries(run)[-1]["step"] < 36
    finish(resume(2, synthetic, run))
    expected = load_file(tmp_path / "undisturbed" / "model.safetensors")
    for name, tensor in load_file(run / "model.safetensors").items():
        assert torch.equal(tensor, expected[name]), name


def test_a_signal_to_one_process_stops_all_at_one_step_and_another_number_of_them_goes_on(synthetic, config, tmp_path):
    config = replace(config, training=replace(config.training, epochs=8, save_every=10_000))
    run = tmp_path / "run"
    job = train(2, synthetic, run, config)
    wait_for_a_line(job, run)
    workers_of(job)[1].send_signal(signal.SIGTERM)
    _, said = job.communicate(timeout=60)
    assert "stopped at step" in said
    stopped = load_state(run)[0]
    assert entries(run)[-1]["step"] <= stopped.step < 48
    finish(resume(1, synthetic, run))
    assert [entry["epoch"] for entry in entries(run) if "train" in entry] == list(range(1, 9))
    assert load_state(run)[0].step == 48


def resume(processes, synthetic, run):
    data = [str(synthetic / "videos"), "--labels", str(synthetic / "labels")]
    return launch(processes, "-m", "airstreams", "train", *data, "--out", str(run), "--resume")


def test_a_batch_that_cannot_be_shared_out_is_refused(synthetic, config, tmp_path):
    config = replace(config, training=replace(config.training, batch_size=5))
    job = train(2, synthetic, tmp_path / "run", config)
    _, said = job.communicate(timeout=120)
    assert job.returncode != 0
    assert "training.batch_size: got 5 for 24 videos, expected a multiple of 2 (2 processes" in said
    assert not (tmp_path / "run" / "config.yaml").exists()
