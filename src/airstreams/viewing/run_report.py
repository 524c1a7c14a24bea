"""A run on one self-contained HTML page: its metrics, its mistakes, what its streams see, and its training curves.

The page uses files of the run's folder only and opens no video. Its template is `run_report.html`.
"""

import base64
import csv
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from airstreams.data.listing import SPLITS
from airstreams.errors import InputError
from airstreams.evaluation.published import NAMES
from airstreams.evaluation.results import EvaluationMetrics, read_metrics, weakest_first
from airstreams.files import replacing, require_writable
from airstreams.models import cost
from airstreams.percent import percent, with_interval
from airstreams.recipe import to_yaml
from airstreams.runs.folder import EvaluationFolder, RunFolder
from airstreams.runs.metrics_log import EpochRecord, epoch_records
from airstreams.runs.saved_model import Description, read_description
from airstreams.viewing.pictures import confusion_plot, save_picture
from airstreams.viewing.tables import (
    Rows,
    baseline_note,
    baselines_in_words,
    cost_table,
    heads_table,
    scored_in_words,
    segmentation_table,
    trained_on_warnings,
    untrained_note,
    views_in_words,
)

MISTAKES_SHOWN = 15


@dataclass(frozen=True)
class _EvaluatedSplit:
    """What the page shows of one split, or of other data.

    untrained, segmentation, mistakes: empty where they do not apply.
    picture, confusion: PNGs as `data:` addresses; None where there is none.
    """

    title: str
    headline: str
    warnings: list[str]
    scored: str
    notes: list[str]
    heads: Rows
    untrained: str
    segmentation: Rows
    classes: Rows
    mistakes: Rows
    confusion: str | None
    picture: str | None


def write_report(run: Path) -> Path:
    """Write RUN/report.html, which needs no other file, and return its path. InputError: no run, or a damaged one."""
    described = read_description(run)
    require_writable(run)
    run_folder = RunFolder(run)
    epochs = epoch_records(run)
    environment = Environment(
        loader=PackageLoader("airstreams", "viewing"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("run_report.html").render(
        name=str(run),
        about=_about(run, described, epochs),
        evaluations=[_evaluated_split(folder, described) for folder in run_folder.evaluations()],
        curves=_curves(epochs),
        cost=cost_table(
            cost.count(described.config, len(described.classes), len(described.segment_classes)),
            described.config.clip.frames,
        ),
        left_out=run_folder.read_left_out() if run_folder.left_out.is_file() else {},
        recipe=to_yaml(described.config),
    )
    with replacing(run_folder.report) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return run_folder.report


def _about(run: Path, described: Description, epochs: Sequence[EpochRecord]) -> list[tuple[str, str]]:
    """The table at the top: model, data, training."""
    config, clip = described.config, described.config.clip
    versions = json.loads(RunFolder(run).description.read_text(encoding="utf-8"))["versions"]
    rate = f"{clip.rate:g} per second" if clip.rate else f"stride {clip.stride}"
    about = [
        ("streams", ", ".join(config.model.streams)),
        ("classes", f"{len(described.classes)}: {', '.join(described.classes)}"),
        ("clip", f"{clip.frames} frames, {rate}, {clip.size} px"),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]
    if RunFolder(run).splits.is_file():
        counts = Counter(RunFolder(run).read_splits().values())
        about.append(("videos", ", ".join(f"{counts[split]} {split}" for split in SPLITS if counts[split])))
    if epochs:
        minutes = sum(record.train["seconds"] for record in epochs) / 60
        machines = " and ".join(sorted({record.train.get("hardware", "not recorded") for record in epochs}))
        about.append(("training", f"{epochs[-1].epoch} of {config.training.epochs} epochs, {minutes:.1f} min"))
        about.append(("trained on", machines))
    return about


def _evaluated_split(folder: EvaluationFolder, described: Description) -> _EvaluatedSplit:
    """What `airstreams evaluate` wrote about one split. InputError: a file is damaged."""
    metrics = read_metrics(folder.metrics)
    metric = "map" if described.multi_label else "top1"
    try:
        return _EvaluatedSplit(
            title=f"Split {metrics.split}" if folder.is_own_split else f"Other data: {folder.path.name}",
            headline=f"{NAMES[metric]} {with_interval(metrics[metric], metrics.intervals[metric])}",
            warnings=trained_on_warnings(metrics),
            scored=f"{metrics.data}: {scored_in_words(metrics)} {views_in_words(metrics.protocol)}",
            notes=_notes(metrics),
            heads=heads_table(metrics.streams, metrics.baselines, metrics.new_only),
            untrained=untrained_note(metrics.streams, described.config),
            segmentation=segmentation_table(metrics.segmentation) if metrics.segmentation else [],
            classes=[
                ("class", NAMES["map"] if described.multi_label else "accuracy", "videos"),
                *((name, percent(row.value), str(row.videos)) for name, row in weakest_first(metrics)),
            ],
            mistakes=[] if described.multi_label else _mistakes(folder.scores),
            confusion=_confusion(folder.confusion, baselines_in_words(metrics)),
            picture=_as_address(folder.picture),
        )
    except (KeyError, TypeError, ValueError, OSError, csv.Error) as error:
        raise InputError(f"{folder.path}: a file is damaged ({error!r}). Run `airstreams evaluate` again.") from error


def _notes(metrics: EvaluationMetrics) -> list[str]:
    """What a reader must know before comparing the metrics with others."""
    notes = [note] if (note := baseline_note(metrics)) else []
    comparison = metrics.protocol.comparison
    if comparison and comparison.deviations:
        notes.append(f"Differs from published results on {comparison.name}: {'; '.join(comparison.deviations)}.")
    return notes


def _mistakes(path: Path) -> Rows:
    """The wrong answers with the highest probabilities: video, true class, answer, probability."""
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    wrong = []
    for name, label, predicted, *probabilities in rows:
        if len(probabilities) == len(header) - 3 and label != predicted:  # a video that was left out has none
            wrong.append((float(probabilities[header.index(predicted, 3) - 3]), name, label, predicted))
    highest = sorted(wrong, reverse=True)[:MISTAKES_SHOWN]
    return [(name, label, predicted, percent(probability)) for probability, name, label, predicted in highest]


def _confusion(path: Path, note: str) -> str | None:
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        confusion_plot(Path(folder) / "confusion.png", content["counts"], content["classes"], note)
        return _as_address(Path(folder) / "confusion.png")


def _curves(epochs: Sequence[EpochRecord]) -> str | None:
    """A plot of the training losses and, where there are validation videos, of their metric, by epoch."""
    if not epochs:
        return None
    validated = [(record.epoch, record.val) for record in epochs if record.val is not None]
    figure = Figure(figsize=(9.6 if validated else 5.2, 3.4), facecolor="white", layout="constrained")
    axes = figure.subplots(1, 2 if validated else 1, squeeze=False)[0]
    marker = "." if len(epochs) < 30 else ""
    for name in epochs[-1].train["losses"]:
        if name != "total":
            losses = [record.train["losses"].get(name) for record in epochs]
            axes[0].plot([record.epoch for record in epochs], losses, marker=marker, label=name)
    axes[0].set_ylabel("training loss, before its weight")
    if validated:
        _, last = validated[-1]
        metric = "top1" if last["top1"] is not None else "map"
        for head in (head for head, row in last["streams"].items() if row[metric] is not None):
            scores = [val["streams"][head][metric] for _, val in validated]
            axes[1].plot([epoch for epoch, _ in validated], scores, marker=marker, label=head)
        axes[1].set_ylabel(f"{NAMES[metric]}, validation")
        axes[1].yaxis.set_major_formatter(PercentFormatter(xmax=1))
    for ax in axes:
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, fontsize=8)
    with tempfile.TemporaryDirectory() as folder:
        save_picture(figure, Path(folder) / "curves.png")
        return _as_address(Path(folder) / "curves.png")


def _as_address(path: Path) -> str | None:
    """A PNG as a `data:` address; None where there is no file."""
    if not path.is_file():
        return None
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
