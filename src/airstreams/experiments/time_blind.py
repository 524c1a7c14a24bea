"""The videos of `airstreams reproduce time-blind`, and how its models do on other speeds and grains of the noise."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from airstreams.console import Progress, say
from airstreams.data.listing import Source, Video
from airstreams.data.sources import open_source
from airstreams.data.time_blind import SHAPES, Noise, render, shapes
from airstreams.evaluation.evaluate import evaluate
from airstreams.experiments.reproduce import Job

VIDEOS_PER_CLASS = {"train": 1000, "test": 60}
OTHER_VIDEOS_PER_CLASS = {"test": 30}
SPEEDS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # px per frame
GRAINS = (0.5, 1.0, 1.5, 2.0, 3.0)  # px
SHOWN = ("blind rgb", "blind rgb+flow", "blind rgb+flow warped")


@dataclass(frozen=True)
class Score:
    """Top-1 of a run on a set of videos, in 0..1, with its 95 % interval.

    speed: the least and the greatest, in px per frame.
    grain: in px.
    """

    run: str
    videos: str
    speed: tuple[float, float]
    grain: float
    top1: float
    interval: tuple[float, float]

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def planned(out: Path) -> Source:
    """The table's videos, rendered or not."""
    folder = out / "videos"
    videos = [
        Video(folder / split / kind / f"{number:05d}.mp4", f"{split}/{kind}/{number:05d}.mp4", (kind,), split)
        for split, count in VIDEOS_PER_CLASS.items()
        for kind in SHAPES
        for number in range(count)
    ]
    return Source(str(folder), tuple(sorted(SHAPES)), tuple(sorted(videos, key=lambda video: video.name)))


def rendered(out: Path, console: Console) -> Source:
    """The table's videos. Those that are missing are rendered."""
    source = planned(out)
    say(console, f"rendering {len(source.videos):,} videos of moving noise into {source.name}, less those that it has")
    render(source.name, shapes(), VIDEOS_PER_CLASS)
    return source


def vary(jobs: Sequence[Job], out: Path, console: Console) -> list[Score]:
    """Score the first training of each run in `SHOWN` on other speeds and on other grains of the noise.

    Results are kept in the runs. A repeated call scores again, but renders no video twice.
    """
    first = {job.name: job for job in reversed(jobs) if job.name in SHOWN}
    settings = {f"speed-{speed}": Noise(speed=(speed, speed)) for speed in SPEEDS}
    settings |= {f"grain-{grain}": Noise(grain=grain) for grain in GRAINS}
    scores = []
    with Progress(console) as progress:
        task = progress.add_task("other speeds and grains", len(settings), "sets of videos")
        for name, noise in settings.items():
            folder = out / "others" / name
            render(folder, shapes(), OTHER_VIDEOS_PER_CLASS, noise, seed=1)
            source = open_source(str(folder))
            for run, job in first.items():
                metrics = evaluate(job.folder, source, "test", Console(quiet=True)).metrics
                assert metrics.top1 is not None
                assert metrics.intervals["top1"] is not None
                low, high = metrics.intervals["top1"]
                scores.append(Score(run, name, noise.speed, noise.grain, metrics.top1, (low, high)))
            task.advance()
    return scores
