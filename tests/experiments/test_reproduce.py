"""The paper's tables and figures on the synthetic data: real trainings of seconds, and the statistics against closed
forms."""

import csv
import json
import multiprocessing
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from matplotlib.image import imread
from rich.console import Console

import airstreams
from airstreams.cli import main
from airstreams.config import Config, LossWeights
from airstreams.data.listing import Source, Video
from airstreams.data.sources import open_source
from airstreams.errors import InputError
from airstreams.evaluation.evaluate import evaluate
from airstreams.evaluation.metrics import action_metrics
from airstreams.evaluation.results import EvaluationMetrics, ScoringProtocol, write_metrics
from airstreams.experiments.reproduce import Job, hours_left, multiply_adds, plan, run_jobs
from airstreams.experiments.table_results import RunOutcomes, report
from airstreams.experiments.tables import FIGURES, RUNS, TABLES, Cell, Table, reproducible, run_config
from airstreams.recipe import load_config, save_config
from airstreams.runs import saved_model as saved_models
from airstreams.towers import BACKBONES, default_tower

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def recipe(tiny):
    return replace(
        tiny, training=replace(tiny.training, epochs=1), evaluation=replace(tiny.evaluation, views=1), seed=5
    )


@pytest.fixture(scope="module")
def finished(source, recipe, tmp_path_factory):
    """Table 1 with two seeds."""
    jobs = plan(TABLES["table1"], recipe, [source], 2, tmp_path_factory.mktemp("reproduced"))
    run_jobs(jobs, 2, QUIET)
    return jobs


def test_every_run_differs_from_the_recipe_in_what_the_table_says(recipe):
    tuned = replace(recipe, loss_weights=LossWeights(flow=0.7))

    def changes(name, evolved=None):
        before, after = asdict(tuned), asdict(run_config(name, tuned, evolved))
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
    assert changes("all (uniform)") == ("rgb+flow+semantic", [], (1, 1, 1, 1, 1))
    evolved = {"rgb": 0.1, "flow": 0.2, "semantic": 0.3, "merged": 0.4, "interm": 0.5}
    assert changes("all (evolved)", evolved) == ("rgb+flow+semantic", [], (0.1, 0.2, 0.3, 0.4, 0.5))
    assert changes("all (pretrained) (evolved)", evolved) == changes("all (evolved)", evolved)
    assert changes("all (pretrained)") == changes("all")
    with pytest.raises(InputError, match="--weights-from"):
        run_config("all (evolved)", tuned, None)


def paper(name, data_set):
    """Row name to the paper's figures."""
    rows = TABLES[name].rows.items()
    return {row: [cell and getattr(cell, data_set) for cell in cells] for row, cells in rows}


def test_tables_hold_the_papers_figures():
    assert list(paper("table1", "hmdb51").values()) == [[41.72], [46.32], [47.66], [50.02], [None]]
    assert list(paper("table2", "hmdb51").values()) == [[41.72, None], [43.57, 46.32], [46.84, 47.66], [47.76, 50.02]]
    assert list(paper("table3", "hmdb51").values()) == [[41.72], [42.82], [50.02], [50.53]]
    assert list(paper("table3", "charades").values()) == [[28.56], [None], [35.05], [35.45]]
    moments = paper("table4", "moments")
    assert len(moments) == 14
    assert moments["AIRStreams, RGB + flow"] == [33.53]
    assert moments["AIRStreams, RGB + semantics + flow"] == [34.51]
    assert moments["AssembleNet RN101, RGB + flow (+ Kinetics)"] == [34.27]
    charades = paper("table5", "charades")
    assert len(charades) == 13
    assert charades["AIRStreams (Moments pretraining)"] == [50.1]
    assert charades["SlowFast"] == [45.2]
    smarthome = paper("table6", "smarthome")
    assert len(smarthome) == 6
    assert smarthome["AIRStreams"] == [78.28, 62.11]
    assert smarthome["LSTM (pose)"] == [None, 42.5]
    assert [name for name, table in TABLES.items() if len(table.data_sets) > 1] == ["table3"]


def test_every_run_of_a_table_or_figure_can_be_made(recipe):
    weights = dict.fromkeys(("rgb", "flow", "semantic", "merged", "interm"), 0.5)
    made = {name: run_config(name, recipe, weights) for wanted in (TABLES | FIGURES).values() for name in wanted.runs}
    assert {name.replace(" (evolved)", "").replace(" (uniform)", "").replace(" (pretrained)", "") for name in made} == {
        *RUNS
    }
    assert len({str(config) for name, config in made.items() if "(pretrained)" not in name}) == len(made) - 1


def test_a_search_s_weights_go_to_the_tables_that_have_a_use_for_them():
    assert reproducible("table4", evolved=False).runs == ["rgb+flow", "all"]
    table = reproducible("table4", evolved=True)
    assert table.runs == ["rgb+flow (evolved)", "all (evolved)"]
    assert table.reference == "rgb+flow (evolved)"
    assert reproducible("table5", evolved=True).runs == ["all (pretrained) (evolved)"]
    assert reproducible("table3", evolved=True) == TABLES["table3"]
    for name in ("table1", "table2", "peers", "merging", "figure4"):
        with pytest.raises(InputError, match=f"{name} have fixed loss weights"):
            reproducible(name, evolved=True)


def test_each_run_is_trained_for_each_seed_and_evaluated(finished, recipe):
    assert len(finished) == 10
    for job in finished:
        assert load_config(job.folder / "config.yaml") == job.config
        figures = json.loads(job.metrics_file.read_text())
        assert figures["videos"] == 8
        assert figures["trained_on"] == 0
    assert {job.config.seed for job in finished} == {5, 6}


def test_the_table_holds_the_means_of_what_evaluate_said(finished):
    result, markdown = report("table1", TABLES["table1"], finished, "airstreams reproduce table1")
    for name, found in ((name, metrics["top1"]) for name, metrics in result["runs"].items()):
        said = [json.loads(job.metrics_file.read_text())["top1"] for job in finished if job.name == name]
        assert found["values"] == pytest.approx(said)
        assert found["mean"] == pytest.approx(np.mean(said))
        assert found["interval"][0] <= found["mean"] <= found["interval"][1]
        row = next(row for row, cells in TABLES["table1"].rows.items() if cells[0] is not None and cells[0].run == name)
        (line,) = (line for line in markdown.splitlines() if line.startswith(f"| {row} |"))
        assert f" {found['mean']:.1%} (" in line
    assert result["runs"]["rgb"]["top1"]["difference"] == 0
    means = {name: metrics["top1"]["mean"] for name, metrics in result["runs"].items()}
    assert [(pair["run"], pair["minus"]) for pair in result["pairs"]] == [("all", "rgb+flow"), ("all", "rgb x3")]
    for pair in result["pairs"]:
        assert pair["difference"] == pytest.approx(means[pair["run"]] - means[pair["minus"]])
        low, high = pair["difference_interval"]
        assert low <= pair["difference"] <= high
        assert f"- {pair['run']} minus {pair['minus']}: {100 * pair['difference']:+.1f} (" in markdown
    assert result["seeds"] == [5, 6]
    assert result["videos"] == 8
    assert "| RGB + flow |" in markdown
    assert "47.66 %" in markdown
    assert "| top-1 | minus RGB, points | paper, HMDB-51 |" in markdown
    assert "The paper's figures are of HMDB-51, not of these data." in markdown
    assert "loss weights" not in markdown


def test_the_paper_s_figures_are_those_of_the_data(finished):
    named = [replace(job, source=replace(job.source, name="charades:there")) for job in finished if job.name == "all"]
    table = Table("Weights", {"fixed weights": (Cell("all", hmdb51=50.02, charades=35.05),)})
    markdown = report("table3", table, named, "")[1]
    assert "paper, Charades" in markdown
    assert "35.05 %" in markdown
    assert "50.02" not in markdown
    assert "not of these data" not in markdown


def renamed(jobs, name):
    return [replace(job, source=replace(job.source, name=name)) for job in jobs if job.name == "all"]


@pytest.mark.parametrize(
    ("table", "data", "complaint"),
    [
        (
            "table6",
            "smarthome:there?protocol=cv1",
            "smarthome are published: protocol=cv1, not protocol=cs; 1 views, not 10",
        ),
        ("table6", "smarthome:there", "smarthome are published: 1 views, not 10"),  # cs is the default
        ("table4", "moments:there", "moments are published: release=4, not release=339; 1 views, not 3."),
        (
            "table4",
            "moments:there?release=305",
            "release=305, not release=339; 8 videos listed, not 30500; 1 views, not 3.",
        ),
        ("table4", "moments:there?release=339", "moments are published: 8 videos listed, not 33900; 1 views, not 3."),
        (
            "table1",
            "hmdb51:there?split=2",
            "split=2, not the mean of split=1, split=2, split=3; 8 videos listed, not 1530; 1 views",
        ),
    ],
)
def test_a_table_says_what_sets_its_figures_apart_from_published_ones(finished, table, data, complaint):
    rows = {"all": (Cell("all", moments=34.51),)}
    only_all = replace(TABLES[table], rows=rows, columns=("",), reference=None, pairs=())
    result, markdown = report(table, only_all, renamed(finished, data), "")
    assert complaint in markdown
    assert all(said in complaint for said in result["deviations"][:1])
    (hardware,) = result["hardware"]
    assert "threads" in hardware
    assert f"trained on {hardware}, " in markdown


def test_the_figure_of_several_data_is_their_mean_for_each_seed(tmp_path):
    right = {"one": [[True] * 4, [True, False] * 2], "other": [[False] * 8, [True] * 8]}
    jobs = [
        replace(job, source=replace(job.source, name=data))
        for data, seeds in right.items()
        for job in made_up(tmp_path / data, {"x": seeds})
    ]
    outcomes = RunOutcomes(jobs)
    assert outcomes.values("x", "top1") == pytest.approx([0.5, 0.75])  # not 4/12 and 10/12
    assert outcomes.videos == 8  # four of which stand in both


def test_splits_that_share_their_test_videos_make_no_interval_narrower(tmp_path):
    right = np.arange(400) < 120
    jobs = [
        replace(job, source=replace(job.source, name=data))
        for data in ("split 1", "split 2")
        for job in made_up(tmp_path / data, {"x": [right]})
    ]
    drawn = RunOutcomes(jobs).draws(["x"], "top1")["x"]
    assert drawn.std() == pytest.approx(np.sqrt(0.3 * 0.7 / 400), rel=0.08)


def test_table_3_tells_its_weights(finished):
    weights = LossWeights(rgb=0.74, flow=0.71, semantic=0.19, merged=0.26, interm=0.77)
    jobs = renamed(finished, "charades:there")
    evolved = [replace(job, name="all (evolved)", config=replace(job.config, loss_weights=weights)) for job in jobs]
    rows = {name: TABLES["table3"].rows[name] for name in ("fixed weights", "evolved weights")}
    markdown = report("table3", replace(TABLES["table3"], rows=rows), [*jobs, *evolved], "")[1]
    assert "Our evolved loss weights: rgb 0.74, flow 0.71, semantic 0.19, merged 0.26, interm 0.77." in markdown
    assert "is of weights evolved on Moments in Time" in markdown
    assert "34.51 % with its own, 34.44 % with those of HMDB-51" in markdown


def test_a_table_of_two_metrics_and_of_quoted_rows(finished):
    jobs = [job for job in finished if job.name == "all"]
    result, markdown = report("table6", TABLES["table6"], jobs, "")
    for metric in ("top1", "mean_per_class"):
        said = [json.loads(job.metrics_file.read_text())[metric] for job in jobs]
        assert result["runs"]["all"][metric]["values"] == pytest.approx(said)
        low, high = result["runs"]["all"][metric]["interval"]
        assert low <= np.mean(said) <= high
        assert "difference" not in result["runs"]["all"][metric]
    head = "| | top-1 | paper, Toyota Smarthome, cross-subject | mean per class |"
    assert head in markdown.replace("|  |", "| |")
    assert "| I3D (pretrained) | - | 72.00 % | - | 53.40 % |" in markdown
    assert "minus" not in markdown
    assert "loss weights are the fixed ones (rgb 1, flow 0, semantic 0, merged 1, interm 1)" in markdown


def test_peers_stand_beside_what_they_cost(finished):
    table = replace(TABLES["peers"], rows=dict(list(TABLES["peers"].rows.items())[:2]))
    jobs = [job for job in finished if job.name in table.runs]
    result, markdown = report("peers", table, jobs, "")
    of_rgb = next(job for job in jobs if job.name == "rgb").cost()
    assert result["costs"]["rgb"] == {
        "parameters": sum(of_rgb.parameters.values()),  # of a lone tower inference uses everything
        "multiply_adds": sum(of_rgb.inference.values()),
    }
    of_all = next(job for job in jobs if job.name == "all").cost()
    heads_of_streams = sum(of_all.parameters[f"{stream}.late"] for stream in ("rgb", "flow", "semantic"))
    assert result["costs"]["all"]["parameters"] == sum(of_all.parameters.values()) - heads_of_streams
    assert f" | {result['costs']['all']['multiply_adds'] / 1e9:.2f} |" in markdown


def test_a_finished_run_is_only_read_and_shared_by_tables(finished, source, recipe):
    out = finished[0].folder.parents[1]
    stamps = {job.folder: (job.folder / "model.safetensors").stat().st_mtime_ns for job in finished}
    again = plan(TABLES["table2"], recipe, [source], 2, out)
    assert {job.folder for job in again if job.done} == {folder for folder in stamps if "x3" not in folder.name}
    run_jobs([job for job in again if job.done], 1, QUIET)
    assert {folder: (folder / "model.safetensors").stat().st_mtime_ns for folder in stamps} == stamps
    elsewhere = replace(recipe, data=replace(recipe.data, workers=1, cache=str(out / "cache")))
    assert all(job.done for job in plan(TABLES["table1"], elsewhere, [source], 2, out))
    other = replace(recipe, training=replace(recipe.training, lr=0.1))
    with pytest.raises(InputError, match="another recipe"):
        plan(TABLES["table1"], other, [source], 2, out)
    another = {"train": "test", "test": "train"}
    turned = replace(source, videos=tuple(replace(video, split=another[video.split]) for video in source.videos))
    with pytest.raises(InputError, match="on other videos or other splits"):
        plan(TABLES["table1"], recipe, [turned], 2, out)


def test_a_run_that_was_evaluated_on_other_data_since_is_scored_again(finished, synthetic, tmp_path):
    folder = shutil.copytree(finished[0].folder, tmp_path / "run")
    job = replace(finished[0], folder=folder)
    figures = json.loads(job.metrics_file.read_text())
    shutil.copytree(synthetic / "videos", tmp_path / "videos")
    evaluate(folder, open_source(str(tmp_path / "videos")), "test", QUIET)
    assert not job.done
    run_jobs([job], 1, QUIET)
    assert job.done
    assert json.loads(job.metrics_file.read_text()) == figures


def test_a_figure_takes_the_first_seed_and_data_and_shares_the_tables_runs(finished, source, recipe):
    out = finished[0].folder.parents[1]
    jobs = plan(FIGURES["figure6"], recipe, [source, source], 3, out)
    assert [(job.folder.name, job.done) for job in jobs] == [
        ("all-data0-seed5", True),
        ("all-stopped-data0-seed5", False),
    ]
    work = multiply_adds(jobs)
    assert work[0] == work[1] == sum(jobs[0].cost().training.values()) * 24  # videos, one epoch
    assert hours_left(jobs, work) == pytest.approx(jobs[0].seconds / 3600)
    assert hours_left(jobs[:1], work[:1]) == 0
    guess = hours_left(jobs[1:], work[1:])  # nothing is finished: from a step on noise
    assert hours_left(jobs, work) / 1000 < guess < hours_left(jobs, work) * 1000  # of the right unit, no more


def test_what_is_lacking_or_of_no_use_is_refused_before_anything_is_trained(source, recipe, trained, tmp_path):
    table1, table5 = TABLES["table1"], TABLES["table5"]
    with pytest.raises(InputError, match=r"no label maps, but the run rgb\+semantic learns by them; give --labels"):
        plan(table1, recipe, [replace(source, label_store=None)], 1, tmp_path)
    with pytest.raises(InputError, match="no label maps, but the run all"):
        plan(FIGURES["figure4"], recipe, [replace(source, label_store=None)], 1, tmp_path)
    absent = replace(recipe, data=replace(recipe.data, segment_classes=["dog"]))
    with pytest.raises(InputError, match="segment_classes: got dog"):
        plan(table1, absent, [source], 1, tmp_path)
    further = replace(recipe.model, streams=["rgb", "edges"], representations={"edges": "my_streams:Edges"})
    with pytest.raises(InputError, match="representations: got edges, expected none: the paper's tables"):
        plan(table1, replace(recipe, model=further), [source], 1, tmp_path)
    with pytest.raises(InputError, match="--weights-from"):
        plan(TABLES["table3"], recipe, [source], 1, tmp_path)
    with pytest.raises(InputError, match="give --init RUN"):
        plan(table5, recipe, [source], 1, tmp_path)
    with pytest.raises(InputError, match=r"model\.json"):
        plan(table5, recipe, [source], 1, tmp_path, init=tmp_path)
    with pytest.raises(InputError, match="--init: these runs are trained from scratch"):
        plan(table1, recipe, [source], 1, tmp_path, init=trained)
    with pytest.raises(InputError, match="several labels a video"):
        plan(TABLES["table6"], recipe, [replace(source, multi_label=True)], 1, tmp_path)
    tested = replace(source, videos=tuple(replace(video, split="test") for video in source.videos))
    with pytest.raises(InputError, match="no videos in the split 'train'"):
        plan(table1, recipe, [tested], 1, tmp_path)
    with pytest.raises(InputError, match=r"other classes than .*; expected splits of one data set"):
        plan(table1, recipe, [source, replace(source, classes=source.classes[1:])], 1, tmp_path)
    with pytest.raises(InputError, match="twice; expected the splits of one data set"):
        plan(table1, recipe, [source, source], 1, tmp_path)
    assert not list(tmp_path.iterdir())


def test_data_without_splits_is_split_once_for_all_seeds(source, recipe, tmp_path):
    unsplit = replace(source, videos=tuple(replace(video, split=None) for video in source.videos))
    jobs = plan(TABLES["table1"], recipe, [unsplit], 2, tmp_path)
    splits = {tuple(video.split for video in job.source.videos) for job in jobs}
    assert len(splits) == 1
    assert {"train", "test"} <= set(splits.pop())


@pytest.mark.parametrize(
    "changes", [{"backbone": "r2plus1d18"}, {"merge_levels": [6]}, {"tower": default_tower()[:5]}], ids=str
)
def test_peers_take_any_recipes_tower_as_theirs(recipe, changes):
    mine = replace(recipe, model=replace(recipe.model, **changes))
    late = run_config("late fusion", mine, None).model
    assert late.merge_levels == [len(mine.model.blocks)]
    assert late.blocks == mine.model.blocks
    peer = run_config("r2plus1d18", mine, None).model
    assert peer.blocks == BACKBONES["r2plus1d18"]()


def test_merging_moves_the_merge_and_nothing_else(recipe):
    found = {name: run_config(name, recipe, None) for name in TABLES["merging"].runs}
    levels = {name: config.model.merge_levels for name, config in found.items()}
    assert levels == {
        "merged after 1": [1],
        "rgb+flow": [3],
        "merged after 5": [5],
        "late fusion": [6],
        "merged after 1+3+5": [3, 1, 5],
    }
    same = {str(replace(config, model=replace(config.model, merge_levels=[3]))) for config in found.values()}
    assert len(same) == 1
    assert found["merged after 1+3+5"].lambdas() == ["rgb", "flow", "merged"]


def test_a_pretrained_run_starts_from_the_given_one_and_each_start_has_its_own_folder(
    source, recipe, trained, finished, tmp_path
):
    short = replace(recipe, training=replace(recipe.training, lr=1e-12, warmup_epochs=0.0))
    jobs = plan(TABLES["table5"], short, [source], 1, tmp_path, init=trained)
    run_jobs(jobs, 1, QUIET)
    (job,) = jobs
    name = "rgb.late"
    there, here = (saved_models.load(run).model.parts()[name].state_dict() for run in (trained, job.folder))
    weights = [key for key, weight in there.items() if weight.is_floating_point() and "running" not in key]
    assert weights
    assert all(there[key].allclose(here[key], atol=1e-6) for key in weights)
    (other,) = plan(TABLES["table5"], short, [source], 1, tmp_path, init=finished[0].folder)
    assert other.folder != job.folder
    assert not other.done


def test_a_run_that_fails_does_not_keep_the_others_from_being_done(source, recipe, tmp_path):
    nowhere = tuple(
        replace(video, path=Path("nowhere.mp4")) if video.split == "test" else video for video in source.videos
    )
    broken, good = (
        plan(FIGURES["figure3"], recipe, [given], 1, tmp_path / name)[0]
        for name, given in (("broken", replace(source, videos=nowhere)), ("good", source))
    )
    with pytest.raises(RuntimeError, match=r"1 of 2 runs failed; .*rgb-flow-data0-seed5: none of 8 videos can be read"):
        run_jobs([broken, good], 1, QUIET)
    assert good.done
    assert not broken.done


def metrics_of_a_split(left_out=0, trained_on=0):
    """Metrics as `evaluate` writes them. Only what a table reads of them matters."""
    return EvaluationMetrics(
        data="data",
        split="test",
        trained_on=trained_on,
        videos=1,
        left_out=left_out,
        classes=1,
        log_loss=0.0,
        unlabelled=0,
        map_unlabelled_as_negatives=None,
        streams={},
        segmentation=None,
        protocol=ScoringProtocol(views=1, crops=1, comparison=None),
        groups=1,
        intervals={},
        per_class={},
    )


def made_up(folder, scores, labels=None, multi_label=False, groups=None, names=None):
    """Jobs whose evaluations say what is given: run name to, for each seed, who was right, or each video's scores.

    labels: of the videos, "a" for all by default; class b then gets the scores of what was wrong.
    groups, names: of the videos, each its own by default.
    """
    jobs = []
    for name, seeds in scores.items():
        for seed, right in enumerate(seeds):
            called = names or [f"v{number}" for number in range(len(right))]
            in_groups = zip(called, groups or called, strict=True)
            videos = tuple(Video(Path(name), name, ("a",), split="test", group=group) for name, group in in_groups)
            source = Source("data", ("a", "b"), videos, multi_label)
            job = Job(name, source, replace(Config(), seed=seed), folder / f"{name}-{seed}")
            job.metrics_file.parent.mkdir(parents=True)
            with (job.metrics_file.parent / "scores.csv").open("w", newline="") as file:
                rows = csv.writer(file)
                rows.writerow(["name", "label", "predicted", "a", "b"])
                for number, is_right in enumerate(right):
                    label = labels[number] if labels else "a"
                    row = (0.9, 0.1) if is_right == (label == "a") else (0.2, 0.8)
                    row = is_right if isinstance(is_right, tuple) else row
                    rows.writerow([called[number], label, "", *row])
                rows.writerow(["broken", "a", "left out: empty file"])
            write_metrics(job.metrics_file, metrics_of_a_split(left_out=1))
            (job.folder / "metrics.jsonl").write_text(json.dumps({"train": {"seconds": 1.0}}))
            jobs.append(job)
    return jobs


@pytest.mark.parametrize("size", [1, 4])
def test_videos_are_drawn_by_whole_groups(tmp_path, size):
    right = np.arange(400) // 4 % 10 < 3
    groups = [f"g{number // size}" for number in range(400)]  # of four, all are right or none is
    outcomes = RunOutcomes(made_up(tmp_path, {"x": [right]}, groups=groups))
    drawn = outcomes.draws(["x"], "top1")["x"]
    error = np.sqrt(0.3 * 0.7 / 400 * size)
    assert (outcomes.videos, outcomes.groups) == (400, 400 // size)
    assert drawn.mean() == pytest.approx(0.3, abs=4 * error / np.sqrt(1000))
    assert drawn.std() == pytest.approx(error, rel=0.08)


def test_differences_are_paired_over_videos(tmp_path):
    rng = np.random.default_rng(0)
    right = rng.random(200) < 0.5
    better = right.copy()
    better[np.flatnonzero(~right)[:10]] = True  # ten videos more, the others the same
    drawn = RunOutcomes(made_up(tmp_path, {"x": [right], "y": [better]})).draws(["x", "y"], "top1")
    difference = drawn["y"] - drawn["x"]
    assert difference.std() == pytest.approx(np.sqrt(0.05 * 0.95 / 200), rel=0.08)  # unpaired it would be 0.05


def test_what_hangs_together_in_any_of_the_data_is_one_group_whatever_their_order(tmp_path):
    of_data: dict[str, list[tuple[str, str | None]]] = {
        "one": [("f#0", "g1"), ("f#1", "g2"), ("x", "g3")],
        "other": [("f#1", None), ("x", None)],
    }
    jobs = []
    for data, rows in of_data.items():
        for job in made_up(tmp_path / data, {"x": [[True] * len(rows)]}, names=[name for name, _ in rows]):
            videos = tuple(Video(Path(name[0]), name, ("a",), split="test", group=group) for name, group in rows)
            jobs.append(replace(job, source=replace(job.source, name=data, videos=videos)))
    for order in (jobs, jobs[::-1]):
        outcomes = RunOutcomes(order)
        assert (outcomes.videos, outcomes.groups) == (3, 2)  # the parts of f are one
    gone = replace(jobs[0], source=replace(jobs[0].source, videos=jobs[0].source.videos[:2]))
    with pytest.raises(InputError, match="scored other videos or labels than the other runs, or than one lists"):
        RunOutcomes([gone])


def test_videos_that_no_map_counts_make_no_groups(tmp_path):
    labels = ["a", "a;b", "", "b"] * 5
    outcomes = RunOutcomes(made_up(tmp_path, {"x": [np.arange(20) % 3 > 0]}, labels, multi_label=True))
    assert (outcomes.videos, outcomes.groups) == (15, 15)


@pytest.mark.parametrize("data", ["videos/", "charades:there"])
def test_a_table_says_that_test_videos_were_trained_on(tmp_path, data):
    jobs = [
        replace(job, source=replace(job.source, name=data))
        for job in made_up(tmp_path, {"x": [[True, False]], "y": [[True, True]]})
    ]
    write_metrics(jobs[1].metrics_file, metrics_of_a_split(trained_on=2))
    result, markdown = report("table1", versus_x("y"), jobs, "")
    assert result["deviations"][-1] == "2 test videos trained on, by their names"
    assert "2 test videos trained on, by their names." in markdown


def test_each_seed_is_drawn_on_the_same_videos(tmp_path):
    of_seeds = [np.arange(400) < 120, np.arange(400) < 160]
    drawn = RunOutcomes(made_up(tmp_path, {"x": of_seeds})).draws(["x"], "top1")["x"]
    assert drawn.shape == (1000, 2)
    assert (drawn[:, 1] - drawn[:, 0]).std() == pytest.approx(np.sqrt(0.1 * 0.9 / 400), rel=0.08)


def test_of_one_seed_there_is_no_verdict(finished):
    first = [job for job in finished if job.config.seed == 5]
    result, markdown = report("table1", TABLES["table1"], first, "")
    assert result["runs"]["all"]["top1"]["undecided"] is None
    assert "undecided" not in markdown
    assert markdown.count(", one seed)") == 4 + 2  # of the table's rows, and of the pairs below it
    assert "alone, and say nothing of other seeds; differences are paired, in percentage points, and of one" in markdown


def versus_x(*others):
    rows = {run: (Cell(run, hmdb51=50.0),) for run in ("x", *others)}
    return Table("Made up", rows, reference="x", pairs=tuple((other, "x") for other in others))


def test_of_several_seeds_a_difference_is_undecided_where_its_interval_spans_0(tmp_path):
    """For its 200 videos a standard error is 0.045 or less: 0.3 lies far from 0, and 0.01 does not."""
    of_x, better, worse, alike = (
        [np.roll(np.arange(200) < right, by) for right, by in seeds]
        for seeds in (
            ((100, 0), (102, 3), (98, 5)),
            ((160, 2), (162, 9), (158, 1)),
            ((40, 8), (42, 4), (38, 7)),
            ((102, 50), (104, 53), (100, 55)),
        )
    )
    jobs = made_up(tmp_path, {"x": of_x, "better": better, "worse": worse, "alike": alike})
    result, markdown = report("table1", versus_x("better", "worse", "alike"), jobs, "")
    verdicts = {pair["run"]: (round(pair["difference"], 6), pair["undecided"]) for pair in result["pairs"]}
    assert verdicts == {"better": (0.3, False), "worse": (-0.3, False), "alike": (0.01, True)}
    for run, verdict in verdicts.items():
        assert (result["runs"][run]["top1"]["difference_interval"][0] <= 0) == (run != "better")
        told = [line for line in markdown.splitlines() if line.startswith((f"| {run} |", f"- {run} minus x"))]
        assert [", undecided)" in line for line in told] == [verdict[1]] * 2


def test_the_interval_of_a_difference_of_maps_lies_around_it(tmp_path):
    """Draws with copies flatter a run beside one without error, but move its interval nowhere."""
    rng = np.random.default_rng(0)
    labels = ["a", "b"] * 10
    scores = [tuple(row) for row in (rng.random((20, 2)) + 0.3 * np.tile(np.eye(2), (10, 1))).tolist()]
    jobs = made_up(tmp_path, {"x": [scores], "perfect": [[True] * 20]}, labels, multi_label=True)
    result, _ = report("table1", versus_x("perfect"), jobs, "")
    of_x = result["runs"]["x"]["map"]
    low, high = of_x["interval"]
    assert 0 < low < of_x["mean"] < high < 1
    assert result["pairs"][0]["difference"] == pytest.approx(1 - of_x["mean"])
    below, above = result["pairs"][0]["difference_interval"]
    assert (below + above) / 2 == pytest.approx(1 - of_x["mean"])
    assert above - below == pytest.approx(high - low, rel=0.2)  # it is uncertain by as much as the run itself


def test_runs_with_other_labels_make_no_table(tmp_path):
    right = [np.arange(4) < 2]
    jobs = made_up(tmp_path / "a", {"x": right}) + made_up(tmp_path / "b", {"y": right}, ["a", "a", "b", "a"])
    with pytest.raises(InputError, match="scored other videos or labels than the other runs"):
        RunOutcomes(jobs)


def test_the_mean_per_class_and_its_interval_are_those_of_classes_not_of_videos(tmp_path):
    labels = ["a"] * 300 + ["b"] * 100
    right = np.arange(400) % 100 < np.array([80] * 300 + [20] * 100)  # 80 % of a, 20 % of b
    outcomes = RunOutcomes(made_up(tmp_path, {"x": [right]}, labels))
    assert outcomes.values("x", "top1") == [pytest.approx(0.65)]
    assert outcomes.values("x", "mean_per_class") == [pytest.approx(0.5)]
    drawn = outcomes.draws(["x"], "mean_per_class")["x"]
    error = np.sqrt(0.8 * 0.2 / 300 + 0.2 * 0.8 / 100) / 2
    assert drawn.std() == pytest.approx(error, rel=0.08)


def test_the_mean_average_precision_is_that_of_the_metric(tmp_path):
    labels = ["a", "a;b", "", "b"] * 5
    jobs = made_up(tmp_path, {"x": [np.arange(20) % 3 > 0]}, labels, multi_label=True)
    scores_NK = np.array(
        [row[3:] for row in csv.reader((jobs[0].metrics_file.parent / "scores.csv").open())][1:-1], float
    )
    targets_NK = np.array([["a" in label, "b" in label] for label in labels]).astype(int)
    found = RunOutcomes(jobs).values("x", "map")
    assert found == [pytest.approx(action_metrics(scores_NK, targets_NK)["map"])]


def test_runs_that_scored_other_videos_are_refused(tmp_path):
    jobs = made_up(tmp_path, {"x": [[True] * 4], "y": [[True] * 5]})
    with pytest.raises(InputError, match="scored other videos"):
        RunOutcomes(jobs)


@pytest.fixture
def call(finished, synthetic, recipe, tmp_path):
    """All but the verb and the table's name."""
    save_config(recipe, tmp_path / "recipe.yaml")
    words = ["--data", str(synthetic / "videos"), "--labels", str(synthetic / "labels")]
    shutil.copytree(finished[0].folder.parents[1], tmp_path / "out")
    return [*words, "--out", str(tmp_path / "out"), "--config", str(tmp_path / "recipe.yaml"), "--seeds", "2"]


def test_command_line(call, capsys, tmp_path):
    out = tmp_path / "out"
    assert main(["reproduce", "table1", *call, "--dry-run", "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [run["done"] for run in runs] == [True] * 10
    by_name = {run["run"]: run["multiply_adds"] for run in runs}
    assert by_name["all-data0-seed5"] > by_name["rgb-data0-seed5"] > 0
    assert main(["reproduce", "table1", *call, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["runs"].keys() == {"rgb", "rgb+semantic", "rgb+flow", "all", "rgb x3"}
    assert shlex.split(said["command"]) == ["airstreams", "reproduce", "table1", *call, "--json"]
    assert (out / "table1.md").read_text().startswith("## Table 1")
    assert json.loads((out / "table1.json").read_text())["table"] == "table1"
    assert main(["reproduce", "table3", *call]) == 2
    assert "--weights-from" in capsys.readouterr().err


def test_command_line_of_peers(call, capsys):
    assert main(["reproduce", "peers", *call[:-1], "1", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["runs"].keys() == said["costs"].keys() == set(TABLES["peers"].runs)
    assert imread(said["picture"]).shape[1] > 800


def test_command_line_of_figures(call, capsys, tmp_path):
    out = tmp_path / "out"
    assert main(["reproduce", "figure4", *call, "--dry-run", "--json"]) == 0
    assert [run["run"] for run in json.loads(capsys.readouterr().out)["runs"]] == ["all-data0-seed5"]
    assert not (out / "figure4.png").exists()
    for name, videos in (("figure3", 4), ("figure4", 4)):
        assert main(["reproduce", name, *call, "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert (said["figure"], said["picture"]) == (name, str(out / f"{name}.png"))
        assert len(said["videos"]) == videos
        assert imread(out / f"{name}.png").ndim == 3
    assert main(["reproduce", "figure6", *call]) == 0
    assert "figure6.png" in capsys.readouterr().out
    assert (out / "runs/all-stopped-data0-seed5/evaluation/test/figures.json").is_file()
    assert not (out / "runs/all-stopped-data0-seed6").exists()


def test_command_line_of_a_study(tmp_path, capsys):
    weights = {"rgb": 0.8, "flow": 0.2, "semantic": 0.1, "merged": 0.9, "interm": 0.5}
    top = [{"trial": n, "value": 0.5 - 0.1 * n, "weights": weights} for n in range(3)]
    results = {"top": top, "values": [[n, 0.1 * n] for n in range(6)], "metric": "top1", "sampler": "tournament"}
    (tmp_path / "results.json").write_text(json.dumps(results | {"best": top[0]}))
    for name in ("figure5", "figure8"):
        call = ["reproduce", name, "--study", str(tmp_path), "--out", str(tmp_path / "out")]
        assert main([*call, "--dry-run", "--json"]) == 0
        assert not (tmp_path / "out").exists()
        capsys.readouterr()
    for name in ("figure5", "figure8"):
        call = ["reproduce", name, "--study", str(tmp_path), "--out", str(tmp_path / "out")]
        assert main([*call, "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["runs"] == []
        assert imread(said["picture"]).ndim == 3


def test_command_line_of_a_searchs_weights(call, capsys, tmp_path):
    weights = {"rgb": 0.5, "flow": 0.25, "semantic": 0.125, "merged": 0.75, "interm": 0.0625}
    (tmp_path / "results.json").write_text(json.dumps({"top": [{"trial": 0, "value": 0.5, "weights": weights}]}))
    assert main(["reproduce", "table3", *call[:-1], "1", "--weights-from", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"].keys() == set(TABLES["table3"].runs)
    evolved = load_config(tmp_path / "out/runs/all-evolved-data0-seed5/config.yaml")
    assert evolved.active_loss_weights() == weights


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["table1"], "table1: expected --data DATA"),
        (["figure5"], "figure5: expected --study STUDY"),
        (["figure5", "--study", "."], "no results.json"),
        (["figure5", "--study", ".", "--dry-run"], "no results.json"),
        (["figure8", "--study", ".", "--data", "x"], "figure8: --data is of no use"),
        (["figure4", "--study", ".", "--data", "x"], "figure4: --study is of no use"),
        (["table1", "--data", "x", "--weights-from", "."], "table1 have fixed loss weights"),
        (["table9"], "table9: no table or figure; expected one of table1, table2"),
        (["table1", "--data", "x", "--model.width", "0.5"], "--model.width: reproduce takes no single keys"),
    ],
)
def test_wrong_calls_get_one_line(words, complaint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *words, "--out", "out"]) == 2
    answer = capsys.readouterr().err
    assert complaint in answer
    assert answer.count("\n") == 1


def test_help_lists_what_there_is(capsys):
    with pytest.raises(SystemExit):
        main(["reproduce", "--help"])
    shown = capsys.readouterr().out
    for name in (*TABLES, *FIGURES):
        assert f"{name}:" in shown


def test_it_needs_no_optuna(tmp_path):
    (tmp_path / "optuna.py").write_text("raise ImportError('not here')")
    paths = os.pathsep.join([str(tmp_path), str(Path(airstreams.__file__).parents[1])])
    imports = "import airstreams.cli, airstreams.viewing.paper_figures, airstreams.experiments.table_results"
    for code, status in ((imports, 0), ("import airstreams.experiments.evolve", 1)):
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths}, capture_output=True
        )
        assert done.returncode == status


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill a process outright")
def test_a_process_that_is_killed_does_not_keep_the_others_from_being_done(source, recipe, tmp_path):
    victim, other = (plan(FIGURES["figure3"], recipe, [source], 1, tmp_path / name)[0] for name in ("victim", "other"))

    def kill():
        while not (victim.folder / "metrics.jsonl").is_file() and not over:
            time.sleep(0.05)
        for process in multiprocessing.active_children():
            if str(victim.folder) in " ".join(file.path for file in psutil.Process(process.pid).open_files()):
                process.kill()

    over: list[bool] = []
    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(
        RuntimeError, match=r"1 of 2 runs failed; .*: its process ended with exit code -9, perhaps for want of mem"
    ):
        run_jobs([victim, other], 2, QUIET)
    over.append(True)
    killer.join()
    assert other.done
    assert not victim.done


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill a process outright")
def test_asked_to_stop_it_saves_its_trainings_and_begins_no_other(synthetic, recipe, tmp_path):
    config = replace(recipe, training=replace(recipe.training, epochs=50, save_every=10_000))
    save_config(replace(config, data=replace(config.data, workers=1)), tmp_path / "recipe.yaml")
    call = [sys.executable, "-m", "airstreams", "reproduce", "table1", "--seeds", "1", "--workers", "2"]
    call += ["--data", str(synthetic / "videos"), "--labels", str(synthetic / "labels")]
    call += ["--out", str(tmp_path / "out"), "--config", str(tmp_path / "recipe.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(Path(airstreams.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(call, env=environment, stderr=subprocess.PIPE, text=True)
    runs = tmp_path / "out" / "runs"
    while sum(path.stat().st_size > 0 for path in runs.glob("*/metrics.jsonl")) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.splitlines()[-1] == "airstreams: interrupted; the same call goes on"
    assert "Traceback" not in said
    steps = [max(int(path.stem[5:]) for path in run.glob("state/step-*.pt")) for run in runs.iterdir()]
    assert len(steps) == 2
    assert min(steps) >= 6  # what the first line of metrics tells


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill a process outright")
def test_killed_it_goes_on(synthetic, recipe, tmp_path):
    save_config(replace(recipe, training=replace(recipe.training, epochs=5, save_every=3)), tmp_path / "recipe.yaml")
    call = [sys.executable, "-m", "airstreams", "reproduce", "table4", "--seeds", "1", "--json"]
    call += ["--data", str(synthetic / "videos"), "--labels", str(synthetic / "labels")]
    call += ["--out", str(tmp_path / "out"), "--config", str(tmp_path / "recipe.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(Path(airstreams.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(call, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    begun = tmp_path / "out" / "runs" / "all-data0-seed5"
    end = time.monotonic() + 120
    while max((int(path.stem[5:]) for path in begun.glob("state/step-*.pt")), default=0) < 9:  # six steps an epoch
        assert time.monotonic() < end
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    first_epoch = (begun / "metrics.jsonl").read_text().splitlines()[0]
    before = (tmp_path / "out/runs/rgb-flow-data0-seed5/model.safetensors").stat().st_mtime_ns
    done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["runs"]) == 2
    assert (begun / "metrics.jsonl").read_text().splitlines()[0] == first_epoch  # its seconds too: not done again
    assert (tmp_path / "out/runs/rgb-flow-data0-seed5/model.safetensors").stat().st_mtime_ns == before
