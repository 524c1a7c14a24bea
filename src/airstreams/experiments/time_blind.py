"""The videos of `airstreams reproduce time-blind`, and how its models do on other videos of moving noise."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from airstreams.console import Progress, say
from airstreams.data.listing import Source, Video
from airstreams.data.sources import open_source
from airstreams.data.time_blind import MaskMaker, Noise, render, shapes, words
from airstreams.evaluation.evaluate import evaluate
from airstreams.experiments.reproduce import Job
from airstreams.experiments.tables import Table
from airstreams.files import write_json
from airstreams.runs.saved_model import identity_of

SPEEDS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # px per frame
GRAINS = (0.5, 1.0, 1.5, 2.0, 3.0)  # px
QUARTERS = ((0, 90), (90, 180), (180, 270), (270, 360))  # degrees
WORDS = (
    "BALL", "BIRD", "BOOK", "CAKE", "COLD", "DOOR", "FISH", "GOLD", "HAND", "KING",
    "LAMP", "MILK", "MOON", "RAIN", "ROAD", "SALT", "SHIP", "STAR", "TREE", "WIND",
)  # fmt: skip
"""All of four letters, so that their length does not tell them apart."""


@dataclass(frozen=True)
class Videos:
    """The rendered videos of a table.

    folder: in that of the results.
    classes: what makes their masks.
    per_class: how many by split.
    others: settings of more sets of test videos, by name, of `others_per_class` videos.
    """

    folder: str
    classes: Mapping[str, MaskMaker]
    per_class: Mapping[str, int]
    noise: Noise = field(default_factory=Noise)
    others: Mapping[str, Noise] = field(default_factory=dict)
    others_per_class: int = 30


RENDERED = {
    "shapes": Videos(
        "videos",
        shapes(),
        {"train": 1000, "test": 60},
        others={f"speed-{speed}": Noise(speed=(speed, speed)) for speed in SPEEDS}
        | {f"grain-{grain}": Noise(grain=grain) for grain in GRAINS},
    ),
    "words": Videos("words", words(WORDS), {"train": 400, "test": 30}),
    "quarter": Videos(
        "quarter",
        shapes(),
        {"train": 1000, "test": 60},
        Noise(directions=QUARTERS[0]),
        others={f"directions-{first}-{last}": Noise(directions=(first, last)) for first, last in QUARTERS},
        others_per_class=60,
    ),
}
"""By the name that a table has in `Table.renders`."""


@dataclass(frozen=True)
class Score:
    """Top-1 of a run on a set of videos, in 0..1, with its 95 % interval.

    speed: the least and the greatest, in px per frame.
    directions: of the noise inside the masks, in degrees.
    grain: in px.
    model: the digest of the run's model.
    """

    run: str
    videos: str
    speed: tuple[float, float]
    directions: tuple[float, float]
    grain: float
    top1: float
    interval: tuple[float, float]
    model: str

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def planned(out: Path, name: str) -> Source:
    """The videos of a name in `RENDERED`, rendered or not."""
    wanted = RENDERED[name]
    folder = out / wanted.folder
    videos = [
        Video(folder / split / kind / f"{number:05d}.mp4", f"{split}/{kind}/{number:05d}.mp4", (kind,), split)
        for split, count in wanted.per_class.items()
        for kind in wanted.classes
        for number in range(count)
    ]
    return Source(str(folder), tuple(sorted(wanted.classes)), tuple(sorted(videos, key=lambda video: video.name)))


def rendered(out: Path, name: str, console: Console) -> Source:
    """The videos of a name in `RENDERED`. Those that are missing are rendered."""
    source, wanted = planned(out, name), RENDERED[name]
    say(console, f"rendering {len(source.videos):,} videos of moving noise into {source.name}, less those that it has")
    render(source.name, wanted.classes, wanted.per_class, wanted.noise)
    return source


def vary(table: Table, jobs: Sequence[Job], out: Path, known: Path, console: Console) -> list[Score]:
    """Score the first training of each run in `table.others` on the other videos.

    Args:
        table: one that renders its videos.
        jobs: finished.
        out: the folder in which `others` is.
        known: a file of scores, JSON. It is written anew after each set of videos. What it has is not scored again.
        console: gets progress.
    """
    assert table.renders is not None
    wanted = RENDERED[table.renders]
    first = {job.name: job for job in reversed(jobs) if job.name in table.others}
    models = {run: identity_of(job.folder) for run, job in first.items()}
    before = {(score.run, score.videos, score.model): score for score in _read_scores(known)}
    scores = []
    with Progress(console) as progress:
        task = progress.add_task("other videos", len(wanted.others), "sets of videos")
        for name, noise in wanted.others.items():
            missing = [run for run in first if (run, name, models[run]) not in before]
            if missing:
                folder = out / "others" / name
                render(folder, wanted.classes, {"test": wanted.others_per_class}, noise, seed=1)
                source = open_source(str(folder))
                for run in missing:
                    before[run, name, models[run]] = _score(run, name, noise, first[run], models[run], source)
            scores += [before[run, name, models[run]] for run in first]
            write_json(known, [score.as_dict() for score in scores])
            task.advance()
    return scores


def _score(run: str, name: str, noise: Noise, job: Job, model: str, source: Source) -> Score:
    metrics = evaluate(job.folder, source, "test", Console(quiet=True)).metrics
    assert metrics.top1 is not None
    assert metrics.intervals["top1"] is not None
    low, high = metrics.intervals["top1"]
    return Score(run, name, noise.speed, noise.directions, noise.grain, metrics.top1, (low, high), model)


def _read_scores(path: Path) -> list[Score]:
    """The scores of a file; none if it is missing or of another version."""
    if not path.is_file():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        pairs = ("speed", "directions", "interval")
        return [Score(**row | {name: tuple(row[name]) for name in pairs}) for row in rows]
    except (ValueError, TypeError, KeyError):
        return []
