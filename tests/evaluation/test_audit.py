"""An audit of answers that are known: a stand-in for a model that tells left from right by motion alone."""

import csv
import shutil
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

import airstreams
from airstreams.data.listing import Video
from airstreams.data.synthetic import encode
from airstreams.evaluation import audit as audits
from airstreams.evaluation.audit import AuditTask, audit, background_classes
from airstreams.evaluation.counterfactuals import COUNTERFACTUALS
from airstreams.evaluation.intervals import change_interval
from airstreams.evaluation.metrics import outcomes_of
from airstreams.evaluation.results import read_metrics, write_metrics
from airstreams.evaluation.scoring import Scores, score_videos
from airstreams.models.airstreams import AIRStreams
from airstreams.runs import saved_model as saved_models
from airstreams.viewing.run_report import write_report

QUIET = Console(quiet=True)
NO_MAPS = {name for name, made in COUNTERFACTUALS.items() if made.region is None}


class ByMotion(nn.Module):
    """Logits of left and right: where the bright pixels are at the end, minus where they are at the start."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.representations = {}

    def forward(self, clip_B3THW, heads):
        bright_BTW = (clip_B3THW.float().mean(dim=1) - 100).clamp(min=0).sum(dim=2)
        centre_BT = (bright_BTW * torch.arange(bright_BTW.shape[-1])).sum(dim=-1) / bright_BTW.sum(dim=-1)
        moved_B = centre_BT[:, -1] - centre_BT[:, 0]
        logits_BK = torch.stack((-moved_B, moved_B), dim=1)
        by_head = dict.fromkeys(heads, logits_BK)
        return SimpleNamespace(logits=by_head, pooled=by_head, representations={})


@pytest.fixture(scope="module")
def moving(tmp_path_factory):
    """Four videos of a red square on dark ground: two go left, two go right."""
    root, videos = tmp_path_factory.mktemp("moving"), []
    for number in range(4):
        label = "left" if number < 2 else "right"
        frames = np.full((8, 64, 64, 3), 10, np.uint8)
        for time in range(8):
            x = 26 + (time - 4) * (2 + number % 2) * (-1 if label == "left" else 1)
            frames[time, 26:38, x : x + 12] = (250, 90, 90)
        path = root / f"{number}.mp4"
        encode(path, frames, 25)
        videos.append(Video(path, path.name, (label,)))
    return videos


@pytest.fixture(scope="module")
def saved(trained):
    found = saved_models.load(trained)
    config = replace(found.config, model=replace(found.config.model, streams=["rgb"]))
    return replace(found, config=config, model=cast(AIRStreams, ByMotion()), classes=("left", "right"))


def task_of(saved, videos, folder, identity="one"):
    return AuditTask(saved, None, {video.name: video.name for video in videos}, folder, identity, 0)


def test_an_answer_that_rests_on_motion_needs_motion_alone(saved, moving, tmp_path):
    scores = score_videos(saved, moving)
    found = audit(task_of(saved, moving, tmp_path), scores, QUIET)
    after = {name: row.after for name, row in found.counterfactuals.items()}
    assert set(after) == NO_MAPS
    assert {row.before for row in found.counterfactuals.values()} == {1}
    assert after["motion_frozen"] == 0.5  # chance: equal scores, so all answers are "left"
    assert after["time_reversed"] == 0
    assert after["colour_removed"] == 1
    assert found.counterfactuals["motion_frozen"].remains == 0.5
    assert set(found.left_out) == set(COUNTERFACTUALS) - NO_MAPS | {"streams"}
    assert found.streams is None
    assert found.background_classes == []


def test_a_stopped_audit_goes_on_where_it_stopped(saved, moving, tmp_path, monkeypatch):
    scores = score_videos(saved, moving)
    expected = audit(task_of(saved, moving, tmp_path / "whole"), scores, QUIET)
    calls = []

    def counted(*args, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return score_videos(*args, **options)

    monkeypatch.setattr(audits, "score_videos", counted)
    with pytest.raises(KeyboardInterrupt):
        audit(task_of(saved, moving, tmp_path / "part"), scores, QUIET)
    assert len([*(tmp_path / "part").glob("*.csv")]) == 2
    assert audit(task_of(saved, moving, tmp_path / "part"), scores, QUIET) == expected
    assert len(calls) == 3 + len(NO_MAPS) - 2
    audit(task_of(saved, moving, tmp_path / "part"), scores, QUIET)
    assert len(calls) == 3 + len(NO_MAPS) - 2
    audit(task_of(saved, moving, tmp_path / "part", "another model"), scores, QUIET)
    assert len(calls) == 3 + 2 * len(NO_MAPS) - 2


def test_the_interval_of_a_change_is_a_paired_bootstrap_over_groups():
    rng = np.random.default_rng(1)
    targets, groups = rng.integers(3, size=60), np.repeat(np.arange(12), 5)
    before = rng.random((60, 3)) + 2 * np.eye(3)[targets] * (rng.random((60, 1)) < 0.8)
    after = before + 0.5 * rng.random((60, 3))
    low, high = change_interval(outcomes_of(before, targets), outcomes_of(after, targets), [*map(str, groups)], "top1")
    change = (after.argmax(1) == targets).astype(float) - (before.argmax(1) == targets)
    sums = np.array([change[groups == group].mean() for group in range(12)])
    drawn = sums[np.random.default_rng(2).integers(12, size=(20_000, 12))].mean(axis=1)
    assert (low + high) / 2 == pytest.approx(change.mean())
    half = 2.201 * drawn.std() * np.sqrt(12 / 11)  # Student's t of 11 degrees of freedom
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)


@pytest.mark.parametrize(("drop", "named"), [(0.3, ["left"]), (0.0, [])])
def test_a_class_is_named_only_if_its_drop_is_significant(saved, moving, tmp_path, drop, named):
    videos = [Video(moving[0].path, str(number), ("left" if number % 2 else "right",)) for number in range(40)]
    noise = np.random.default_rng(0).normal(0, 0.05, (40, 2))
    before = np.full((40, 2), 0.5)
    after = before + noise - drop * np.array([[1, 0]])
    scores = Scores(videos, {saved.config.answer: before}, [], np.log(before)[:, None], {})
    rows = background_classes(task_of(saved, videos, tmp_path), scores, {"background_blurred": (np.arange(40), after)})
    assert [row.label for row in rows] == named
    assert all((row.videos, row.counterfactual) == (20, "background_blurred") for row in rows)


@pytest.fixture(scope="module")
def audited(trained, synthetic, tmp_path_factory):
    run = shutil.copytree(trained, tmp_path_factory.mktemp("audited") / "run")
    return run, airstreams.evaluate(run, synthetic / "videos", labels=synthetic / "labels", audit=True)


def test_an_audit_with_label_maps_has_every_counterfactual_that_they_allow(audited):
    _, result = audited
    found = result.metrics.audit
    classes = set(result.targets["semantic"].classes)
    assert set(found.counterfactuals) == set(COUNTERFACTUALS) - (
        {"people_painted"} if "person" not in classes else set()
    )
    for name, row in found.counterfactuals.items():
        assert row.videos == 8
        assert row.before == result.metrics.top1
        assert row.interval[0] <= row.change <= row.interval[1]
        rows = [*csv.reader((result.folder.audit / f"{name}.csv").open())]
        assert rows[0] == ["name", *result.saved.classes]
        assert len(rows) == 9


def test_streams_share_the_metric_and_the_probability_of_every_video(audited):
    _, result = audited
    metrics, streams = result.metrics, result.metrics.audit.streams
    names = list(result.saved.config.model.streams)
    assert list(streams.streams) == names
    assert len(streams.values) == 2 ** len(names)
    assert streams.values["+".join(names)] == metrics.top1
    assert streams.values["none"] == 0.25  # chance
    assert sum(row.share for row in streams.streams.values()) == pytest.approx(metrics.top1 - 0.25)
    for name, row in streams.streams.items():
        assert row.without == streams.values["+".join(other for other in names if other != name)]
        assert row.loss == pytest.approx(metrics.top1 - row.without)
        assert row.share_interval[0] <= row.share <= row.share_interval[1]
    shares = [*csv.DictReader((result.folder.audit / "streams.csv").open())]
    scores = [*csv.DictReader(result.folder.scores.open())]
    assert len(shares) == len(scores) == 8
    for share, score in zip(shares, scores, strict=True):
        total = sum(float(share[f"share_{name}"]) for name in names)
        assert total == pytest.approx(float(score[score["label"]]) - 0.25, abs=1e-5)
    for label, of_class in streams.per_class.items():
        rows = [row for row in shares if row["label"] == label]
        for name in names:
            assert of_class[name] == pytest.approx(np.mean([float(row[f"share_{name}"]) for row in rows]), abs=1e-5)


def test_an_audit_is_kept_and_shown(audited, tmp_path, call):
    run, result = audited
    assert read_metrics(result.folder.metrics) == result.metrics
    page = write_report(run).read_text()
    status, out, _ = call("evaluate", run, result.videos[0].path.parents[2], "--audit")
    assert status == 0
    for name in NO_MAPS:
        assert name in page
    assert "--labels" in out
    without = replace(result.metrics, audit=None)
    write_metrics(tmp_path / "old.json", without)
    assert "audit" not in (tmp_path / "old.json").read_text()
    assert read_metrics(tmp_path / "old.json") == without
