"""What an audit of a data set found: a CSV file, and a page with frames of each video. The page needs no other file.

Its template is `data_audit.html`.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from airstreams.console import Progress
from airstreams.data.listing import Video
from airstreams.errors import VideoError
from airstreams.evaluation.data_audit import Problem
from airstreams.files import replacing, write_rows
from airstreams.viewing.mistakes import frame_strip

COLUMNS = ("path", "problem", "label", "suggested_label", "score", "other_path")
MOST_STRIPS = 100  # of each kind of problem
TITLES = {
    "label": "Doubtful labels",
    "duplicate_class": "Nearly identical videos with different labels",
    "duplicate_split": "Nearly identical videos in different splits",
    "outlier": "Videos unlike all others",
}


@dataclass(frozen=True)
class _Shown:
    """A problem on the page. strips: frames of the video and of the other one, as `data:` addresses, or why not."""

    text: str
    path: str
    other_path: str
    strips: list[tuple[str, str]]


def row_of(problem: Problem) -> dict[str, str | float | None]:
    """A problem as JSON and as a row of the CSV file, by column."""
    other = problem.other
    values = (
        problem.video.location,
        problem.kind,
        ";".join(problem.video.labels),
        problem.suggested,
        None if problem.score is None else round(problem.score, 4),
        None if other is None else other.location,
    )
    return dict(zip(COLUMNS, values, strict=True))


def write_problems(path: Path, problems: Sequence[Problem]) -> None:
    """Write the CSV file, a row for each problem."""
    rows = (["" if cell is None else cell for cell in row_of(problem).values()] for problem in problems)
    write_rows(path, COLUMNS, rows)


def write_page(path: Path, title: str, notes: Sequence[str], problems: Sequence[Problem], progress: Progress) -> None:
    """Write the page. It has frames of the first `MOST_STRIPS` problems of each kind, and lists the others.

    notes: sentences at its top.
    """
    environment = Environment(
        loader=PackageLoader("airstreams", "viewing"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sections = []
    for kind, heading in TITLES.items():
        found = [problem for problem in problems if problem.kind == kind]
        first, rest = found[:MOST_STRIPS], found[MOST_STRIPS:]
        shown = [_shown(problem) for problem in progress.track(first, len(first), "drawing frames", brief=True)]
        sections.append((heading, len(found), shown, [(_text(problem), problem.video.name) for problem in rest]))
    page = environment.get_template("data_audit.html").render(title=title, notes=notes, sections=sections)
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _shown(problem: Problem) -> _Shown:
    videos = [video for video in (problem.video, problem.other) if video is not None]
    other = "" if problem.other is None else problem.other.name
    return _Shown(_text(problem), problem.video.name, other, [_strip(video) for video in videos])


def _text(problem: Problem) -> str:
    """What is wrong, in a few words."""
    label = ";".join(problem.video.labels) or "no label"
    if problem.other is not None:
        other = ";".join(problem.other.labels) or "no label"
        if problem.kind == "duplicate_split":
            return f"{label} ({problem.video.split}), the other one: {other} ({problem.other.split})"
        return f"{label}, the other one: {other}"
    score = "" if problem.score is None else f" (score {problem.score:.2f})"
    return f"{label}{'' if problem.suggested is None else f', but the classifier says {problem.suggested}'}{score}"


def _strip(video: Video) -> tuple[str, str]:
    """A `data:` address and the alternative text; an empty address for a video that cannot be read."""
    try:
        content = base64.b64encode(frame_strip(video)).decode()
    except VideoError as error:
        return "", f"No frames of {video.name}: {error.reason}"
    return f"data:image/jpeg;base64,{content}", f"Frames of {video.name}"
