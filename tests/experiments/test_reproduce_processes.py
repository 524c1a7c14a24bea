"""Trainings of tables in processes of their own, which fail or are killed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from airstreams.cli import main
from airstreams.experiments.reproduce import plan, run_job
from airstreams.experiments.tables import FIGURES, TABLES
from airstreams.recipe import save_config
from tests.experiments.work import run_side_by_side
from tests.processes import Call


def test_it_needs_no_optuna(tmp_path):
    (tmp_path / "optuna.py").write_text("raise ImportError('not here')")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    imports = "import airstreams.cli, airstreams.viewing.paper_figures, airstreams.experiments.table_markdown"
    for code, status in ((imports, 0), ("import optuna", 1)):
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
        assert done.returncode == status


def saved_steps(run):
    """The steps of the states that a run has saved."""
    return [int(path.stem[5:]) for path in run.glob("state/step-*.pt")]


def command(few_videos, folder, table, *words):
    """The words of a call in a process of its own."""
    data = ["--data", str(few_videos / "videos"), "--labels", str(few_videos / "labels")]
    return ["reproduce", table, *data, "--out", str(folder / "out"), "--config", str(folder / "recipe.yaml"), *words]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill a process outright")
def test_a_failed_and_a_killed_process_do_not_stop_the_others(few, recipe, tmp_path):
    """Each job has a process of its own, of which two run at a time."""
    unreadable = tuple(replace(video, path=Path("nowhere.mp4")) for video in few.videos if video.split == "test")
    videos = (*(video for video in few.videos if video.split != "test"), *unreadable)
    broken, victim, other = (
        plan(FIGURES["figure3"], recipe, [given], 1, tmp_path / name)[0]
        for name, given in (("broken", replace(few, videos=videos)), ("victim", few), ("other", few))
    )
    process = Call(run_side_by_side, [broken, victim, other], 2, output=tmp_path / "output.txt")
    while not (victim.folder / "metrics.jsonl").is_file():
        assert process.poll() is None
        time.sleep(0.05)
    for worker in psutil.Process(process.pid).children():
        if str(victim.folder) in " ".join(file.path for file in worker.open_files()):
            worker.kill()
    assert process.wait() == 1
    printed = process.output.read_text()
    assert re.search(r"RuntimeError: 2 of 3 runs failed.*rgb-flow-data0-seed5: ", printed)
    assert re.search(r"failed: rgb-flow-data0-seed5: .* 4 videos", printed)
    assert re.search(r"failed: rgb-flow-data0-seed5: .* exit code -9.*--workers", printed)
    assert other.done
    assert not broken.done
    assert not victim.done


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill a process outright")
def test_a_stopped_call_saves_its_trainings_and_begins_no_other(few_videos, recipe, tmp_path):
    config = replace(recipe, training=replace(recipe.training, epochs=50, save_every=10_000))
    save_config(replace(config, data=replace(config.data, workers=1)), tmp_path / "recipe.yaml")
    call = command(few_videos, tmp_path, "table1", "--seeds", "1", "--workers", "2")
    process = Call(main, call, output=tmp_path / "output.txt")
    runs = tmp_path / "out" / "runs"
    while sum(path.stat().st_size > 0 for path in runs.glob("*/metrics.jsonl")) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 1
    printed = process.output.read_text()
    assert "interrupted" in printed.splitlines()[-1]
    assert "Traceback" not in printed
    steps = [max(saved_steps(run)) for run in runs.iterdir()]
    assert len(steps) == 2
    assert min(steps) >= 4  # one epoch, which the first line of metrics.jsonl is about


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill a process outright")
def test_a_killed_call_is_continued(few, few_videos, recipe, tmp_path, capsys, without_processes):
    config = replace(recipe, training=replace(recipe.training, epochs=4, save_every=3))
    save_config(config, tmp_path / "recipe.yaml")
    finished, _ = plan(TABLES["table4"], config, [few], 1, tmp_path / "out")
    run_job(finished)
    finished_weights = finished.folder / "model.safetensors"
    before = finished_weights.stat().st_mtime_ns
    call = command(few_videos, tmp_path, "table4", "--seeds", "1", "--json")  # this process continues it
    first = Call(main, call, output=tmp_path / "output.txt")
    begun = tmp_path / "out" / "runs" / "all-data0-seed5"
    end = time.monotonic() + 120
    while max(saved_steps(begun), default=0) < 6:  # an epoch has four steps
        assert time.monotonic() < end
        time.sleep(0.02)
    first.kill()
    first.wait()  # for its process that trains, too
    first_epoch = (begun / "metrics.jsonl").read_text().splitlines()[0]
    assert main(call) == 0
    assert len(json.loads(capsys.readouterr().out)["runs"]) == 2
    assert (begun / "metrics.jsonl").read_text().splitlines()[0] == first_epoch  # with its seconds: not trained again
    assert finished_weights.stat().st_mtime_ns == before
