"""The verbs of the command line: one file each, with its arguments beside its call.

Importing them is cheap. What does the work, and torch with it, is imported when a verb is called.
"""

from airstreams.commands import (
    annotate,
    audit_data,
    check_data,
    evaluate,
    evolve,
    export,
    info,
    labels,
    predict,
    report,
    reproduce,
    train,
)
from airstreams.commands.command import Command

COMMANDS: dict[str, Command] = {
    "check-data": check_data.COMMAND,
    "audit-data": audit_data.COMMAND,
    "annotate": annotate.COMMAND,
    "labels": labels.COMMAND,
    "train": train.COMMAND,
    "evolve": evolve.COMMAND,
    "evaluate": evaluate.COMMAND,
    "predict": predict.COMMAND,
    "reproduce": reproduce.COMMAND,
    "export": export.COMMAND,
    "report": report.COMMAND,
    "info": info.COMMAND,
}
