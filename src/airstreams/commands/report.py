"""`airstreams report RUN`: show a run on one HTML page."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from airstreams.commands.command import DONE, Command, print_json
from airstreams.console import say, stderr, stdout


def add_arguments(parser: ArgumentParser) -> None:
    """RUN."""
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder that training wrote; the page is put there")


def run(call: Namespace) -> int:
    """Write the page."""
    from airstreams.viewing.run_report import write_report

    page = write_report(call.run, stderr)
    if call.json:
        print_json({"report": str(page)})
    else:
        say(stdout, f"report: {page} ({page.stat().st_size / 1e6:.1f} MB)")
    return DONE


COMMAND = Command("Show a run on one HTML page", "report runs/mine", add_arguments, run)
