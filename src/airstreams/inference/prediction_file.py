"""The FILE of `predict --out`: one row for each video, in CSV or JSON Lines, which grows while videos are predicted.

The same call goes on where it stopped. FILE.settings.json beside it holds the model and the options, so rows of two
models never mix. A row is written at once, so a kill leaves at most one torn row, the last. The next call removes it,
and the rows of videos that were left out, which it tries again.
"""

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from airstreams.data.listing import Video
from airstreams.errors import InputError, VideoError
from airstreams.files import csv_rows, exclusive_lock_file, guarded, replacing, require_writable, write_json
from airstreams.inference.parts import Prediction

SUFFIXES = (".csv", ".jsonl")
VIDEO_COLUMNS = ("path", "start", "end", "left_out")
WINDOW_COLUMNS = ("path", "start", "end")

Top = list[tuple[str, float]]
"""Labels with their probabilities, the highest first."""


@dataclass(frozen=True)
class Answer:
    """A video's row.

    path: as it was given.
    start, end: of a segment, s; None for a whole video.
    top: empty for a video that was left out.
    windows: start, end and top of each window of a long video.
    left_out: why the video could not be read; None for a good one.
    """

    path: str
    start: float | None
    end: float | None
    top: Top = field(default_factory=list)
    windows: list[tuple[float, float, Top]] = field(default_factory=list)
    left_out: str | None = None

    @classmethod
    def of(cls, video: Video, result: Prediction | VideoError, top: int) -> "Answer":
        """The answer with the `top` most probable classes."""
        path = video.name.rpartition("#t=")[0] if (video.start, video.end) != (None, None) else video.name
        if isinstance(result, VideoError):
            return cls(path, video.start, video.end, left_out=result.reason)
        windows = [(w.start, w.end, list(w.probabilities.items())[:top]) for w in result.windows]
        return cls(path, video.start, video.end, list(result.probabilities.items())[:top], windows)

    def as_json(self) -> dict[str, Any]:
        """As `predict --json` prints it: under "videos", or, with a reason, under "left_out"."""
        segment = {name: time for name, time in (("start", self.start), ("end", self.end)) if time is not None}
        if self.left_out is not None:
            return {"path": self.path, **segment, "reason": self.left_out}
        windows = [{"start": start, "end": end, "top": _top_as_json(top)} for start, end, top in self.windows]
        return {"path": self.path, **segment, "top": _top_as_json(self.top), "windows": windows}


@dataclass(frozen=True)
class Settings:
    """What all rows of a FILE share.

    model: the model's identity.
    top: how many classes each row has.
    window: the length of a window, s.
    timeline: the name of a second file, with a row for each window; None: there is none.
    precision: in which the model runs; None in files of versions up to 0.2.
    calibrated: whether the answer's logits are divided by the model's temperature.
    """

    model: str
    top: int
    window: float
    timeline: str | None
    precision: str | None = None
    calibrated: bool = False


class PredictionFile:
    """A FILE and, perhaps, its timeline.

    Args:
        path: with the suffix .csv or .jsonl.
        settings: of this call.
        timeline: a CSV file with a row for each window; None: there is none.
    """

    def __init__(self, path: Path, settings: Settings, timeline: Path | None = None) -> None:
        self.path = path
        self.settings = settings
        self.timeline = timeline

    def locked(self) -> AbstractContextManager[None]:
        """Lock FILE against other calls. Of the processes of `torchrun`, the first locks it for all of them."""
        if os.environ.get("RANK", "0") != "0":
            return nullcontext()
        require_writable(self.path.parent)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        complaint = "another call of predict is writing it"
        return exclusive_lock_file(self.path.with_name(f".{self.path.name}.lock"), self.path, complaint)

    def begin(self) -> set[str]:
        """Start FILE, or repair one that an earlier call left.

        Returns:
            The names of the videos (`Video.name`) that are done.

        Raises:
            InputError: FILE is another job's, or no job of predict wrote it.
        """
        settings_path = self.path.with_name(f"{self.path.name}.settings.json")
        if self.path.exists():
            self._require_own(settings_path)
        elif self.timeline is not None and self.timeline.exists():
            raise InputError(f"{self.timeline} is already there, but {self.path} is not. Delete it, or give another.")
        else:
            write_json(settings_path, asdict(self.settings))
        done = {_name(row): (row["path"], row["start"], row["end"]) for row in self._rows() if not row["left_out"]}
        with replacing(self.path) as temporary, temporary.open("wb") as file:
            file.write(self._header(VIDEO_COLUMNS) if self._is_csv else b"")
            file.writelines(line for row, line in self._lines() if not row["left_out"])
        if self.timeline is not None:
            self._repair_timeline(done.values())
        return set(done)

    def append(self, answer: Answer) -> None:
        """Write a video's row, and before it those of its windows. Several processes may do so."""
        if self.timeline is not None and answer.windows:
            rows = (
                _as_csv([answer.path, round(start, 3), round(end, 3), *_cells(top)])
                for start, end, top in answer.windows
            )
            _append(self.timeline, b"".join(rows))
        if self._is_csv:
            blank = [""] * (2 * self.settings.top - 2 * len(answer.top))
            cells = [answer.path, answer.start, answer.end, answer.left_out, *_cells(answer.top), *blank]
            _append(self.path, _as_csv(cells))
        else:
            row = answer.as_json()
            if answer.left_out is not None:
                row["left_out"] = row.pop("reason")
            _append(self.path, json.dumps(row, allow_nan=False).encode() + b"\n")

    @property
    def _is_csv(self) -> bool:
        return self.path.suffix.lower() == ".csv"

    def _header(self, columns: Sequence[str]) -> bytes:
        classes = [f"{name}_{rank}" for rank in range(1, self.settings.top + 1) for name in ("label", "probability")]
        return _as_csv([*columns, *classes])

    def _require_own(self, settings_path: Path) -> None:
        other = f"Give another --out, or delete {self.path}."
        try:
            found = Settings(**json.loads(settings_path.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise InputError(
                f"{self.path} is already there, and there is no {settings_path.name} beside it to go on with. {other}"
            ) from error
        except (ValueError, TypeError) as error:
            raise InputError(f"{settings_path} is damaged. {other}") from error
        own = self.settings
        if found.model != own.model:
            raise InputError(f"{self.path} has the predictions of another model. {other}")
        if found.precision is None:
            found = replace(found, precision=own.precision)
        for option in ("top", "window", "timeline", "precision", "calibrated"):
            before, now = getattr(found, option), getattr(own, option)
            if before != now:
                raise InputError(f"{self.path} was begun with --{option} {before}, not {now}. Give the same. {other}")

    def _rows(self) -> Iterator[dict[str, Any]]:
        return (row for row, _ in self._lines())

    def _lines(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        """The whole rows of FILE, each with the bytes of its line."""
        if not self.path.exists():
            return
        if self._is_csv:
            yield from _csv_lines(self.path, len(VIDEO_COLUMNS) + 2 * self.settings.top)
            return
        with self.path.open("rb") as file:
            for line in file:
                try:
                    row = json.loads(line)
                except ValueError:  # torn
                    continue
                if line.endswith(b"\n"):
                    yield {"start": None, "end": None, "left_out": None} | row, line

    def _repair_timeline(self, done: Iterable[tuple[str, object, object]]) -> None:
        """Keep the windows of the videos that are done."""
        assert self.timeline is not None
        segments: dict[str, list[tuple[float, float]]] = {}
        for path, start, end in done:
            segments.setdefault(path, []).append((float(start or 0), float(end or "inf")))  # type: ignore[arg-type]
        lines = _csv_lines(self.timeline, len(WINDOW_COLUMNS) + 2 * self.settings.top) if self.timeline.exists() else ()
        with replacing(self.timeline) as temporary, temporary.open("wb") as file:
            file.write(self._header(WINDOW_COLUMNS))
            for row, line in lines:
                start, end = float(row["start"]), float(row["end"])
                if any(first - 0.001 <= start and end <= last + 0.001 for first, last in segments.get(row["path"], ())):
                    file.write(line)


def _csv_lines(path: Path, cells: int) -> Iterator[tuple[dict[str, Any], bytes]]:
    """The whole rows of a CSV file of ours, each with its line. Without a line break at its end, the last is torn."""
    with path.open("rb") as binary:
        binary.seek(0, os.SEEK_END)
        if binary.tell():
            binary.seek(-1, os.SEEK_END)
        torn = binary.read(1) != b"\n"
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        reader = csv_rows(file)
        _, header = next(reader, (0, []))
        last: list[str] | None = None
        for _, row in reader:
            if last is not None and len(last) == cells:
                yield dict(zip(header, last, strict=True)), _as_csv(last)
            last = row
        if last is not None and len(last) == cells and not torn:
            yield dict(zip(header, last, strict=True)), _as_csv(last)


def _name(row: dict[str, Any]) -> str:
    start, end = (None if row[key] in (None, "") else float(row[key]) for key in ("start", "end"))
    times = ("" if time is None else f"{time}" for time in (start, end))
    segment = "" if start is None and end is None else f"#t={','.join(times)}"
    return f"{row['path']}{segment}"


def _cells(top: Top) -> list[str]:
    return [cell for label, probability in top for cell in (label, f"{probability:.6f}")]


def _top_as_json(top: Top) -> list[dict[str, Any]]:
    return [{"label": label, "probability": probability} for label, probability in top]


def _as_csv(cells: Sequence[object]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(map(guarded, cells))
    return text.getvalue().encode("utf-8", "surrogateescape")


def _append(path: Path, lines: bytes) -> None:
    """Append whole lines by one write, which those of other processes do not interrupt."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        while lines:
            lines = lines[os.write(descriptor, lines) :]
    finally:
        os.close(descriptor)
