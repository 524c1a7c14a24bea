"""What a finished training says at its end: which weights it kept and why, how long it took, where everything is."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from airstreams.data.listing import SPLITS, UNLABELLED
from airstreams.estimate import clock_time
from airstreams.evaluation.published import NAMES
from airstreams.percent import with_interval
from airstreams.plural import count_of
from airstreams.runs.checkpoint import saved_states
from airstreams.runs.folder import RunFolder
from airstreams.runs.metrics_log import EpochRecord, epoch_records
from airstreams.runs.saved_model import Description, KeptEpoch, read_description

TOO_HIGH = "it chose the epoch, so it tends to be too high"
"""What to know about the validation metric of the kept epoch."""


@dataclass(frozen=True)
class TrainingSummary:
    """A finished run, as its folder describes it.

    epochs: the records of its epochs, in their order.
    kept: which epoch's weights are the model; None: unknown.
    seconds: of training and validation, without interruptions.
    hardware: what it was trained on; several if it was resumed elsewhere.
    state: the state to lengthen the training from; None: there is none.
    tensorboard: the folder for TensorBoard; None: there is none.
    splits: split to number of videos. Unlabelled ones are counted apart, as `_unlabelled`.
    """

    run: Path
    epochs: list[EpochRecord]
    kept: KeptEpoch | None
    seconds: float
    hardware: list[str]
    state: Path | None
    tensorboard: Path | None
    splits: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """What `airstreams train --json` prints beside the last epoch's record."""
        folder = RunFolder(self.run)
        return {
            "kept": None if self.kept is None else asdict(self.kept),
            "seconds": self.seconds,
            "hardware": self.hardware,
            "model": str(folder.weights),
            "state": None if self.state is None else str(self.state),
            "tensorboard": None if self.tensorboard is None else str(self.tensorboard),
        }

    def lines(self) -> list[str]:
        """The summary for people, a line each."""
        rows = {"weights": weights_in_words(self.kept, self.epochs)}
        if self.kept is not None and self.kept.metric is not None:
            score = with_interval(self.kept.value, self.kept.interval)
            rows[NAMES[self.kept.metric]] = f"{score}, on {count_of(self.kept.videos, 'validation video')}"
            if has_choice(self.kept, self.epochs):
                rows["note"] = TOO_HIGH
                rows[""] = "report the figure that `evaluate` gives on test videos"
        rows["time"] = f"{clock_time(self.seconds)} on {' and '.join(self.hardware)}"
        rows["model"] = f"{RunFolder(self.run).weights}"
        if self.tensorboard is not None:
            rows["curves"] = shlex.join(["tensorboard", "--logdir", str(self.tensorboard)])
        rows["state"] = "none, so the training cannot be lengthened" if self.state is None else str(self.state)
        return [f"trained: {self.run}", *(f"  {name:<8} {text}" for name, text in rows.items())]

    def next_commands(self, data: str, options: Sequence[str] = ()) -> list[str]:
        """What to call next, ready to copy.

        Args:
            data: DATA of the training.
            options: those of the training that tell how to read DATA.
        """
        run = str(self.run)
        split = next((split for split in ("test", "val") if self.splits.get(split)), None)
        commands = []
        if split is not None:
            other = [] if split == "test" else ["--split", split]
            commands.append(["evaluate", run, data, *options, *other])
        commands += [["predict", run, "VIDEO"], ["report", run]]
        return [shlex.join(["airstreams", *words]) for words in commands]


def sizes_in_words(splits: Mapping[str, int]) -> str:
    """The sizes of a run's splits, as `RunFolder.split_sizes` gives them: "50 train, 20 test, 600 unlabelled"."""
    names = {**{split: split for split in SPLITS}, UNLABELLED: "unlabelled"}
    return ", ".join(f"{splits[split]} {name}" for split, name in names.items() if splits.get(split))


def has_choice(kept: KeptEpoch, epochs: Sequence[EpochRecord]) -> bool:
    """Whether the kept epoch was chosen among several by its validation metric."""
    return len(_values(kept, epochs)) > 1


def weights_in_words(kept: KeptEpoch | None, epochs: Sequence[EpochRecord]) -> str:
    """Which epoch's weights a model has, and why.

    epochs: the records of the run's epochs.
    """
    if kept is None:
        return "of an epoch that was not recorded"
    of = f"epoch {kept.epoch} of {max((record.epoch for record in epochs), default=0)}"
    if kept.why == "best":
        equal = [epoch for epoch, value in _values(kept, epochs).items() if value == kept.value]
        if len(equal) < 2:
            return f"{of}, the best on the validation videos"
        which = "the last" if kept.epoch == max(equal) else "one"
        return f"{of}, {which} of the {len(equal)} best on the validation videos"
    return f"{of}, the last one, because there are no validation scores"


def _values(kept: KeptEpoch, epochs: Sequence[EpochRecord]) -> dict[int, float]:
    """The metric of a kept epoch after each epoch that has it."""
    values = {record.epoch: record.val.get(kept.metric or "") for record in epochs if record.val is not None}
    return {epoch: value for epoch, value in values.items() if value is not None}


def summary_of(run: Path, described: Description | None = None) -> TrainingSummary:
    """The summary of a finished run. InputError: it has no model.

    described: its model's description; None: it is read.
    """
    folder, records = RunFolder(run), epoch_records(run)
    states = saved_states(run)
    return TrainingSummary(
        run=run,
        epochs=records,
        kept=(described or read_description(run)).kept,
        seconds=sum(record.train["seconds"] + (record.val or {}).get("seconds", 0.0) for record in records),
        hardware=sorted({record.train["hardware"] for record in records if "hardware" in record.train}),
        state=states[0] if states else None,
        tensorboard=folder.tensorboard if folder.tensorboard.is_dir() else None,
        splits=dict(folder.split_sizes()),
    )
