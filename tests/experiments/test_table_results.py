"""The statistics of tables against closed forms, on made-up evaluations."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from airstreams.data.listing import Video
from airstreams.errors import InputError
from airstreams.evaluation.metrics import action_metrics
from airstreams.evaluation.results import write_metrics
from airstreams.experiments.table_results import RunOutcomes, results_of
from tests.experiments.made_up import made_up, markdown_and_results, metrics_of_a_split, versus_x


def test_several_data_give_their_mean_for_each_seed(tmp_path):
    right = {"one": [[True] * 4, [True, False] * 2], "other": [[False] * 8, [True] * 8]}
    jobs = [
        replace(job, source=replace(job.source, name=data))
        for data, seeds in right.items()
        for job in made_up(tmp_path / data, {"x": seeds})
    ]
    outcomes = RunOutcomes(jobs)
    assert outcomes.values("x", "top1") == pytest.approx([0.5, 0.75])  # not 4/12 and 10/12
    assert outcomes.videos == 8  # four of them are in both


def test_splits_with_the_same_test_videos_do_not_narrow_the_interval(tmp_path):
    right = np.arange(400) < 120
    jobs = [
        replace(job, source=replace(job.source, name=data))
        for data in ("split 1", "split 2")
        for job in made_up(tmp_path / data, {"x": [right]})
    ]
    drawn = RunOutcomes(jobs).resample(["x"], "top1")["x"]
    assert drawn.std() == pytest.approx(np.sqrt(0.3 * 0.7 / 400), rel=0.08)


@pytest.mark.parametrize("size", [1, 4])
def test_videos_are_resampled_by_whole_groups(tmp_path, size):
    right = np.arange(400) // 4 % 10 < 3
    groups = [f"g{number // size}" for number in range(400)]  # all four of a group are right, or none
    outcomes = RunOutcomes(made_up(tmp_path, {"x": [right]}, groups=groups))
    drawn = outcomes.resample(["x"], "top1")["x"]
    error = np.sqrt(0.3 * 0.7 / 400 * size)
    assert (outcomes.videos, outcomes.groups) == (400, 400 // size)
    assert drawn.mean() == pytest.approx(0.3, abs=4 * error / np.sqrt(1000))
    assert drawn.std() == pytest.approx(error, rel=0.08)


def test_differences_are_paired_over_videos(tmp_path):
    rng = np.random.default_rng(0)
    right = rng.random(200) < 0.5
    better = right.copy()
    better[np.flatnonzero(~right)[:10]] = True  # ten videos more, the others the same
    drawn = RunOutcomes(made_up(tmp_path, {"x": [right], "y": [better]})).resample(["x", "y"], "top1")
    difference = drawn["y"] - drawn["x"]
    assert difference.std() == pytest.approx(np.sqrt(0.05 * 0.95 / 200), rel=0.08)  # unpaired, it would be 0.05


def test_groups_of_several_data_are_joined_in_any_order(tmp_path):
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
        assert (outcomes.videos, outcomes.groups) == (3, 2)  # the two parts of f are one group
    gone = replace(jobs[0], source=replace(jobs[0].source, videos=jobs[0].source.videos[:2]))
    with pytest.raises(InputError, match=r"scored on other videos or labels .* than one lists"):
        RunOutcomes([gone])


def test_videos_without_labels_make_no_groups(tmp_path):
    labels = ["a", "a;b", "", "b"] * 5
    outcomes = RunOutcomes(made_up(tmp_path, {"x": [np.arange(20) % 3 > 0]}, labels, multi_label=True))
    assert (outcomes.videos, outcomes.groups) == (15, 15)


@pytest.mark.parametrize("data", ["videos/", "charades:there"])
def test_a_table_tells_how_many_test_videos_were_trained_on(tmp_path, data):
    jobs = [
        replace(job, source=replace(job.source, name=data))
        for job in made_up(tmp_path, {"x": [[True, False]], "y": [[True, True]]})
    ]
    write_metrics(jobs[1].metrics_file, metrics_of_a_split(trained_on=2))
    markdown, results = markdown_and_results("table1", versus_x("y"), jobs)
    assert results.deviations[-1].startswith("2 test videos trained on")
    assert results.deviations[-1] in markdown


def test_all_seeds_are_resampled_alike(tmp_path):
    of_seeds = [np.arange(400) < 120, np.arange(400) < 160]
    drawn = RunOutcomes(made_up(tmp_path, {"x": of_seeds})).resample(["x"], "top1")["x"]
    assert drawn.shape == (1000, 2)
    assert (drawn[:, 1] - drawn[:, 0]).std() == pytest.approx(np.sqrt(0.1 * 0.9 / 400), rel=0.08)


def test_a_difference_whose_interval_spans_0_is_not_significant(tmp_path):
    """With 200 videos, a standard error is 0.045 or less: 0.3 is far from 0, and 0.01 is not."""
    x, better, worse, alike = (
        [np.roll(np.arange(200) < right, by) for right, by in seeds]
        for seeds in (
            ((100, 0), (102, 3), (98, 5)),
            ((160, 2), (162, 9), (158, 1)),
            ((40, 8), (42, 4), (38, 7)),
            ((102, 50), (104, 53), (100, 55)),
        )
    )
    jobs = made_up(tmp_path, {"x": x, "better": better, "worse": worse, "alike": alike})
    markdown, results = markdown_and_results("table1", versus_x("better", "worse", "alike"), jobs)
    found = {pair.run: (round(pair.difference.mean, 6), pair.difference.significant) for pair in results.pairs}
    assert found == {"better": (0.3, True), "worse": (-0.3, True), "alike": (0.01, False)}
    assert [pair["undecided"] for pair in results.as_dict()["pairs"]] == [False, False, True]
    for run, (_, significant) in found.items():
        difference = results.runs[run]["top1"].difference
        assert difference is not None
        assert (difference.interval[0] <= 0) == (run != "better")
        lines = [line for line in markdown.splitlines() if line.startswith((f"| {run} |", f"- {run} minus x"))]
        assert [", not significant)" in line for line in lines] == [not significant] * 2


def test_the_interval_of_a_difference_of_maps_is_centred_on_it(tmp_path):
    """Resampling makes a run look better beside one without error, but it does not move the interval."""
    rng = np.random.default_rng(0)
    labels = ["a", "b"] * 10
    scores = [tuple(row) for row in (rng.random((20, 2)) + 0.3 * np.tile(np.eye(2), (10, 1))).tolist()]
    jobs = made_up(tmp_path, {"x": [scores], "perfect": [[True] * 20]}, labels, multi_label=True)
    results = results_of("table1", versus_x("perfect"), jobs, "")
    x, difference = results.runs["x"]["map"], results.pairs[0].difference
    low, high = x.interval
    assert 0 < low < x.mean < high < 1
    assert difference.mean == pytest.approx(1 - x.mean)
    below, above = difference.interval
    assert (below + above) / 2 == pytest.approx(1 - x.mean)
    assert above - below == pytest.approx(high - low, rel=0.2)  # as uncertain as the run itself


def test_runs_that_were_scored_on_other_labels_are_refused(tmp_path):
    right = [np.arange(4) < 2]
    jobs = made_up(tmp_path / "a", {"x": right}) + made_up(tmp_path / "b", {"y": right}, ["a", "a", "b", "a"])
    with pytest.raises(InputError, match=r"y-0: .* labels"):
        RunOutcomes(jobs)


def test_the_mean_per_class_is_over_classes_not_videos(tmp_path):
    labels = ["a"] * 300 + ["b"] * 100
    right = np.arange(400) % 100 < np.array([80] * 300 + [20] * 100)  # 80 % of a, 20 % of b
    outcomes = RunOutcomes(made_up(tmp_path, {"x": [right]}, labels))
    assert outcomes.values("x", "top1") == [pytest.approx(0.65)]
    assert outcomes.values("x", "mean_per_class") == [pytest.approx(0.5)]
    drawn = outcomes.resample(["x"], "mean_per_class")["x"]
    error = np.sqrt(0.8 * 0.2 / 300 + 0.2 * 0.8 / 100) / 2
    assert drawn.std() == pytest.approx(error, rel=0.08)


def test_the_mean_average_precision_is_that_of_action_metrics(tmp_path):
    labels = ["a", "a;b", "", "b"] * 5
    jobs = made_up(tmp_path, {"x": [np.arange(20) % 3 > 0]}, labels, multi_label=True)
    scores_NK = np.array(
        [row[3:] for row in csv.reader((jobs[0].metrics_file.parent / "scores.csv").open())][1:-1], float
    )
    targets_NK = np.array([["a" in label, "b" in label] for label in labels]).astype(int)
    found = RunOutcomes(jobs).values("x", "map")
    assert found == [pytest.approx(action_metrics(scores_NK, targets_NK)["map"])]


def test_runs_that_were_scored_on_other_videos_are_refused(tmp_path):
    jobs = made_up(tmp_path, {"x": [[True] * 4], "y": [[True] * 5]})
    with pytest.raises(InputError, match=r"y-0: .* videos"):
        RunOutcomes(jobs)
