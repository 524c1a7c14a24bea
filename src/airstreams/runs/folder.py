"""The run folder: every file name in it, who may begin, resume or replace a run, and the lists of videos it keeps."""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from airstreams.data.check import BadVideo
from airstreams.data.csv_list import check_split
from airstreams.data.listing import Source, to_nfc
from airstreams.errors import InputError
from airstreams.files import read_rows, write_rows


@dataclass(frozen=True)
class EvaluationFolder:
    """What `airstreams evaluate` leaves of one split."""

    path: Path

    @property
    def metrics(self) -> Path:
        """Every metric of the split, JSON."""
        return self.path / "figures.json"

    @property
    def scores(self) -> Path:
        """A row per video: its probabilities, or why it was left out."""
        return self.path / "scores.csv"

    @property
    def confusion(self) -> Path:
        """Counts of true class by predicted class, JSON."""
        return self.path / "confusion.json"

    @property
    def confusion_plot(self) -> Path:
        """The same counts as a plot."""
        return self.path / "confusion.png"

    @property
    def picture(self) -> Path:
        """What flow and segmenter see in four videos."""
        return self.path / "representations.png"


@dataclass(frozen=True)
class RunFolder:
    """The folder that one training writes, with the name of every file. (`checkpoint.py` names the states.)

    path: the folder. It need not exist yet.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The complete recipe. Training writes it after all other files of its beginning."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """The log of steps and epochs, a JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The same log for TensorBoard."""
        return self.path / "tensorboard"

    @property
    def weights(self) -> Path:
        """The model's weights."""
        return self.path / "model.safetensors"

    @property
    def description(self) -> Path:
        """What the model's use needs beside its weights, JSON."""
        return self.path / "model.json"

    @property
    def states(self) -> Path:
        """The folder of saved states, for resuming."""
        return self.path / "state"

    @property
    def splits(self) -> Path:
        """Which video was used for what."""
        return self.path / "split.csv"

    @property
    def left_out(self) -> Path:
        """The videos that could not be read, with the reasons."""
        return self.path / "left_out.csv"

    @property
    def trained_before(self) -> Path:
        """The videos that the starting model of `--init` was trained on."""
        return self.path / "learnt_before.csv"

    @property
    def report(self) -> Path:
        """The page of `airstreams report`."""
        return self.path / "report.html"

    def evaluation(self, split: str) -> EvaluationFolder:
        """The results of one split."""
        return EvaluationFolder(self._evaluations / split)

    def evaluations(self) -> list[EvaluationFolder]:
        """The results of all splits that were scored, by name."""
        folders = [self.evaluation(path.name) for path in sorted(self._evaluations.glob("*"))]
        return [folder for folder in folders if folder.metrics.is_file()]

    @property
    def _evaluations(self) -> Path:
        """The parent of the folders of all splits."""
        return self.path / "evaluation"

    def has_begun(self) -> bool:
        """Whether the folder holds a run that can be resumed."""
        return self.config.is_file()

    def may_begin(self) -> bool:
        """Whether a new training may write here: the folder is new, or holds the remains of one killed at its start."""
        remains = {file.name for file in (self.left_out, self.splits, self.trained_before, self.states)}
        if not self.path.exists():
            return True
        if not self.path.is_dir():
            return False
        return all(file.name in remains or file.name.startswith(".") for file in self.path.iterdir())

    def write_splits(self, source: Source) -> None:
        """Write the split of each video, which every video must have, and its labels, joined by `;`, as a CSV file."""
        rows = ((video.name, video.split or "", ";".join(video.labels)) for video in source.videos)
        write_rows(self.splits, ("name", "split", "label"), rows)

    def read_splits(self) -> dict[str, str]:
        """Video name to split, as `write_splits` wrote it. InputError: the file is missing or damaged."""
        splits: dict[str, str] = {}
        for line, row in self._split_rows():
            check_split(self.splits, line, row["split"])
            name = to_nfc(row["name"])
            if name in splits:
                raise InputError(f"{self.splits}, line {line}: {name} is listed twice. Delete one of the lines.")
            splits[name] = row["split"]
        return splits

    def training_labels(self) -> list[str]:
        """The label of each video that the run was trained on. Empty: the list is missing or has no labels.

        Videos with several labels have one text for all. Versions up to 0.2 wrote no labels.
        """
        if not self.splits.is_file():
            return []
        left_out = self.read_left_out() if self.left_out.is_file() else {}
        return [
            to_nfc(row["label"])
            for _, row in self._split_rows()
            if row["split"] == "train" and row["label"] and row["name"] not in left_out
        ]

    def _split_rows(self) -> list[tuple[int, dict[str, str]]]:
        return read_rows(self.splits, required=("name", "split"), optional=("label",))

    def write_left_out(self, bad_videos: Iterable[BadVideo]) -> None:
        """List the videos that could not be read."""
        write_rows(self.left_out, ("name", "reason"), ((bad.video.name, bad.reason) for bad in bad_videos))

    def read_left_out(self) -> Mapping[str, str]:
        """Video name to reason, as `write_left_out` wrote it. OSError: there is no file. InputError: it is damaged."""
        try:
            with self.left_out.open(encoding="utf-8", newline="") as file:
                return {row["name"]: row["reason"] for row in csv.DictReader(file)}
        except (KeyError, ValueError, csv.Error) as error:
            raise InputError(
                f"{self.left_out}: the file is damaged ({error!r}). Copy the run again, or give another --out."
            ) from error

    def write_trained_before(self, names: Iterable[str]) -> None:
        """List the videos that the starting model was trained on. Without any there is no file."""
        self.trained_before.unlink(missing_ok=True)  # of a training that was killed at its start
        rows = [(name,) for name in sorted(names)]
        if rows:
            write_rows(self.trained_before, ("name",), rows)

    def trained_on(self) -> set[str]:
        """The names of all videos that the model was trained on, in this run and in those that it started from.

        A model that was copied without these lists gives none.
        """
        splits = self.read_splits() if self.splits.is_file() else {}
        names = {name for name, split in splits.items() if split == "train"}
        if self.trained_before.is_file():
            names |= {row["name"] for _, row in read_rows(self.trained_before, required=("name",))}
        return names
