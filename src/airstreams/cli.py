"""The command line: from the words of a call to an exit status. The verbs are in `commands/`."""

import io
import os
import shlex
import sys
import traceback
import warnings
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from jsonargparse import Namespace

from airstreams.commands import COMMANDS
from airstreams.commands.command import FAILED, WRONG_INPUT, Command
from airstreams.commands.parser import (
    as_typed,
    complaint_about,
    config_keys,
    for_parser,
    given_config,
    make_parser,
    with_current_options,
)
from airstreams.console import say, stderr, warn
from airstreams.errors import InputError, VideoError, is_limit_of_mps, message_of, one_line
from airstreams.machine import computes_in_bfloat16, device_named, heed_cpu_quota, precision_on

# A waiting OpenMP thread spins for a long time by default. That takes a core from other processes, such as those that
# decode. torch reads both settings when it is imported, so they are made here.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
heed_cpu_quota()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status: 0 done, 1 the work failed, 2 the call or its input is wrong."""
    argv = sys.argv[1:] if argv is None else argv
    debug = "--debug" in argv
    argv = [word for word in argv if word != "--debug"]  # it may stand before the verb too
    try:
        Path.cwd()
    except FileNotFoundError:
        return _complain("the current folder was deleted. Change to one that exists (cd).", WRONG_INPUT, debug=False)
    _prepare_output(json="--json" in argv)
    try:
        with _deprecations_on_stderr(all_warnings=debug):
            return _run(with_current_options(argv))
    except InputError as error:
        return _complain(as_typed(argv, str(error)), WRONG_INPUT, debug)
    except ArgumentError as error:
        return _complain(as_typed(argv, complaint_about(argv, str(error))), WRONG_INPUT, debug)
    except BrokenPipeError:  # the reader of stdout, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python would complain at its end
        return FAILED
    except (VideoError, ArithmeticError, OSError, RuntimeError, MemoryError) as error:
        return _complain(message_of(error), FAILED, debug)
    except TypeError as error:
        if not is_limit_of_mps(error):
            raise
        return _complain(message_of(error), FAILED, debug)
    except KeyboardInterrupt:
        advice = COMMANDS[argv[0]].after_interrupt if argv and argv[0] in COMMANDS else ""
        return _complain(f"interrupted. {advice}".strip(), FAILED, debug=False)


def _run(argv: Sequence[str]) -> int:
    keys = config_keys(argv)
    if keys and argv[0] in COMMANDS and not COMMANDS[argv[0]].takes_config:
        advice = "takes no config keys. Write the key in a recipe, or leave it out."
        if argv[0] in ("evaluate", "export", "predict", "report"):
            advice = "takes no config keys: a trained model keeps the config that it was trained with. "
            advice += f"Train again with --{keys[0]}, or leave it out."
        raise InputError(f"--{keys[0]}: {argv[0]} {advice}")
    parser = make_parser(argv)
    parsed = parser.instantiate(parser.parse_args(for_parser(argv)))
    call = parsed[parsed.verb]
    command = COMMANDS[parsed.verb]
    processes = os.environ.get("WORLD_SIZE", "1") if "LOCAL_RANK" in os.environ else "1"
    if processes != "1" and not command.under_torchrun:
        workers = " with --workers N" if "workers" in call else ""
        raise InputError(f"torchrun cannot share out {parsed.verb}. Call airstreams without torchrun{workers}.")
    if command.computes:
        _check_machine(call, command)
    call.command = shlex.join(["airstreams", *argv])
    if command.takes_config:
        call.given = given_config(argv, call)
    return command.run(call)


def _check_machine(call: Namespace, command: Command) -> None:
    """Raise InputError for a device that this machine does not have, or a precision that the device does not have."""
    given, prefix = (call.training, "training.") if command.takes_config else (call, "")
    if given.device in (None, "auto") and given.precision in (None, "auto"):
        return  # importing torch takes a second
    device = device_named(given.device or "auto", f"{prefix}device")
    precision = precision_on(device, given.precision or "auto", key=f"{prefix}precision")
    if given.precision == precision == "bfloat16" and not computes_in_bfloat16(device):
        name = "this CPU" if device.type == "cpu" else "this card"
        warn(stderr, f"{name} only emulates bfloat16, which is slow. Give --precision float32")


def _prepare_output(json: bool) -> None:
    for stream in (sys.stdout, sys.stderr):  # their encoding may lack letters of a file's name
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if json and "WORLD_SIZE" in os.environ:  # under torchrun torch 2.9 prints its connections on stdout: to stderr
        sys.stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)


@contextmanager
def _deprecations_on_stderr(all_warnings: bool) -> Iterator[None]:
    """Print the package's own DeprecationWarnings as one line each, and other warnings only on request."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_own(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if category is DeprecationWarning and Path(filename).is_relative_to(Path(__file__).parent):
                warn(stderr, str(message))
            else:
                show(message, category, filename, lineno, file, line)

        warnings.showwarning = show_own
        warnings.filterwarnings("default" if all_warnings else "ignore")
        warnings.filterwarnings("default", category=DeprecationWarning, module="airstreams")
        yield


def _complain(message: str, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    if "Traceback" in message:  # of a loader's process; its last line is the error itself
        message = message.strip().splitlines()[-1].removeprefix("RuntimeError: ")
    say(stderr, f"airstreams: {one_line(message)}")
    return status
