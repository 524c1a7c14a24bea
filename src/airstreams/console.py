"""What the package prints: one way to say a line, one way to warn, and the two consoles of the command line."""

import io
import sys
from contextlib import suppress
from typing import IO, Any, cast

from rich.console import Console


def say(console: Console, text: str) -> None:
    """Print a text as it is: no markup, no highlighting, no line breaks of ours."""
    console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)


def warn(console: Console, text: str) -> None:
    """Print a warning: what is wrong, then what to do. The text comes without the word "warning"."""
    say(console, f"warning: {text}")


class _SafeStderr:
    """stderr whose write errors are ignored: a training must not end because its log cannot be written."""

    @property
    def rich_proxied_file(self) -> "_SafeStderr":  # rich asks for it, and would use another file than this one
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(getattr(sys.stderr, "rich_proxied_file", sys.stderr) or io.StringIO(), name)

    def write(self, text: str) -> None:
        with suppress(OSError):
            self.__getattr__("write")(text)

    def flush(self) -> None:
        with suppress(OSError):
            self.__getattr__("flush")()


def _console(file: IO[str] | None) -> Console:
    # Names may have square brackets, which are no markup.
    console = Console(file=file, markup=False, highlight=False, emoji=False)
    if not console.is_terminal:  # a file or a pipe has no width of its own
        console.width = 200
    return console


stderr = _console(cast(IO[str], _SafeStderr()))
"""Progress and warnings."""
stdout = _console(None)
"""Results."""
