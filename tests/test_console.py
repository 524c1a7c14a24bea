"""Lines of the console: names are printed as they are, and a warning is marked as one."""

import io

from rich.console import Console

from airstreams.console import say, warn


def test_markup_emoji_and_long_lines_are_printed_as_they_are():
    file = io.StringIO()
    text = "videos/[bold]walk[/bold]/:cat:/" + "x" * 200
    say(Console(file=file, width=80), text)
    assert file.getvalue() == text + "\n"


def test_warnings_start_with_the_word_warning():
    file = io.StringIO()
    warn(Console(file=file), "a.mp4 has no frames. Delete it.")
    assert file.getvalue() == "warning: a.mp4 has no frames. Delete it.\n"
