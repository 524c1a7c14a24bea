"""`airstreams reproduce TABLE --data DATA --out FOLDER`: measure a table, or draw a figure of the paper."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from airstreams.commands.command import (
    DONE,
    LABELS_HELP,
    ROOT_HELP,
    Command,
    add_group_by,
    add_init,
    add_targets,
    add_trust_module,
    print_json,
    require_at_least,
    set_group_by,
    targets_of,
    with_root,
)
from airstreams.config import Config
from airstreams.console import SafeTable, print_line, say, stderr, stdout, warn
from airstreams.errors import InputError
from airstreams.experiments.study import read_results, warning_of, weights_from
from airstreams.experiments.tables import FIGURES, STREAMS, TABLES, Figure, Table, reproducible, streams_table
from airstreams.files import require_writable
from airstreams.recipe import load_config, recipe_path
from airstreams.runs.trust import require_trusted

if TYPE_CHECKING:
    from airstreams.experiments.reproduce import Job
    from airstreams.training.start import Start
    from airstreams.viewing.paper_figures import DrawnFigure


INIT_HELP = "what table5, kinetics and few-videos start from: what --init of train takes"


def add_arguments(parser: ArgumentParser) -> None:
    """TABLE, and what its runs or its figure need."""
    listed = "; ".join(f"{name}: {what.title.rpartition(': ')[2]}" for name, what in (TABLES | FIGURES).items())
    parser.add_argument("table", metavar="TABLE", type=str, help=listed)
    parser.add_argument(
        "--data", metavar="DATA", nargs="+", type=str, help="one DATA or more: a table shows the mean over them"
    )
    parser.add_argument("--root", metavar="DIR", type=Path, help=ROOT_HELP)
    parser.add_argument(
        "--out", metavar="FOLDER", type=Path, required=True, help="folder for runs and results; finished runs are kept"
    )
    parser.add_argument("--labels", type=Path, help=LABELS_HELP)
    add_targets(parser)
    add_trust_module(parser)
    add_group_by(parser)
    parser.add_argument("--config", metavar="RECIPE", type=str, help="of all runs: a recipe's name or a YAML file")
    parser.add_argument(
        "--seeds", metavar="N", type=int, default=3, help="trainings per run of a table; a figure takes the first"
    )
    parser.add_argument("--workers", metavar="N", type=int, default=1, help="trainings side by side")
    parser.add_argument("--weights-from", metavar="STUDY", type=Path, help="evolved loss weights, for table3 to table6")
    add_init(parser, INIT_HELP)
    parser.add_argument("--study", metavar="STUDY", type=Path, help="what figure5 and figure8 show")
    parser.add_argument("--dry-run", action="store_true", help="show the runs and their cost, and do nothing")


def run(call: Namespace) -> int:
    """Do the runs that are missing, then write the table or draw the figure."""
    require_at_least(call, seeds=1, workers=1)
    wanted = reproducible(call.table, evolved=call.weights_from is not None)
    shows_study = isinstance(wanted, Figure) and wanted.study
    renders = isinstance(wanted, Table) and wanted.renders is not None
    for name, needed in (("data", not shows_study and not renders), ("study", shows_study)):
        if needed and call[name] is None:
            raise InputError(f"{call.table} needs --{name}. Give --{name} {'STUDY' if shows_study else 'DATA'}.")
        if not needed and call[name] is not None:
            raise InputError(f"{call.table} does not use --{name}. Leave it out.")
    return _show_study(call) if shows_study else _show_runs(call, wanted)


def _show_study(call: Namespace) -> int:
    from airstreams.viewing.paper_figures import draw_study

    if call.dry_run:
        read_results(call.study)  # raises where there are none
        return _print_plan(call, [], [], 0.0)
    return _print_figure(call, [], draw_study(call.table, call.study, _picture(call)))


def _show_runs(call: Namespace, wanted: Table | Figure) -> int:
    from airstreams.data.content import follow_label_maps, with_contents
    from airstreams.data.sources import open_source
    from airstreams.experiments import reproduce as experiments
    from airstreams.experiments import time_blind
    from airstreams.representations.teaching import follow_targets
    from airstreams.training.defaults import with_target_weights
    from airstreams.viewing import paper_figures

    recipe, start = _recipe_and_start(call, wanted)
    recipe.training.device = call.device or recipe.training.device
    recipe.training.precision = call.precision or recipe.training.precision
    set_group_by(call, recipe)
    evolved = None
    if call.weights_from is not None:
        if warning := warning_of(call.weights_from):
            warn(stderr, warning)
        evolved = weights_from(call.weights_from, 1, list(Config().active_loss_weights()))
    wanted = experiments.without_missing_towers(wanted, stderr)
    targets = targets_of(call)
    if isinstance(wanted, Table) and wanted.renders is not None:
        videos = wanted.renders
        sources = [
            time_blind.planned(call.out, videos) if call.dry_run else time_blind.rendered(call.out, videos, stderr)
        ]
    else:
        sources = [open_source(with_root(data, call.root), call.labels, targets=targets) for data in call.data]
    recipe = with_target_weights(recipe, sources[0])
    if call.table == STREAMS:
        wanted = streams_table(recipe)
    if not call.dry_run:  # once, and not again in each training
        sources = [with_contents(source, stderr) for source in sources]
        sources = [follow_targets(source, recipe, stderr, source.targets) for source in sources]
        sources = [follow_label_maps(source, stderr) for source in sources]
    jobs = experiments.plan(wanted, recipe, sources, call.seeds, call.out, evolved, start, stderr)
    if isinstance(wanted, Figure):
        paper_figures.require_fitting(call.table, jobs)
    if call.dry_run:
        work = experiments.multiply_adds(jobs)
        return _print_plan(call, jobs, work, experiments.hours_left(jobs, work))
    require_writable(call.out)
    experiments.run_jobs(jobs, call.workers, stderr)
    if isinstance(wanted, Figure):
        drawn = paper_figures.draw(call.table, jobs, _picture(call), stderr)
        return _print_figure(call, [job.folder.name for job in jobs], drawn)
    return _print_table(call, wanted, jobs)


def _recipe_and_start(call: Namespace, wanted: Table | Figure) -> "tuple[Config, Start | None]":
    """The recipe of all runs, and what pretrained ones start from: what the call gives, or else the table."""
    from airstreams.training.start import read_start

    table = wanted if isinstance(wanted, Table) else None
    init = call.init or (table and table.init)
    start = read_start(init, call.offline) if init else None
    if call.config is not None:
        recipe = load_config(recipe_path(call.config))
        require_trusted(recipe.model, call.trust_module, call.config)
        return recipe, start
    recipe = load_config(recipe_path(table.recipe)) if table and table.recipe else Config()
    if start is not None and start.backbone is not None and not (table and table.chooses_towers):
        recipe = replace(recipe, model=replace(recipe.model, backbone=None))  # the weights choose it
    return recipe, start


def _print_table(call: Namespace, table: Table, jobs: "Sequence[Job]") -> int:
    from airstreams.experiments.table_markdown import markdown_of, write_table
    from airstreams.experiments.table_results import results_of
    from airstreams.experiments.time_blind import vary
    from airstreams.viewing.paper_figures import draw_speeds, draw_table

    results = results_of(call.table, table, jobs, call.command)
    markdown = markdown_of(table, results, jobs)
    write_table(call.out, results, markdown)
    content = results.as_dict()
    if table.others:
        scores = vary(table, jobs, call.out, call.out / f"{call.table}-others.json", stderr)
        content["others"] = [score.as_dict() for score in scores]
        if table.plot == "speed":
            draw_speeds(scores, table, _picture(call))
    elif table.plot:
        draw_table(results, table, _picture(call))
    if table.plot:
        content["picture"] = str(_picture(call))
    if call.json:
        print_json(content)
    else:
        print(markdown, end="")
    return DONE


def _print_plan(call: Namespace, jobs: "Sequence[Job]", work: Sequence[int], hours: float) -> int:
    if call.json:
        runs = [
            {"run": job.folder.name, "done": job.done, "multiply_adds": count}
            for job, count in zip(jobs, work, strict=True)
        ]
        print_json({"runs": runs, "hours_left": hours})
        return DONE
    shown = SafeTable("run", "done", "training, T multiply-adds")
    for job, count in zip(jobs, work, strict=True):
        tera = count / 1e12
        shown.add_row(job.folder.name, "yes" if job.done else "", f"{tera:,.0f}" if tera >= 100 else f"{tera:.3g}")
    stdout.print(shown)
    pace = f"about {hours:.1f} h of training left" if jobs else "nothing to train"
    if hours and call.workers > 1:
        pace += f", {hours / call.workers:.1f} h with {call.workers} workers"
    if hours and not any(job.done for job in jobs):
        pace += " (estimated from one step, without decoding, until a run is finished)"
    say(stdout, f"{sum(not job.done for job in jobs)} of {len(jobs)} runs to do; {pace}")
    return DONE


def _print_figure(call: Namespace, runs: list[str], drawn: "DrawnFigure") -> int:
    if call.json:
        print_json({"figure": call.table, "picture": str(_picture(call)), "runs": runs, **drawn.as_dict()})
        return DONE
    if drawn.flow is not None:
        table = SafeTable("", "before training", "after training")
        for name, numbers in drawn.flow.items():
            table.add_row(name, *(f"{number:.4f}" for number in numbers))
        stdout.print(table)
    print_line(f"picture: {_picture(call)}")
    return DONE


def _picture(call: Namespace) -> Path:
    picture: Path = call.out / f"{call.table}.png"
    return picture


COMMAND = Command(
    "Measure a table, or draw a figure of the paper",
    "reproduce table1 --data videos/ --labels labels/ --out repro/",
    add_arguments,
    run,
    computes=True,
    after_interrupt="Give the same command again to go on.",
)
