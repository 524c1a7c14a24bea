"""The JSON of an evaluation: its keys, their order, and reading it back."""

import json
from dataclasses import replace

import pytest

from airstreams.errors import InputError
from airstreams.evaluation.metrics import ActionMetrics, Overlap, SegmentationMetrics
from airstreams.evaluation.published import PUBLISHED
from airstreams.evaluation.results import (
    Baselines,
    ClassMetrics,
    Comparison,
    EvaluationMetrics,
    HeadMetrics,
    MostFrequentClass,
    NewVideosMetrics,
    ScoringProtocol,
    SplitMetrics,
    read_metrics,
    weakest_first,
    write_metrics,
)

INTERVALS = {"top1": [0.2, 0.7], "top5": None, "mean_per_class": [0.1, 0.8], "map": None}
METRICS = EvaluationMetrics(
    data="jhmdb:data?split=1",
    split="test",
    trained_on=0,
    videos=3,
    left_out=1,
    classes=2,
    top1=0.5,
    mean_per_class=0.25,
    log_loss=1.5,
    unlabelled=0,
    map_unlabelled_as_negatives=None,
    streams={"rgb": HeadMetrics(top1=0.5, mean_per_class=0.25, intervals=INTERVALS), "semantic": HeadMetrics()},
    segmentation=SegmentationMetrics(0.9, 0.4, Overlap(0.95, 0.8)),
    protocol=ScoringProtocol(5, 1, Comparison("jhmdb", PUBLISHED["jhmdb"], ["1 videos left out"])),
    groups=3,
    intervals=INTERVALS,
    per_class={"jump": ClassMetrics(2, accuracy=0.5), "run": ClassMetrics(1, accuracy=0.0)},
    data_sum="0123456789abcdef",
    baselines=Baselines(
        ActionMetrics(top1=0.5, mean_per_class=0.5), MostFrequentClass(top1=0.75, mean_per_class=0.5, label="jump")
    ),
)


def test_metrics_read_back_are_equal(tmp_path):
    with_masks = SegmentationMetrics(0.9, 0.4, Overlap(0.95, 0.8, 0.7), person_iou=0.5, teacher_person_iou=0.6)
    plain = replace(
        METRICS,
        segmentation=None,
        protocol=ScoringProtocol(2, 1, None),
        per_class={"jump": ClassMetrics(2, average_precision=0.5)},
        baselines=Baselines(ActionMetrics(map=0.5)),
    )
    new_only = NewVideosMetrics(top1=0.5, mean_per_class=0.5, videos=2, intervals=INTERVALS)
    partly_new = replace(METRICS, trained_on=1, similar_names=1, new_only=new_only)
    for metrics in (METRICS, partly_new, replace(METRICS, segmentation=with_masks), plain):
        write_metrics(tmp_path / "figures.json", metrics)
        assert read_metrics(tmp_path / "figures.json") == metrics


def test_the_json_keeps_its_keys_and_their_order():
    content = METRICS.as_dict()
    head = {"top1": 0.5, "top5": None, "mean_per_class": 0.25, "map": None}
    untrained = dict.fromkeys(head)
    expected = {
        "data": "jhmdb:data?split=1",
        "split": "test",
        "trained_on": 0,
        "videos": 3,
        "left_out": 1,
        "classes": 2,
        **head,
        "log_loss": 1.5,
        "unlabelled": 0,
        "map_unlabelled_as_negatives": None,
        "streams": {"rgb": head | {"intervals": INTERVALS}, "semantic": untrained | {"intervals": untrained}},
        "segmentation": {"pixel_accuracy": 0.9, "miou": 0.4, "ceiling": {"pixel_accuracy": 0.95, "miou": 0.8}},
        "protocol": {
            "views": 5,
            "crops": 1,
            "published": {
                "name": "jhmdb",
                "figures": ["top1"],
                "views": 5,
                "crops": 1,
                "note": PUBLISHED["jhmdb"].note,
                "split": "test",
                "options": ["split=1", "split=2", "split=3"],
                "videos": {"split=1": 268, "split=2": 270, "split=3": 265},
                "deviations": ["1 videos left out"],
            },
        },
        "groups": 3,
        "intervals": INTERVALS,
        "per_class": {"jump": {"videos": 2, "accuracy": 0.5}, "run": {"videos": 1, "accuracy": 0.0}},
        "baselines": {
            "chance": untrained | {"top1": 0.5, "mean_per_class": 0.5},
            "most_frequent_class": untrained | {"top1": 0.75, "mean_per_class": 0.5, "label": "jump"},
        },
        "similar_names": 0,
        "new_only": None,
        "data_sum": "0123456789abcdef",
        "videos_sum": None,
        "chose_epoch": 0,
        "precision": None,
        "calibration": None,
    }
    assert json.dumps(content) == json.dumps(expected)


def test_the_json_of_a_validation_has_heads_without_intervals():
    metrics = SplitMetrics(
        videos=1,
        left_out=0,
        classes=1,
        map=0.5,
        log_loss=0.1,
        unlabelled=0,
        map_unlabelled_as_negatives=0.5,
        streams={"rgb": ActionMetrics(map=0.5)},
        segmentation=None,
    )
    head = {"top1": None, "top5": None, "mean_per_class": None, "map": 0.5}
    counts = {"videos": 1, "left_out": 0, "classes": 1}
    rest = {"log_loss": 0.1, "unlabelled": 0, "map_unlabelled_as_negatives": 0.5}
    expected = counts | head | rest | {"streams": {"rgb": head}, "segmentation": None}
    assert json.dumps(metrics.as_dict()) == json.dumps(expected)


def test_classes_are_sorted_by_their_metric():
    assert [name for name, _ in weakest_first(METRICS)] == ["run", "jump"]


def test_metrics_of_early_versions_are_read(tmp_path):
    content = METRICS.as_dict()
    del content["trained_on"], content["baselines"], content["data_sum"], content["videos_sum"]
    (tmp_path / "figures.json").write_text(json.dumps(content))
    assert read_metrics(tmp_path / "figures.json") == replace(METRICS, baselines=None, data_sum=None)


@pytest.mark.parametrize("content", ["{", "[]", '{"videos": 3}', None])
def test_a_damaged_file_is_refused_by_its_name(tmp_path, content):
    if content is not None:
        (tmp_path / "figures.json").write_text(content)
    with pytest.raises(InputError, match=r"figures\.json"):
        read_metrics(tmp_path / "figures.json")
