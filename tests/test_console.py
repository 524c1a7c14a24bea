"""The console: names are printed as they are, a warning is marked as one, and progress fits its terminal."""

import io
import os
import re
import subprocess
import sys

import pytest
from rich.console import Console

from airstreams.console import Progress, SafeTable, print_line, rows, say, warn
from airstreams.errors import printable
from tests.test_estimate import Clock

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
LOSSES = ["9.1 clips/s", "waiting 3%", "total 2.31", "rgb 0.53", "flow 0.61", "semantic 0.72", "merged 0.45"]


def terminal(width=80, **options):
    return Console(file=io.StringIO(), force_terminal=True, width=width, **options)


def training_row(width, steps=120, clock=None):
    clock = clock or Clock()
    progress = Progress(Console(quiet=True), clock)
    task = progress.add_task("training", 14_000, "steps")
    for _ in range(steps):
        clock.now += 1.0
        task.advance()
    task.notes = LOSSES
    return rows(progress.tasks, width)[0].plain


def test_markup_emoji_and_long_lines_are_printed_as_they_are():
    file = io.StringIO()
    text = "videos/[bold]walk[/bold]/:cat:/" + "x" * 200
    say(Console(file=file, width=80), text)
    assert file.getvalue() == text + "\n"


def test_warnings_start_with_the_word_warning():
    file = io.StringIO()
    warn(Console(file=file), "a.mp4 has no frames. Delete it.")
    assert file.getvalue() == "warning: a.mp4 has no frames. Delete it.\n"


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_lines_break_between_words_on_a_terminal_only(width):
    text = "warning: " + "a word or two about 動画 " * 12 + "/a/long/path/" + "x" * 220 + " ends here"
    console = terminal(width)
    say(console, text)
    lines = console.file.getvalue().splitlines()
    assert " ".join(lines) == text
    assert all(len(line) <= width or line.startswith("/a/long/path") for line in lines)
    file = io.StringIO()
    say(Console(file=file, width=width), text)
    assert file.getvalue() == text + "\n"


@pytest.mark.parametrize("width", [24, 40, 60, 80, 120, 200])
def test_count_and_time_left_stay_at_every_width(width):
    row = training_row(width)
    assert len(row) <= width
    assert "120/14000 steps" in row or width < 40
    if width >= 40:
        assert "3:51:20 left" in row


def test_losses_go_first_and_then_the_bar():
    assert training_row(200).endswith("merged 0.45")
    assert [loss for loss in LOSSES if loss in training_row(80)] == LOSSES[:1]
    assert "━" * 20 in training_row(62)
    assert "/s" not in training_row(62)
    assert 0 < training_row(54).count("━") < 20
    assert "━" not in training_row(40)


def test_rows_of_several_tasks_are_aligned():
    progress = Progress(Console(quiet=True), Clock())
    progress.add_task("trials", 20, "trials")
    progress.add_task("steps of 2 running trials", 800, "steps")
    first, second = (row.plain for row in rows(progress.tasks, 80))
    assert first.index("━") == second.index("━")
    assert first.rindex("trials") == second.rindex("steps") - 1


def test_a_file_gets_plain_lines_at_most_one_a_minute():
    clock, file = Clock(), io.StringIO()
    with Progress(Console(file=file, width=200), clock) as progress:
        task = progress.add_task("scoring", 200)
        for _ in range(200):
            clock.now += 1.0
            task.advance()
    assert file.getvalue().splitlines() == [
        "scoring: 200 videos",
        "scoring: 60 of 200 videos, 2:20 left",
        "scoring: 120 of 200 videos, 1:20 left",
        "scoring: 180 of 200 videos, 0:20 left",
        "scoring: 200 of 200 videos in 3:20",
    ]


def test_the_line_of_a_finished_task_is_printed_once():
    clock, file = Clock(), io.StringIO()
    with Progress(Console(file=file, width=200), clock) as progress:
        task = progress.add_task("fresh seeds", 2, "trainings", work=2000)
        for amount, work in ((1, 1000), (1, 990), (0, 10)):
            task.advance(amount, work)
            clock.now += 70.0
    assert [line.split(",")[0] for line in file.getvalue().splitlines()] == [
        "fresh seeds: 2 trainings",
        "fresh seeds: 2 of 2 trainings in 1:10",
    ]


def test_a_brief_task_leaves_no_row_and_only_minute_lines():
    clock, file = Clock(), io.StringIO()
    with Progress(Console(file=file, width=200), clock) as progress:
        task = progress.add_task("validating", 100, brief=True)
        for _ in range(100):
            clock.now += 0.7
            task.advance()
        assert progress.tasks == []
    assert len(file.getvalue().splitlines()) == 1


def test_a_dumb_terminal_gets_lines_without_escape_codes(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    console = terminal()
    with Progress(console, Clock()) as progress:
        list(progress.track(range(3), 3, "reading"))
    assert "reading: 3 of 3" in console.file.getvalue()
    assert "\x1b" not in console.file.getvalue()


def test_no_color_leaves_no_colours(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    console = terminal()
    with Progress(console, Clock()) as progress:
        progress.add_task("reading", 3).advance()
    printed = console.file.getvalue()
    assert "1/3" in printed
    assert "─" in printed
    assert not re.search(r"\x1b\[(3|4|9|10)\d[;m]", printed)


def test_under_torchrun_only_the_first_process_shows_progress(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "1")
    for is_terminal in (True, False):
        file = io.StringIO()
        with Progress(Console(file=file, force_terminal=is_terminal), Clock()) as progress:
            list(progress.track(range(3), 3, "reading"))
        assert file.getvalue() == ""


def test_work_apart_from_the_count_decides_the_time_left():
    clock = Clock()
    task = Progress(Console(quiet=True), clock).add_task("annotating", 2, "files", work=1000)
    clock.now = 10.0
    task.advance(1, 100)
    assert task.time() == "1:30 left"


def test_no_display_of_a_file_is_forced_by_the_environment():
    code = "from airstreams.console import *\nwith Progress(stderr) as p: p.add_task('reading', 2).advance(2)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"FORCE_COLOR": "1"}, capture_output=True, text=True, check=True
    )
    assert done.stderr.splitlines() == ["reading: 2 videos", "reading: 2 of 2 videos in 0:00"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pty")
@pytest.mark.parametrize("ending", ["raise ValueError", "import os, signal; os.kill(os.getpid(), signal.SIGINT)"])
def test_the_cursor_is_visible_after_an_error_and_after_ctrl_c(ending):
    import pty

    code = "from airstreams.console import *\nwith Progress(stderr) as p:\n  p.add_task('reading', 2).advance()\n  "
    main, secondary = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code + ending],
        stdin=secondary,
        stdout=secondary,
        stderr=secondary,
        env=os.environ | {"TERM": "xterm"},
    )
    os.close(secondary)
    printed = b""
    try:
        while chunk := os.read(main, 4096):
            printed += chunk
    except OSError:  # Linux's way to say that the other end is closed
        pass
    process.wait()
    os.close(main)
    assert b"\x1b[?25l" in printed
    assert printed.rindex(b"\x1b[?25h") > printed.rindex(b"\x1b[?25l")
    assert process.returncode != 0


NASTY = "a\x1b[2Jb\rc\u202egpm.d\x9b31me\nf"


def test_signs_that_a_terminal_obeys_are_escaped():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=200)
    say(console, NASTY)
    table = SafeTable("name")
    table.add_row(NASTY)
    console.print(table)
    for sign in ("\x1b[2J", "\r", "\u202e", "\x9b"):
        assert sign not in file.getvalue()
    assert "\\x1b[2Jb\\rc\\u202egpm.d" in file.getvalue()
    assert "بازی\u200cکردن" in printable("بازی\u200cکردن")  # a class in Persian keeps its joiner


def test_a_line_of_a_result_stays_one_line(capsys):
    print_line(NASTY)
    assert capsys.readouterr().out == "a\\x1b[2Jb\\rc\\u202egpm.d\\x9b31me\\nf\n"
