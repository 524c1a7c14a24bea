"""`airstreams train DATA --out RUN`: train a recogniser."""

from functools import partial
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from airstreams.commands.command import (
    DONE,
    LABELS_HELP,
    Command,
    add_data,
    add_group_by,
    add_init,
    add_targets,
    add_trust_module,
    data_of,
    print_json,
    targets_of,
)
from airstreams.config import Config, LossWeights
from airstreams.console import print_line, stderr, warn
from airstreams.errors import InputError
from airstreams.experiments.study import warning_of, weights_from

LOG_TO_HELP = "where the metrics go: tensorboard, wandb, mlflow; several are joined by commas"


def add_arguments(parser: ArgumentParser) -> None:
    """DATA, the run, and what it starts from. The config's keys come beside these."""
    add_data(parser)
    parser.add_argument("--out", metavar="RUN", type=Path, required=True, help="the run's folder")
    parser.add_argument("--labels", type=Path, help=LABELS_HELP)
    add_targets(parser)
    add_group_by(parser)
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, or begin it")
    parser.add_argument("--log-to", metavar="TRACKERS", default="tensorboard", help=LOG_TO_HELP)
    add_init(parser)
    parser.add_argument("--weights-from", metavar="STUDY", type=Path, help="take the loss weights of its best trial")
    parser.add_argument("--top", metavar="K", type=int, help="with --weights-from: the mean of the K best trials")
    add_trust_module(parser)


def run(call: Namespace) -> int:
    """Train, or go on with a training."""
    from airstreams import api
    from airstreams.distributed import is_main_process
    from airstreams.training.summary import summary_of

    if call.top is not None and call.weights_from is None:
        raise InputError("--top has no effect without --weights-from. Give --weights-from STUDY too.")
    record = api.carry_out(
        api.TrainingCall(
            data_of(call),
            call.out,
            call.given,
            labels=call.labels,
            targets=targets_of(call),
            init=call.init,
            offline=call.offline,
            resume=call.resume,
            log_to=[name.strip() for name in call.log_to.split(",")],
            trust=call.trust_module,
            console=stderr,
            evolved=None if call.weights_from is None else partial(_evolved, call),
        )
    )
    if not is_main_process():
        return DONE
    summary = summary_of(call.out)
    options = [word for name in ("root", "labels") if call[name] for word in (f"--{name}", str(call[name]))]
    commands = summary.next_commands(call.source, options)
    if call.json:
        print_json({"run": str(call.out), **record.as_dict(), **summary.as_dict(), "next": commands})
    else:  # no console: it would break a command between words
        for line in (*summary.lines(), "Next:", *(f"  {command}" for command in commands)):
            print_line(line)
    return DONE


def _evolved(call: Namespace, config: Config) -> LossWeights:
    """The loss weights of --weights-from for a config."""
    if warning := warning_of(call.weights_from):
        warn(stderr, warning)
    return config.loss_weights.updated(weights_from(call.weights_from, call.top or 1, config.lambdas()))


COMMAND = Command(
    "Train a recogniser",
    "train videos/ --out runs/first",
    add_arguments,
    run,
    takes_config=True,
    common_keys=(
        "training.epochs",
        "training.batch_size",
        "training.lr",
        "model.streams",
        "loss_weights.flow",
        "clip.frames",
        "clip.size",
        "clip.rate",
        "data.flip",
        "data.balanced",
        "data.workers",
        "data.cache",
        "evaluation.views",
        "seed",
    ),
    computes=True,
    under_torchrun=True,
    after_interrupt="Give --resume to go on from the last saved state, if there is one yet.",
)
