"""`airstreams evaluate RUN DATA`: score a split of a data set."""

from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from airstreams.commands.command import (
    DONE,
    RUN_HELP,
    Command,
    add_calibrated,
    add_data,
    add_targets,
    add_trust_module,
    data_of,
    print_json,
    targets_of,
)
from airstreams.console import say, stderr, stdout, warn
from airstreams.percent import percent

if TYPE_CHECKING:
    from airstreams.evaluation.evaluate import Evaluation
    from airstreams.evaluation.results import ScoringProtocol


def add_arguments(parser: ArgumentParser) -> None:
    """RUN, DATA and the split."""
    parser.add_argument("run", metavar="RUN", type=Path, help=RUN_HELP)
    add_data(parser)
    parser.add_argument("--split", metavar="NAME", type=str, default="test", help="train, val or test")
    parser.add_argument(
        "--group-by", metavar="auto|REGEX", type=str, help="the groups that intervals count, as in train (the run's)"
    )
    parser.add_argument("--labels", type=Path, help="a teacher's label maps, to score the segmentation")
    add_targets(parser)
    parser.add_argument(
        "--audit",
        action="store_true",
        help="also find what the answers rest on: score the videos without motion, colour, people, background ...",
    )
    add_calibrated(parser)
    add_trust_module(parser)


def run(call: Namespace) -> int:
    """Score, draw the plots into the run's folder, and print the metrics."""
    from airstreams import api
    from airstreams.distributed import is_main_process
    from airstreams.viewing.grad_cam import shown_answers, write_grad_cams
    from airstreams.viewing.mistakes import read_answers, write_strips
    from airstreams.viewing.pictures import confusion_plot
    from airstreams.viewing.reliability import reliability_plot
    from airstreams.viewing.representations import streams_picture
    from airstreams.viewing.tables import baselines_in_words

    result = api.evaluate(
        call.run,
        data_of(call),
        split=call.split,
        labels=call.labels,
        targets=targets_of(call),
        group_by=call.group_by,
        device=call.device,
        trust=call.trust_module,
        precision=call.precision,
        audit=call.audit,
        calibrated=call.calibrated,
        console=stderr,
    )
    if not is_main_process():
        return DONE
    if result.confusion is not None:
        note = baselines_in_words(result.metrics)
        confusion_plot(result.folder.confusion_plot, result.confusion, result.saved.classes, note)
    if result.metrics.calibration is not None:
        reliability_plot(result.folder.calibration_plot, result.metrics.calibration)
    streams_picture(result.folder.picture, result.saved, result.videos, result.targets, stderr)
    mistakes, right = read_answers(result.folder, result.saved.multi_label)
    videos = {video.name: video for video in result.videos}
    write_strips(result.folder, mistakes, videos, stderr)
    looked_at = shown_answers(mistakes, right) if call.audit else []
    write_grad_cams(result.folder, looked_at, result.saved, videos, stderr)
    if call.json:
        print_json(result.metrics.as_dict())
    else:
        _print_metrics(result)
    return DONE


def _print_metrics(result: "Evaluation") -> None:
    from airstreams.evaluation.results import weakest_first
    from airstreams.viewing.tables import (
        audit_in_words,
        audit_notes,
        audit_table,
        baseline_note,
        calibration_in_words,
        for_console,
        heads_table,
        scored_in_words,
        segmentation_tables,
        streams_table,
        targets_note,
        trained_on_warnings,
        unlabelled_note,
        untrained_note,
    )

    metrics = result.metrics
    table = heads_table(metrics.streams, metrics.baselines, metrics.new_only)
    stdout.print(for_console(table, totals=len(table) - 1 - len(metrics.streams)))
    for warning in trained_on_warnings(metrics):
        warn(stdout, warning)
    if note := baseline_note(metrics):
        say(stdout, note)
    if untrained := untrained_note(metrics.streams, result.saved.config):
        say(stdout, untrained)
    if len(metrics.per_class) > 5:
        shown = (f"{name} {percent(row.value)} ({row.videos})" for name, row in weakest_first(metrics)[:5])
        say(stdout, f"Weakest classes (number of videos): {', '.join(shown)}")
    for rows in segmentation_tables(metrics):
        stdout.print(for_console(rows))
    if note := targets_note(metrics):
        say(stdout, note)
    if metrics.audit is not None:
        say(stdout, audit_in_words(metrics))
        stdout.print(for_console(audit_table(metrics.audit)))
        if rows := streams_table(metrics.audit):
            stdout.print(for_console(rows))
        for note in audit_notes(metrics.audit):
            say(stdout, note)
    say(stdout, f"{scored_in_words(metrics)} Files: {result.folder.path}")
    for line in calibration_in_words(metrics.calibration):
        say(stdout, line)
    if metrics.unlabelled:
        say(stdout, unlabelled_note(metrics))
    _print_protocol(metrics.protocol)


def _print_protocol(protocol: "ScoringProtocol") -> None:
    from airstreams.evaluation.published import NAMES
    from airstreams.viewing.tables import views_in_words

    say(stdout, views_in_words(protocol))
    if protocol.comparison is None:
        return
    published = protocol.comparison.published
    reported = " and ".join(NAMES[key] for key in published.metrics)
    note = f"; {published.note}" if published.note else ""
    say(stdout, f"Protocol of {protocol.comparison.name}: {reported} on {published.split}{note}.")
    if protocol.comparison.deviations:
        say(stdout, f"Deviations from it: {'; '.join(protocol.comparison.deviations)}.")


COMMAND = Command(
    "Score a split of a data set",
    "evaluate runs/mine videos/ --split test",
    add_arguments,
    run,
    under_torchrun=True,
    computes=True,
)
