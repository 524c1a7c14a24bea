"""The results of an evaluation as types. Only this module writes and reads `figures.json`.

`as_dict` gives the JSON of a result: its keys are fixed, and docs/evaluation.md describes them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from airstreams.config import SUPERVISED
from airstreams.data.listing import Source
from airstreams.errors import InputError
from airstreams.evaluation.calibration import Calibration, CalibrationBin, TemperatureEffect
from airstreams.evaluation.intervals import Intervals
from airstreams.evaluation.metrics import METRICS, ActionMetrics, Overlap, SegmentationMetrics, TargetMetrics
from airstreams.evaluation.published import Published
from airstreams.files import write_json


@dataclass(frozen=True)
class HeadMetrics(ActionMetrics):
    """The metrics of one head with their 95 % intervals. An untrained head has None everywhere."""

    intervals: Intervals = field(default_factory=lambda: dict.fromkeys(METRICS))


@dataclass(frozen=True, kw_only=True)
class NewVideosMetrics(ActionMetrics):
    """The metrics of the answer over the scored videos that the model was not trained on.

    videos: how many these are.
    """

    videos: int
    intervals: Intervals


@dataclass(frozen=True)
class MostFrequentClass(ActionMetrics):
    """The metrics of always answering with the class that has the most training videos.

    label: that class.
    """

    label: str = ""


@dataclass(frozen=True)
class Baselines:
    """What answers without a look at the videos would reach.

    chance: see `metrics.chance_metrics`.
    most_frequent_class: None for multi-label data, and for runs whose training labels are not known.
    """

    chance: ActionMetrics
    most_frequent_class: MostFrequentClass | None = None

    def by_description(self) -> dict[str, ActionMetrics]:
        """The metrics of each baseline, by what it does in words."""
        frequent = self.most_frequent_class
        named: dict[str, ActionMetrics] = {f"always {frequent.label!r}": frequent} if frequent else {}
        return {"chance": self.chance} | named


@dataclass(frozen=True)
class ClassMetrics:
    """The metric of one class, in 0..1: its accuracy or, for multi-label data, its average precision.

    videos: how many show the class.
    """

    videos: int
    accuracy: float | None = None
    average_precision: float | None = None

    @property
    def value(self) -> float:
        """The one that applies."""
        value = self.accuracy if self.average_precision is None else self.average_precision
        assert value is not None
        return value


@dataclass(frozen=True)
class Comparison:
    """How a result compares with published ones on the same data set.

    name: the data set.
    published: its protocol.
    deviations: what differs from that protocol, in words.
    """

    name: str
    published: Published
    deviations: list[str]


@dataclass(frozen=True, kw_only=True)
class CounterfactualMetrics:
    """The main metric of the answer over videos with one thing taken away.

    videos: how many were scored in both ways. `before` is over these.
    before, after: without and with the change, in 0..1.
    change: `after - before`.
    interval: the paired 95 % interval of `change`.
    remains: `after / before`; None where `before` is 0.
    """

    videos: int
    before: float
    after: float
    change: float
    interval: list[float]
    remains: float | None


@dataclass(frozen=True)
class BackgroundClass:
    """A class whose probability falls without the background.

    counterfactual: the one in which it falls most.
    videos: how many show the class.
    drop: how much its probability falls in these videos, the mean.
    interval: of the drop. It holds together with those of all other classes that were tested.
    """

    label: str
    counterfactual: str
    videos: int
    drop: float
    interval: list[float]


@dataclass(frozen=True, kw_only=True)
class StreamMetrics:
    """What one stream adds to the main metric of the answer.

    without: the metric of the answer without it.
    loss: the metric of all streams minus `without`, with its paired 95 % interval.
    share: its Shapley value of the metric, with its 95 % interval.
    """

    without: float
    loss: float
    loss_interval: list[float]
    share: float
    share_interval: list[float]


@dataclass(frozen=True)
class StreamsAudit:
    """What the streams add to the answer.

    streams: by stream. The shares sum to the metric of all streams minus that of `none`.
    values: the main metric of each subset of streams, by a name such as `rgb+flow`; `none` is chance.
    per_class: for each class that occurs each stream's share of the probability of that class, the mean over its
        videos. For multi-label data it is the share of the mean probability of a video's labels.
    """

    streams: Mapping[str, StreamMetrics]
    values: Mapping[str, float]
    per_class: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Audit:
    """What the answers rest on.

    counterfactuals: by the names of `counterfactuals.COUNTERFACTUALS`.
    left_out: why some of them were not scored, by name.
    background_classes: those that depend most on the background, the most dependent first.
    streams: None where they were left out; `left_out` says why.
    """

    counterfactuals: Mapping[str, CounterfactualMetrics]
    left_out: Mapping[str, str]
    background_classes: Sequence[BackgroundClass]
    streams: StreamsAudit | None = None


@dataclass(frozen=True)
class ScoringProtocol:
    """How the videos were scored.

    views, crops: as in `EvaluationConfig`.
    comparison: None for data without a published protocol.
    """

    views: int
    crops: int
    comparison: Comparison | None


@dataclass(frozen=True, kw_only=True)
class SplitMetrics(ActionMetrics):
    """The metrics of the answer, and those of every head, over the scored videos of a split.

    videos, left_out: how many were scored, and how many could not be read.
    classes: how many occur.
    log_loss: see `metrics.log_loss`.
    unlabelled: how many multi-label videos have no label. `map` ranks them last.
    map_unlabelled_as_negatives: `map` where these videos are ranked by their scores. None for single-label data.
    streams: every head of the model; an untrained one has None everywhere. `answer` is the mean of several heads, if
        that is the answer.
    segmentation: that of the stream semantic; None where it was not scored.
    targets: of each stream that was compared with its teacher's targets.
    """

    videos: int
    left_out: int
    classes: int
    log_loss: float
    unlabelled: int
    map_unlabelled_as_negatives: float | None
    streams: Mapping[str, ActionMetrics]
    segmentation: SegmentationMetrics | None
    targets: Mapping[str, TargetMetrics] = field(default_factory=dict)

    @property
    def segmentations(self) -> dict[str, SegmentationMetrics]:
        """Those of all streams that were compared with label maps. Files of versions up to 0.2 have semantic's only."""
        found = {stream: row.segmentation for stream, row in self.targets.items() if row.segmentation is not None}
        return ({SUPERVISED[0]: self.segmentation} if self.segmentation else {}) | found

    def as_dict(self) -> dict[str, Any]:
        """The JSON of the metrics."""
        content = asdict(self)
        content["segmentation"] = _without_none_below(self.segmentation)
        content["targets"] = {
            stream: {"loss": row.loss} | (_without_none_below(row.segmentation) or {})
            for stream, row in self.targets.items()
        }
        if not self.targets:
            del content["targets"]
        return {name: content[name] for name in ("videos", "left_out", "classes")} | content


@dataclass(frozen=True, kw_only=True)
class EvaluationMetrics(SplitMetrics):
    """All that `figures.json` holds.

    data, split: what was scored: `Source.short_name` and its split.
    trained_on: how many of the scored videos the model was trained on. 0 for the split train, which shows this anyway.
    protocol: how the videos were scored.
    groups: how many groups of videos the intervals are over.
    intervals: those of the answer.
    per_class: the classes that occur.
    baselines: None in files of versions up to 0.2.
    similar_names: how many of the others look like training videos, by their names only.
    new_only: over the videos that training did not use; None where these are all or none.
    chose_epoch: how many of the videos were validation videos of the training, which chose its epoch.
    data_sum: `Source.name_sum`; None in files of versions up to 0.2, whose `data` is the whole name.
    videos_sum: a checksum of the split's videos (`known_videos.checksum`); None in files of versions up to 0.2.
    precision: in which the network ran; None in files of versions up to 0.2.
    audit: what the answers rest on; None where nobody asked.
    calibration: that of the answer; None for multi-label data, and in files of versions up to 0.2.
    """

    data: str
    split: str
    trained_on: int
    streams: Mapping[str, HeadMetrics]
    protocol: ScoringProtocol
    groups: int
    intervals: Intervals
    per_class: Mapping[str, ClassMetrics]
    baselines: Baselines | None = None
    similar_names: int = 0
    new_only: NewVideosMetrics | None = None
    data_sum: str | None = None
    videos_sum: str | None = None
    chose_epoch: int = 0
    precision: str | None = None
    audit: Audit | None = None
    calibration: Calibration | None = None

    def are_of(self, source: Source) -> bool:
        """Whether these are metrics of the same DATA, as it was given."""
        return self.data == source.name if self.data_sum is None else self.data_sum == source.name_sum

    @property
    def metric(self) -> str:
        """The name of the main metric: `top1`, or `map` for multi-label data."""
        return "map" if self.top1 is None else "top1"

    def as_dict(self) -> dict[str, Any]:
        """The JSON of the metrics."""
        content = super().as_dict()
        content["protocol"] = {"views": self.protocol.views, "crops": self.protocol.crops, "published": None}
        if comparison := self.protocol.comparison:
            published = asdict(comparison.published)
            content["protocol"]["published"] = {
                "name": comparison.name,
                "figures": published.pop("metrics"),
                **published,
                "deviations": comparison.deviations,
            }
        if self.audit is None:
            del content["audit"]
        content["per_class"] = {name: _without_none(row) for name, row in content["per_class"].items()}
        return {name: content[name] for name in ("data", "split", "trained_on")} | content


def write_metrics(path: Path, metrics: EvaluationMetrics) -> None:
    """Write `figures.json`."""
    write_json(path, metrics.as_dict())


def read_metrics(path: Path) -> EvaluationMetrics:
    """Read `figures.json`, as `write_metrics` wrote it. InputError: it is missing or damaged."""
    try:
        return _from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (KeyError, TypeError, ValueError, OSError, AttributeError) as error:
        raise InputError(f"{path}: the file is damaged ({error!r}). Run `airstreams evaluate` again.") from error


def weakest_first(metrics: EvaluationMetrics) -> Sequence[tuple[str, ClassMetrics]]:
    """The classes that occur and their metrics, the lowest first."""
    return sorted(metrics.per_class.items(), key=lambda item: item[1].value)


def _from_dict(content: dict[str, Any]) -> EvaluationMetrics:
    streams = {head: HeadMetrics(**row) for head, row in content["streams"].items()}
    per_class = {name: ClassMetrics(**row) for name, row in content["per_class"].items()}
    targets = {
        stream: TargetMetrics(row["loss"], _segmentation({key: row[key] for key in row if key != "loss"}))
        for stream, row in content.get("targets", {}).items()
    }
    baselines = None
    if found := content.get("baselines"):
        frequent = found["most_frequent_class"]
        baselines = Baselines(ActionMetrics(**found["chance"]), MostFrequentClass(**frequent) if frequent else None)
    protocol = dict(content["protocol"])
    comparison = None
    if found := protocol.pop("published"):
        name, deviations = found.pop("name"), found.pop("deviations")
        metrics, options = tuple(found.pop("figures")), tuple(found.pop("options"))
        comparison = Comparison(name, Published(metrics=metrics, options=options, **found), deviations)
    typed = {
        "streams": streams,
        "segmentation": _segmentation(content["segmentation"]),
        "targets": targets,
        "protocol": ScoringProtocol(**protocol, comparison=comparison),
        "per_class": per_class,
        "baselines": baselines,
        "new_only": NewVideosMetrics(**found) if (found := content.get("new_only")) else None,
        "audit": _audit(content.get("audit")),
        "calibration": _calibration(content.get("calibration")),
    }
    return EvaluationMetrics(**{"trained_on": 0} | content | typed)  # early versions did not count `trained_on`


def _audit(content: Mapping[str, Any] | None) -> Audit | None:
    if content is None:
        return None
    found = {name: CounterfactualMetrics(**row) for name, row in content["counterfactuals"].items()}
    streams = None
    if row := content["streams"]:
        streams = StreamsAudit(**row | {"streams": {name: StreamMetrics(**of) for name, of in row["streams"].items()}})
    classes = [BackgroundClass(**row) for row in content["background_classes"]]
    return Audit(found, content["left_out"], classes, streams)


def _calibration(content: Mapping[str, Any] | None) -> Calibration | None:
    if content is None:
        return None
    bins = [CalibrationBin(**row) for row in content["bins"]]
    fitted = TemperatureEffect(**found) if (found := content["fitted"]) else None
    return Calibration(**{**content, "bins": bins, "fitted": fitted})


def _segmentation(row: Mapping[str, Any] | None) -> SegmentationMetrics | None:
    return SegmentationMetrics(**{**row, "ceiling": Overlap(**row["ceiling"])}) if row else None


def _without_none_below(segmentation: SegmentationMetrics | None) -> dict[str, Any] | None:
    if segmentation is None:
        return None
    row = _without_none(asdict(segmentation))
    return row | {"ceiling": _without_none(row["ceiling"])}


def _without_none(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None}
