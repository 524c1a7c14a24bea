"""`airstreams evolve DATA --out STUDY`: evolve the loss weights."""

from pathlib import Path
from typing import Literal

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
    require_at_least,
    targets_of,
)
from airstreams.console import SafeTable, say, stderr, stdout
from airstreams.errors import one_line
from airstreams.percent import percent
from airstreams.plural import count_of


def add_arguments(parser: ArgumentParser) -> None:
    """DATA, the study, and how it searches. The config's keys come beside these."""
    add_data(parser)
    parser.add_argument("--out", metavar="STUDY", type=Path, required=True, help="the study's folder; resumes a study")
    parser.add_argument("--labels", type=Path, help=LABELS_HELP)
    add_targets(parser)
    add_group_by(parser)
    add_init(parser, "what each training starts from: what --init of train takes")
    parser.add_argument("--trials", metavar="N", type=int, default=100, help="number of trials in all")
    parser.add_argument("--workers", metavar="N", type=int, default=1, help="trials side by side on this machine")
    parser.add_argument(
        "--sampler",
        metavar="NAME",
        type=Literal["tournament", "tpe", "random"],
        default="tournament",
        help="what draws the weights: tournament, tpe or random",
    )
    parser.add_argument("--storage", metavar="URL", type=str, help="a database that machines share (a file in STUDY)")
    add_trust_module(parser)


def run(call: Namespace) -> int:
    """Search, draw the plots, and print the best weights beside the references."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy import URL

    from airstreams.data.content import with_contents
    from airstreams.data.sources import open_source
    from airstreams.evaluation.published import NAMES
    from airstreams.experiments.evolve import evolve
    from airstreams.experiments.search import Search
    from airstreams.representations.teaching import follow_targets
    from airstreams.training.defaults import config_of_new_run, warn_of_unused_start
    from airstreams.training.start import read_start
    from airstreams.viewing.evolution import search_plot, weights_plot

    require_at_least(call, trials=1, workers=1)
    source = open_source(data_of(call), call.labels, targets=targets_of(call))
    start = None if call.init is None else read_start(call.init, call.offline, call.trust_module)
    config = config_of_new_run(call.given, source, stderr, start)
    if start is None:
        warn_of_unused_start(config, stderr)
    source = follow_targets(
        with_contents(source, stderr), config, stderr, config.supervised
    )  # once, and not again in each trial
    url = call.storage or str(URL.create("sqlite", database=str(call.out.resolve() / "study.db")))
    trust = tuple(call.trust_module)
    search = Search(source, config, call.out, url, call.trials, call.sampler, call.init, trust)
    try:
        results = evolve(search, call.workers, stderr)
    except StorageInternalError as error:
        reason = one_line(error.__cause__ or error)[:200]
        fix = "Repair it, or give another --out"
        if "locked" in reason:  # SQLite's locks often fail on network disks
            fix = "Give --out on a local disk, or --storage URL of a database server, such as PostgreSQL"
        raise RuntimeError(f"the study's database failed ({reason}). {fix}.") from error
    no_best = results.no_best()
    weights_plot(call.out / "weights.png", [trial.weights for trial in results.top[:5]], no_best)
    search_plot(call.out / "search.png", {call.sampler: results.values}, NAMES[results.metric], no_best)
    if call.json:
        print_json(results.as_dict())
        return DONE
    best = results.best
    assert best is not None  # a finished search has one
    assert best.fresh is not None
    table = SafeTable("weights", *best.weights, "search, the highest", "fresh seeds, mean (each)")
    for name, row in {"evolved": best.fresh, **results.references}.items():
        weights = [f"{weight:.2f}" for weight in row.weights.values()]
        each = ", ".join("diverged" if value is None else percent(value) for value in row.values)
        score = best.value if name == "evolved" else None
        table.add_row(name, *weights, percent(score), f"{percent(row.mean)} ({each})")
    stdout.print(table)
    if no_best is not None:
        say(stdout, no_best)
    say(stdout, f"{count_of(results.trials, 'trial')}, {results.diverged} diverged; plots in {call.out}")
    return DONE


COMMAND = Command(
    "Evolve the loss weights",
    "evolve videos/ --out studies/mine --config mine.yaml",
    add_arguments,
    run,
    takes_config=True,
    common_keys=(
        "evolution.epochs",
        "evolution.population_size",
        "evolution.held_out",
        "evolution.pruner",
        "evolution.fresh_seeds",
        "training.epochs",
        "model.streams",
        "clip.size",
        "data.workers",
        "data.cache",
        "seed",
    ),
    computes=True,
    after_interrupt="Give the same command again to go on.",
)
