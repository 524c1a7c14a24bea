"""The run folder: every file name in it, who may begin, resume or replace a run, and the lists of videos it keeps."""

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from airstreams.data.check import BadVideo
from airstreams.data.csv_list import check_split
from airstreams.data.listing import SPLITS, UNLABELLED, Source, to_nfc
from airstreams.errors import InputError
from airstreams.files import read_rows, unguarded, write_json, write_rows
from airstreams.runs.known_videos import KnownVideo


@dataclass(frozen=True)
class EvaluationFolder:
    """What `airstreams evaluate` leaves of one split."""

    path: Path

    @property
    def is_own_split(self) -> bool:
        """Whether the results are those of a split of the run itself, not of other data."""
        return self.path.name in SPLITS

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
    def calibration_plot(self) -> Path:
        """How often the answer is right, by its probability."""
        return self.path / "calibration.png"

    @property
    def picture(self) -> Path:
        """What flow and segmenter see in four videos."""
        return self.path / "representations.png"

    @property
    def mistakes(self) -> Path:
        """A folder of pictures: frames of the videos of the most confident mistakes."""
        return self.path / "mistakes"

    @property
    def audit(self) -> Path:
        """A folder of what the answers rest on: the scores of counterfactual videos, and the streams' shares."""
        return self.path / "audit"

    @property
    def grad_cam(self) -> Path:
        """A folder of pictures: where the model looks in the videos of some answers."""
        return self.audit / "grad_cam"


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
    def trackers(self) -> Path:
        """The ids of the run in other trackers than TensorBoard, JSON."""
        return self.path / "trackers.json"

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
    def frame_tables(self) -> Path:
        """The frame times of the files whose frames had to be counted. See `kept_tables.py`."""
        return self.states / "frame_times.npz"

    @property
    def splits(self) -> Path:
        """Which video was used for what."""
        return self.path / "split.csv"

    @property
    def left_out(self) -> Path:
        """The videos that could not be read, with the reasons."""
        return self.path / "left_out.csv"

    @property
    def data_warnings(self) -> Path:
        """The warnings about the data at the run's beginning, a JSON list of lines. Older runs have none."""
        return self.path / "data_warnings.json"

    @property
    def trained_before(self) -> Path:
        """The videos that the starting model of `--init` was trained on."""
        return self.path / "learnt_before.csv"

    @property
    def start(self) -> Path:
        """What the training started from, and which weights it took, JSON."""
        return self.path / "start.json"

    @property
    def card(self) -> Path:
        """The model card, Markdown. Training writes it at its end, and evaluation again."""
        return self.path / "MODEL_CARD.md"

    @property
    def card_facts(self) -> Path:
        """What the model card says that no other file does, JSON."""
        return self.path / "card.json"

    @property
    def report(self) -> Path:
        """The page of `airstreams report`."""
        return self.path / "report.html"

    def evaluation(self, split: str, data: str | None = None) -> EvaluationFolder:
        """The results of one split.

        Args:
            split: "train", "val" or "test".
            data: DATA with other videos than the run's own split; None: the run's own split.
        """
        return EvaluationFolder(self._evaluations / (split if data is None else f"{_folder_name(data)}-{split}"))

    def evaluations(self) -> list[EvaluationFolder]:
        """The results of all that was scored: the run's own splits, test first, then other data by name."""
        folders = [EvaluationFolder(path) for path in self._evaluations.glob("*")]
        found = [folder for folder in folders if folder.metrics.is_file()]
        return sorted(found, key=lambda folder: (not folder.is_own_split, folder.path.name != "test", folder.path.name))

    @property
    def _evaluations(self) -> Path:
        """The parent of the folders of all splits."""
        return self.path / "evaluation"

    def has_begun(self) -> bool:
        """Whether the folder holds a run that can be resumed."""
        return self.config.is_file()

    def may_begin(self) -> bool:
        """Whether a new training may write here: the folder is new, or holds the remains of one killed at its start."""
        begun = (self.left_out, self.splits, self.data_warnings, self.trained_before, self.start, self.states)
        remains = {file.name for file in begun}
        if not self.path.exists():
            return True
        if not self.path.is_dir():
            return False
        return all(file.name in remains or file.name.startswith(".") for file in self.path.iterdir())

    def write_splits(self, source: Source) -> None:
        """Write the split of each video, which every video must have, its labels, joined by `;`, and its content.

        The label of unlabelled videos is `_unlabelled`.
        """
        labels = {video.name: UNLABELLED for video in source.unlabelled}
        rows = (
            (video.name, video.split or "", labels.get(video.name) or ";".join(video.labels), video.content or "")
            for video in source.all_videos
        )
        write_rows(self.splits, ("name", "split", "label", "content"), rows)

    def read_splits(self) -> dict[str, str]:
        """Video name to split, as `write_splits` wrote it. InputError: the file is missing or damaged."""
        return {video.name: video.split for video in self.read_videos()}

    def read_videos(self) -> list[KnownVideo]:
        """The videos with their splits, as `write_splits` wrote them. InputError: the file is missing or damaged."""
        videos: dict[str, KnownVideo] = {}
        for line, row in self._split_rows():
            check_split(self.splits, line, row["split"])
            name = to_nfc(row["name"])
            if name in videos:
                raise InputError(f"{self.splits}, line {line}: {name} is listed twice. Delete one of the lines.")
            videos[name] = KnownVideo(name, row["split"], row["content"] or None, self._label_of(row))
        return list(videos.values())

    @staticmethod
    def _label_of(row: Mapping[str, str]) -> str | None:
        """The labels of a row of the splits; None if it has none, or in the files of earlier versions."""
        return None if row["label"] in ("", UNLABELLED) else to_nfc(row["label"])

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
            if row["split"] == "train" and row["label"] not in ("", UNLABELLED) and row["name"] not in left_out
        ]

    def unlabelled_names(self) -> set[str]:
        """The names of the unlabelled videos that the run was trained on. InputError: the list is missing."""
        return {to_nfc(row["name"]) for _, row in self._split_rows() if row["label"] == UNLABELLED}

    def split_sizes(self) -> Counter[str]:
        """How many videos each split has, without the unlabelled ones. Those have a count of their own, `_unlabelled`.

        A folder without the list of videos gives no counts.
        """
        if not self.splits.is_file():
            return Counter()
        rows = [row for _, row in self._split_rows()]
        return Counter(UNLABELLED if row["label"] == UNLABELLED else row["split"] for row in rows)

    def _split_rows(self) -> list[tuple[int, dict[str, str]]]:
        return read_rows(self.splits, required=("name", "split"), optional=("label", "content"))

    def write_data_warnings(self, warnings: Sequence[str]) -> None:
        """Write the warnings about the data, without the word "warning"."""
        write_json(self.data_warnings, list(warnings))

    def read_data_warnings(self) -> list[str]:
        """The warnings, as `write_data_warnings` wrote them; of a run without that file, none."""
        with suppress(OSError, ValueError):
            return [str(line) for line in json.loads(self.data_warnings.read_text(encoding="utf-8"))]
        return []

    def write_left_out(self, bad_videos: Iterable[BadVideo]) -> None:
        """List the videos that could not be read."""
        write_rows(self.left_out, ("name", "reason"), ((bad.video.name, bad.reason) for bad in bad_videos))

    def read_left_out(self) -> Mapping[str, str]:
        """Video name to reason, as `write_left_out` wrote it. OSError: there is no file. InputError: it is damaged."""
        try:
            with self.left_out.open(encoding="utf-8", newline="") as file:
                rows = csv.DictReader(file)
                return {unguarded(row["name"]): unguarded(row["reason"]) for row in rows}
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise InputError(
                f"{self.left_out}: the file is damaged ({error!r}). Copy the run again, or give another --out."
            ) from error

    def write_trained_before(self, videos: Iterable[KnownVideo]) -> None:
        """List the videos that the starting model was trained on. Without any there is no file."""
        self.trained_before.unlink(missing_ok=True)  # of a training that was killed at its start
        rows = sorted({(video.name, video.content or "") for video in videos})
        if rows:
            width = 2 if any(content for _, content in rows) else 1
            write_rows(self.trained_before, ("name", "content")[:width], (row[:width] for row in rows))

    def trained_on(self) -> list[KnownVideo]:
        """All videos that the model was trained on, in this run and in those that it started from.

        A model that was copied without these lists gives none.
        """
        videos = self.read_videos() if self.splits.is_file() else []
        videos = [video for video in videos if video.split == "train"]
        if self.trained_before.is_file():
            rows = read_rows(self.trained_before, required=("name",), optional=("content",))
            videos += [KnownVideo(row["name"], "train", row["content"] or None) for _, row in rows]
        return videos


def _folder_name(data: str) -> str:
    """A name made from DATA: its last part, and digits that tell apart two DATA with the same last part."""
    file, mark, options = (data, "", "") if Path(data).exists() else data.partition("?")
    path = Path(file)
    if path.exists():  # the same from every working folder
        path = path.resolve()
    address, last = f"{path}{mark}{options}", path.name
    readable = re.sub(r"[^\w.]+", "-", to_nfc(last)).strip("-.")[:40]
    return "-".join(filter(None, (readable, sha256(os.fsencode(address)).hexdigest()[:8])))
