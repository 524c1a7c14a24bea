"""What every verb of the command line has in common: its description, its exit statuses, its JSON."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from airstreams.config import Config
from airstreams.errors import InputError

DONE, FAILED, WRONG_INPUT = 0, 1, 2
"""Exit statuses: the work is done, the work failed, the call or its input is wrong."""

DATA_HELP = (
    "a folder of class folders, a folder of train/ val/ test/, a CSV file, a file of an annotation tool, or "
    "NAME:ROOT[?key=value]"
)
ROOT_HELP = "for a CSV file: the folder that its paths are relative to"
RUN_HELP = "the folder that training wrote"
DEVICE_HELP = "cpu, cuda, cuda:N or mps; by default CUDA where there is a card, else the CPU"
PRECISION_HELP = "auto, float32 or bfloat16; by default what the run's or the recipe's training.precision says"
CALIBRATED_HELP = "divide the answer's logits by the temperature that training fitted on its validation videos"
LABELS_HELP = "a teacher's label maps, for the semantic stream"
TARGETS_HELP = "a teacher's targets for a stream; once for each stream"
TRUST_HELP = "import this module for a custom stream of a run or a recipe that you did not train here (runs its code)"
INIT_HELP = (
    "start from a RUN, from hf:REPO with one, from a FILE of published weights, or from ones known by NAME: "
    "i3d-kinetics400, torchvision:r2plus1d_18; NAME,STREAM=RUN|FILE gives a stream its own: i3d-kinetics400,"
    "flow=runs/flow"
)
GROUP_BY_HELP = (
    "keep videos in one split: auto (they look like one recording), or a regular expression (its first group, or else "
    "its match, is equal in their names without suffix; a video without a match stays alone)"
)


@dataclass(frozen=True)
class Command:
    """A verb of the command line.

    help: what it does, without a full stop.
    example: a call, without the word `airstreams`.
    add_arguments: gives a parser the verb's arguments.
    run: does the work and returns the exit status.
    takes_config: the config's keys are options of the verb.
    common_keys: those that `--help` shows.
    computes: the verb computes with torch, so it takes `--device` and `--precision`.
    under_torchrun: the processes that `torchrun` starts share the work.
    after_interrupt: what to do after Ctrl-C; empty where there is nothing to go on with.
    """

    help: str
    example: str
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int]
    takes_config: bool = False
    common_keys: tuple[str, ...] = ()
    computes: bool = False
    under_torchrun: bool = False
    after_interrupt: str = ""


def add_data(parser: ArgumentParser) -> None:
    """The arguments DATA and --root of a verb. `data_of` gives what they say."""
    parser.add_argument("source", metavar="DATA", type=str, help=DATA_HELP)
    add_root(parser)


def add_root(parser: ArgumentParser) -> None:
    """The argument --root."""
    parser.add_argument("--root", metavar="DIR", type=Path, help=ROOT_HELP)


def data_of(call: Namespace) -> str:
    """DATA as `open_source` takes it."""
    return with_root(call.source, call.root)


def with_root(data: str, root: Path | None) -> str:
    """DATA with `--root DIR` in it. InputError: DATA is no file."""
    if root is None:
        return data
    whole = Path(data).is_file()
    if not whole and not Path(data.partition("?")[0]).is_file():
        raise InputError(f"--root {root}: {data} is not a file, and only a file takes --root. Leave it out.")
    return f"{data}{'?' if whole else '&'}root={root}"


def print_json(result: Mapping[str, Any]) -> None:
    """Print one JSON object on one line of stdout."""
    print(json.dumps(result, allow_nan=False))


def add_trust_module(parser: ArgumentParser) -> None:
    """Add `--trust-module`, which may be given several times."""
    parser.add_argument("--trust-module", metavar="NAME", type=str, action="append", default=[], help=TRUST_HELP)


def add_calibrated(parser: ArgumentParser) -> None:
    """Add `--calibrated`, the same for every verb that gives probabilities."""
    parser.add_argument("--calibrated", action="store_true", help=CALIBRATED_HELP)


def add_targets(parser: ArgumentParser) -> None:
    """Add `--targets`, which may be given several times. `targets_of` gives what it says."""
    parser.add_argument("--targets", metavar="STREAM=FOLDER", type=str, action="append", default=[], help=TARGETS_HELP)


def targets_of(call: Namespace) -> dict[str, str]:
    """The folders of `--targets` by stream. InputError: no STREAM=FOLDER, or a stream twice."""
    targets: dict[str, str] = {}
    for given in call.targets:
        stream, equals, folder = given.partition("=")
        if not (stream and equals and folder):
            raise InputError(f"--targets {given}: expected STREAM=FOLDER, such as parts=targets/parts")
        if stream in targets:
            raise InputError(f"--targets {given}: {stream} has {targets[stream]} already. Give one folder for each.")
        targets[stream] = folder
    return targets


def add_init(parser: ArgumentParser, help: str = INIT_HELP) -> None:
    """Add `--init` and `--offline`."""
    parser.add_argument("--init", metavar="WEIGHTS", type=str, help=help)
    parser.add_argument("--offline", action="store_true", help="fetch no weights")


def add_group_by(parser: ArgumentParser) -> None:
    """Add `--group-by`, another name of the key `data.group_by`."""
    parser.add_argument("--group-by", metavar="auto|REGEX", type=str, help=GROUP_BY_HELP)


def set_group_by(call: Namespace, config: Config) -> None:
    """Set the key `data.group_by` by `--group-by`, which is another name for it. InputError: a wrong expression."""
    if call.group_by is not None:
        config.data = replace(config.data, group_by=call.group_by)


def require_at_least(call: Namespace, **lowest: int) -> None:
    """Raise InputError for an option below its lowest value."""
    for name, value in lowest.items():
        if call[name] < value:
            raise InputError(f"--{name.replace('_', '-')} {call[name]}: expected at least {value}")
