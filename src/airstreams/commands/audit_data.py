"""`airstreams audit-data DATA --run RUN`: find wrong labels, copies and outliers in a data set."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from airstreams.commands.command import (
    DONE,
    FAILED,
    Command,
    add_data,
    add_group_by,
    add_trust_module,
    data_of,
    print_json,
    set_group_by,
)
from airstreams.config import Config
from airstreams.console import Progress, SafeTable, print_line, say, stderr, stdout, warn
from airstreams.plural import count_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airstreams.data.listing import Source
    from airstreams.evaluation.data_audit import Problem
    from airstreams.inference.features import Embedder, VideoFeatures

LISTED = 10
"""The problems that the table shows."""

RUN_HELP = "whose features compare the videos: a run that was not trained on DATA, hf:REPO, or i3d-kinetics400"
WORDS = {
    "label": "doubtful label",
    "duplicate_class": "same video, other label",
    "duplicate_split": "same video, other split",
    "outlier": "unlike all others",
}


def add_arguments(parser: ArgumentParser) -> None:
    """DATA, RUN and the folder of the results."""
    add_data(parser)
    parser.add_argument("--run", metavar="RUN", type=str, required=True, help=RUN_HELP)
    parser.add_argument(
        "--out", metavar="FOLDER", type=Path, default=Path("audit-data"), help="the folder to write (audit-data)"
    )
    add_group_by(parser)
    add_trust_module(parser)


def run(call: Namespace) -> int:
    """Compute features, find problems, write the list and the page. The exit status is FAILED for unreadable videos."""
    from airstreams.data.content import with_contents
    from airstreams.data.grouping import AUTO, with_alike, with_groups
    from airstreams.data.sources import open_source
    from airstreams.evaluation.data_audit import require_audit
    from airstreams.files import require_writable
    from airstreams.inference.features import features_of, load_embedder
    from airstreams.machine import device_named
    from airstreams.viewing.data_audit import row_of, write_page, write_problems

    require_audit()
    config = Config()
    set_group_by(call, config)
    source = open_source(data_of(call), for_training=False)
    embedder = load_embedder(call.run, device_named(call.device or "auto"), call.trust_module, call.precision)
    require_writable(call.out)
    if config.data.group_by != AUTO:
        source = with_groups(source, config.data.group_by, stderr)
    source = with_alike(with_contents(source, stderr), stderr)
    _warn_if_trained_on(embedder, source)
    found = features_of(embedder, source.videos, call.out / "features.safetensors", stderr)
    problems, notes = _problems(source, found)
    write_problems(call.out / "problems.csv", problems)
    with Progress(stderr) as progress:
        write_page(call.out / "index.html", f"Audit of {source.short_name}", notes, problems, progress)
    files = {"csv": str(call.out / "problems.csv"), "page": str(call.out / "index.html")}
    if call.json:
        left_out = [{"path": bad.video.location, "reason": bad.reason} for bad in found.left_out]
        rows = [row_of(problem) for problem in problems]
        print_json({"videos": len(source.videos), "left_out": left_out, "problems": rows, "notes": notes, **files})
        return FAILED if found.left_out else DONE
    _print_problems(problems)
    for note in notes:
        say(stdout, note)
    for bad in found.left_out[:LISTED]:
        print_line(f"left out: {bad.video.location}: {bad.reason}")
    say(stdout, f"Page: {files['page']}. List: {files['csv']}")
    return FAILED if found.left_out else DONE


def _warn_if_trained_on(embedder: "Embedder", source: "Source") -> None:
    """Warn of a run that was trained on these videos: its features have learnt their labels, wrong ones too."""
    from airstreams.runs.folder import RunFolder
    from airstreams.runs.known_videos import KnownVideos

    if embedder.run is None:
        return
    if seen := len(KnownVideos(RunFolder(embedder.run).trained_on()).overlapping(source.videos)):
        warn(
            stderr,
            f"{embedder.run} was trained on {seen} of these {len(source.videos)} videos, so it may have learnt their "
            "wrong labels, and fewer are found. Give --run i3d-kinetics400, or a run that has not seen these videos.",
        )


def _problems(source: "Source", found: "VideoFeatures") -> "tuple[list[Problem], list[str]]":
    """All problems, and sentences about what was found and what was not judged."""
    from airstreams.evaluation.data_audit import (
        Problem,
        duplicates,
        judge_labels,
        label_problems,
        outliers,
        with_recordings,
    )

    group_of = {video.name: video for video in with_recordings(source)}
    videos = [group_of[video.name] for video in found.videos]
    problems, notes = list[Problem](), list[str]()
    if source.multi_label:
        notes.append("Labels were not judged, because videos have several.")
    else:
        judged = judge_labels(videos, found.features_NC)
        problems += label_problems(judged) if judged else []
        if not_judged := len(videos) - (len(judged.videos) if judged else 0):
            notes.append(
                f"{count_of(not_judged, 'label')} not judged: there are too few groups of videos of the class."
            )
    problems += duplicates(source) + outliers(videos, found.features_NC)
    counts = Counter(problem.kind for problem in problems)
    summary = (
        f"{count_of(len(videos), 'video')}: {count_of(counts['label'], 'doubtful label')}, "
        f"{counts['duplicate_class']} nearly identical to a video with another label, {counts['duplicate_split']} to "
        f"one in another split, {count_of(counts['outlier'], 'outlier')}."
    )
    return problems, [summary, *notes]


def _print_problems(problems: "Sequence[Problem]") -> None:
    if not problems:
        return
    table = SafeTable("video", "problem", "label", "suggested", "score")
    for problem in problems[:LISTED]:
        score = "" if problem.score is None else f"{problem.score:.2f}"
        label = ";".join(problem.video.labels)
        table.add_row(problem.video.name, WORDS[problem.kind], label, problem.suggested or "", score)
    stdout.print(table)
    if len(problems) > LISTED:
        say(stdout, f"and {len(problems) - LISTED} more in the list")


COMMAND = Command(
    "Find wrong labels, copies and outliers in a data set",
    "audit-data videos/ --run i3d-kinetics400 --out audit/",
    add_arguments,
    run,
    computes=True,
)
