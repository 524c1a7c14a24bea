"""`airstreams predict RUN VIDEO...`: name what happens in videos."""

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from airstreams.commands.command import DONE, FAILED, RUN_HELP, Command, print_json
from airstreams.console import Progress, stderr, warn
from airstreams.errors import InputError, VideoError

TOP = 5  # classes that are shown


def add_arguments(parser: ArgumentParser) -> None:
    """RUN and videos."""
    parser.add_argument("run", metavar="RUN", type=Path, help=RUN_HELP)
    parser.add_argument("videos", metavar="VIDEO", type=str, nargs="+", help="video files")


def run(call: Namespace) -> int:
    """Predict video by video. The exit status is FAILED where one cannot be read."""
    from airstreams import api
    from airstreams.data.clips import frame_rate_warning

    recogniser = api.load(call.run, call.device)
    if not any(Path(video).exists() for video in call.videos):
        raise InputError(f"no such file: {', '.join(call.videos[:5])}. Give video files on this machine.")
    answers: list[dict[str, Any]] = []
    left_out: list[dict[str, str]] = []
    rates: list[float] = []
    with Progress(stderr) as progress:
        for path in progress.track(call.videos, len(call.videos), "predicting", brief=True):
            try:
                prediction = recogniser.predict(path)
            except VideoError as error:
                left_out.append({"path": path, "reason": error.reason})
                warn(progress.console, f"{path}: left out: {error.reason}")
                continue
            if prediction.fps is not None:
                rates.append(prediction.fps)
            windows = [{"start": w.start, "end": w.end, "top": _top(w.probabilities)} for w in prediction.windows]
            answers.append({"path": path, "top": _top(prediction.probabilities), "windows": windows})
            if not call.json:
                _print_answer(answers[-1])
    if warning := frame_rate_warning(rates, recogniser.saved.frame_rate, recogniser.config.clip):
        warn(stderr, warning)
    if call.json:
        print_json({"videos": answers, "left_out": left_out})
    return FAILED if left_out else DONE


def _top(probabilities: dict[str, float]) -> list[dict[str, Any]]:
    return [{"label": label, "probability": value} for label, value in list(probabilities.items())[:TOP]]


def _print_answer(answer: dict[str, Any]) -> None:
    print(f"{answer['path']}: {_as_text(answer['top'])}", flush=True)
    for window in answer["windows"]:
        print(f"  {window['start']:.1f} to {window['end']:.1f} s: {_as_text(window['top'])}", flush=True)


def _as_text(top: list[dict[str, Any]]) -> str:
    return ", ".join(f"{item['label']} {item['probability']:.1%}" for item in top)


COMMAND = Command("Name what happens in videos", "predict runs/mine a.mp4 b.mp4", add_arguments, run, computes=True)
