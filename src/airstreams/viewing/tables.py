"""The tables of heads, segmentation and cost, as rows of text: the console and the HTML report show the same ones.

A table is a list of rows, and its first row is the header.
"""

from collections.abc import Iterable, Mapping, Sequence

from rich.table import Column, Table

from airstreams.config import Config
from airstreams.console import SafeTable
from airstreams.evaluation.calibration import Calibration
from airstreams.evaluation.counterfactuals import COUNTERFACTUALS
from airstreams.evaluation.metrics import SegmentationMetrics
from airstreams.evaluation.published import NAMES
from airstreams.evaluation.results import (
    Audit,
    Baselines,
    EvaluationMetrics,
    HeadMetrics,
    NewVideosMetrics,
    ScoringProtocol,
)
from airstreams.models.cost import Cost
from airstreams.percent import percent, with_interval
from airstreams.plural import count_of

Rows = list[tuple[str, ...]]
_SHORT = 24  # characters


def heads_table(
    heads: Mapping[str, HeadMetrics], baselines: Baselines | None = None, new_only: NewVideosMetrics | None = None
) -> Rows:
    """Every metric of every head, with its 95 % interval, and the baselines below. There is no column without a value.

    heads: the metrics of each head by its name.
    new_only: those of the answer over new videos alone.
    """
    beside = baselines.by_description() if baselines else {}
    names = [name for name in NAMES if any(metrics[name] is not None for metrics in heads.values())]
    rows = [
        (head, *(with_interval(metrics[name], metrics.intervals[name]) for name in names))
        for head, metrics in heads.items()
    ]
    if new_only is not None:
        scores = (with_interval(new_only[name], new_only.intervals[name]) for name in names)
        rows.append((f"answer, {count_of(new_only.videos, 'new video')}", *scores))
    rows += [(description, *(percent(metrics[name]) for name in names)) for description, metrics in beside.items()]
    return [("head", *(NAMES[name] for name in names)), *rows]


def baselines_in_words(metrics: EvaluationMetrics) -> str:
    """The main metric of each baseline, such as `always 'jump' 24.0%, chance 20.0%`. Empty for old files."""
    baselines = metrics.baselines.by_description() if metrics.baselines else {}
    return ", ".join(f"{description} {percent(row[metrics.metric])}" for description, row in baselines.items())


def scored_in_words(metrics: EvaluationMetrics) -> str:
    """What was scored, and what the brackets and the baseline mean."""
    text = (
        f"{count_of(metrics.videos, 'video')} scored, {metrics.left_out} left out; "
        f"{count_of(metrics.classes, 'class')}. In brackets: 95 % intervals over {count_of(metrics.groups, 'group')} "
        "of videos."
    )
    if metrics.baselines and (frequent := metrics.baselines.most_frequent_class):
        text += f" {frequent.label!r} is the most frequent class in training."
    return text


def baseline_note(metrics: EvaluationMetrics) -> str:
    """One sentence that names the baselines that the main metric does not clearly beat. Empty if it beats all."""
    name = metrics.metric
    value, interval = metrics[name], metrics.intervals[name]
    baselines = metrics.baselines.by_description() if metrics.baselines else {}
    levels = {description: row[name] for description, row in baselines.items()}
    if value is None:
        return ""
    not_better = [text for text, level in levels.items() if level is not None and value <= level]
    unsure = [
        text
        for text, level in levels.items()
        if level is not None and text not in not_better and interval and interval[0] <= level
    ]
    claims = [
        f"{claim} {' or '.join(found).replace('always', 'always answering')}"
        for claim, found in (("not better than", not_better), ("not significantly better than", unsure))
        if found
    ]
    return f"The model is {', and '.join(claims)}." if claims else ""


def trained_on_warnings(metrics: EvaluationMetrics) -> list[str]:
    """What a reader must know beside the headline: that the model was, or may have been, trained on scored videos."""
    warnings, metric = [], metrics.metric
    if metrics.trained_on or metrics.chose_epoch:
        new, rest = metrics.new_only, ""
        chose = f", and its epoch was chosen on {metrics.chose_epoch} others" if metrics.chose_epoch else ""
        if new is not None:
            score = with_interval(new[metric], new.intervals[metric])
            rest = f" Over the {count_of(new.videos, 'new video')}: {NAMES[metric]} {score}."
        warnings.append(
            f"the model was trained on {metrics.trained_on} of these {count_of(metrics.videos, 'video')}{chose}, so "
            f"its metrics are too high.{rest}"
        )
    if metrics.similar_names:
        warnings.append(
            f"{metrics.similar_names} of these {count_of(metrics.videos, 'video')} look like training videos by their "
            "names. If they are, for example after a conversion, the metrics are too high."
        )
    return warnings


def untrained_note(heads: Iterable[str], config: Config) -> str:
    """Why the table has no metrics for some of these heads. Empty if all are trained."""
    trained = config.trained_heads()
    untrained = [head for head in heads if head in config.model.heads and head not in trained]
    if not untrained:
        return ""
    note = f"No metrics for {', '.join(untrained)}: not trained, because the loss weight is 0."
    return note if "merged" in untrained else f"{note} The features still go into the merged head."


def calibration_in_words(calibration: Calibration | None) -> list[str]:
    """The calibration error, and what the fitted temperature does to it: a sentence or two each. Empty without any."""
    if calibration is None:
        return []
    error = with_interval(calibration.error, calibration.interval)
    divided = "" if calibration.temperature == 1 else f" with the temperature {calibration.temperature:.3g}"
    lines = [
        f"Calibration error of the answer{divided}: {error}. Perfectly calibrated answers would show "
        f"{percent(calibration.error_if_calibrated)} with as many videos. The mean probability of the answers is "
        f"{percent(calibration.probability)}."
    ]
    if (fitted := calibration.fitted) is None:
        return lines
    on = f"A temperature of {fitted.temperature:.3g}, fitted on {count_of(fitted.videos, 'validation video')},"
    low, high = (f"{100 * bound:+.1f}" for bound in fitted.interval)
    change = f"from {percent(fitted.before)} to {percent(fitted.after)} (difference {low} to {high} points)"
    verb, end = "lower", "."
    if fitted.interval[0] <= 0 <= fitted.interval[1]:
        verb, end = "change", ": not significant."
    elif fitted.change > 0:
        verb = "raise"
    elif not divided:
        end = ". To use it, give --calibrated to evaluate, predict and export."
    lines.append(f"{on} {f'{verb}s' if divided else f'would {verb}'} the calibration error {change}{end}")
    return lines


def unlabelled_note(metrics: EvaluationMetrics) -> str:
    """How videos without any label were ranked, and the mAP of the other way."""
    return (
        f"{count_of(metrics.unlabelled, 'video')} without any label: ranked last, as Charades does. As plain negatives "
        f"they would give an mAP of {percent(metrics.map_unlabelled_as_negatives)} (map_unlabelled_as_negatives)."
    )


def views_in_words(protocol: ScoringProtocol) -> str:
    """One sentence on how a video's score is computed."""
    clips = count_of(protocol.views, "clip")
    if protocol.crops == 1:
        return f"A video's score is the mean over {clips}."
    return (
        f"A video's score is the mean over its views: {clips} per video, {count_of(protocol.crops, 'crop')} per clip."
    )


def segmentation_tables(metrics: EvaluationMetrics) -> list[Rows]:
    """A table for each stream that was compared with label maps, headed by its name if there are several."""
    found = metrics.segmentations
    return [segmentation_table(row, stream if len(found) > 1 else "segmentation") for stream, row in found.items()]


def targets_note(metrics: EvaluationMetrics) -> str:
    """One sentence with each stream's mean loss on its teacher's targets; empty where there is none."""
    losses = [f"{stream} {row.loss:.3g}" for stream, row in metrics.targets.items() if row.loss is not None]
    return f"Mean loss on the teacher's targets: {', '.join(losses)}." if losses else ""


def audit_in_words(metrics: EvaluationMetrics) -> str:
    """How much of the main metric remains with each change, in one sentence. Empty without an audit."""
    if metrics.audit is None:
        return ""
    parts = [
        f"{row.remains:.0%} {COUNTERFACTUALS[name].words}"
        for name, row in metrics.audit.counterfactuals.items()
        if row.remains is not None and name in COUNTERFACTUALS
    ]
    score = f"{NAMES[metrics.metric]} {percent(metrics[metrics.metric])}."
    return f"{score} This share of it remains: {', '.join(parts)}." if parts else score


def audit_table(audit: Audit) -> Rows:
    """The main metric without and with each change, the change with its paired interval, and the share that remains."""
    rows: Rows = [("counterfactual", "before", "after", "change", "remains", "videos")]
    for name, row in audit.counterfactuals.items():
        change, remains = _points(row.change, row.interval), percent(row.remains)
        rows.append((name, percent(row.before), percent(row.after), change, remains, str(row.videos)))
    return rows


def streams_table(audit: Audit) -> Rows:
    """The answer without each stream, what it loses, and the stream's share. Empty where streams were left out."""
    if audit.streams is None:
        return []
    rows: Rows = [("stream", "answer without it", "loss", "share")]
    for stream, row in audit.streams.streams.items():
        loss, share = _points(row.loss, row.loss_interval), _points(row.share, row.share_interval)
        rows.append((stream, percent(row.without), loss, share))
    return rows


def _points(value: float, interval: Sequence[float]) -> str:
    low, high = (f"{100 * bound:+.1f}" for bound in interval)
    return f"{100 * value:+.1f} ({low} to {high})"


def audit_notes(audit: Audit) -> list[str]:
    """What the table means, which classes depend on the background, and what was left out and why."""
    notes = [
        "Change: in points, with its paired 95 % interval over groups of videos; it is not significant where the "
        "interval contains 0."
    ]
    if audit.streams is not None:
        notes.append(
            "Loss and share of a stream: in points too. The shares (Shapley values) sum to the metric of all streams "
            f"minus that of none, {percent(audit.streams.values['none'])}."
        )
    if audit.background_classes:
        named = (
            f"{row.label} -{100 * row.drop:.1f} points ({row.counterfactual}, {count_of(row.videos, 'video')})"
            for row in audit.background_classes
        )
        notes.append(f"The probability of these classes falls most without their background: {', '.join(named)}.")
    elif any(made.of_background and name in audit.counterfactuals for name, made in COUNTERFACTUALS.items()):
        notes.append("No class depends significantly on the background.")
    by_reason: dict[str, list[str]] = {}
    for name, reason in audit.left_out.items():
        by_reason.setdefault(reason, []).append(name)
    return notes + [f"Left out: {', '.join(names)}, because {reason}." for reason, names in by_reason.items()]


def segmentation_table(segmentation: SegmentationMetrics, title: str = "segmentation") -> Rows:
    """A segmenter's metrics, beside the highest that its grid allows and beside the teacher's own."""
    ceiling = segmentation.ceiling
    rows: Rows = [
        (title, "this model", "limit of its grid"),
        ("pixel_accuracy", percent(segmentation.pixel_accuracy), percent(ceiling.pixel_accuracy)),
        ("miou", percent(segmentation.miou), percent(ceiling.miou)),
    ]
    if segmentation.person_iou is None:
        return rows
    teacher = ("teacher", "", "", percent(segmentation.teacher_person_iou))
    rows.append(("person_iou", percent(segmentation.person_iou), percent(ceiling.person_iou)))
    return [(*row, cell) for row, cell in zip(rows, teacher, strict=True)]


def cost_table(cost: Cost, frames: int) -> Rows:
    """Parameters and multiply-adds of each part, then the sums for a clip and for one of its frames.

    cost: of one clip.
    frames: of that clip.
    """
    inference, training = sum(cost.inference.values()), sum(cost.training.values())
    parameters = sum(cost.parameters.values())
    rows = [
        _cost_row(name, cost.parameters[name], cost.inference[name], cost.training[name]) for name in cost.parameters
    ]
    return [
        ("part", "parameters, M", "inference, G multiply-adds", "training, G multiply-adds"),
        *rows,
        _cost_row("per clip", parameters, inference, training),
        _cost_row("per frame", None, inference / frames, training / frames),
        _cost_row("per clip, operations", None, 2 * inference, 2 * training),
        _cost_row("per frame, operations", None, 2 * inference / frames, 2 * training / frames),
    ]


def _cost_row(name: str, parameters: int | None, inference: float, training: float) -> tuple[str, ...]:
    millions = "" if parameters is None else f"{parameters / 1e6:.2f}"
    return name, millions, f"{inference / 1e9:.3f}", f"{training / 1e9:.3f}"


def for_console(rows: Rows, totals: int = 0) -> Table:
    """The rows as a table of rich, which `Console.print` shows, with a line above the last `totals` rows."""
    header, *body = rows
    longest = max(len(row[0]) for row in rows)
    # Short names stay on one line at 80 columns, so the other columns break there.
    table = SafeTable(Column(header[0], no_wrap=longest <= _SHORT, overflow="fold"), *header[1:])
    for number, row in enumerate(body):
        if number == len(body) - totals:
            table.add_section()
        table.add_row(*row)
    return table
