"""The errors that a caller can expect, and how an error becomes one line of text."""

import os
import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class InputError(ValueError):
    """The call or its input is wrong. The message is one line: what is wrong, then what to do."""


class VideoError(RuntimeError):
    """A video file, or its label maps, cannot be read. The message is `PATH: REASON`, or the reason alone.

    Attributes:
        reason: why, without the file's name, such as `truncated: 12 of 30 frames`.
        path: the file, as a `Path`; None for an error about several videos.
    """

    def __init__(self, reason: str, path: str | os.PathLike[str] | None = None) -> None:
        super().__init__(reason, path)  # both are arguments, so that pickle can rebuild the error
        self.reason = reason
        self.path = None if path is None else Path(path)

    def __str__(self) -> str:
        return self.reason if self.path is None else f"{self.path}: {self.reason}"


class Stopped(RuntimeError):  # noqa: N818 (not an error)
    """A signal asked a training to stop; its state is saved."""


_JOINERS = "\u200c\u200d"  # zero-width letters of names in Persian, in languages of India, and in emoji


def printable(text: object) -> str:
    """A name as people may see it: control characters, line breaks and signs that turn the direction are escaped.

    A terminal would obey them: a name could delete lines, or look like another one.
    """
    return "".join(sign if sign.isprintable() or sign in _JOINERS else ascii(sign)[1:-1] for sign in str(text))


def one_line(text: object) -> str:
    """Text of other programs on one line, with control characters escaped, as `printable`."""
    return printable(" ".join(str(text).split()))


def describe(error: Exception) -> str:
    """An error of unknown code on one line: its class, then its message."""
    return one_line(f"{type(error).__name__}: {error}")


def message_of(error: BaseException) -> str:
    """An error's message, or the name of its class where it has none.

    Of CUDA's out-of-memory error: its first two sentences, then what to do. Of what torch cannot do on an Apple GPU:
    the operation, or the first sentence.
    """
    if is_limit_of_mps(error):
        operation = re.search(r"operator '([\w:.]+)'", str(error))
        what = f"torch has no {operation[1]} for mps" if operation else one_line(error).partition(". ")[0]
        return f"{what}. Give --device cpu."
    if type(error).__name__ == "OutOfMemoryError":  # torch's; this file must not import torch
        start = ". ".join(str(error).split(". ")[:2])
        options = "--training.cuda_graph false, --training.accumulate 2, fewer --workers, annotate's --batch-size"
        return f"{start}. Use less memory: {options}"
    return str(error) or type(error).__name__


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """` Did you mean X?` for the known name that is most like a given one; empty where none is alike."""
    by_lower_case = {name.lower(): name for name in known}
    similar = get_close_matches(given.lower(), by_lower_case, n=1)
    return f" Did you mean {by_lower_case[similar[0]]}?" if similar else ""


def is_limit_of_mps(error: BaseException) -> bool:
    """Whether an error is torch's about something that it cannot do on an Apple GPU."""
    about_mps = re.search(r"\bMPS (device|tensor|framework|backend)|(implemented|supported) on MPS", str(error), re.I)
    return isinstance(error, RuntimeError | TypeError) and about_mps is not None  # NotImplementedError is the former


def require(holds: bool, key: str, given: object, expected: str) -> None:
    """Raise InputError for a key's value unless it holds."""
    if not holds:
        raise InputError(f"{key}: got {given}, expected {expected}")
