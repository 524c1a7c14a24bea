"""`airstreams export RUN --out FILE`: write a model to one file for other programs, or push a run to a hub."""

import json
from dataclasses import asdict
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from airstreams.commands.command import DONE, RUN_HELP, Command, add_calibrated, add_trust_module, print_json
from airstreams.console import say, stderr, stdout
from airstreams.errors import InputError


def add_arguments(parser: ArgumentParser) -> None:
    """RUN, and the file or the repository."""
    parser.add_argument("run", metavar="RUN", type=Path, help=RUN_HELP)
    parser.add_argument("--out", metavar="FILE", type=Path, help="write NAME.onnx, or NAME.pt2 for torch.export")
    parser.add_argument(
        "--hub",
        metavar="hf:REPO",
        type=str,
        help="push the model, its card and its metrics to hf:OWNER/NAME on the Hugging Face hub",
    )
    parser.add_argument("--offline", action="store_true", help="push nothing: --hub is then refused")
    add_calibrated(parser)
    add_trust_module(parser)


def run(call: Namespace) -> int:
    """Export to a file, or push to a hub."""
    if (call.out is None) == (call.hub is None):
        raise InputError("export takes --out FILE or --hub hf:OWNER/NAME. Give one of them.")
    if call.hub is not None and call.calibrated:
        raise InputError("--calibrated goes with --out. A run on a hub keeps its temperature. Leave it out.")
    return _to_hub(call) if call.out is None else _to_file(call)


def _to_file(call: Namespace) -> int:
    """Export, and print the shapes that the file takes and gives."""
    from airstreams.inference.export import export
    from airstreams.runs.saved_model import read_description

    difference = export(
        call.run, call.out, lambda step: say(stderr, f"export: {step}"), call.trust_module, call.calibrated
    )
    described = read_description(call.run)
    clip, classes = described.config.clip, len(described.classes)
    if call.json:
        frames = [None, clip.frames, clip.size, clip.size, 3]
        print_json({"file": str(call.out), "frames": frames, "classes": classes, "largest_difference": difference})
        return DONE
    shape = f"(any, {clip.frames}, {clip.size}, {clip.size}, 3)"
    say(stdout, f"exported: {call.out}, frames {shape} to probabilities (any, {classes})")
    if difference is None:
        say(stdout, "not compared with the model: onnxruntime is not installed")
    else:
        say(stdout, f"largest difference from the model's probabilities, on generated clips: {difference:.1g}")
    return DONE


def _to_hub(call: Namespace) -> int:
    """Push the run, and print where it is."""
    from airstreams.runs import saved_model
    from airstreams.runs.folder import RunFolder
    from airstreams.runs.hub import CARD, repo_of, upload_run
    from airstreams.training.start import StartRecord
    from airstreams.viewing.model_card import model_card

    repo = repo_of(call.hub)
    if call.offline:
        raise InputError(f"--hub {call.hub}: --offline forbids to push. Leave it out.")
    saved = saved_model.load(call.run, trust=call.trust_module)  # refuses damaged weights before anybody downloads them
    texts = {CARD: model_card(call.run, saved, repo)}
    folder = RunFolder(call.run)
    if (start := StartRecord.read(folder)) is not None:
        texts[folder.start.name] = json.dumps(asdict(start.without_folders()))
    page = upload_run(call.run, repo, texts)
    if call.json:
        print_json({"repository": call.hub, "page": page})
        return DONE
    say(stdout, f"pushed: {page}")
    say(stdout, "A new repository is private: only its owner sees it. Its settings on the hub can make it public.")
    say(stdout, f"Use it by airstreams predict {call.hub} VIDEO, or airstreams train DATA --out RUN --init {call.hub}")
    return DONE


COMMAND = Command(
    "Write a model to one file for other programs, or push it to a hub",
    "export runs/mine --out mine.onnx",
    add_arguments,
    run,
)
