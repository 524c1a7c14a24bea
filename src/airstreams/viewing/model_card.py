"""The model card of a run, MODEL_CARD.md: what the model is, what it learnt from, how good it is, and its limits.

Its form is that of the Hugging Face hub: a header of YAML, then Markdown. It names no absolute path, so it can be
shared. Its template is `model_card.md`.
"""

import json
import re
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from airstreams.config import Config
from airstreams.data.listing import Source
from airstreams.errors import InputError, one_line
from airstreams.estimate import clock_time
from airstreams.evaluation.published import NAMES
from airstreams.evaluation.results import EvaluationMetrics, read_metrics
from airstreams.files import replacing, write_json
from airstreams.models import cost
from airstreams.percent import with_interval
from airstreams.plural import count_of
from airstreams.recipe import closest_recipe
from airstreams.runs.folder import RunFolder
from airstreams.runs.saved_model import Description, read_description
from airstreams.training.start import StartRecord
from airstreams.training.summary import (
    TOO_HIGH,
    TrainingSummary,
    has_choice,
    sizes_in_words,
    summary_of,
    weights_in_words,
)
from airstreams.viewing.tables import (
    Rows,
    baseline_note,
    calibration_in_words,
    heads_table,
    scored_in_words,
    trained_on_warnings,
    untrained_note,
)

HEADER = {
    "license": "other",
    "library_name": "airstreams",
    "pipeline_tag": "video-classification",
    "tags": ["airstreams", "video-classification", "action-recognition"],
}
YOUR_TEXT = "<!-- airstreams writes the text above again after a training or an evaluation. Your text below stays. -->"
LICENCE = """
## Licence

airstreams does not know the licence of the videos, nor whether the people in them agreed to their use. State both here,
and the licence of this model, before you share it.
"""
MOST_CHANGES = 6
"""A config that differs from every recipe in more keys is described without one."""


@dataclass(frozen=True)
class CardFacts:
    """What a card says that no other file of a run does. Training writes it at its end.

    data: `Source.short_name` of the data.
    parameters: of the saved model; None: the model cannot be counted.
    multiply_adds: of the answer for one clip; None as well.
    """

    data: str
    parameters: int | None = None
    multiply_adds: int | None = None

    def write(self, folder: RunFolder) -> None:
        """Write it into a run's folder."""
        write_json(folder.card_facts, asdict(self))

    @classmethod
    def read(cls, folder: RunFolder) -> "CardFacts | None":
        """Read it from a run's folder. None: there is no such file, as in older runs, or it is damaged."""
        with suppress(OSError, ValueError, TypeError):
            return cls(**json.loads(folder.card_facts.read_text(encoding="utf-8")))
        return None


@dataclass(frozen=True)
class _Evaluated:
    """The metrics of one split, or of other data."""

    title: str
    table: Rows
    notes: list[str]


def write_model_card(run: Path, source: Source | None = None, described: Description | None = None) -> Path:
    """Write RUN/MODEL_CARD.md again, and return its path. The user's own text at its end stays.

    Args:
        run: the run's folder.
        source: the data of the training that ends; None: the run has recorded it.
        described: the model's description; None: it is read.

    Raises:
        InputError: there is no run, or it is damaged.
    """
    folder, described = RunFolder(run), described or read_description(run)
    if source is not None:
        _facts_of(source, described).write(folder)
    text = model_card(run, described)
    with replacing(folder.card) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return folder.card


def model_card(run: Path, described: Description, repo: str | None = None) -> str:
    """The text of a run's model card, with the user's own text from the card that is there.

    Args:
        run: the run's folder.
        described: its model's description.
        repo: the repository on the Hugging Face hub that the card is for, such as `me/run`; None: the folder.

    Raises:
        InputError: there is no run, or it is damaged.
    """
    folder, summary = RunFolder(run), summary_of(run, described)
    environment = Environment(
        loader=PackageLoader("airstreams", "viewing"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # it is no HTML
    )
    environment.filters["plain"] = _plain
    facts, start = CardFacts.read(folder), StartRecord.read(folder)
    text = environment.get_template("model_card.md").render(
        header=yaml.safe_dump(HEADER, sort_keys=False),
        name=repo or run.resolve().name,
        address="RUN" if repo is None else f"hf:{repo}",
        is_on_hub=repo is not None,
        multi_label=described.multi_label,
        versions=json.loads(folder.description.read_text(encoding="utf-8"))["versions"],
        data=_data(folder, described, facts, summary),
        start=start and start.without_folders(),
        training=_training(described.config, summary),
        metrics=_evaluations(folder, described),
        validation=_validation(summary),
        cost=_cost(folder, described.config, facts),
    )
    return f"{text.strip()}\n\n{YOUR_TEXT}\n{_text_of_user(folder)}"


def _text_of_user(folder: RunFolder) -> str:
    """What stands below the line `YOUR_TEXT` of a card; in a new card, what the user should write there."""
    with suppress(OSError, UnicodeDecodeError):
        _, line, own = folder.card.read_text(encoding="utf-8").partition(f"{YOUR_TEXT}\n")
        if line:
            return own
    return LICENCE


def _plain(text: object) -> str:
    """A text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>#|~])", r"\\\1", one_line(text))


def _facts_of(source: Source, described: Description) -> CardFacts:
    try:
        counted = cost.totals(described.config, len(described.classes), len(described.segment_classes))
    except Exception:  # a custom stream's code may do what the meta device cannot
        return CardFacts(source.short_name)
    return CardFacts(source.short_name, *counted)


def _data(folder: RunFolder, described: Description, facts: CardFacts | None, summary: TrainingSummary) -> Rows:
    counts = Counter(folder.training_labels())
    of_class = {name: sum(n for label, n in counts.items() if name in label.split(";")) for name in described.classes}
    named = (f"{name} ({of_class[name]})" if counts else name for name in described.classes)
    rows = [("name", facts.data if facts else "not recorded")]
    if summary.splits:
        videos = sizes_in_words(summary.splits)
        left_out = len(folder.read_left_out()) if folder.left_out.is_file() else 0
        rows.append(("videos", f"{videos}{f'; {left_out} of them could not be read' if left_out else ''}"))
    title = f"{len(described.classes)} classes{' (training videos)' if counts else ''}"
    labels = "several, or none" if described.multi_label else "one"
    return [("data", ""), *rows, (title, ", ".join(named)), ("labels of a video", labels)]


def _training(config: Config, summary: TrainingSummary) -> Rows:
    clip, training = config.clip, config.training
    rate = f"{clip.rate:g} a second" if clip.rate else f"stride {clip.stride}"
    recipe, changes = closest_recipe(config)
    rows = []
    if len(changes) <= MOST_CHANGES:
        values = ", ".join(f"{key} {_as_yaml(value)}" for key, value in changes.items())
        rows.append(("settings", f"those of {recipe}{f', but {values}' if values else ''}"))
    done = max((record.epoch for record in summary.epochs), default=None)
    if done is not None:
        rows.append(("epochs", f"{done} of {training.epochs}"))
    rows += [
        ("streams", ", ".join(config.model.streams)),
        ("clip", f"{clip.frames} frames of {clip.size} px, {rate}"),
        ("batch", count_of(training.batch_size, "clip")),
        ("weights", weights_in_words(summary.kept, summary.epochs)),
    ]
    if summary.epochs:
        device = " and ".join(summary.hardware) or "a device that was not recorded"
        if (precision := summary.epochs[-1].train.get("precision")) is not None:  # versions up to 0.2 did not write it
            rows.append(("precision", str(precision)))
        rows.append(("time", f"{clock_time(summary.seconds)} on {device}"))
    return [("training", ""), *rows]


def _as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()


def _evaluations(folder: RunFolder, described: Description) -> list[_Evaluated]:
    """The metrics of all that was scored. Damaged files are left out: this must not fail because of another split."""
    found = []
    for evaluation in folder.evaluations():
        with suppress(InputError):
            metrics = read_metrics(evaluation.metrics)
            title = f"Split {metrics.split} of {metrics.data}"
            title += "" if evaluation.is_own_split else ", which is not the run's own"
            found.append(_Evaluated(title, *_table_and_notes(metrics, described.config)))
    return found


def _table_and_notes(metrics: EvaluationMetrics, config: Config) -> tuple[Rows, list[str]]:
    warnings = [f"{line[0].upper()}{line[1:]}" for line in trained_on_warnings(metrics)]
    notes = [*warnings, scored_in_words(metrics), baseline_note(metrics), untrained_note(metrics.streams, config)]
    notes += calibration_in_words(metrics.calibration)
    return heads_table(metrics.streams, metrics.baselines, metrics.new_only), [note for note in notes if note]


def _validation(summary: TrainingSummary) -> str:
    """The validation metric of the kept epoch in words; empty if nothing was validated."""
    kept = summary.kept
    if kept is None or kept.metric is None:
        return ""
    score = with_interval(kept.value, kept.interval)
    note = f" ({TOO_HIGH})" if has_choice(kept, summary.epochs) else ""
    return f"Validation: {NAMES[kept.metric]} {score}, on {count_of(kept.videos, 'video')}{note}."


def _cost(folder: RunFolder, config: Config, facts: CardFacts | None) -> Rows:
    rows = [("file of the weights", f"{folder.weights.stat().st_size / 1e6:.1f} MB")]
    if facts is not None and facts.parameters is not None and facts.multiply_adds is not None:
        rows.append(("parameters", f"{facts.parameters / 1e6:.2f} M"))
        rows.append(("multiply-adds of a clip", f"{facts.multiply_adds / 1e9:.2f} G"))
    views = config.evaluation.views * config.evaluation.crops
    return [("cost", ""), *rows, ("clips of a video", str(views))]
