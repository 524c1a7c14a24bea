"""The command line: one function a verb. It parses, calls and prints; the work is done elsewhere.

What does the work is imported when its verb is called, so that help and complaints come at once.
"""

import io
import json
import os
import re
import shlex
import sys
import warnings
from argparse import ArgumentError
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import airstreams
from airstreams.config import Config, LossWeights
from airstreams.errors import InputError, VideoError, in_words
from airstreams.experiments.study import read_results, weights_from
from airstreams.experiments.tables import FIGURES, TABLES, Figure, reproducible
from airstreams.recipe import (
    OF_THE_MACHINE,
    RECIPES,
    add_config_arguments,
    config_from,
    load_config,
    moved,
    recipe_path,
)

# By default a thread of OpenMP that waits spins for long, and takes a core's time from whatever else runs there:
# another training, or the processes that decode. Read when torch is imported, hence here.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

DONE, FAILED, WRONG_INPUT = 0, 1, 2
DATA_HELP = "a folder of class folders, a folder of train/ val/ test/, a CSV file, or NAME:ROOT[?key=value]"


def _console(to_stderr: bool) -> Console:
    # Names may have square brackets, which are no markup. What goes to a file or a pipe has no width to keep to.
    console = Console(stderr=to_stderr, markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 200
    return console


stderr, stdout = _console(True), _console(False)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit status: 0 done, 1 the work failed, 2 the call or its input is wrong."""
    argv = sys.argv[1:] if argv is None else argv
    debug = "--debug" in argv
    argv = [word for word in argv if word != "--debug"]  # so that it may stand before the verb too
    for stream in (sys.stdout, sys.stderr):  # which may have no letter for a name's
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.filterwarnings("default" if debug else "ignore")
    parser, verbs = make_parser()
    try:
        if argv[:1] == ["reproduce"] and (keys := _keys(argv)):
            raise InputError(f"--{keys[0]}: reproduce takes no single keys; write them into a recipe and give --config")
        call = parser.instantiate(parser.parse_args(_with_recipe_paths(argv)))
        run_verb = verbs[call.verb]
        call[call.verb].command = shlex.join(["airstreams", *argv])
        return run_verb(call[call.verb])
    except InputError as error:
        if debug:
            raise
        return _complain(str(error), WRONG_INPUT)
    except ArgumentError as error:
        if debug:
            raise
        verb = f"{argv[0]} " if argv and argv[0] in verbs else ""
        return _complain(f"{_in_our_words(str(error))}; `airstreams {verb}--help` shows what there is", WRONG_INPUT)
    except (VideoError, ArithmeticError, OSError, RuntimeError, MemoryError) as error:
        if debug:
            raise
        return _complain(in_words(error), FAILED)
    except KeyboardInterrupt:
        same = "; the same call goes on"
        hints = {"train": "; --resume goes on from the last saved state, if there is one yet"}
        hints |= dict.fromkeys(("annotate", "evolve", "reproduce"), same)
        hint = hints.get(argv[0] if argv else "", "")
        print(f"airstreams: interrupted{hint}", file=sys.stderr)
        return FAILED


def _in_our_words(complaint: str) -> str:
    """The parser's complaint, in which arguments are called what help calls them."""
    names = {"source": "DATA", "run": "RUN", "videos": "VIDEO", "labels": "LABELS", "table": "TABLE"}
    names |= {"what": "RECIPE_OR_RUN"}
    listed = re.search(r"arguments are required: (.*)", complaint)
    if listed:
        lacking = [word.rpartition(".")[2] for word in listed[1].split(", ")]
        return "expected " + " and ".join(names.get(name, f"--{name.replace('_', '-')}") for name in lacking)
    if key := re.match(r'Parser key "([\w.]+)":', complaint):
        name = key[1] if "." in key[1] else key[1].replace("_", "-")
        complaint = f"--{name}:{complaint[key.end() :]}"
    return re.sub(r"<class '(\w+)'>", r"\1", complaint)


def _keys(argv: Sequence[str]) -> list[str]:
    """The config's keys among the words of a command."""
    return [found[1] for word in argv if (found := re.match(r"--(\w+\.[\w.]+)", word))]


def make_parser() -> tuple[ArgumentParser, dict[str, Any]]:
    """The parser, and each verb's function."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)  # what `config.py` says of its keys
    parser = ArgumentParser(
        prog="airstreams",
        description="Video action recognition from RGB alone.",
        version=airstreams.__version__,
        exit_on_error=False,
        allow_abbrev=False,  # a mistyped key is an error, not another key
    )
    subcommands = parser.add_subcommands(dest="verb", required=True)
    verbs: dict[str, Any] = {}

    def add(name: str, function: Any, help: str, example: str) -> ArgumentParser:
        verb = ArgumentParser(description=f"{help}.", epilog=f"Example: airstreams {example}", exit_on_error=False)
        subcommands.add_subcommand(name, verb, help=help)
        verbs[name] = function
        verb.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else there")
        verb.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return verb

    verb = add("check-data", check_data, "Open every video and list the bad ones", "check-data videos/")
    verb.add_argument("source", metavar="DATA", type=str, help=DATA_HELP)

    verb = add("annotate", annotate, "Label frames by a teacher", "annotate videos/ --teacher maskrcnn --out labels/")
    verb.add_argument("source", metavar="DATA", type=str, help=DATA_HELP)
    verb.add_argument("--teacher", required=True, type=str, help="maskrcnn, hf:MODEL, onnx:FILE or FILE.py:FACTORY")
    verb.add_argument("--out", type=Path, required=True, help="the label maps' folder; what is there already is kept")
    verb.add_argument("--stride", type=int, default=1, help="label every so many frames")
    verb.add_argument("--max-side", type=int, help="px, to which larger frames are reduced first")
    verb.add_argument("--classes", type=str, help="those to keep, joined by commas; the others become background")
    verb.add_argument("--score-threshold", type=float, help="what the teacher is less sure of is left out (0.5)")
    verb.add_argument("--unsure-from", type=float, help="from this score up to the threshold: no label instead")
    verb.add_argument("--batch-size", type=int, default=16, help="frames that the teacher sees at once")
    verb.add_argument("--workers", type=int, default=2, help="processes that decode")

    verb = add("labels", labels, "Look at what a teacher saw", "labels labels/ --data videos/")
    verb.add_argument("labels", metavar="LABELS", type=Path, help="a teacher's label maps")
    verb.add_argument("--data", metavar="DATA", type=str, help="show the frames too; " + DATA_HELP)
    verb.add_argument("--picture", metavar="PNG", type=Path, help="the contact sheet (LABELS/contact_sheet.png)")
    verb.add_argument("--truth", metavar="DATA", type=str, help="score people against the masks that DATA brings")

    verb = add("train", train, "Train a recogniser", "train videos/ --labels labels/ --out runs/mine --config demo")
    verb.add_argument("source", metavar="DATA", type=str, help=DATA_HELP)
    verb.add_argument("--out", type=Path, required=True, help="the run's folder")
    verb.add_argument("--labels", type=Path, help="a teacher's label maps, for the semantic stream")
    verb.add_argument("--resume", action="store_true", help="go on with a run, by its own config")
    verb.add_argument("--init", metavar="RUN", type=Path, help="start from this run's model, as far as it fits")
    verb.add_argument(
        "--compact-classes", action="store_true", help="leave the classes that never occur out of the segmenter"
    )
    verb.add_argument("--weights-from", metavar="STUDY", type=Path, help="evolved loss weights, of its best trial")
    verb.add_argument("--top", metavar="K", type=int, help="with --weights-from: the mean of the K best trials'")
    add_config_arguments(verb)

    verb = add("evolve", evolve, "Evolve the loss weights", "evolve videos/ --out studies/mine --config mine.yaml")
    verb.add_argument("source", metavar="DATA", type=str, help=DATA_HELP)
    verb.add_argument("--out", metavar="STUDY", type=Path, required=True, help="the study's folder; goes on with one")
    verb.add_argument("--labels", type=Path, help="a teacher's label maps, for the semantic stream")
    verb.add_argument("--trials", type=int, default=100, help="weightings to evaluate in all")
    verb.add_argument("--workers", type=int, default=1, help="trials side by side on this machine")
    verb.add_argument("--sampler", type=str, choices=("tournament", "tpe", "random"), default="tournament")
    verb.add_argument("--storage", metavar="URL", type=str, help="of a database that machines share (a file in STUDY)")
    add_config_arguments(verb)

    verb = add("evaluate", evaluate, "Score a split of a data set", "evaluate runs/mine videos/ --split test")
    verb.add_argument("run", metavar="RUN", type=Path, help="the folder that training wrote")
    verb.add_argument("source", metavar="DATA", type=str, help=DATA_HELP)
    verb.add_argument("--split", type=str, default="test", help="train, val or test")
    verb.add_argument("--labels", type=Path, help="a teacher's label maps, to score the segmentation")

    verb = add("predict", predict, "Name what happens in videos", "predict runs/mine a.mp4 b.mp4")
    verb.add_argument("run", metavar="RUN", type=Path, help="the folder that training wrote")
    verb.add_argument("videos", metavar="VIDEO", type=str, nargs="+", help="video files")

    verb = add(
        "reproduce",
        reproduce,
        "Measure a table of the paper, or draw a figure",
        "reproduce table1 --data videos/ --labels labels/ --out repro/",
    )
    listed = "; ".join(f"{name}: {what.title.rpartition(': ')[2]}" for name, what in (TABLES | FIGURES).items())
    verb.add_argument("table", metavar="TABLE", type=str, help=listed)
    verb.add_argument("--data", nargs="+", type=str, help="DATA, one or more: a table's figures are their mean")
    verb.add_argument("--out", type=Path, required=True, help="a folder for runs and results; finished runs are read")
    verb.add_argument("--labels", type=Path, help="a teacher's label maps, for the semantic stream")
    verb.add_argument("--config", metavar="RECIPE", type=str, help="of all runs: a recipe's name or a YAML file")
    verb.add_argument("--seeds", type=int, default=3, help="trainings of each run of a table; a figure takes the first")
    verb.add_argument("--workers", type=int, default=1, help="trainings side by side")
    verb.add_argument("--weights-from", metavar="STUDY", type=Path, help="evolved loss weights, for table3 to table6")
    verb.add_argument("--init", metavar="RUN", type=Path, help="the run that table5 starts from")
    verb.add_argument("--study", metavar="STUDY", type=Path, help="what figure5 and figure8 show")
    verb.add_argument("--dry-run", action="store_true", help="show the runs and their cost, and do nothing")

    verb = add("info", info, "Count parameters and cost, part by part", "info jhmdb")
    verb.add_argument("what", metavar="RECIPE_OR_RUN", type=str, help="a recipe's name, a YAML file or a run's folder")
    return parser, verbs


def check_data(call: Namespace) -> int:
    """`airstreams check-data DATA`."""
    from airstreams.data.check import check_videos
    from airstreams.data.sources import open_source

    source = open_source(call.source)
    for remark in source.remarks:
        stderr.print(remark, soft_wrap=True)
    with Progress(console=stderr) as progress:
        good, bad = check_videos(source.videos, progress)
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
            }
        )
    else:
        table = Table("class", "good videos")
        for name in source.classes:
            table.add_row(name, str(classes[name]))
        stdout.print(table)
        for split, count in splits.items():
            stdout.print(f"{split}: {count} videos")
        stdout.print(f"{len(good)} of {len(source.videos)} videos are good")
        for item in bad:
            print(f"bad: {item.video.place}: {item.reason}")
    return FAILED if bad else DONE


def annotate(call: Namespace) -> int:
    """`airstreams annotate DATA --teacher NAME --out LABELS`."""
    from airstreams.data.sources import open_source
    from airstreams.distributed import device_of_process, leads
    from airstreams.teachers import annotate as job
    from airstreams.teachers.teacher import load_teacher

    for name in ("batch_size", "workers"):
        least = 1 if name == "batch_size" else 0
        if call[name] < least:
            raise InputError(f"--{name.replace('_', '-')} {call[name]}: expected at least {least}")
    given = {name: call[name] for name in ("score_threshold", "unsure_from") if call[name] is not None}
    classes = None if call.classes is None else tuple(name.strip() for name in call.classes.split(","))
    settings = job.Settings(call.stride, call.max_side, classes, given)
    source = open_source(call.source, to_learn_from=False)
    teacher = load_teacher(call.teacher, given, device_of_process())
    report = job.annotate(source.videos, teacher, settings, call.out, call.batch_size, call.workers, stderr)
    if not leads():
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
    from airstreams.data.labels import LabelStore
    from airstreams.data.sources import open_source
    from airstreams.evaluation import label_report
    from airstreams.viewing.figures import contact_sheet

    store = LabelStore.open(call.labels)
    picture = call.picture or call.labels / "contact_sheet.png"
    if call.picture is None and not os.access(call.labels, os.W_OK):
        raise InputError(f"{call.labels} cannot be written, so the contact sheet has no place; give --picture PNG")
    data, videos = call.data or call.truth, {}
    if data is not None:
        source = open_source(data, call.labels, to_learn_from=False)
        videos = {video.label_map: video.path for video in source.videos if video.label_map is not None}
    with Progress(console=stderr, transient=True, disable=not stderr.is_terminal) as progress:
        truth = None
        if call.truth is not None:
            source = open_source(call.truth, call.labels, to_learn_from=False)
            truth = label_report.score(store, source.videos, progress)
        report = label_report.count(store, progress, None if data is None else videos)
    frames, unread = label_report.frames_to_show(store, report.samples, videos)
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
                "truth": truth.figures() if truth else None,
                "picture": str(picture) if frames else None,
                "bad": [{"path": str(path), "reason": reason} for path, reason in bad],
            }
        )
        return FAILED if bad else DONE
    settings = ", ".join(f"{name} {value}" for name, value in store.settings.items())
    stdout.print(f"{store.teacher}; {settings or 'no settings'}")
    table = Table("class", "of the pixels", "in of the frames")
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
            f"person IoU {_percent(truth.person_iou)} over all pixels, {_percent(truth.person_iou_mean)} the mean of "
            f"videos: {truth.frames} frames of {truth.videos} of {truth.videos_with_masks} videos with masks"
        )
    for _, reason in bad:
        print(f"bad: {reason}")  # which names the file
    if frames:
        print(f"contact sheet: {picture}")
    return FAILED if bad else DONE


def train(call: Namespace) -> int:
    """`airstreams train DATA --out RUN`."""
    from airstreams.data.sources import open_source
    from airstreams.distributed import leads
    from airstreams.models.saved import load as load_model
    from airstreams.training.loop import train as run_training
    from airstreams.training.prepare import may_begin

    if call.resume:
        for name in ("init", "weights_from", "top"):
            if call[name] is not None:
                option = name.replace("_", "-")
                raise InputError(
                    f"--resume goes on with a run; leave out --{option}, which is for the beginning of one"
                )
        if not (call.out / "config.yaml").is_file():
            raise InputError(f"--resume: {call.out} holds no run; drop --resume, or give --out the run's folder")
        given, keys = config_from(call), _keys(shlex.split(call.command))
        config = moved(load_config(call.out / "config.yaml"), given, keys)
        silent = given == moved(Config(), given, keys) and OF_THE_MACHINE.issuperset(keys)
        if not (silent or given == config) or (call.compact_classes and not config.data.compact_classes):
            raise InputError(
                f"--resume goes by {call.out / 'config.yaml'}; leave out --config and all keys but "
                f"{', '.join(sorted(OF_THE_MACHINE))}"
            )
    else:
        if not may_begin(call.out):
            mend = "--resume to go on with it, or " if (call.out / "config.yaml").is_file() else ""
            raise InputError(f"--out {call.out}: already there; give {mend}another --out")
        config = config_from(call)
        config.data.compact_classes |= call.compact_classes
        config.loss_weights = _evolved_weights(call, config)
    init = None if call.init is None else load_model(call.init)
    source = open_source(call.source, call.labels)
    if call.labels is not None and "semantic" not in config.model.streams:
        remark = "--labels is of no use to this recipe, which has no semantic stream"
        source = replace(source, remarks=(*source.remarks, remark))
    record = run_training(source, config, call.out, call.resume, stderr, init)
    if not leads():
        return DONE
    if call.json:
        _print_json({"run": str(call.out), **record})
    else:
        stdout.print(f"trained: {call.out}")
    return DONE


def _evolved_weights(call: Namespace, config: Config) -> LossWeights:
    if call.weights_from is None:
        if call.top is not None:
            raise InputError("--top: expected --weights-from STUDY beside it")
        return config.loss_weights
    wanted = config.lambdas()
    return config.loss_weights.updated(weights_from(call.weights_from, call.top or 1, wanted))


def evolve(call: Namespace) -> int:
    """`airstreams evolve DATA --out STUDY`."""
    from airstreams.data.sources import open_source
    from airstreams.experiments.evolve import evolve as run_search
    from airstreams.experiments.search import Search
    from airstreams.viewing.evolution import search_figure, weights_figure

    for name in ("trials", "workers"):
        if call[name] < 1:
            raise InputError(f"--{name} {call[name]}: expected at least 1")
    url = call.storage or f"sqlite:///{call.out.resolve() / 'study.db'}"
    source = open_source(call.source, call.labels)
    search = Search(source, config_from(call), call.out, url, call.trials, call.sampler)
    results = run_search(search, call.workers, stderr)
    weights_figure(call.out / "weights.png", [trial["weights"] for trial in results["top"][:5]])
    search_figure(call.out / "search.png", {call.sampler: results["values"]}, results["metric"])
    if call.json:
        _print_json(results)
        return DONE
    best = results["best"]
    table = Table("weights", *best["weights"], "search", "fresh seeds")
    rows = {"evolved": best | best["fresh"], **results["references"]}
    for name, row in rows.items():
        weights = [f"{weight:.2f}" for weight in row["weights"].values()]
        table.add_row(name, *weights, _percent(row.get("value")), _percent(row["mean"]))
    stdout.print(table)
    stdout.print(f"{results['trials']} trials, {results['diverged']} of them diverged; figures in {call.out}")
    return DONE


def evaluate(call: Namespace) -> int:
    """`airstreams evaluate RUN DATA`."""
    from airstreams.data.sources import open_source
    from airstreams.distributed import leads
    from airstreams.evaluation.evaluate import evaluate as evaluate_run
    from airstreams.evaluation.published import NAMES
    from airstreams.viewing.figures import confusion_figure

    result = evaluate_run(call.run, open_source(call.source, call.labels, to_learn_from=False), call.split, stderr)
    if not leads():
        return DONE
    if result.confusion is not None:
        confusion_figure(result.folder / "confusion.png", result.confusion, result.classes)
    figures = result.figures
    if call.json:
        _print_json(figures)
        return DONE
    table = Table("head", *NAMES.values())
    for name, row in figures["streams"].items():
        table.add_row(name, *(_with_interval(row[key], row["intervals"][key]) for key in NAMES))
    stdout.print(table)
    if figures["segmentation"]:
        segmentation = figures["segmentation"]
        table = Table("segmentation", "this model", "ceiling of its grid", "teacher")
        for key in ("pixel_accuracy", "miou", "person_iou"):
            if key in segmentation:
                values = (segmentation[key], segmentation["ceiling"][key], segmentation.get(f"teacher_{key}"))
                table.add_row(key, *(_percent(value) for value in values))
        stdout.print(table)
    stdout.print(
        f"{figures['videos']} videos scored, {figures['left_out']} left out; files in {result.folder}. They are of "
        f"{figures['classes']} classes; in brackets, 95 % intervals over videos."
    )
    if figures["unlabelled"]:
        stdout.print(
            f"{figures['unlabelled']} videos without any action are ranked last, as Charades has it. If they competed, "
            f"the mAP were {_percent(figures['map_unlabelled_as_negatives'])}."
        )
    protocol = figures["protocol"]
    stdout.print(f"A video's score is the mean over {protocol['views']} clips, {protocol['crops']} crops each.")
    if published := protocol["published"]:
        reported = " and ".join(NAMES[key] for key in published["figures"])
        note = f"; {published['note']}" if published["note"] else ""
        stdout.print(f"Protocol of {published['name']}: {reported} on {published['split']}{note}.")
        if published["deviations"]:
            stdout.print(f"Here otherwise: {'; '.join(published['deviations'])}.")
    return DONE


def predict(call: Namespace) -> int:
    """`airstreams predict RUN VIDEO...`."""
    recogniser = airstreams.load(call.run)
    if not any(Path(video).exists() for video in call.videos):
        raise InputError(f"no such file: {', '.join(call.videos[:5])}; expected video files on this machine")
    answers: list[dict[str, Any]] = []
    left_out: list[dict[str, str]] = []
    with Progress(console=stderr, transient=True, disable=not stderr.is_terminal) as progress:
        for path in progress.track(list(map(Path, call.videos)), description="predicting"):
            try:
                prediction = recogniser.predict(path)
            except VideoError as error:
                left_out.append({"path": str(path), "reason": str(error)})
                progress.console.print(f"airstreams: {path}: left out: {error}", soft_wrap=True)
                continue
            windows = [{"start": w.start, "end": w.end, "top": _top(w.probabilities)} for w in prediction.windows]
            answers.append({"path": str(path), "top": _top(prediction.probabilities), "windows": windows})
            if not call.json:
                _print_answer(answers[-1])
    if call.json:
        _print_json({"videos": answers, "left_out": left_out})
    return FAILED if left_out else DONE


def reproduce(call: Namespace) -> int:
    """`airstreams reproduce TABLE --data DATA --out FOLDER`."""
    for name in ("seeds", "workers"):
        if call[name] < 1:
            raise InputError(f"--{name} {call[name]}: expected at least 1")
    wanted = reproducible(call.table, evolved=call.weights_from is not None)
    of_a_study = isinstance(wanted, Figure) and wanted.study
    for name, needed in (("data", not of_a_study), ("study", of_a_study)):
        if needed and call[name] is None:
            raise InputError(f"{call.table}: expected --{name} {'STUDY' if of_a_study else 'DATA'}; give it")
        if not needed and call[name] is not None:
            raise InputError(f"{call.table}: --{name} is of no use to it; leave it out")
    picture = call.out / f"{call.table}.png"
    if of_a_study:
        from airstreams.experiments.paper_figures import draw_study

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
    jobs = experiments.plan(wanted, recipe, sources, call.seeds, call.out, evolved, call.init)
    if isinstance(wanted, Figure):
        from airstreams.experiments import paper_figures

        paper_figures.require_fitting(call.table, jobs)
    if call.dry_run:
        work = experiments.multiply_adds(jobs)
        return _say_plan(call, jobs, work, experiments.hours_left(jobs, work))
    experiments.run_jobs(jobs, call.workers, stderr)
    if isinstance(wanted, Figure):
        said = paper_figures.draw(call.table, jobs, picture, stderr)
        return _say_figure(call, picture, [job.folder.name for job in jobs], said)

    from airstreams.experiments.report import report, write

    result, markdown = report(call.table, wanted, jobs, call.command)
    write(call.out, call.table, result, markdown)
    if wanted.costs:
        from airstreams.experiments.paper_figures import draw_peers

        draw_peers(result, wanted, picture)
        result["picture"] = str(picture)
    if call.json:
        _print_json(result)
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
        shown.add_row(job.folder.name, "yes" if job.done else "", f"{count / 1e12:.1f}")
    stdout.print(shown)
    pace = f"about {hours:.1f} h of training left"
    if hours and call.workers > 1:
        pace += f", {hours / call.workers:.1f} h by {call.workers} workers"
    if hours and not any(job.done for job in jobs):
        pace += " (a guess from one step, without decoding, until a run is finished)"
    stdout.print(f"{sum(not job.done for job in jobs)} of {len(jobs)} runs to do; {pace}")
    return DONE


def _say_figure(call: Namespace, picture: Path, runs: list[str], said: dict[str, Any]) -> int:
    if call.json:
        _print_json({"figure": call.table, "picture": str(picture), "runs": runs, **said})
        return DONE
    if "flow" in said:
        table = Table("", "before training", "after training")
        for name, values in said["flow"].items():
            table.add_row(name, *(f"{value:.4f}" for value in values))
        stdout.print(table)
    print(f"picture: {picture}")
    return DONE


def info(call: Namespace) -> int:
    """`airstreams info RECIPE_OR_RUN`."""
    from airstreams.data.labels import COCO_CLASSES
    from airstreams.models import cost
    from airstreams.models.saved import DESCRIPTION, read_description

    classes, segment_classes = 51, len(COCO_CLASSES)  # HMDB-51, the paper's ablations; a recipe does not say
    recipe = (RECIPES / f"{call.what}.yaml").is_file()  # by whose name there may be a folder, as after `make demo`
    if (Path(call.what) / DESCRIPTION).is_file() or (Path(call.what).is_dir() and not recipe):
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
    table = Table("part", "parameters, M", "inference, G multiply-adds", "training, G multiply-adds")
    for name in counted.parameters:
        table.add_row(
            name,
            f"{counted.parameters[name] / 1e6:.2f}",
            f"{counted.inference[name] / 1e9:.3f}",
            f"{counted.training[name] / 1e9:.3f}",
        )
    table.add_section()
    total = sum(counted.parameters.values()) / 1e6
    table.add_row("a clip", f"{total:.2f}", f"{inference / 1e9:.3f}", f"{training / 1e9:.3f}")
    frames = config.clip.frames
    table.add_row("a frame", "", f"{inference / frames / 1e9:.3f}", f"{training / frames / 1e9:.3f}")
    table.add_row("a clip, operations", "", f"{2 * inference / 1e9:.3f}", f"{2 * training / 1e9:.3f}")
    a_frame = 2e-9 / frames
    table.add_row("a frame, operations", "", f"{inference * a_frame:.3f}", f"{training * a_frame:.3f}")
    stdout.print(table)
    stdout.print(
        f"A clip is {frames} frames of {config.clip.size} px; {classes} action and {segment_classes} segmentation "
        "classes. Training: a step's forward pass. Operations are twice the multiply-adds."
    )
    return DONE


def _with_recipe_paths(argv: list[str]) -> list[str]:
    """`--config NAME` becomes the path of the recipe, once that has been found good by itself. It goes before all keys,
    or the parser would let it override those.
    """
    recipes, rest = [], []
    words = iter(argv)
    for word in words:
        name = next(words, None) if word == "--config" else word.removeprefix("--config=")
        if name is None or name == word:
            rest.append(word)
        else:
            recipes.append(f"--config={_good_recipe(name)}")
    return [*rest[:1], *recipes, *rest[1:]]


def _good_recipe(name: str) -> str:
    path = recipe_path(name)
    load_config(path)
    return str(path)


def _top(probabilities: dict[str, float]) -> list[dict[str, Any]]:
    return [{"label": label, "probability": value} for label, value in list(probabilities.items())[:5]]


def _in_words(top: list[dict[str, Any]]) -> str:
    return ", ".join(f"{item['label']} {item['probability']:.1%}" for item in top)


def _print_answer(answer: dict[str, Any]) -> None:
    print(f"{answer['path']}: {_in_words(answer['top'])}", flush=True)
    for window in answer["windows"]:
        print(f"  {window['start']:.1f} to {window['end']:.1f} s: {_in_words(window['top'])}", flush=True)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _with_interval(value: float | None, interval: list[float] | None) -> str:
    return _percent(value) if interval is None else f"{value:.1%} ({interval[0]:.1%} to {interval[1]:.1%})"


def _print_json(result: dict[str, Any]) -> None:
    print(json.dumps(result))


def _complain(message: str, status: int) -> int:
    # A data-loading process hands its error over with its traceback in front; the last line is the error itself.
    if "Traceback" in message:
        message = message.strip().splitlines()[-1]
    print(f"airstreams: {' '.join(message.split())}", file=sys.stderr)
    return status
