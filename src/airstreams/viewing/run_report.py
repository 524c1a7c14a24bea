"""A run on one self-contained HTML page: its metrics, its mistakes, what its streams see, and its training curves.

The page uses files of the run's folder only. It opens no video and names no absolute path, so it can be shared. Its
template is `run_report.html`.
"""

import base64
import csv
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from rich.console import Console

from airstreams.console import Progress
from airstreams.errors import InputError
from airstreams.evaluation.published import NAMES
from airstreams.evaluation.results import EvaluationMetrics, read_metrics, weakest_first
from airstreams.files import replacing, require_writable
from airstreams.models import cost
from airstreams.percent import percent, with_interval
from airstreams.plural import count_of
from airstreams.recipe import to_yaml
from airstreams.runs.folder import EvaluationFolder, RunFolder
from airstreams.runs.metrics_log import EpochRecord, epoch_records
from airstreams.runs.saved_model import Description, KeptEpoch, custom_channels, read_description
from airstreams.runs.trust import custom_classes
from airstreams.training.summary import TOO_HIGH, has_choice, sizes_in_words, weights_in_words
from airstreams.viewing.colours import LINE_COLOURS
from airstreams.viewing.grad_cam import picture_of, shown_answers
from airstreams.viewing.mistakes import MISTAKES_LISTED, STRIPS, Answer, read_answers, strip_of
from airstreams.viewing.pictures import confusion_plot, save_picture
from airstreams.viewing.tables import (
    Rows,
    audit_in_words,
    audit_notes,
    audit_table,
    baseline_note,
    baselines_in_words,
    calibration_in_words,
    cost_table,
    heads_table,
    scored_in_words,
    segmentation_tables,
    streams_table,
    targets_note,
    trained_on_warnings,
    unlabelled_note,
    untrained_note,
    views_in_words,
)


@dataclass(frozen=True)
class _EvaluatedSplit:
    """What the page shows of one split, or of other data.

    untrained, segmentations, targets, audit, streams, mistakes: empty where they do not apply.
    looked_at: some answers with where the model looked, as `data:` addresses.
    strips: the most confident mistakes, each with its frames; None where they could not be read.
    calibration: sentences; empty for multi-label data.
    picture, confusion, reliability: as `data:` addresses; None where there is none.
    """

    title: str
    headline: str
    warnings: list[str]
    scored: str
    notes: list[str]
    heads: Rows
    untrained: str
    segmentations: list[Rows]
    targets: str
    audit: Rows
    streams: Rows
    audit_notes: list[str]
    looked_at: list[tuple[Answer, str]]
    classes: Rows
    mistakes: Sequence[Answer]
    strips: list[tuple[Answer, str | None]]
    confusion: str | None
    picture: str | None
    calibration: list[str]
    reliability: str | None


def write_report(run: Path, console: Console | None = None) -> Path:
    """Write RUN/report.html, which needs no other file, and return its path.

    Args:
        run: the run's folder.
        console: shows the progress; None: nothing does.

    Raises:
        InputError: there is no run, or it is damaged.
    """
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
    left_out = run_folder.read_left_out() if run_folder.left_out.is_file() else {}
    folders = run_folder.evaluations()
    with Progress(console or Console(quiet=True)) as progress:
        shown = progress.track(folders, len(folders), "reading evaluations", "evaluations", brief=True)
        evaluations = [_evaluated_split(folder, described) for folder in shown]
    environment.filters |= {"percent": percent, "breakable": _breakable}
    page = environment.get_template("run_report.html").render(
        name=run.resolve().name if run.is_absolute() or run.name in ("", "..") else str(run),
        about=_about(run, described, epochs),
        evaluations=evaluations,
        curves=_curves(epochs),
        cost=cost_table(
            cost.count(described.config, len(described.classes), len(described.segment_classes), custom_channels(run)),
            described.config.clip.frames,
        ),
        not_counted=[f"{stream} ({path})" for stream, path in custom_classes(described.config.model).items()],
        warnings=[_without_folders(line) for line in run_folder.read_data_warnings()],
        left_out={video: _without_folders(reason) for video, reason in left_out.items()},
        recipe=to_yaml(described.config),
    )
    with replacing(run_folder.report) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return run_folder.report


def _breakable(text: str) -> list[str]:
    """A text in parts, after each of which a line may end."""
    return re.findall(r".+?(?:[/_;]+|$)", text)


def _without_folders(message: str) -> str:
    """A message with only the last part of each absolute path."""
    return re.sub(r"(?<![^\s'\"(:])(?:/[^\s/]+)*/(?=[^\s/])", "", message)


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
        about.append(("videos", sizes_in_words(RunFolder(run).split_sizes())))
    if epochs:
        minutes = sum(record.train["seconds"] for record in epochs) / 60
        machines = " and ".join(sorted({record.train.get("hardware", "not recorded") for record in epochs}))
        about.append(("training", f"{epochs[-1].epoch} of {config.training.epochs} epochs, {minutes:.1f} min"))
        about.append(("trained on", machines))
        about.append(("weights", _weights(described.kept, epochs)))
    return about


def _weights(kept: KeptEpoch | None, epochs: Sequence[EpochRecord]) -> str:
    """Which epoch's weights the model has, and why, with the validation metric that chose it."""
    text = weights_in_words(kept, epochs)
    if kept is None or kept.metric is None:
        return text
    score = with_interval(kept.value, kept.interval)
    text += f": {NAMES[kept.metric]} {score} on {count_of(kept.videos, 'validation video')}"
    return f"{text} ({TOO_HIGH})" if has_choice(kept, epochs) else text


def _evaluated_split(folder: EvaluationFolder, described: Description) -> _EvaluatedSplit:
    """What `airstreams evaluate` wrote about one split. InputError: a file is damaged."""
    metrics = read_metrics(folder.metrics)
    metric = metrics.metric
    try:
        mistakes, right = read_answers(folder, described.multi_label)
        return _EvaluatedSplit(
            title=f"Split {metrics.split}" if folder.is_own_split else f"Other data: {folder.path.name}",
            headline=f"{NAMES[metric]} {with_interval(metrics[metric], metrics.intervals[metric])}",
            warnings=trained_on_warnings(metrics),
            scored=f"Data: {metrics.data}. {scored_in_words(metrics)} {views_in_words(metrics.protocol)}",
            notes=_notes(metrics),
            heads=heads_table(metrics.streams, metrics.baselines, metrics.new_only),
            untrained=untrained_note(metrics.streams, described.config),
            segmentations=segmentation_tables(metrics),
            targets=targets_note(metrics),
            audit=audit_table(metrics.audit) if metrics.audit else [],
            streams=streams_table(metrics.audit) if metrics.audit else [],
            audit_notes=[audit_in_words(metrics), *audit_notes(metrics.audit)] if metrics.audit else [],
            looked_at=_looked_at(folder, shown_answers(mistakes, right)),
            classes=[
                ("class", "average precision" if described.multi_label else "accuracy", "videos"),
                *((name, percent(row.value), str(row.videos)) for name, row in weakest_first(metrics)),
            ],
            mistakes=mistakes[:MISTAKES_LISTED],
            strips=_strips(folder, mistakes),
            confusion=_confusion(folder.confusion, baselines_in_words(metrics)),
            picture=_as_address(folder.picture),
            calibration=calibration_in_words(metrics.calibration),
            reliability=_as_address(folder.calibration_plot),
        )
    except (KeyError, TypeError, ValueError, OSError, csv.Error) as error:
        raise InputError(f"{folder.path}: a file is damaged ({error!r}). Run `airstreams evaluate` again.") from error


def _notes(metrics: EvaluationMetrics) -> list[str]:
    """What a reader must know before comparing the metrics with others."""
    notes = [note] if (note := baseline_note(metrics)) else []
    if metrics.unlabelled:
        notes.append(unlabelled_note(metrics))
    comparison = metrics.protocol.comparison
    if comparison and comparison.deviations:
        notes.append(f"Differs from published results on {comparison.name}: {'; '.join(comparison.deviations)}.")
    return notes


def _looked_at(folder: EvaluationFolder, answers: Sequence[Answer]) -> list[tuple[Answer, str]]:
    """Those of the answers that have a picture of where the model looked, each with it as a `data:` address."""
    found = [(answer, _as_address(picture_of(folder, answer.name))) for answer in answers]
    return [(answer, address) for answer, address in found if address is not None]


def _strips(folder: EvaluationFolder, mistakes: Sequence[Answer]) -> list[tuple[Answer, str | None]]:
    """The first mistakes, each with its frames as a `data:` address; empty where there are no frames of any."""
    strips = [(mistake, _as_address(strip_of(folder, mistake.name))) for mistake in mistakes[:STRIPS]]
    return strips if any(address for _, address in strips) else []


def _confusion(path: Path, note: str) -> str | None:
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        confusion_plot(Path(folder) / "confusion.png", content["counts"], content["classes"], note)
        return _as_address(Path(folder) / "confusion.png")


def _curves(epochs: Sequence[EpochRecord]) -> list[str]:
    """Plots by epoch: of the training losses and, where there are validation videos, of their metric."""
    if not epochs:
        return []
    numbers = [record.epoch for record in epochs]
    names = [name for name in epochs[-1].train["losses"] if name != "total"]
    losses = {name: (numbers, [record.train["losses"].get(name) for record in epochs]) for name in names}
    plots = [_curve_plot(losses, "training loss, before its weight", is_share=False)]
    validated = [(record.epoch, record.val) for record in epochs if record.val is not None]
    if validated:
        _, last = validated[-1]
        metric = "top1" if last["top1"] is not None else "map"
        heads = [head for head, row in last["streams"].items() if row[metric] is not None]
        scores = {
            head: ([epoch for epoch, _ in validated], [val["streams"][head][metric] for _, val in validated])
            for head in heads
        }
        plots.append(_curve_plot(scores, f"{NAMES[metric]}, validation", is_share=True))
    return plots


def _curve_plot(curves: Mapping[str, tuple[list[int], list[float | None]]], label: str, is_share: bool) -> str:
    """A plot of curves by name, each as epochs and values, as a `data:` address."""
    figure = Figure(figsize=(3.9, 2.9), facecolor="white", layout="constrained")
    ax = figure.subplots()
    ax.set_prop_cycle(color=LINE_COLOURS)
    for name, (epochs, values) in curves.items():
        ax.plot(epochs, [np.nan if value is None else value for value in values], label=name)
        ax.lines[-1].set_marker("." if len(epochs) < 30 else "")
    ax.set_ylabel(label)
    if is_share:
        ax.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8)
    with tempfile.TemporaryDirectory() as folder:
        save_picture(figure, Path(folder) / "curves.png")
        address = _as_address(Path(folder) / "curves.png")
    assert address is not None
    return address


def _as_address(path: Path) -> str | None:
    """A PNG or JPEG as a `data:` address; None where there is no file."""
    if not path.is_file():
        return None
    kind = "jpeg" if path.suffix == ".jpg" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
