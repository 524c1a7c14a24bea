"""The paper's tables on the synthetic data: real trainings of seconds, and the statistics against closed forms."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import airstreams
from airstreams.cli import main
from airstreams.config import LossWeights, load_config, save_config, to_dict
from airstreams.errors import InputError
from airstreams.experiments.reproduce import TABLES, Job, Outcomes, plan, report, run_config, run_jobs

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def recipe(tiny):
    return replace(
        tiny, training=replace(tiny.training, epochs=1), evaluation=replace(tiny.evaluation, views=1), seed=5
    )


@pytest.fixture(scope="module")
def finished(synthetic, recipe, tmp_path_factory):
    """Table 1 with two seeds."""
    out = tmp_path_factory.mktemp("reproduced")
    jobs = plan(TABLES["table1"], recipe, [str(synthetic / "videos")], synthetic / "labels", 2, None, out)
    run_jobs(jobs, 2, QUIET)
    return jobs


def test_every_run_differs_from_the_recipe_in_what_the_table_says(recipe):
    tuned = replace(recipe, loss_weights=LossWeights(flow=0.7))

    def changes(name, evolved=None):
        before, after = to_dict(tuned), to_dict(run_config(name, tuned, evolved))
        assert {key for key in before if before[key] != after[key]} <= {"model", "loss_weights"}
        return (
            "+".join(after["model"]["streams"]),
            after["model"]["stop_gradient"],
            tuple(after["loss_weights"][loss] for loss in ("rgb", "flow", "semantic", "merged", "interm")),
        )

    fixed = (1, 0, 0, 1, 1)  # rgb, flow, semantic, merged, interm
    assert changes("rgb") == ("rgb", [], fixed)
    assert changes("rgb+flow") == ("rgb+flow", [], fixed)
    assert changes("rgb+semantic (stopped)") == ("rgb+semantic", ["semantic"], fixed)
    assert changes("all (stopped)") == ("rgb+flow+semantic", ["flow", "semantic"], fixed)
    assert changes("rgb x3") == ("rgb+rgb2+rgb3", [], fixed)
    assert changes("uniform") == ("rgb+flow+semantic", [], (1, 1, 1, 1, 1))
    evolved = {"rgb": 0.1, "flow": 0.2, "semantic": 0.3, "merged": 0.4, "interm": 0.5}
    assert changes("evolved", evolved) == ("rgb+flow+semantic", [], (0.1, 0.2, 0.3, 0.4, 0.5))
    with pytest.raises(InputError, match="--weights-from"):
        run_config("evolved", tuned, None)


def test_tables_hold_the_papers_figures():
    published = {
        name: [[cell and cell.hmdb51 for cell in row] for row in table.rows.values()] for name, table in TABLES.items()
    }
    assert published["table1"] == [[41.72], [46.32], [47.66], [50.02], [None]]
    assert published["table2"] == [[41.72, None], [43.57, 46.32], [46.84, 47.66], [47.76, 50.02]]
    assert published["table3"] == [[41.72], [42.82], [50.02], [50.53]]
    charades = [cell.charades for row in TABLES["table3"].rows.values() for cell in row if cell]
    assert charades == [28.56, None, 35.05, 35.45]


def test_each_run_is_trained_for_each_seed_and_evaluated(finished, recipe):
    assert len(finished) == 10
    for job in finished:
        assert load_config(job.folder / "config.yaml") == job.config
        figures = json.loads(job.figures.read_text())
        assert figures["videos"] == 8
        assert figures["trained_on"] == 0
    assert {job.config.seed for job in finished} == {5, 6}


def test_the_table_holds_the_means_of_what_evaluate_said(finished):
    result, markdown = report("table1", TABLES["table1"], finished, "airstreams reproduce table1")
    for name, found in result["runs"].items():
        said = [json.loads(job.figures.read_text())["top1"] for job in finished if job.name == name]
        assert found["values"] == pytest.approx(said)
        assert found["mean"] == pytest.approx(np.mean(said))
        assert found["interval"][0] <= found["mean"] <= found["interval"][1]
        rows = [line for line in markdown.splitlines() if f" {found['mean']:.1%} (" in line]
        assert rows
    assert result["runs"]["rgb"]["difference"] == 0
    assert result["seeds"] == [5, 6]
    assert result["videos"] == 8
    assert "| RGB + flow |" in markdown
    assert "47.66 %" in markdown


def test_a_finished_run_is_only_read_and_shared_by_tables(finished, synthetic, recipe):
    out = finished[0].folder.parents[1]
    stamps = {job.folder: (job.folder / "model.safetensors").stat().st_mtime_ns for job in finished}
    again = plan(TABLES["table2"], recipe, [str(synthetic / "videos")], synthetic / "labels", 2, None, out)
    assert {job.folder for job in again if job.done} == {folder for folder in stamps if "x3" not in folder.name}
    run_jobs([job for job in again if job.done], 1, QUIET)
    assert {folder: (folder / "model.safetensors").stat().st_mtime_ns for folder in stamps} == stamps
    other = replace(recipe, training=replace(recipe.training, lr=0.1))
    with pytest.raises(InputError, match="another recipe"):
        plan(TABLES["table1"], other, [str(synthetic / "videos")], synthetic / "labels", 2, None, out)


def made_up(folder, scores):
    """Jobs whose evaluations say what is given: run name to, for each seed, who was right."""
    jobs = []
    for name, seeds in scores.items():
        for seed, right in enumerate(seeds):
            job = Job(name, "data", None, replace(airstreams.config.Config(), seed=seed), folder / f"{name}-{seed}")
            job.figures.parent.mkdir(parents=True)
            job.figures.write_text(json.dumps({"top1": float(np.mean(right))}))
            with (job.figures.parent / "scores.csv").open("w", newline="") as file:
                rows = csv.writer(file)
                rows.writerow(["name", "label", "predicted", "a", "b"])
                rows.writerows([f"v{n}", "a", "", *((0.9, 0.1) if r else (0.2, 0.8))] for n, r in enumerate(right))
                rows.writerow(["broken", "a", "left out: empty file"])
            jobs.append(job)
    return jobs


def test_the_interval_is_that_of_the_binomial_where_there_is_one_seed(tmp_path):
    right = np.arange(400) < 120
    drawn = Outcomes(made_up(tmp_path, {"x": [right]}), "top1").bootstrap(["x"])["x"]
    error = np.sqrt(0.3 * 0.7 / 400)
    assert drawn.mean() == pytest.approx(0.3, abs=4 * error / np.sqrt(2000))
    assert drawn.std() == pytest.approx(error, rel=0.08)


def test_differences_are_paired_over_videos_and_wider_with_seeds(tmp_path):
    rng = np.random.default_rng(0)
    right = rng.random(200) < 0.5
    better = right.copy()
    better[np.flatnonzero(~right)[:10]] = True  # ten videos more, the others the same
    drawn = Outcomes(made_up(tmp_path / "a", {"x": [right], "y": [better]}), "top1").bootstrap(["x", "y"])
    difference = drawn["y"] - drawn["x"]
    assert difference.std() == pytest.approx(np.sqrt(0.05 * 0.95 / 200), rel=0.08)  # unpaired it would be 0.05
    worse = np.zeros(200, bool)
    seeds = Outcomes(made_up(tmp_path / "b", {"x": [better, worse]}), "top1").bootstrap(["x"])["x"]
    assert seeds.std() > 0.15  # of seeds this far apart, two draws are often the same one


def test_runs_that_scored_other_videos_are_refused(tmp_path):
    jobs = made_up(tmp_path, {"x": [[True] * 4], "y": [[True] * 5]})
    with pytest.raises(InputError, match="scored other videos"):
        Outcomes(jobs, "top1")


def test_command_line(finished, synthetic, recipe, tmp_path, capsys):
    save_config(recipe, tmp_path / "recipe.yaml")
    out = finished[0].folder.parents[1]
    call = ["reproduce", "table1", "--data", str(synthetic / "videos"), "--labels", str(synthetic / "labels")]
    call += ["--out", str(out), "--config", str(tmp_path / "recipe.yaml"), "--seeds", "2"]
    assert main([*call, "--dry-run", "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [run["done"] for run in runs] == [True] * 10
    by_name = {run["run"]: run["multiply_adds"] for run in runs}
    assert by_name["all-data0-seed5"] > by_name["rgb-data0-seed5"] > 0
    assert main([*call, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"].keys() == {"rgb", "rgb+semantic", "rgb+flow", "all", "rgb x3"}
    assert (out / "table1.md").read_text().startswith("## Table 1")
    assert json.loads((out / "table1.json").read_text())["table"] == "table1"
    assert main(["reproduce", "table3", *call[2:]]) == 2
    assert "--weights-from" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill a process outright")
def test_killed_it_goes_on(synthetic, recipe, tmp_path):
    save_config(replace(recipe, training=replace(recipe.training, epochs=8, save_every=3)), tmp_path / "recipe.yaml")
    call = [sys.executable, "-m", "airstreams", "reproduce", "table1", "--seeds", "1", "--json"]
    call += ["--data", str(synthetic / "videos"), "--labels", str(synthetic / "labels")]
    call += ["--out", str(tmp_path / "out"), "--config", str(tmp_path / "recipe.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(Path(airstreams.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(call, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    begun = tmp_path / "out" / "runs" / "rgb-semantic-data0-seed5" / "state"
    end = time.monotonic() + 120
    while not list(begun.glob("step-00000000[3-9].pt")):
        assert time.monotonic() < end
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    before = (tmp_path / "out/runs/rgb-data0-seed5/model.safetensors").stat().st_mtime_ns
    done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["runs"]) == 5
    assert (tmp_path / "out/runs/rgb-data0-seed5/model.safetensors").stat().st_mtime_ns == before
