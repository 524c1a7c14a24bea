"""The paper's tables and figures on synthetic videos, with short trainings."""

import json
import re
import shlex
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
from matplotlib.image import imread

from airstreams.cli import main
from airstreams.config import LossWeights
from airstreams.data.content import with_contents
from airstreams.data.sources import open_source
from airstreams.errors import InputError
from airstreams.evaluation.evaluate import evaluate
from airstreams.experiments.reproduce import hours_left, multiply_adds, plan, run_job, run_jobs
from airstreams.experiments.study import BestTrial, ScoredTrial, StudyResults, write_results
from airstreams.experiments.table_results import Difference, ScoringCost, results_of
from airstreams.experiments.tables import (
    FIGURES,
    PRETRAINED,
    RUNS,
    TABLES,
    Cell,
    Table,
    reproducible,
    run_config,
    run_of,
)
from airstreams.recipe import load_config, save_config
from airstreams.runs import saved_model as saved_models
from airstreams.towers import BACKBONES, default_tower
from airstreams.training.start import read_start
from tests.experiments.made_up import QUIET, markdown_and_results


@pytest.fixture(scope="module")
def finished(few, recipe, tmp_path_factory):
    """The runs of Table 1 with two seeds. Not to be written to."""
    jobs = plan(TABLES["table1"], recipe, [few], 2, tmp_path_factory.mktemp("reproduced"))
    for job in jobs:
        run_job(job)
    return jobs


def test_a_run_changes_only_the_keys_that_its_table_names(recipe):
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
    assert changes("all (untaught)") == ("rgb+flow+semantic", [], (1, 0, 0, 1, 0))
    assert changes("all (untaught) (evolved)", evolved) == ("rgb+flow+semantic", [], (0.1, 0.2, 0.3, 0.4, 0))
    with pytest.raises(InputError, match="--weights-from STUDY"):
        run_config("all (evolved)", tuned, None)


def paper(name, data_set):
    """Row name to the published values."""
    rows = TABLES[name].rows.items()
    return {row: [cell and getattr(cell, data_set) for cell in cells] for row, cells in rows}


def test_tables_have_the_published_values():
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


def test_every_run_of_a_table_or_figure_has_a_config_of_its_own(recipe):
    weights = dict.fromkeys(("rgb", "flow", "semantic", "merged", "interm"), 0.5)
    named = {name for wanted in (TABLES | FIGURES).values() for name in wanted.runs}
    recipe = replace(recipe, clip=replace(recipe.clip, frames=8))  # the fewest that s3d takes
    made = {name: run_config(name, recipe, weights) for name in named}
    only_costs = {run for table in TABLES.values() for run in table.costs_of.values()}
    without_marks = {re.sub(r" \((evolved|uniform|pretrained)\)", "", name) for name in named}
    assert without_marks | only_costs == RUNS.keys()
    videos = {run: table.renders for table in TABLES.values() for run in table.runs}  # None: those of the call
    marks = {(str(made[name]), videos.get(name), run_of(name).clips, PRETRAINED in name) for name in named}
    assert len(marks) == len(named)


def test_evolved_weights_are_used_where_the_paper_uses_them():
    assert reproducible("table4", evolved=False).runs == ["rgb+flow", "all"]
    table = reproducible("table4", evolved=True)
    assert table.runs == ["rgb+flow (evolved)", "all (evolved)"]
    assert table.reference == "rgb+flow (evolved)"
    assert reproducible("table5", evolved=True).runs == ["all (pretrained) (evolved)"]
    assert reproducible("table3", evolved=True) == TABLES["table3"]
    for name in ("table1", "table2", "peers", "merging", "figure4"):
        with pytest.raises(InputError, match=f"--weights-from.* {name} "):
            reproducible(name, evolved=True)


def test_each_run_is_trained_with_each_seed_and_evaluated(finished):
    assert len(finished) == 10
    for job in finished:
        assert load_config(job.folder / "config.yaml") == job.config
        metrics = job.read_metrics()
        assert (metrics.videos, metrics.trained_on) == (4, 0)
    assert {job.config.seed for job in finished} == {5, 6}


def test_a_table_shows_the_mean_of_the_evaluations(finished):
    markdown, results = markdown_and_results("table1", TABLES["table1"], finished, "airstreams reproduce table1")
    for name, found in ((name, metrics["top1"]) for name, metrics in results.runs.items()):
        evaluated = [job.score for job in finished if job.name == name]
        assert found.values == pytest.approx(evaluated)
        assert found.mean == pytest.approx(np.mean(evaluated))
        assert found.interval[0] <= found.mean <= found.interval[1]
        row = next(row for row, cells in TABLES["table1"].rows.items() if cells[0] is not None and cells[0].run == name)
        (line,) = (line for line in markdown.splitlines() if line.startswith(f"| {row} |"))
        assert f" {found.mean:.1%} (" in line
    assert results.runs["rgb"]["top1"].difference == Difference(0, [ANY, ANY], significant=False)
    assert (results.seeds, results.videos) == ([5, 6], 4)
    assert "| RGB + flow |" in markdown
    assert "47.66 %" in markdown
    assert "| top-1 | minus RGB, points | paper, HMDB-51 |" in markdown
    assert "for HMDB-51, not for these data" in markdown
    assert "loss weights" not in markdown


def test_a_table_lists_the_differences_of_its_pairs(finished):
    markdown, results = markdown_and_results("table1", TABLES["table1"], finished)
    means = {name: metrics["top1"].mean for name, metrics in results.runs.items()}
    assert [(pair.run, pair.minus) for pair in results.pairs] == [("all", "rgb+flow"), ("all", "rgb x3")]
    for pair in results.pairs:
        difference = pair.difference
        assert difference.mean == pytest.approx(means[pair.run] - means[pair.minus])
        assert difference.interval[0] <= difference.mean <= difference.interval[1]
        assert f"- {pair.run} minus {pair.minus}: {100 * difference.mean:+.1f} (" in markdown


def test_the_json_of_a_table_has_the_documented_keys(finished):
    content = results_of("table1", TABLES["table1"], finished, "the call").as_dict()
    assert list(content) == [
        *("table", "metric", "command", "data", "classes", "seeds", "videos", "groups", "hardware", "deviations"),
        *("training_hours", "reference", "runs", "pairs", "distinguishable", "reason", "baseline"),
    ]
    assert (content["distinguishable"], content["baseline"]) == (False, 0.25)  # trainings of one epoch, on four videos
    difference = ["difference", "difference_interval", "undecided"]
    assert list(content["runs"]["all"]["top1"]) == ["mean", "values", "interval", *difference]
    assert list(content["pairs"][0]) == ["run", "minus", *difference]
    assert json.loads(json.dumps(content)) == content


def test_the_published_values_are_those_of_the_data_set(finished):
    named = [replace(job, source=replace(job.source, name="charades:there")) for job in finished if job.name == "all"]
    table = Table("Weights", {"fixed weights": (Cell("all", hmdb51=50.02, charades=35.05),)})
    markdown, _ = markdown_and_results("table3", table, named)
    assert "paper, Charades" in markdown
    assert "35.05 %" in markdown
    assert "50.02" not in markdown
    assert "not for these data" not in markdown


def renamed(jobs, name):
    return [replace(job, source=replace(job.source, name=name)) for job in jobs if job.name == "all"]


@pytest.mark.parametrize(
    ("table", "data", "expected"),
    [
        (
            "table6",
            "smarthome:there?protocol=cv1",
            ["protocol=cv1, not protocol=cs", "1 view, not 10", "1 crop, not 3"],
        ),
        ("table6", "smarthome:there", ["1 view, not 10", "1 crop, not 3"]),  # cs is the default
        ("table4", "moments:there", ["release=4, not release=339", "1 view, not 3"]),
        (
            "table4",
            "moments:there?release=305",
            ["release=305, not release=339", "4 videos listed, not 30500", "1 view, not 3"],
        ),
        ("table4", "moments:there?release=339", ["4 videos listed, not 33900", "1 view, not 3"]),
        (
            "table1",
            "hmdb51:there?split=2",
            ["split=2, not the mean of split=1, split=2, split=3", "4 videos listed, not 1530", "1 view, not 10"],
        ),
    ],
)
def test_a_table_lists_what_differs_from_the_published_protocol(finished, table, data, expected):
    rows = {"all": (Cell("all", moments=34.51),)}
    only_all = replace(TABLES[table], rows=rows, columns=("",), reference=None, pairs=())
    markdown, results = markdown_and_results(table, only_all, renamed(finished, data))
    assert results.deviations == expected
    assert f"{data.partition(':')[0]}: {'; '.join(expected)}." in markdown
    (hardware,) = results.hardware
    assert "thread" in hardware
    assert f"trained on {hardware}, " in markdown


def test_table_3_shows_its_weights(finished):
    weights = LossWeights(rgb=0.74, flow=0.71, semantic=0.19, merged=0.26, interm=0.77)
    jobs = renamed(finished, "charades:there")
    evolved = [replace(job, name="all (evolved)", config=replace(job.config, loss_weights=weights)) for job in jobs]
    rows = {name: TABLES["table3"].rows[name] for name in ("fixed weights", "evolved weights")}
    markdown, _ = markdown_and_results("table3", replace(TABLES["table3"], rows=rows), [*jobs, *evolved])
    assert ": rgb 0.74, flow 0.71, semantic 0.19, merged 0.26, interm 0.77." in markdown
    assert "34.51 %" in markdown
    assert "34.44 %" in markdown


def test_a_table_of_two_metrics_and_of_quoted_rows(finished):
    jobs = [job for job in finished if job.name == "all"]
    markdown, results = markdown_and_results("table6", TABLES["table6"], jobs)
    for metric in ("top1", "mean_per_class"):
        evaluated = [job.read_metrics()[metric] for job in jobs]
        found = results.runs["all"][metric]
        assert found.values == pytest.approx(evaluated)
        assert found.interval[0] <= np.mean(evaluated) <= found.interval[1]
        assert found.difference is None
        assert "difference" not in found.as_dict()
    head = "| | top-1 | paper, Toyota Smarthome, cross-subject | mean per class |"
    assert head in markdown.replace("|  |", "| |")
    assert "| I3D (pretrained) | - | 72.00 % | - | 53.40 % |" in markdown
    assert "minus" not in markdown
    assert "rgb 1, flow 0, semantic 0, merged 1, interm 1" in markdown


def test_a_table_with_costs_shows_what_scoring_takes(finished):
    table = replace(TABLES["peers"], rows=dict(list(TABLES["peers"].rows.items())[:2]))
    jobs = [job for job in finished if job.name in table.runs]
    markdown, results = markdown_and_results("peers", table, jobs)
    assert results.costs is not None
    rgb_cost = next(job for job in jobs if job.name == "rgb").cost()
    # Scoring with a lone tower uses all of it.
    expected = ScoringCost(sum(rgb_cost.parameters.values()), sum(rgb_cost.inference.values()))
    assert results.costs["rgb"] == expected
    all_cost = next(job for job in jobs if job.name == "all").cost()
    unused = {f"{stream}.late" for stream in ("rgb", "flow", "semantic")}
    used = sum(count for part, count in all_cost.parameters.items() if part not in unused)
    assert results.costs["all"].parameters == used
    assert f" | {results.costs['all'].multiply_adds / 1e9:.2f} |" in markdown
    assert results.as_dict()["costs"]["rgb"] == asdict(expected)


def test_tables_share_finished_runs(finished, few, recipe):
    out = finished[0].folder.parents[1]
    stamps = {job.folder: (job.folder / "model.safetensors").stat().st_mtime_ns for job in finished}
    again = plan(TABLES["table2"], recipe, [few], 2, out)
    assert {job.folder for job in again if job.done} == {folder for folder in stamps if "x3" not in folder.name}
    run_jobs([job for job in again if job.done], 1, QUIET)
    assert {folder: (folder / "model.safetensors").stat().st_mtime_ns for folder in stamps} == stamps
    elsewhere = replace(recipe, data=replace(recipe.data, workers=1, cache=str(out / "cache")))
    assert all(job.done for job in plan(TABLES["table1"], elsewhere, [few], 2, out))
    other = replace(recipe, training=replace(recipe.training, lr=0.1))
    with pytest.raises(InputError, match=r"data0-seed5: .* recipe"):
        plan(TABLES["table1"], other, [few], 2, out)
    another = {"train": "test", "test": "train"}
    turned = replace(few, videos=tuple(replace(video, split=another[video.split]) for video in few.videos))
    with pytest.raises(InputError, match=r"data0-seed5: .* videos or splits"):
        plan(TABLES["table1"], recipe, [turned], 2, out)


def test_test_videos_that_were_encoded_again_are_refused(finished, few, recipe, tmp_path, without_processes):
    out = tmp_path / "out"
    folder = shutil.copytree(finished[0].folder, out / "runs" / finished[0].folder.name)
    known = with_contents(few, QUIET)
    assert next(job for job in plan(TABLES["table1"], recipe, [known], 1, out) if job.folder == folder).done
    of_another = {video.name: known.videos[0].content for video in known.split("test")}
    changed = tuple(replace(video, content=of_another.get(video.name, video.content)) for video in known.videos)
    with pytest.raises(InputError, match=f"{folder.name}: .* test video.* changed"):
        plan(TABLES["table1"], recipe, [replace(known, videos=changed)], 1, out)
    # They change after the plan was made, or their contents are not known to the caller.
    job = replace(finished[0], folder=folder, source=replace(few, videos=changed))
    with pytest.raises(InputError, match=f"{folder.name}: .* test video.* changed"):
        run_job(job)


def test_a_run_that_was_evaluated_on_other_data_is_scored_again(finished, few_videos, tmp_path, without_processes):
    folder = shutil.copytree(finished[0].folder, tmp_path / "run")
    job = replace(finished[0], folder=folder)
    metrics = job.read_metrics()
    shutil.copytree(few_videos / "videos", tmp_path / "videos")
    evaluate(folder, open_source(str(tmp_path / "videos")), "test", QUIET)
    assert not job.done
    run_jobs([job], 1, QUIET)
    assert job.done
    assert job.read_metrics() == metrics


def test_a_figure_shares_the_tables_runs_of_the_first_seed_and_data(finished, few, recipe):
    out = finished[0].folder.parents[1]
    jobs = plan(FIGURES["figure6"], recipe, [few, few], 3, out)
    assert [(job.folder.name, job.done) for job in jobs] == [
        ("all-data0-seed5", True),
        ("all-stopped-data0-seed5", False),
    ]
    work = multiply_adds(jobs)
    assert work[0] == work[1] == sum(jobs[0].cost().training.values()) * 16  # videos, one epoch
    assert hours_left(jobs, work) == pytest.approx(jobs[0].seconds / 3600)
    assert hours_left(jobs[:1], work[:1]) == 0
    guess = hours_left(jobs[1:], work[1:])  # nothing is finished: measured on a step on noise
    assert hours_left(jobs, work) / 1000 < guess < hours_left(jobs, work) * 1000  # this checks the unit, no more


NO_LABELS: dict[str, Any] = {"label_store": None}


@pytest.mark.parametrize(
    ("wanted", "in_source", "in_model", "expected"),
    [
        ("table1", NO_LABELS, {}, r"the run rgb\+semantic .*--labels LABELS"),
        ("figure4", NO_LABELS, {}, "the run all .*--labels LABELS"),
        (
            "table1",
            {},
            {"streams": ["rgb", "edges"], "representations": {"edges": "m:E"}},
            "representations: ",
        ),
        ("table3", {}, {}, "--weights-from STUDY"),
        ("table5", {}, {}, "--init RUN"),
        ("table6", {"multi_label": True}, {}, "several labels per video"),
    ],
)
def test_plan_refuses_what_lacks_something(few, recipe, tmp_path, wanted, in_source, in_model, expected):
    changed = replace(recipe, model=replace(recipe.model, **in_model))
    with pytest.raises(InputError, match=expected):
        plan((TABLES | FIGURES)[wanted], changed, [replace(few, **in_source)], 1, tmp_path)
    assert not list(tmp_path.iterdir())


def test_plan_refuses_data_that_do_not_fit(few, recipe, tmp_path):
    table1 = TABLES["table1"]
    absent = replace(recipe, data=replace(recipe.data, segment_classes=["dog"]))
    with pytest.raises(InputError, match=r"segment_classes: .*dog"):
        plan(table1, absent, [few], 1, tmp_path)
    tested = replace(few, videos=tuple(replace(video, split="test") for video in few.videos))
    with pytest.raises(InputError, match="'train'"):
        plan(table1, recipe, [tested], 1, tmp_path)
    with pytest.raises(InputError, match="classes differ"):
        plan(table1, recipe, [few, replace(few, classes=few.classes[1:])], 1, tmp_path)
    with pytest.raises(InputError, match=r"--data: .* twice"):
        plan(table1, recipe, [few, few], 1, tmp_path)
    assert not list(tmp_path.iterdir())


def test_plan_takes_init_for_pretrained_runs_alone(few, recipe, finished, tmp_path):
    with pytest.raises(InputError, match=r"model\.json"):
        plan(TABLES["table5"], recipe, [few], 1, tmp_path, init=read_start(str(tmp_path)))
    with pytest.raises(InputError, match=r"--init: .* from scratch"):
        plan(TABLES["table1"], recipe, [few], 1, tmp_path, init=read_start(str(finished[0].folder)))
    assert not list(tmp_path.iterdir())


def test_data_without_splits_is_split_once_for_all_seeds(few, recipe, tmp_path):
    unsplit = replace(few, videos=tuple(replace(video, split=None) for video in few.videos))
    jobs = plan(TABLES["table1"], recipe, [unsplit], 2, tmp_path)
    splits = {tuple(video.split for video in job.source.videos) for job in jobs}
    assert len(splits) == 1
    assert {"train", "test"} <= set(splits.pop())


@pytest.mark.parametrize(
    "changes", [{"backbone": "r2plus1d18"}, {"merge_levels": [6]}, {"tower": default_tower()[:5]}], ids=str
)
def test_late_fusion_has_the_recipes_tower(recipe, changes):
    mine = replace(recipe, model=replace(recipe.model, **changes))
    late = run_config("late fusion", mine, None).model
    assert late.merge_levels == [mine.model.block_count()]
    assert late.blocks_of() == mine.model.blocks_of()
    peer = run_config("r2plus1d18", mine, None).model
    assert peer.blocks_of() == BACKBONES["r2plus1d18"]()


def test_the_runs_of_merging_differ_in_the_merge_alone(recipe):
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
    assert found["merged after 1+3+5"].lambdas() == ["rgb", "flow", "merged_after_1", "merged_after_5", "merged"]


def test_a_pretrained_run_starts_from_the_given_one(few, recipe, finished, tmp_path):
    """Its learning rate is so small that the weights stay those of the start."""
    short = replace(recipe, training=replace(recipe.training, lr=1e-12, warmup_epochs=0.0))
    start, other_start = (read_start(str(job.folder)) for job in finished if job.name == "all")
    (job,) = plan(TABLES["table5"], short, [few], 1, tmp_path, init=start)
    run_job(job)
    name = "rgb.late"
    before, after = (saved_models.load(run).model.parts()[name].state_dict() for run in (Path(start.given), job.folder))
    weights = [key for key, weight in before.items() if weight.is_floating_point() and "running" not in key]
    assert weights
    assert all(before[key].allclose(after[key], atol=1e-6) for key in weights)
    (other,) = plan(TABLES["table5"], short, [few], 1, tmp_path, init=other_start)
    assert other.folder != job.folder
    assert not other.done


def test_one_seed_gives_no_verdict(finished):
    first = [job for job in finished if job.config.seed == 5]
    markdown, results = markdown_and_results("table1", TABLES["table1"], first)
    difference = results.runs["all"]["top1"].difference
    assert difference is not None
    assert difference.significant is None
    assert difference.as_dict()["undecided"] is None
    assert "significant" not in markdown
    assert markdown.count(", one seed)") == 4 + 2  # the table's rows, and the pairs below it


@pytest.fixture
def call(finished, few_videos, recipe, tmp_path, without_processes):
    """All words but the verb and the table's name."""
    save_config(recipe, tmp_path / "recipe.yaml")
    words = ["--data", str(few_videos / "videos"), "--labels", str(few_videos / "labels")]
    shutil.copytree(finished[0].folder.parents[1], tmp_path / "out")
    return [*words, "--out", str(tmp_path / "out"), "--config", str(tmp_path / "recipe.yaml"), "--seeds", "2"]


def test_the_command_makes_a_table(call, capsys, tmp_path):
    out = tmp_path / "out"
    assert main(["reproduce", "table4", *call, "--dry-run", "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [run["done"] for run in runs] == [True] * 4
    by_name = {run["run"]: run["multiply_adds"] for run in runs}
    assert by_name["all-data0-seed5"] > by_name["rgb-flow-data0-seed5"] > 0
    assert main(["reproduce", "table1", *call, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["runs"].keys() == {"rgb", "rgb+semantic", "rgb+flow", "all", "rgb x3"}
    assert shlex.split(printed["command"]) == ["airstreams", "reproduce", "table1", *call, "--json"]
    assert (out / "table1.md").read_text().startswith("## Table 1")
    assert json.loads((out / "table1.json").read_text()) == printed
    assert main(["reproduce", "table3", *call]) == 2
    assert "--weights-from" in capsys.readouterr().err


def test_the_command_makes_a_plot_of_peers(call, capsys):
    assert main(["reproduce", "peers", *call[:-1], "1", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["runs"].keys() == printed["costs"].keys() == set(TABLES["peers"].runs)
    assert imread(printed["picture"]).shape[1] > 800


def test_the_command_draws_figures(call, capsys, tmp_path):
    out = tmp_path / "out"
    assert main(["reproduce", "figure4", *call, "--dry-run", "--json"]) == 0
    assert [run["run"] for run in json.loads(capsys.readouterr().out)["runs"]] == ["all-data0-seed5"]
    assert not (out / "figure4.png").exists()
    for name, videos in (("figure3", 4), ("figure4", 4)):
        assert main(["reproduce", name, *call, "--json"]) == 0
        printed = json.loads(capsys.readouterr().out)
        assert (printed["figure"], printed["picture"]) == (name, str(out / f"{name}.png"))
        assert len(printed["videos"]) == videos
        assert imread(out / f"{name}.png").ndim == 3
    assert main(["reproduce", "figure6", *call]) == 0
    assert "figure6.png" in capsys.readouterr().out
    assert (out / "runs/all-stopped-data0-seed5/evaluation/test/figures.json").is_file()
    assert not (out / "runs/all-stopped-data0-seed6").exists()


def study_results(weights, trials):
    """The results of a study all of whose trials have the same weights."""
    top = [ScoredTrial(number, 0.5 - 0.1 * number, weights) for number in range(trials)]
    return StudyResults(
        trials=trials,
        pruned=0,
        diverged=0,
        metric="top1",
        sampler="tournament",
        best=BestTrial(0, 0.5, weights, fresh=None),
        references={},
        top=top,
        values=[(trial.trial, trial.value) for trial in top],
    )


def test_the_command_draws_figures_of_a_study(tmp_path, capsys):
    weights = {"rgb": 0.8, "flow": 0.2, "semantic": 0.1, "merged": 0.9, "interm": 0.5}
    write_results(tmp_path, study_results(weights, trials=3))
    for name in ("figure5", "figure8"):
        call = ["reproduce", name, "--study", str(tmp_path), "--out", str(tmp_path / "out")]
        assert main([*call, "--dry-run", "--json"]) == 0
        assert not (tmp_path / "out").exists()
        capsys.readouterr()
    no_best = replace(study_results(weights, trials=3), distinguishable=False, reason="noise", baseline=0.25)
    for results in (study_results(weights, trials=3), no_best):
        write_results(tmp_path, results)
        for name in ("figure5", "figure8"):
            call = ["reproduce", name, "--study", str(tmp_path), "--out", str(tmp_path / "out")]
            assert main([*call, "--json"]) == 0
            printed = json.loads(capsys.readouterr().out)
            assert printed["runs"] == []
            assert printed.get("distinguishable") == results.distinguishable
            assert imread(printed["picture"]).ndim == 3


def test_the_command_trains_with_the_weights_of_a_study(call, capsys, tmp_path):
    weights = {"rgb": 0.5, "flow": 0.25, "semantic": 0.125, "merged": 0.75, "interm": 0.0625}
    write_results(tmp_path, study_results(weights, trials=1))
    assert main(["reproduce", "table3", *call[:-1], "1", "--weights-from", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"].keys() == set(TABLES["table3"].runs)
    evolved = load_config(tmp_path / "out/runs/all-evolved-data0-seed5/config.yaml")
    assert evolved.active_loss_weights() == weights


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["table1"], ["table1", "--data DATA"]),
        (["figure5"], ["figure5", "--study STUDY"]),
        (["figure5", "--study", "."], ["results.json"]),
        (["figure5", "--study", ".", "--dry-run"], ["results.json"]),
        (["figure8", "--study", ".", "--data", "x"], ["figure8", "--data"]),
        (["figure4", "--study", ".", "--data", "x"], ["figure4", "--study"]),
        (["table1", "--data", "x", "--weights-from", "."], ["--weights-from", "table1"]),
        (["table9"], ["table9", "table1, table2"]),
        (["table1", "--data", "x", "--model.width", "0.5"], ["--model.width"]),
    ],
)
def test_wrong_calls_get_one_line(words, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *words, "--out", "out"]) == 2
    message = capsys.readouterr().err
    assert all(key in message for key in expected)
    assert message.count("\n") == 1


def test_help_lists_all_tables_and_figures(capsys):
    with pytest.raises(SystemExit):
        main(["reproduce", "--help"])
    shown = capsys.readouterr().out
    for name in (*TABLES, *FIGURES):
        assert f"{name}:" in shown
