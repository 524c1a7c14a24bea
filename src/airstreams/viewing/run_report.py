"""A run on one self-contained HTML page: what it scored, where it errs, what it sees, how its training went.

All of it stands in the run's folder already; no video is opened. The page is `run_report.html`, filled in.
"""

import base64
import csv
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from airstreams.data.listing import SPLITS
from airstreams.errors import InputError
from airstreams.evaluation.published import NAMES
from airstreams.files import replacing, require_writable
from airstreams.models import cost
from airstreams.percent import percent, with_interval
from airstreams.recipe import to_yaml
from airstreams.runs.folder import RunFolder
from airstreams.runs.metrics_log import entries
from airstreams.runs.saved_model import Description, read_description
from airstreams.viewing.pictures import confusion_plot, save_picture
from airstreams.viewing.tables import cost_table, heads_table, segmentation_table

REPORT = "report.html"
MISTAKES = 15  # that are shown
DAMAGED = "damaged ({}); `airstreams evaluate` writes it anew"


def write_report(run: Path) -> Path:
    """Write RUN/report.html, which needs no other file, and return its path. InputError: no run, or a damaged one."""
    described = read_description(run)
    require_writable(run)
    epochs = [entry for entry in entries(RunFolder(run).metrics) if "train" in entry]
    folders = [found.path for found in RunFolder(run).evaluations()]
    # The test split is what people look for.
    folders.sort(key=lambda folder: folder.name != "test")
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
        evaluations=[_evaluation(folder, described) for folder in folders],
        curves=_curves(epochs),
        cost=cost_table(
            cost.count(described.config, len(described.classes), len(described.segment_classes)),
            described.config.clip.frames,
        ),
        left_out=RunFolder(run).read_left_out() if RunFolder(run).left_out.is_file() else {},
        recipe=to_yaml(described.config),
    )
    with replacing(run / REPORT) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return run / REPORT


def _about(run: Path, described: Description, epochs: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """What the run is, in words."""
    config, clip = described.config, described.config.clip
    versions = json.loads(RunFolder(run).description.read_text(encoding="utf-8"))["versions"]
    rate = f"{clip.rate:g} a second" if clip.rate else f"at a stride of {clip.stride}"
    about = [
        ("streams", ", ".join(config.model.streams)),
        ("classes", f"{len(described.classes)}: {', '.join(described.classes)}"),
        ("clip", f"{clip.frames} frames, {rate}, of {clip.size} px"),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]
    if RunFolder(run).splits.is_file():
        counts = Counter(RunFolder(run).read_splits().values())
        about.append(("videos", ", ".join(f"{counts[split]} {split}" for split in SPLITS if counts[split])))
    if epochs:
        minutes = sum(entry["train"]["seconds"] for entry in epochs) / 60
        machines = " and ".join(sorted({entry["train"].get("hardware", "not recorded") for entry in epochs}))
        about.append(("training", f"{epochs[-1]['epoch']} of {config.training.epochs} epochs, {minutes:.1f} min"))
        about.append(("on", machines))
    return about


def _evaluation(folder: Path, described: Description) -> dict[str, Any]:
    """What `airstreams evaluate` left of one split."""
    path = folder / "figures.json"
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
        metric = "map" if described.multi_label else "top1"
        per_class = "average_precision" if described.multi_label else "accuracy"
        weakest = sorted(figures["per_class"].items(), key=lambda item: item[1][per_class])
        protocol = figures["protocol"]
        remarks = []
        if figures["trained_on"] and figures["split"] != "train":
            remarks.append(f"{figures['trained_on']} of these videos were trained on, so the figures flatter.")
        if protocol["published"] and protocol["published"]["deviations"]:
            deviations = "; ".join(protocol["published"]["deviations"])
            remarks.append(f"Otherwise than {protocol['published']['name']} is reported: {deviations}.")
        return {
            "split": figures["split"],
            "headline": f"{NAMES[metric]} {with_interval(figures[metric], figures['intervals'][metric])}",
            "scored": (
                f"{figures['videos']} videos of {figures['classes']} classes of {figures['data']}, "
                f"{figures['left_out']} left out; {protocol['views']} clips a video, {protocol['crops']} crops each. "
                f"In brackets 95 % intervals over {figures['groups']} groups of videos."
            ),
            "remarks": remarks,
            "heads": heads_table(figures["streams"]),
            "segmentation": segmentation_table(figures["segmentation"]) if figures["segmentation"] else [],
            "classes": [
                ("class", NAMES["map"] if described.multi_label else "accuracy", "videos"),
                *((name, percent(row[per_class]), row["videos"]) for name, row in weakest),
            ],
            "mistakes": [] if described.multi_label else _mistakes(folder / "scores.csv"),
            "confusion": _confusion(folder / "confusion.json"),
            "seen": _picture(folder / "representations.png"),
        }
    except (KeyError, TypeError, ValueError, OSError, csv.Error) as error:
        raise InputError(f"{folder}: {DAMAGED.format(repr(error))}") from error


def _mistakes(path: Path) -> list[tuple[str, str, str, str]]:
    """The wrong answers of the highest probabilities: the video, its class, the answer and its probability."""
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    wrong = []
    for name, label, predicted, *probabilities in rows:
        if len(probabilities) == len(header) - 3 and label != predicted:  # one that was left out has none
            wrong.append((float(probabilities[header.index(predicted, 3) - 3]), name, label, predicted))
    surest = sorted(wrong, reverse=True)[:MISTAKES]
    return [(name, label, predicted, percent(probability)) for probability, name, label, predicted in surest]


def _confusion(path: Path) -> str | None:
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        confusion_plot(Path(folder) / "confusion.png", content["counts"], content["classes"])
        return _picture(Path(folder) / "confusion.png")


def _curves(epochs: Sequence[dict[str, Any]]) -> str | None:
    """The losses and, where there is a validation part, its metric, against the epochs."""
    if not epochs:
        return None
    validated = [entry for entry in epochs if "val" in entry]
    figure = Figure(figsize=(9.6 if validated else 5.2, 3.4), facecolor="white", layout="constrained")
    axes = figure.subplots(1, 2 if validated else 1, squeeze=False)[0]
    marker = "." if len(epochs) < 30 else ""
    for name in epochs[-1]["train"]["losses"]:
        if name != "total":
            axes[0].plot(
                [entry["epoch"] for entry in epochs],
                [entry["train"]["losses"].get(name) for entry in epochs],
                marker=marker,
                label=name,
            )
    axes[0].set_ylabel("loss, training, without its weight")
    if validated:
        metric = "top1" if validated[-1]["val"]["top1"] is not None else "map"
        for head, row in validated[-1]["val"]["streams"].items():
            if row[metric] is not None:
                scores = [entry["val"]["streams"][head][metric] for entry in validated]
                axes[1].plot([entry["epoch"] for entry in validated], scores, marker=marker, label=head)
        axes[1].set_ylabel(f"{NAMES[metric]}, validation")
        axes[1].yaxis.set_major_formatter(PercentFormatter(xmax=1))
    for ax in axes:
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, fontsize=8)
    with tempfile.TemporaryDirectory() as folder:
        save_picture(figure, Path(folder) / "curves.png")
        return _picture(Path(folder) / "curves.png")


def _picture(path: Path) -> str | None:
    """A PNG as an address that holds it; None where there is none."""
    if not path.is_file():
        return None
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
