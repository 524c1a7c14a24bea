"""The tables that the console and the HTML report share."""

import io
from dataclasses import replace

from rich.console import Console

from airstreams.config import Config, LossWeights
from airstreams.evaluation.metrics import Overlap, SegmentationMetrics
from airstreams.models.cost import Cost
from airstreams.plural import count_of
from airstreams.viewing.tables import cost_table, for_console, segmentation_table, untrained_note


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
    rows = [("pixel_accuracy", "90.0%", "95.0%", "-"), ("miou", "50.0%", "80.0%", "-")]
    assert segmentation_table(segmentation)[1:] == [*rows, ("person_iou", "60.0%", "70.0%", "65.0%")]
    without_masks = SegmentationMetrics(0.9, 0.5, Overlap(0.95, 0.8))
    assert segmentation_table(without_masks)[1:] == rows


def test_the_console_shows_every_cell():
    file = io.StringIO()
    Console(file=file, width=80).print(for_console([("a", "b"), ("1", "2"), ("3", "4")], totals=1))
    assert all(cell in file.getvalue() for cell in "ab1234")


def test_untrained_heads_are_named():
    default = Config()
    note = untrained_note(default.model.heads, default)
    assert "flow, semantic" in note
    assert "rgb" not in note
    trained = replace(default, loss_weights=LossWeights(flow=1.0, semantic=1.0))
    assert untrained_note(trained.model.heads, trained) == ""


def test_one_thing_is_singular():
    assert [count_of(number, "crop") for number in (0, 1, 2)] == ["0 crops", "1 crop", "2 crops"]
    assert count_of(2, "class") == "2 classes"
