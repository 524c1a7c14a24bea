"""`airstreams predict RUN PATH...`: name what happens in videos."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from airstreams.commands.command import (
    DONE,
    FAILED,
    RUN_HELP,
    Command,
    add_calibrated,
    add_root,
    add_trust_module,
    print_json,
    require_at_least,
)
from airstreams.config import LEAST_WINDOW
from airstreams.console import Progress, print_line, say, stderr, warn
from airstreams.errors import InputError, VideoError
from airstreams.plural import count_of

if TYPE_CHECKING:
    from airstreams.data.listing import Video
    from airstreams.inference.prediction_file import Answer, PredictionFile, Top
    from airstreams.inference.recogniser import Recogniser

TOP = 5  # classes that are shown
PATHS_HELP = "videos, folders, CSV files with a column path, patterns in quotes, or - for paths from stdin"
OUT_HELP = "write a .csv or .jsonl file that grows; the same call goes on where it stopped"
TIMELINE_HELP = "with --out: a second .csv file, with a row for each window of long videos"
WINDOW_HELP = "the length of a window, s; videos over two windows are scored window by window (default: 10)"


def add_arguments(parser: ArgumentParser) -> None:
    """RUN, videos and options."""
    parser.add_argument("run", metavar="RUN", type=Path, help=f"{RUN_HELP}, or hf:REPO with one")
    parser.add_argument("videos", metavar="PATH", type=str, nargs="+", help=PATHS_HELP)
    add_root(parser)
    parser.add_argument("--out", metavar="FILE", type=Path, help=OUT_HELP)
    parser.add_argument("--timeline", metavar="FILE", type=Path, help=TIMELINE_HELP)
    parser.add_argument("--top", type=int, default=TOP, help="how many classes to show, the most probable first")
    parser.add_argument("--window", metavar="SECONDS", type=float, help=WINDOW_HELP)
    parser.add_argument("--workers", type=int, default=2, help="how many threads decode ahead")
    add_calibrated(parser)
    add_trust_module(parser)


def run(call: Namespace) -> int:
    """Predict videos. The exit status is FAILED where one cannot be read."""
    from airstreams import api
    from airstreams.data.clips import frame_rate_warning
    from airstreams.distributed import SharedProgress, device_of_process, gather, is_main_process, share

    _check(call)
    device = device_of_process(call.device or "auto")
    name = "cpu" if device.type == "cpu" else str(device)  # torchrun numbers CPUs too
    recogniser = api.load(call.run, name, call.trust_module, call.precision, call.calibrated)
    file = _file(call, recogniser)
    answers: list[Answer] = []
    left_out: list[Answer] = []
    rates: list[float] = []
    with file.locked() if file else nullcontext(), Progress(stderr) as progress:
        videos, done = _pending(call, file)
        own = share(videos)
        task = progress.add_task("predicting", len(own), brief=file is None, shared=SharedProgress())
        for answer, rate in _answers(call, recogniser, own):
            if file is not None:
                file.append(answer)
            if rate is not None:
                rates.append(rate)
            if answer.left_out is not None:
                left_out.append(answer)
                warn(stderr, f"{answer.path}: left out: {answer.left_out}")
            elif call.json:
                answers.append(answer)
            elif file is None:
                _print_answer(answer)
            task.advance()
        # Under torchrun all processes wait here, so that the first one keeps the lock until the last row.
        answers, left_out, rates = gather(answers), gather(left_out), gather(rates)
    status = FAILED if left_out else DONE
    if not is_main_process():
        return status
    if warning := frame_rate_warning(rates, recogniser.saved.frame_rate, recogniser.config.clip):
        warn(stderr, warning)
    if call.json:
        rows = {"videos": [a.as_json() for a in answers], "left_out": [a.as_json() for a in left_out]}
        print_json({**rows, "precision": recogniser.saved.precision})
    if file is None and len(left_out) > 1:
        say(stderr, f"{len(left_out)} of {count_of(len(videos), 'video')} left out")
    if file is not None:
        new = f"{count_of(len(videos) - len(left_out), 'video')} predicted, {len(left_out)} left out"
        say(stderr, f"{new}{f', {done} done before' if done else ''}: {file.path}")
    return status


def _check(call: Namespace) -> None:
    """Refuse options that cannot work, before the model is loaded."""
    from airstreams.inference.prediction_file import SUFFIXES

    require_at_least(call, top=1, workers=1)
    if call.window is not None and not LEAST_WINDOW <= call.window < float("inf"):
        raise InputError(f"--window {call.window}: expected at least {LEAST_WINDOW} s")
    if call.out is not None and call.out.suffix.lower() not in SUFFIXES:
        raise InputError(f"--out {call.out}: the suffix is {call.out.suffix or 'missing'}. Give a .csv or .jsonl file.")
    if call.timeline is not None and call.out is None:
        raise InputError("--timeline goes with --out, which says what is done. Give --out FILE.csv too.")
    if call.timeline is not None and (call.timeline.suffix.lower() != ".csv" or call.timeline == call.out):
        raise InputError(f"--timeline {call.timeline}: expected another .csv file than --out. Give one.")
    if os.environ.get("WORLD_SIZE", "1") != "1" and call.out is None and not call.json:
        raise InputError("torchrun: several processes cannot share stdout. Give --out FILE, or --json.")


def _file(call: Namespace, recogniser: "Recogniser") -> "PredictionFile | None":
    from airstreams.inference.prediction_file import PredictionFile, Settings
    from airstreams.runs.saved_model import identity_of

    if call.out is None:
        return None
    window = recogniser.config.evaluation.window if call.window is None else call.window
    top = min(call.top, len(recogniser.classes))
    timeline = None if call.timeline is None else call.timeline.name
    model, precision = identity_of(recogniser.run), recogniser.saved.precision
    settings = Settings(model, top, window, timeline, precision, call.calibrated)
    return PredictionFile(call.out, settings, call.timeline)


def _pending(call: Namespace, file: "PredictionFile | None") -> "tuple[list[Video], int]":
    """The videos to predict, the same in all processes, and how many of the call's videos FILE already has."""
    from airstreams.distributed import gather, is_main_process
    from airstreams.inference.inputs import list_videos

    listed = []
    if is_main_process():
        found = list_videos(call.videos, sys.stdin.buffer, call.root)
        for note in found.notes:
            say(stderr, note)
        finished = set() if file is None else file.begin()
        pending = [video for video in found.videos if video.name not in finished]
        listed.append((pending, len(found.videos) - len(pending)))
    return gather(listed)[0]


def _answers(
    call: Namespace, recogniser: "Recogniser", videos: "Sequence[Video]"
) -> "Iterator[tuple[Answer, float | None]]":
    """Each video's answer, and the frames per second of its file."""
    from airstreams.inference.prediction_file import Answer

    results = recogniser.predict_many(videos, call.workers, call.window)
    for video, result in zip(videos, results, strict=True):
        yield Answer.of(video, result, call.top), None if isinstance(result, VideoError) else result.fps


def _print_answer(answer: "Answer") -> None:
    segment = "" if answer.start is None and answer.end is None else f" {_times(answer.start, answer.end)}"
    print_line(f"{answer.path}{segment}: {_as_text(answer.top)}")
    for start, end, top in answer.windows:
        print_line(f"  {_times(start, end)}: {_as_text(top)}")


def _times(start: float | None, end: float | None) -> str:
    return f"{start or 0:.1f} s to the end" if end is None else f"{start or 0:.1f} to {end:.1f} s"


def _as_text(top: "Top") -> str:
    return ", ".join(f"{label} {probability:.1%}" for label, probability in top)


COMMAND = Command(
    "Name what happens in videos",
    "predict runs/mine clips/ --out answers.csv",
    add_arguments,
    run,
    computes=True,
    under_torchrun=True,
    after_interrupt="With --out FILE, the same call goes on.",
)
