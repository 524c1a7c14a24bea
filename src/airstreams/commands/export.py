"""`airstreams export RUN --out FILE`: write a model to one file for other programs."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from airstreams.commands.command import DONE, RUN_HELP, Command, add_trust_module, print_json
from airstreams.console import say, stderr, stdout


def add_arguments(parser: ArgumentParser) -> None:
    """RUN and the file."""
    parser.add_argument("run", metavar="RUN", type=Path, help=RUN_HELP)
    parser.add_argument(
        "--out", metavar="FILE", type=Path, required=True, help="NAME.onnx, or NAME.pt2 for torch.export"
    )
    add_trust_module(parser)


def run(call: Namespace) -> int:
    """Export, and print the shapes that the file takes and gives."""
    from airstreams.inference.export import export
    from airstreams.runs.saved_model import read_description

    difference = export(call.run, call.out, lambda step: say(stderr, f"export: {step}"), call.trust_module)
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


COMMAND = Command(
    "Write a model to one file for other programs", "export runs/mine --out mine.onnx", add_arguments, run
)
