"""The tables that the console and the HTML report share."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from airstreams.config import Config, LossWeights
from airstreams.evaluation.metrics import ActionMetrics, Overlap, SegmentationMetrics
from airstreams.evaluation.results import (
    Baselines,
    EvaluationMetrics,
    HeadMetrics,
    MostFrequentClass,
    ScoringProtocol,
)
from airstreams.models.cost import Cost
from airstreams.plural import count_of
from airstreams.viewing.tables import (
    baseline_note,
    cost_table,
    for_console,
    heads_table,
    scored_in_words,
    segmentation_table,
    untrained_note,
)


def test_costs_are_summed_for_a_clip_and_for_a_frame():
    parts = {"rgb.early": 1_000_000_000, "rgb.late": 3_000_000_000}
    rows = {row[0]: row[1:] for row in cost_table(Cost(parts, parts, parts, parameters_at_inference=1), frames=8)}
    assert rows["rgb.early"] == ("1000.00", "1.000", "1.000")
    assert rows["per clip"] == ("4000.00", "4.000", "4.000")
    assert rows["per frame"] == ("", "0.500", "0.500")
    assert rows["per clip, operations"] == ("", "8.000", "8.000")
    assert rows["per frame, operations"] == ("", "1.000", "1.000")


def test_segmentation_metrics_stand_beside_the_teachers_where_there_are_some():
    segmentation = SegmentationMetrics(0.9, 0.5, Overlap(0.95, 0.8, 0.7), person_iou=0.6, teacher_person_iou=0.65)
    assert segmentation_table(segmentation) == [
        ("segmentation", "this model", "limit of its grid", "teacher"),
        ("pixel_accuracy", "90.0%", "95.0%", ""),
        ("miou", "50.0%", "80.0%", ""),
        ("person_iou", "60.0%", "70.0%", "65.0%"),
    ]
    assert segmentation_table(SegmentationMetrics(0.9, 0.5, Overlap(0.95, 0.8))) == [
        ("segmentation", "this model", "limit of its grid"),
        ("pixel_accuracy", "90.0%", "95.0%"),
        ("miou", "50.0%", "80.0%"),
    ]


def test_the_console_shows_every_cell():
    file = io.StringIO()
    Console(file=file, width=80).print(for_console([("a", "b"), ("1", "2"), ("3", "4")], totals=1))
    assert all(cell in file.getvalue() for cell in "ab1234")


def test_short_names_of_parts_are_whole_at_80_columns():
    file = io.StringIO()
    wide = "training, G multiply-adds"
    Console(file=file, width=80).print(for_console([("part", wide, wide, wide), ("semantic.representation", *"123")]))
    assert "semantic.representation" in file.getvalue()
    assert max(map(len, file.getvalue().splitlines())) <= 80


def metrics_with(top1, interval, baselines):
    """Metrics of four videos with this top-1, all else the least that the type takes."""
    intervals = {"top1": interval, "top5": None, "mean_per_class": None, "map": None}
    return EvaluationMetrics(
        data="videos",
        split="test",
        trained_on=0,
        videos=4,
        left_out=0,
        classes=2,
        top1=top1,
        log_loss=1.0,
        unlabelled=0,
        map_unlabelled_as_negatives=None,
        streams={"rgb": HeadMetrics(top1=top1, intervals=intervals)},
        segmentation=None,
        protocol=ScoringProtocol(2, 1, None),
        groups=4,
        intervals=intervals,
        per_class={},
        baselines=baselines,
    )


def test_baselines_stand_below_the_heads_and_empty_columns_are_left_out():
    baselines = Baselines(ActionMetrics(top1=0.5, map=0.5), MostFrequentClass(top1=0.75, label="jump"))
    metrics = metrics_with(0.8, [0.4, 0.9], baselines)
    assert heads_table(metrics.streams, baselines) == [
        ("head", "top-1"),
        ("rgb", "80.0% (40.0% to 90.0%)"),
        ("chance", "50.0%"),
        ("always 'jump'", "75.0%"),
    ]
    assert heads_table(metrics.streams) == [("head", "top-1"), ("rgb", "80.0% (40.0% to 90.0%)")]
    assert "'jump'" in scored_in_words(metrics)


@pytest.mark.parametrize(
    ("top1", "interval", "worse", "unsure"),
    [
        (0.4, [0.2, 0.6], ["chance", "'jump'"], []),
        (0.7, [0.4, 0.9], ["'jump'"], ["chance"]),
        (0.8, [0.6, 0.9], [], ["'jump'"]),
        (0.9, [0.8, 1.0], [], []),
    ],
)
def test_baselines_that_are_not_beaten_are_named(top1, interval, worse, unsure):
    baselines = Baselines(ActionMetrics(top1=0.5), MostFrequentClass(top1=0.75, label="jump"))
    note = baseline_note(metrics_with(top1, interval, baselines))
    claims = dict(part.split(" better than ", 1) for part in split(note))
    assert [name for name in ("chance", "'jump'") if name in claims.get("not", "")] == worse
    assert [name for name in ("chance", "'jump'") if name in claims.get("not significantly", "")] == unsure
    assert baseline_note(metrics_with(top1, interval, None)) == ""


def split(note):
    """The claims of a note: `not better than a`, `not significantly better than b`."""
    return note.removeprefix("The model is ").split(", and ") if note else []


def test_untrained_heads_are_named():
    default = Config()
    note = untrained_note(default.model.heads, default)
    assert "flow, semantic" in note
    assert "rgb" not in note
    trained = replace(default, loss_weights=LossWeights(flow=1.0, semantic=1.0))
    assert untrained_note(trained.model.heads, trained) == ""
    without_merge = replace(
        trained, model=replace(trained.model, answer="mean"), loss_weights=LossWeights(flow=1.0, semantic=1.0, merged=0)
    )
    note = untrained_note([*trained.model.heads, "answer"], without_merge)
    assert "merged" in note
    assert "answer" not in note


def test_one_thing_is_singular():
    assert [count_of(number, "crop") for number in (0, 1, 2)] == ["0 crops", "1 crop", "2 crops"]
    assert count_of(2, "class") == "2 classes"
