"""`airstreams annotate DATA --teacher NAME --out LABELS`: a teacher's targets for every video."""

from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from airstreams.commands.command import (
    DONE,
    FAILED,
    Command,
    add_data,
    data_of,
    print_json,
    require_at_least,
)
from airstreams.console import print_line, say, stderr, stdout
from airstreams.errors import InputError
from airstreams.files import lock_of_job
from airstreams.plural import count_of

if TYPE_CHECKING:
    from airstreams.teachers.annotate import AnnotationResult


def add_arguments(parser: ArgumentParser) -> None:
    """DATA, the teacher, and how it is run."""
    add_data(parser)
    parser.add_argument(
        "--teacher",
        metavar="NAME",
        required=True,
        type=str,
        help="maskrcnn, i3d-kinetics400, torchvision:NAME, hf:MODEL, onnx:FILE, FILE.py:FACTORY, or ensemble:A,B,C of "
        "teachers or folders of label maps",
    )
    parser.add_argument(
        "--out", metavar="LABELS", type=Path, required=True, help="folder of the targets; existing ones are kept"
    )
    parser.add_argument("--stride", metavar="N", type=int, default=1, help="use every n-th frame")
    parser.add_argument("--max-side", metavar="PX", type=int, help="reduce larger frames to this many px first")
    parser.add_argument(
        "--classes",
        metavar="A,B,...",
        type=str,
        help="classes of label maps to keep, joined by commas",
    )
    parser.add_argument("--score-threshold", metavar="X", type=float, help="drop detections below this score (0.5)")
    parser.add_argument(
        "--unsure-from",
        metavar="X",
        type=float,
        help="from this score up to the threshold, give no label",
    )
    parser.add_argument(
        "--votes", metavar="N", type=int, help="ensemble:A,B,C: how many must name a pixel's class (over half)"
    )
    parser.add_argument("--batch-size", metavar="N", type=int, default=16, help="frames per call of the teacher")
    parser.add_argument("--workers", metavar="N", type=int, default=2, help="processes that decode")


def run(call: Namespace) -> int:
    """Annotate the files that have no targets yet. The exit status is FAILED where a file has none in the end."""
    from airstreams.data.sources import open_source
    from airstreams.distributed import device_of_process
    from airstreams.teachers import annotate as job
    from airstreams.teachers.ensemble import PREFIX, votes_needed
    from airstreams.teachers.teacher import load_teacher
    from airstreams.teachers.vote_of_stores import stores_of, vote_of_stores

    require_at_least(call, batch_size=1, workers=0)
    given = {name: call[name] for name in ("score_threshold", "unsure_from", "votes") if call[name] is not None}
    is_vote = call.teacher.startswith(PREFIX)
    if is_vote:
        given["votes"] = votes_needed(call.teacher, call.votes)
    classes = None if call.classes is None else tuple(name.strip() for name in call.classes.split(","))
    settings = job.Settings(call.stride, call.max_side, classes, given)
    source = open_source(data_of(call), for_training=False)
    stores = stores_of(call.teacher) if is_vote else []
    if stores:
        _require_no_teacher_options(call)
        device_of_process("cpu")
        with lock_of_job(call.out, "annotating"):
            result = vote_of_stores(source, stores, int(given["votes"]), call.stride, call.out, stderr)
        return _report(call, result)
    teacher = load_teacher(call.teacher, given, device_of_process(call.device or "auto"), call.precision or "auto")
    with lock_of_job(call.out, "annotating"):
        result = job.annotate(source.all_videos, teacher, settings, call.out, call.batch_size, call.workers, stderr)
    return _report(call, result)


def _require_no_teacher_options(call: Namespace) -> None:
    """InputError: an option has no effect on label maps that exist already."""
    for name in ("max_side", "classes", "score_threshold", "unsure_from"):
        if call[name] is not None:
            raise InputError(
                f"--{name.replace('_', '-')}: the label maps of {call.teacher} exist already. Leave it out."
            )


def _report(call: Namespace, result: "AnnotationResult") -> int:
    from airstreams.distributed import is_main_process

    if not is_main_process():
        return DONE
    labelled = result.files - len(result.left_out) - len(result.missing)
    if call.json:
        print_json(
            {
                "videos": result.files,
                "labelled": labelled,
                "frames": result.frames,  # in this call
                "seconds": result.seconds,
                "left_out": [{"path": path, "reason": reason} for path, reason in result.left_out],
                "missing": result.missing,
            }
        )
        return FAILED if result.left_out or result.missing else DONE
    for path, reason in result.left_out:
        print_line(f"left out: {path}: {reason}")
    for path in result.missing:
        print_line(f"missing: {path}: no targets. Give the same command again.")
    rate = result.frames / result.seconds
    say(
        stdout,
        f"{labelled} of {result.files} files labelled; {count_of(result.frames, 'frame')} in this call, {rate:.1f}/s",
    )
    return FAILED if result.left_out or result.missing else DONE


COMMAND = Command(
    "Let a teacher annotate videos",
    "annotate videos/ --teacher maskrcnn --out labels/",
    add_arguments,
    run,
    under_torchrun=True,
    computes=True,
    after_interrupt="Give the same command again to go on.",
)
