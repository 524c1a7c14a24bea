"""What the package prints: lines, warnings and progress, and the two consoles of the command line."""

import io
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import IO, Any, Protocol, TypeVar, cast

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from airstreams.errors import printable
from airstreams.estimate import Clock, Estimate, clock_time

T = TypeVar("T")

LINE_EVERY = 60.0  # s between two lines of one task, where the output is no terminal
BAR, SHORTEST_BAR = 20, 5  # characters


def say(console: Console, text: str) -> None:
    """Print a text as it is: no markup, no highlighting. On a terminal, lines break between words.

    Signs that a terminal would obey are escaped, because names of files and classes may be a stranger's.
    """
    lines = [printable(line) for line in text.split("\n")]
    if console.is_terminal:
        lines = [broken for line in lines for broken in _broken(line, console.width)]
    console.print("\n".join(lines), markup=False, highlight=False, emoji=False, soft_wrap=True)


def print_line(text: str) -> None:
    """Print a line of a result on stdout, unbroken, so that it can be copied. Escaped as `say` does."""
    print(printable(text), flush=True)


class SafeTable(Table):
    """A table of rich whose cells are escaped as `say` does."""

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """Add a row."""
        super().add_row(*(printable(cell) if isinstance(cell, str) else cell for cell in cells), **options)


def warn(console: Console, text: str) -> None:
    """Print a warning: what is wrong, then what to do. The text comes without the word "warning"."""
    say(console, f"warning: {text}")


def _broken(line: str, width: int) -> Iterator[str]:
    """A line in parts of at most this width. A longer word, such as a path, stays whole, so that it can be copied."""
    words = line.split(" ")
    part = words[0]
    for word in words[1:]:
        if part.strip() and cell_len(part) + 1 + cell_len(word) > width:
            yield part
            part = word
        else:
            part += f" {word}"
    yield part


def is_live(console: Console) -> bool:
    """Whether the console can redraw its last lines: a terminal, and not a "dumb" one."""
    return console.is_terminal and not console.is_dumb_terminal


def _shows(console: Console) -> bool:
    """Whether progress is shown: not on a quiet console, and under torchrun only by the process of rank 0."""
    return not console.quiet and ("LOCAL_RANK" not in os.environ or os.environ.get("RANK", "0") == "0")


class Shared(Protocol):
    """Sums of units and of their work over several processes that share a task."""

    def totals(self, units: int, work: int) -> tuple[int, int]:
        """The sums of what each process has to do."""

    def add(self, units: int, work: int) -> tuple[int, int]:
        """Add what this process has done since the last call; returns the sums of all processes."""


class Task:
    """Work that a `Progress` shows: a count, the time left, and notes.

    description, unit: such as "scoring" and "videos".
    notes: parts of a remark, the most important one first. A narrow terminal drops the last ones.
    """

    def __init__(
        self, progress: "Progress", description: str, unit: str, brief: bool, shared: Shared | None, estimate: Estimate
    ) -> None:
        self.description, self.unit, self.brief = description, unit, brief
        self.notes: Sequence[str] = ()
        self.done, self.total = 0, 0
        self._shared = shared
        self.time_left: Callable[[], float | None] = self.estimated_left
        self._estimate, self._progress = estimate, progress
        self.next_line = 0.0
        self.seconds: float | None = None  # that it took; None: it is not finished

    def advance(self, amount: int = 1, work: int | None = None) -> None:
        """Count finished units.

        Args:
            amount: how many.
            work: their part of the task's `work`, where that is not the count.
        """
        work = amount if work is None else work
        if self._shared is not None:
            done, worked = self._shared.add(amount, work)
            amount, work = done - self.done, worked - round(self._estimate.done)
        self.done += amount
        now = self._estimate.advance(work)
        if self.finished and self.seconds is None:
            self.seconds = self._estimate.seconds
            self._progress.ended(self)
        elif not self.finished and now >= self.next_line:
            self.next_line = now + LINE_EVERY
            self._progress.print_line(self)

    def restart(self, work: int) -> None:
        """Forget the speed so far, and time the work that is left."""
        self._estimate = Estimate(work, clock=self._progress.clock)

    def estimated_left(self) -> float | None:
        """Seconds until the end, from the speed so far; None: not known."""
        return self._estimate.left()

    @property
    def timed(self) -> float:
        """The work that was timed."""
        return self._estimate.timed

    def speed(self) -> float | None:
        """Units, or their work, per second; None: not known yet."""
        return self._estimate.speed()

    @property
    def finished(self) -> bool:
        """Whether all units are finished."""
        return self.done >= self.total

    def count(self, between: str = "/") -> str:
        """How far the task is, such as 3/10 videos."""
        return f"{self.done}{between}{self.total} {self.unit}"

    def time(self) -> str:
        """The time left, or the time taken."""
        if self.seconds is not None:
            return f"in {clock_time(self.seconds)}"
        left = self.time_left()
        return "" if left is None else f"{clock_time(left)} left"


class Progress:
    """A `with` block that shows how far its tasks are.

    On a terminal it redraws one row for each task. A narrow terminal drops the notes first, then the bar; the count and
    the time left stay. In a file or a pipe it prints plain lines: at the start and the end of a task, and at most one a
    minute between them. A task of one unit gets none.

    Args:
        console: where to show it; a quiet one shows nothing. Under torchrun only the process of rank 0 shows it.
        clock: gives seconds.
    """

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        self.console = console
        self.tasks: list[Task] = []
        self.clock = clock
        self._live = (
            Live(get_renderable=self._picture, console=console, refresh_per_second=4)
            if is_live(console) and _shows(console)
            else None
        )

    def __enter__(self) -> "Progress":
        if self._live is not None:
            self._live.start(refresh=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def add_task(
        self,
        description: str,
        total: int,
        unit: str = "videos",
        done: int = 0,
        work: int | None = None,
        brief: bool = False,
        shared: Shared | None = None,
    ) -> Task:
        """Show a task.

        Args:
            description: what is done, such as "checking videos".
            total: how many units it has.
            unit: their name, in the plural.
            done: how many were done before; they say nothing about the speed.
            work: the whole task's work, where units differ; give `advance` the work of each.
            brief: the row goes away at the end, and a file gets no line for start and end.
            shared: of several processes that share the task. Each gives the part of it that it does; all of them see
                the sums.
        """
        whole = total if work is None else work
        if shared is not None:
            total, whole = shared.totals(total, whole)
        estimate = Estimate(whole, done if work is None else 0.0, self.clock)
        task = Task(self, description, unit, brief, shared, estimate)
        task.done, task.total = done, total
        if total == 1:
            task.unit = unit.removesuffix("s")
        if task.finished:
            task.seconds = 0.0
        if not (task.finished and brief):
            self.tasks.append(task)
        task.next_line = self.clock() + LINE_EVERY
        if not brief and total > 1 and self._prints_lines:
            say(self.console, f"{description}: {task.count(' of ') if done else f'{total} {task.unit}'}")
        return task

    def track(
        self, items: Iterable[T], total: int, description: str, unit: str = "videos", brief: bool = False
    ) -> Iterator[T]:
        """Yield the items of a task (see `add_task`); each is done when the next one is asked for."""
        task = self.add_task(description, total, unit, brief=brief)
        for item in items:
            yield item
            task.advance()

    def ended(self, task: Task) -> None:
        """Show the end of a task."""
        if task.brief:
            self.tasks.remove(task)
        else:
            self.print_line(task)

    def print_line(self, task: Task) -> None:
        """Print a task's line, where the output is no terminal."""
        if self._prints_lines and task.total > 1:
            count, taken_or_left = task.count(" of "), task.time()
            how_far = [f"{count} {taken_or_left}"] if task.finished else [count, *filter(None, [taken_or_left])]
            say(self.console, f"{task.description}: {', '.join([*how_far, *task.notes])}")

    @property
    def _prints_lines(self) -> bool:
        return self._live is None and _shows(self.console)

    def _picture(self) -> Group:
        colours = self.console.color_system is not None and not self.console.no_color
        return Group(*rows(list(self.tasks), self.console.width, self.console.options.ascii_only, colours))


def rows(tasks: Sequence[Task], width: int, ascii_only: bool = False, colours: bool = True) -> list[Text]:
    """The rows of tasks on a terminal.

    Args:
        tasks: in the order of their rows.
        width: of the terminal, in characters.
        ascii_only: the terminal has no other characters.
        colours: the rest of a bar is drawn in another colour, else with another character.
    """
    if not tasks:
        return []
    counts, times = [task.count() for task in tasks], [task.time() for task in tasks]
    name_width = max(cell_len(task.description) for task in tasks)
    count_width, time_width = max(map(len, counts)), max(map(len, times))
    needed = count_width + 2 + time_width  # these stay in any case
    bar = min(BAR, width - needed - name_width - 4)
    name_width = min(name_width, max(0, width - needed - 2))
    done_mark, rest_mark = "=-" if ascii_only else "━━" if colours else "━─"
    drawn = []
    for task, count, left in zip(tasks, counts, times, strict=True):
        row = Text(no_wrap=True, overflow="crop")
        if name_width:
            name = Text(task.description)
            name.truncate(name_width, overflow="ellipsis", pad=True)
            row.append_text(name).append("  ")
        if bar >= SHORTEST_BAR:
            filled = bar if task.finished else int(bar * task.done / task.total)
            row.append(done_mark * filled, "bar.finished" if task.finished else "bar.complete")
            row.append(rest_mark * (bar - filled), "bar.back").append("  ")
        row.append(count.rjust(count_width), "progress.download").append("  ")
        row.append(left.rjust(time_width), "progress.remaining")
        for number, note in enumerate(task.notes):
            note = f"{', ' if number else '  '}{note}"
            if bar < BAR or row.cell_len + cell_len(note) > width:
                break
            row.append(note)
        row.truncate(width, overflow="crop")
        drawn.append(row)
    return drawn


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
    # A file or a pipe gets no escape codes, even where FORCE_COLOR is set.
    is_terminal = (sys.stdout if file is None else file).isatty()
    console = Console(file=file, markup=False, highlight=False, emoji=False, force_terminal=is_terminal and None)
    if not console.is_terminal:  # a file or a pipe has no width of its own
        console.width = 200
    return console


stderr = _console(cast(IO[str], _SafeStderr()))
"""Progress and warnings."""
stdout = _console(None)
"""Results."""
