"""The command line: one function a verb. It calls and prints; the work is done elsewhere.

What does the work is imported when its verb is called, so that help and complaints come at once.
"""

import io
import json
import os
import shlex
import sys
import traceback
import warnings
from argparse import ArgumentError
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace
from rich.progress import Progress
from rich.table import Table

import airstreams
from airstreams.arguments import config_keys, in_our_words, make_parser, with_recipe_paths
from airstreams.config import Config, LossWeights
from airstreams.console import say, stderr, stdout, warn
from airstreams.errors import InputError, VideoError, message_of, one_line
from airstreams.experiments.study import read_results, weights_from
from airstreams.experiments.tables import Figure, reproducible
from airstreams.files import exclusive_lock, require_writable
from airstreams.machine import heed_cpu_quota
from airstreams.percent import percent
from airstreams.recipe import RECIPES, config_from, load_config, recipe_path, to_resume, with_current_options

if TYPE_CHECKING:
    from airstreams.data.listing import Source
    from airstreams.viewing.paper_figures import DrawnFigure

# By default a thread of OpenMP that waits spins for long, and takes a core's time from whatever else runs there:
# another training, or the processes that decode. Read when torch is imported, hence here.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
heed_cpu_quota()

DONE, FAILED, WRONG_INPUT = 0, 1, 2


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit status: 0 done, 1 the work failed, 2 the call or its input is wrong."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        Path.cwd()
    except FileNotFoundError:  # of which libraries would complain in words of their own
        return _complain("the current folder was deleted; cd to one that is there", WRONG_INPUT, debug=False)
    debug = "--debug" in argv
    argv = [word for word in argv if word != "--debug"]  # so that it may stand before the verb too
    for stream in (sys.stdout, sys.stderr):  # whose encoding may lack a file name's letters
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if "--json" in argv and "WORLD_SIZE" in os.environ:  # under torchrun, where torch 2.9 prints of its connections
        sys.stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
    warnings.filterwarnings("default" if debug else "ignore")
    warnings.filterwarnings("default", category=DeprecationWarning, module=r"airstreams\.recipe")  # of old keys
    warnings.showwarning = lambda message, *_, **__: warn(stderr, str(message))
    command = shlex.join(["airstreams", *argv])
    argv = with_current_options(argv)
    keys = config_keys(argv)
    try:
        parser = make_parser(argv)
        if argv[:1] == ["reproduce"] and keys:
            raise InputError(f"--{keys[0]}: reproduce takes no single keys; write them into a recipe and give --config")
        parsed = parser.instantiate(parser.parse_args(with_recipe_paths(argv)))
        call = parsed[parsed.verb]
        processes = os.environ.get("WORLD_SIZE", "1") if "LOCAL_RANK" in os.environ else "1"
        if processes != "1" and parsed.verb not in SHARED_OUT:
            instead = " with --workers N" if "workers" in call else ""
            raise InputError(f"torchrun: {parsed.verb} is not shared out by it; call airstreams itself{instead}")
        call.command, call.config_keys = command, keys
        return VERBS[parsed.verb](call)
    except InputError as error:
        return _complain(str(error), WRONG_INPUT, debug)
    except ArgumentError as error:
        verb = f"{argv[0]} " if argv and argv[0] in VERBS else ""
        return _complain(
            f"{in_our_words(str(error))}; `airstreams {verb}--help` shows what there is", WRONG_INPUT, debug
        )
    except BrokenPipeError:  # who read what is printed has had enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain at its end
        return FAILED
    except (VideoError, ArithmeticError, OSError, RuntimeError, MemoryError) as error:
        return _complain(message_of(error), FAILED, debug)
    except KeyboardInterrupt:
        same = "; the same call goes on"
        hints = {"train": "; --resume goes on from the last saved state, if there is one yet"}
        hints |= dict.fromkeys(("annotate", "evolve", "reproduce"), same)
        hint = hints.get(argv[0] if argv else "", "")
        return _complain(f"interrupted{hint}", FAILED, debug=False)


def check_data(call: Namespace) -> int:
    """`airstreams check-data DATA`."""
    from airstreams.data.check import check_videos
    from airstreams.data.sources import open_source

    source = open_source(call.source, include_missing=True)
    for warning in source.warnings:
        warn(stderr, warning)
    with Progress(console=stderr) as progress:
        good, bad, rates = check_videos(source.videos, progress)
    classes = Counter(label for video in good for label in video.labels)
    splits = Counter(video.split for video in good if video.split)
    if call.json:
        _print_json(
            {
                "videos": len(source.videos),
                "good": len(good),
                "bad": [{"path": str(item.video.path), "name": item.video.name, "reason": item.reason} for item in bad],
                "classes": {name: classes[name] for name in source.classes},
                "splits": dict(splits),
                "frame_rates": {"lowest": min(rates.values()), "highest": max(rates.values())} if rates else None,
            }
        )
    else:
        table = Table("class", "good videos")
        for name in source.classes:
            table.add_row(name, str(classes[name]))
        stdout.print(table)
        for split, count in splits.items():
            stdout.print(f"{split}: {count} videos")
        if rates:
            stdout.print(f"frames a second: {min(rates.values()):.4g} to {max(rates.values()):.4g}")
        stdout.print(f"{len(good)} of {len(source.videos)} videos are good")
        for item in bad:
            print(f"bad: {item.video.location}: {item.reason}")
    return FAILED if bad else DONE


def annotate(call: Namespace) -> int:
    """`airstreams annotate DATA --teacher NAME --out LABELS`."""
    from airstreams.data.sources import open_source
    from airstreams.distributed import device_of_process, is_main_process
    from airstreams.teachers import annotate as job
    from airstreams.teachers.teacher import load_teacher

    _require_at_least(call, batch_size=1, workers=0)
    given = {name: call[name] for name in ("score_threshold", "unsure_from") if call[name] is not None}
    classes = None if call.classes is None else tuple(name.strip() for name in call.classes.split(","))
    settings = job.Settings(call.stride, call.max_side, classes, given)
    source = open_source(call.source, for_training=False)
    teacher = load_teacher(call.teacher, given, device_of_process())
    with _exclusive_lock(call.out, "annotating"):
        report = job.annotate(source.videos, teacher, settings, call.out, call.batch_size, call.workers, stderr)
    if not is_main_process():
        return DONE
    labelled = report.files - len(report.left_out) - len(report.missing)
    if call.json:
        _print_json(
            {
                "videos": report.files,
                "labelled": labelled,
                "frames": report.frames,  # in this call
                "seconds": report.seconds,
                "left_out": [{"path": path, "reason": reason} for path, reason in report.left_out],
                "missing": report.missing,
            }
        )
    else:
        for path, reason in report.left_out:
            print(f"left out: {path}: {reason}")
        for path in report.missing:
            print(f"missing: {path}: no label maps; the same call makes them")
        rate = report.frames / report.seconds
        stdout.print(f"{labelled} of {report.files} files labelled; {report.frames} frames now, {rate:.1f} a second")
    return FAILED if report.left_out or report.missing else DONE


def labels(call: Namespace) -> int:
    """`airstreams labels LABELS`."""
    from airstreams.data.label_maps import LabelStore
    from airstreams.data.sources import open_source
    from airstreams.teachers import inspect as label_report
    from airstreams.viewing.pictures import contact_sheet

    store = LabelStore.open(call.labels)
    picture = call.picture or call.labels / "contact_sheet.png"
    if call.picture is None and not os.access(call.labels, os.W_OK):
        raise InputError(f"{call.labels} cannot be written, so the contact sheet has no place; give --picture PNG")
    data, videos = call.data or call.truth, {}
    if data is not None:
        source = open_source(data, call.labels, for_training=False)
        videos = {video.label_map: video.path for video in source.videos if video.label_map is not None}
    with Progress(console=stderr, transient=True, disable=not stderr.is_terminal) as progress:
        truth = None
        if call.truth is not None:
            source = open_source(call.truth, call.labels, for_training=False)
            truth = label_report.score_against_masks(store, source.videos, progress)
        report = label_report.count_labels(store, progress, None if data is None else videos)
    frames, unread = label_report.read_samples(store, report.samples, videos)
    if frames:
        contact_sheet(picture, frames, store.classes)
    bad = sorted((report.bad | unread | (truth.bad if truth else {})).items())
    shares = report.counts.shares(store.classes)
    if call.json:
        _print_json(
            {
                "teacher": store.teacher,
                "settings": store.settings,
                **shares,
                "truth": truth.metrics() if truth else None,
                "picture": str(picture) if frames else None,
                "bad": [{"path": str(path), "reason": reason} for path, reason in bad],
            }
        )
        return FAILED if bad else DONE
    settings = ", ".join(f"{name} {value}" for name, value in store.settings.items())
    stdout.print(f"{store.teacher}; {settings or 'no settings'}")
    table = Table("class", "of the pixels", "in so many frames")
    for name, row in shares["classes"].items():
        table.add_row(name, f"{row['pixels']:.2%}", f"{row['frames']:.1%}")
    stdout.print(table)
    stdout.print(
        f"{shares['videos']} videos, {shares['frames']} frames labelled, {shares['frames_with_instance']:.1%} of them "
        f"with any instance; {shares['pixels_without_label']:.2%} of the pixels without label"
    )
    stdout.print(f"{shares['bytes'] / 1e6:.1f} MB, {shares['raw_share']:.2%} of a byte a pixel")
    if truth:
        stdout.print(
            f"person IoU {percent(truth.person_iou)} over all pixels, {percent(truth.person_iou_mean)} the mean of "
            f"videos: {truth.frames} frames of {truth.videos} of {truth.videos_with_masks} videos with masks"
        )
    for _, reason in bad:
        print(f"bad: {reason}")  # which names the file
    if frames:
        print(f"contact sheet: {picture}")
    return FAILED if bad else DONE


def train(call: Namespace) -> int:
    """`airstreams train DATA --out RUN`."""
    from airstreams.distributed import is_main_process
    from airstreams.runs.folder import RunFolder
    from airstreams.training.loop import train as run_training

    run_folder = RunFolder(call.out)
    if call.resume:
        for name in ("init", "weights_from", "top"):
            if call[name] is not None:
                option = name.replace("_", "-")
                raise InputError(
                    f"--resume goes on with a run; leave out --{option}, which is for the beginning of one"
                )
        if not run_folder.has_begun():
            raise InputError(f"--resume: {call.out} holds no run; drop --resume, or give --out the run's folder")
        config = to_resume(run_folder.config, config_from(call), call.config_keys, call.compact_classes)
    else:
        if not run_folder.may_begin():
            mend = "--resume to go on with it, or " if run_folder.has_begun() else ""
            raise InputError(f"--out {call.out}: already there; give {mend}another --out")
        config = config_from(call)
        config.data.compact_classes |= call.compact_classes
        config.loss_weights = _evolved_weights(call, config)
    source = _labelled_source(call, config)
    with _exclusive_lock(call.out, "training"):
        record = run_training(source, config, call.out, call.resume, stderr, call.init)
    if not is_main_process():
        return DONE
    if call.json:
        _print_json({"run": str(call.out), **record})
    else:
        stdout.print(f"trained: {call.out}")
    return DONE


def _labelled_source(call: Namespace, config: Config, for_training: bool = True) -> "Source":
    """DATA with LABELS, and a warning where no semantic stream reads these."""
    from airstreams.data.sources import open_source

    source = open_source(call.source, call.labels, for_training)
    if call.labels is None or "semantic" in config.model.streams:
        return source
    warning = "--labels has no effect, since the model has no semantic stream."
    return replace(source, warnings=(*source.warnings, warning))


def _evolved_weights(call: Namespace, config: Config) -> LossWeights:
    if call.weights_from is None:
        if call.top is not None:
            raise InputError("--top: expected --weights-from STUDY beside it")
        return config.loss_weights
    wanted = config.lambdas()
    return config.loss_weights.updated(weights_from(call.weights_from, call.top or 1, wanted))


def evolve(call: Namespace) -> int:
    """`airstreams evolve DATA --out STUDY`."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy import URL

    from airstreams.data.sources import open_source
    from airstreams.evaluation.published import NAMES
    from airstreams.experiments.evolve import evolve as run_search
    from airstreams.experiments.search import Search
    from airstreams.viewing.evolution import search_plot, weights_plot

    _require_at_least(call, trials=1, workers=1)
    source = open_source(call.source, call.labels)
    for warning in source.warnings:
        warn(stderr, warning)
    url = call.storage or str(URL.create("sqlite", database=str(call.out.resolve() / "study.db")))
    search = Search(source, config_from(call), call.out, url, call.trials, call.sampler)
    try:
        results = run_search(search, call.workers, stderr)
    except StorageInternalError as error:
        reason = one_line(error.__cause__ or error)[:200]
        raise RuntimeError(f"the study's database failed ({reason}); mend it, or begin with another --out") from error
    weights_plot(call.out / "weights.png", [trial.weights for trial in results.top[:5]])
    search_plot(call.out / "search.png", {call.sampler: results.values}, NAMES[results.metric])
    if call.json:
        _print_json(results.as_dict())
        return DONE
    best = results.best
    assert best is not None  # a finished search has one
    assert best.fresh is not None
    table = Table("weights", *best.weights, "search, the best", "fresh seeds, mean (each)")
    for name, row in {"evolved": best.fresh, **results.references}.items():
        weights = [f"{weight:.2f}" for weight in row.weights.values()]
        each = ", ".join("diverged" if value is None else percent(value) for value in row.values)
        score = best.value if name == "evolved" else None
        table.add_row(name, *weights, percent(score), f"{percent(row.mean)} ({each})")
    stdout.print(table)
    stdout.print(f"{results.trials} trials, {results.diverged} of them diverged; figures in {call.out}")
    return DONE


def evaluate(call: Namespace) -> int:
    """`airstreams evaluate RUN DATA`."""
    from airstreams.distributed import is_main_process
    from airstreams.evaluation.evaluate import evaluate as evaluate_run
    from airstreams.evaluation.published import NAMES
    from airstreams.evaluation.results import weakest_first
    from airstreams.runs.saved_model import read_description
    from airstreams.viewing.pictures import confusion_plot
    from airstreams.viewing.representations import streams_picture
    from airstreams.viewing.tables import for_console, heads_table, segmentation_table

    source = _labelled_source(call, read_description(call.run).config, for_training=False)
    result = evaluate_run(call.run, source, call.split, stderr)
    if not is_main_process():
        return DONE
    if result.confusion is not None:
        confusion_plot(result.folder.confusion_plot, result.confusion, result.saved.classes)
    streams_picture(result.folder.picture, result.saved, result.videos, result.label_store, stderr)
    metrics = result.metrics
    if call.json:
        _print_json(metrics.as_dict())
        return DONE
    stdout.print(for_console(heads_table(metrics.streams)))
    if len(metrics.per_class) > 5:
        said = (f"{name} {percent(row.value)} ({row.videos})" for name, row in weakest_first(metrics)[:5])
        say(stdout, f"Weakest classes (their videos): {', '.join(said)}")
    if metrics.segmentation:
        stdout.print(for_console(segmentation_table(metrics.segmentation)))
    stdout.print(
        f"{metrics.videos} videos scored, {metrics.left_out} left out; files in {result.folder.path}. "
        f"They are of {metrics.classes} classes; in brackets, "
        f"95 % intervals over {metrics.groups} groups of videos."
    )
    if metrics.unlabelled:
        stdout.print(
            f"{metrics.unlabelled} videos without any action are ranked last, as Charades has it. If they competed, "
            f"the mAP were {percent(metrics.map_unlabelled_as_negatives)}."
        )
    protocol = metrics.protocol
    stdout.print(f"A video's score is the mean over {protocol.views} clips, {protocol.crops} crops each.")
    if comparison := protocol.comparison:
        published = comparison.published
        reported = " and ".join(NAMES[key] for key in published.metrics)
        note = f"; {published.note}" if published.note else ""
        stdout.print(f"Protocol of {comparison.name}: {reported} on {published.split}{note}.")
        if comparison.deviations:
            stdout.print(f"Here otherwise: {'; '.join(comparison.deviations)}.")
    return DONE


def predict(call: Namespace) -> int:
    """`airstreams predict RUN VIDEO...`."""
    from airstreams.data.clips import frame_rate_warning
    from airstreams.data.video import probe

    recogniser = airstreams.load(call.run)
    if not any(Path(video).exists() for video in call.videos):
        raise InputError(f"no such file: {', '.join(call.videos[:5])}; expected video files on this machine")
    answers: list[dict[str, Any]] = []
    left_out: list[dict[str, str]] = []
    rates: list[float] = []
    with Progress(console=stderr, transient=True, disable=not stderr.is_terminal) as progress:
        for path in progress.track(call.videos, description="predicting"):
            try:
                prediction = recogniser.predict(path)
            except VideoError as error:
                left_out.append({"path": path, "reason": error.reason})
                say(progress.console, f"airstreams: {path}: left out: {error.reason}")
                continue
            if (info := probe(path)).frames > 1:
                rates.append(info.fps)
            windows = [{"start": w.start, "end": w.end, "top": _top(w.probabilities)} for w in prediction.windows]
            answers.append({"path": path, "top": _top(prediction.probabilities), "windows": windows})
            if not call.json:
                _print_answer(answers[-1])
    if warning := frame_rate_warning(rates, recogniser.saved.frame_rate, recogniser.saved.config.clip):
        warn(stderr, warning)
    if call.json:
        _print_json({"videos": answers, "left_out": left_out})
    return FAILED if left_out else DONE


def export(call: Namespace) -> int:
    """`airstreams export RUN --out FILE`."""
    from airstreams.inference.export import export as write_export
    from airstreams.runs.saved_model import read_description

    with stderr.status("translating the model, for a minute or so"):
        difference = write_export(call.run, call.out)
    described = read_description(call.run)
    clip, classes = described.config.clip, len(described.classes)
    if call.json:
        frames = [None, clip.frames, clip.size, clip.size, 3]
        _print_json({"file": str(call.out), "frames": frames, "classes": classes, "largest_difference": difference})
        return DONE
    say(
        stdout,
        f"exported: {call.out}, frames (any, {clip.frames}, {clip.size}, {clip.size}, 3) to probabilities (any, "
        f"{classes})",
    )
    said = f"they differ by at most {difference:.1g} from the model's, on made-up clips"
    stdout.print(said if difference is not None else "not compared with the model: onnxruntime is not installed")
    return DONE


def report(call: Namespace) -> int:
    """`airstreams report RUN`."""
    from airstreams.viewing.run_report import write_report

    page = write_report(call.run)
    if call.json:
        _print_json({"report": str(page)})
    else:
        say(stdout, f"report: {page}")
    return DONE


def reproduce(call: Namespace) -> int:
    """`airstreams reproduce TABLE --data DATA --out FOLDER`."""
    _require_at_least(call, seeds=1, workers=1)
    wanted = reproducible(call.table, evolved=call.weights_from is not None)
    of_a_study = isinstance(wanted, Figure) and wanted.study
    for name, needed in (("data", not of_a_study), ("study", of_a_study)):
        if needed and call[name] is None:
            raise InputError(f"{call.table}: expected --{name} {'STUDY' if of_a_study else 'DATA'}; give it")
        if not needed and call[name] is not None:
            raise InputError(f"{call.table}: --{name} is of no use to it; leave it out")
    picture = call.out / f"{call.table}.png"
    if of_a_study:
        from airstreams.viewing.paper_figures import draw_study

        if call.dry_run:
            read_results(call.study)  # complains where there are none
            return _say_plan(call, [], [], 0.0)
        return _say_figure(call, picture, [], draw_study(call.table, call.study, picture))

    from airstreams.data.sources import open_source
    from airstreams.experiments import reproduce as experiments

    recipe = Config() if call.config is None else load_config(recipe_path(call.config))
    evolved = None
    if call.weights_from is not None:
        evolved = weights_from(call.weights_from, 1, list(Config().active_loss_weights()))
    sources = [open_source(data, call.labels) for data in call.data]
    for warning in dict.fromkeys(warning for source in sources for warning in source.warnings):
        warn(stderr, warning)
    jobs = experiments.plan(wanted, recipe, sources, call.seeds, call.out, evolved, call.init)
    if isinstance(wanted, Figure):
        from airstreams.viewing import paper_figures

        paper_figures.require_fitting(call.table, jobs)
    if call.dry_run:
        work = experiments.multiply_adds(jobs)
        return _say_plan(call, jobs, work, experiments.hours_left(jobs, work))
    require_writable(call.out)
    experiments.run_jobs(jobs, call.workers, stderr)
    if isinstance(wanted, Figure):
        drawn = paper_figures.draw(call.table, jobs, picture, stderr)
        return _say_figure(call, picture, [job.folder.name for job in jobs], drawn)

    from airstreams.experiments.table_markdown import markdown_of, write_table
    from airstreams.experiments.table_results import results_of

    results = results_of(call.table, wanted, jobs, call.command)
    markdown = markdown_of(wanted, results, jobs)
    write_table(call.out, results, markdown)
    content = results.as_dict()
    if wanted.costs:
        from airstreams.viewing.paper_figures import draw_peers

        draw_peers(results, wanted, picture)
        content["picture"] = str(picture)
    if call.json:
        _print_json(content)
    else:
        print(markdown, end="")
    return DONE


def _say_plan(call: Namespace, jobs: Sequence[Any], work: Sequence[int], hours: float) -> int:
    if call.json:
        runs = [
            {"run": job.folder.name, "done": job.done, "multiply_adds": count}
            for job, count in zip(jobs, work, strict=True)
        ]
        _print_json({"runs": runs, "hours_left": hours})
        return DONE
    shown = Table("run", "done", "training, T multiply-adds")
    for job, count in zip(jobs, work, strict=True):
        tera = count / 1e12
        shown.add_row(job.folder.name, "yes" if job.done else "", f"{tera:,.0f}" if tera >= 100 else f"{tera:.3g}")
    stdout.print(shown)
    pace = f"about {hours:.1f} h of training left" if jobs else "nothing to train"
    if hours and call.workers > 1:
        pace += f", {hours / call.workers:.1f} h by {call.workers} workers"
    if hours and not any(job.done for job in jobs):
        pace += " (a guess from one step, without decoding, until a run is finished)"
    stdout.print(f"{sum(not job.done for job in jobs)} of {len(jobs)} runs to do; {pace}")
    return DONE


def _say_figure(call: Namespace, picture: Path, runs: list[str], drawn: "DrawnFigure") -> int:
    if call.json:
        _print_json({"figure": call.table, "picture": str(picture), "runs": runs, **drawn.as_dict()})
        return DONE
    if drawn.flow is not None:
        table = Table("", "before training", "after training")
        for name, values in drawn.flow.items():
            table.add_row(name, *(f"{value:.4f}" for value in values))
        stdout.print(table)
    print(f"picture: {picture}")
    return DONE


def info(call: Namespace) -> int:
    """`airstreams info RECIPE_OR_RUN`."""
    from airstreams.data.label_maps import COCO_CLASSES
    from airstreams.models import cost
    from airstreams.runs.folder import RunFolder
    from airstreams.runs.saved_model import read_description
    from airstreams.viewing.tables import cost_table, for_console

    classes, segment_classes = 51, len(COCO_CLASSES)  # HMDB-51, the paper's ablations; a recipe does not say
    recipe = (RECIPES / f"{call.what}.yaml").is_file()  # by whose name there may be a folder, as after `make demo`
    if RunFolder(Path(call.what)).description.is_file() or (Path(call.what).is_dir() and not recipe):
        described = read_description(Path(call.what))
        config = described.config
        classes, segment_classes = len(described.classes), len(described.segment_classes)
    else:
        config = load_config(recipe_path(call.what))
        segment_classes = config.segmenter_classes(segment_classes)
    counted = cost.count(config, classes, segment_classes)
    inference, training = sum(counted.inference.values()), sum(counted.training.values())
    if call.json:
        parts = {
            name: {
                "parameters": counted.parameters[name],
                "inference": counted.inference[name],
                "training": counted.training[name],
            }
            for name in counted.parameters
        }
        _print_json(
            {
                "parameters": sum(counted.parameters.values()),
                "multiply_adds": {"inference": inference, "training": training, "parts": parts},
                "operations": {"inference": 2 * inference, "training": 2 * training},
                "frames": config.clip.frames,  # of the clip that the counts are for
                "classes": classes,
                "segment_classes": segment_classes,
            }
        )
        return DONE
    frames = config.clip.frames
    stdout.print(for_console(cost_table(counted, frames), totals=4))
    stdout.print(
        f"A clip is {frames} frames of {config.clip.size} px; {classes} action and {segment_classes} segmentation "
        "classes. Training: a step's forward pass. Operations are twice the multiply-adds."
    )
    return DONE


def _exclusive_lock(folder: Path, work: str) -> AbstractContextManager[None]:
    """Of the processes that torchrun starts, the first speaks for all."""
    return exclusive_lock(folder, work) if os.environ.get("RANK", "0") == "0" else nullcontext()


def _require_at_least(call: Namespace, **least: int) -> None:
    for name, lowest in least.items():
        if call[name] < lowest:
            raise InputError(f"--{name.replace('_', '-')} {call[name]}: expected at least {lowest}")


def _top(probabilities: dict[str, float]) -> list[dict[str, Any]]:
    return [{"label": label, "probability": value} for label, value in list(probabilities.items())[:5]]


def _in_words(top: list[dict[str, Any]]) -> str:
    return ", ".join(f"{item['label']} {item['probability']:.1%}" for item in top)


def _print_answer(answer: dict[str, Any]) -> None:
    print(f"{answer['path']}: {_in_words(answer['top'])}", flush=True)
    for window in answer["windows"]:
        print(f"  {window['start']:.1f} to {window['end']:.1f} s: {_in_words(window['top'])}", flush=True)


def _print_json(result: dict[str, Any]) -> None:
    print(json.dumps(result, allow_nan=False))


def _complain(message: str, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    # A data-loading process hands its error over with its traceback in front; the last line is the error itself.
    if "Traceback" in message:
        message = message.strip().splitlines()[-1].removeprefix("RuntimeError: ")
    with suppress(OSError):
        print(f"airstreams: {one_line(message)}", file=sys.stderr)
    return status


SHARED_OUT = ("annotate", "train", "evaluate")  # among the processes that torchrun starts
VERBS: dict[str, Callable[[Namespace], int]] = {
    "check-data": check_data,
    "annotate": annotate,
    "labels": labels,
    "train": train,
    "evolve": evolve,
    "evaluate": evaluate,
    "predict": predict,
    "export": export,
    "report": report,
    "reproduce": reproduce,
    "info": info,
}
