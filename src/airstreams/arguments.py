"""What the command line takes: the verbs with their arguments, and complaints in the words of their help."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

import airstreams
from airstreams.experiments.tables import FIGURES, TABLES
from airstreams.recipe import about_types, add_config_arguments, load_recipe, recipe_path

DATA_HELP = "a folder of class folders, a folder of train/ val/ test/, a CSV file, or NAME:ROOT[?key=value]"


def make_parser(words: Sequence[str]) -> ArgumentParser:
    """The parser of all verbs; `verb` is the one that was called, and stands beside its arguments of the same name.

    Only the verb among the command's words gets the config's keys, and only help what `config.py` says of them: the two
    take longer than all else here.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=not {"-h", "--help"}.isdisjoint(words))
    parser = ArgumentParser(
        prog="airstreams",
        description="Video action recognition from RGB alone.",
        version=airstreams.__version__,
        exit_on_error=False,
        allow_abbrev=False,  # a mistyped key is an error, not another key
    )
    subcommands = parser.add_subcommands(dest="verb", required=True)

    def add(name: str, help: str, example: str) -> ArgumentParser:
        verb = ArgumentParser(description=f"{help}.", epilog=f"Example: airstreams {example}", exit_on_error=False)
        subcommands.add_subcommand(name, verb, help=help)
        verb.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else there")
        verb.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return verb

    verb = add("check-data", "Open every video and list the bad ones", "check-data videos/")
    verb.add_argument("source", metavar="DATA", type=str, help=DATA_HELP)

    verb = add("annotate", "Label frames by a teacher", "annotate videos/ --teacher maskrcnn --out labels/")
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

    verb = add("labels", "Look at what a teacher saw", "labels labels/ --data videos/")
    verb.add_argument("labels", metavar="LABELS", type=Path, help="a teacher's label maps")
    verb.add_argument("--data", metavar="DATA", type=str, help="show the frames too; " + DATA_HELP)
    verb.add_argument("--picture", metavar="PNG", type=Path, help="the contact sheet (LABELS/contact_sheet.png)")
    verb.add_argument("--truth", metavar="DATA", type=str, help="score people against the masks that DATA brings")

    verb = add("train", "Train a recogniser", "train videos/ --labels labels/ --out runs/mine --config demo")
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
    if "train" in words:
        add_config_arguments(verb)

    verb = add("evolve", "Evolve the loss weights", "evolve videos/ --out studies/mine --config mine.yaml")
    verb.add_argument("source", metavar="DATA", type=str, help=DATA_HELP)
    verb.add_argument("--out", metavar="STUDY", type=Path, required=True, help="the study's folder; goes on with one")
    verb.add_argument("--labels", type=Path, help="a teacher's label maps, for the semantic stream")
    verb.add_argument("--trials", type=int, default=100, help="weightings to evaluate in all")
    verb.add_argument("--workers", type=int, default=1, help="trials side by side on this machine")
    verb.add_argument("--sampler", type=Literal["tournament", "tpe", "random"], default="tournament")
    verb.add_argument("--storage", metavar="URL", type=str, help="of a database that machines share (a file in STUDY)")
    if "evolve" in words:
        add_config_arguments(verb)

    verb = add("evaluate", "Score a split of a data set", "evaluate runs/mine videos/ --split test")
    verb.add_argument("run", metavar="RUN", type=Path, help="the folder that training wrote")
    verb.add_argument("source", metavar="DATA", type=str, help=DATA_HELP)
    verb.add_argument("--split", type=str, default="test", help="train, val or test")
    verb.add_argument("--labels", type=Path, help="a teacher's label maps, to score the segmentation")

    verb = add("predict", "Name what happens in videos", "predict runs/mine a.mp4 b.mp4")
    verb.add_argument("run", metavar="RUN", type=Path, help="the folder that training wrote")
    verb.add_argument("videos", metavar="VIDEO", type=str, nargs="+", help="video files")

    verb = add(
        "reproduce",
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

    verb = add("export", "Write a model to one file for other programs", "export runs/mine --out mine.onnx")
    verb.add_argument("run", metavar="RUN", type=Path, help="the folder that training wrote")
    verb.add_argument("--out", metavar="FILE", type=Path, required=True, help="NAME.onnx, or NAME.pt2 for torch.export")

    verb = add("report", "Show a run on one HTML page", "report runs/mine")
    verb.add_argument("run", metavar="RUN", type=Path, help="the folder that training wrote; the page is put there")

    verb = add("info", "Count parameters and cost, part by part", "info jhmdb")
    verb.add_argument("what", metavar="RECIPE_OR_RUN", type=str, help="a recipe's name, a YAML file or a run's folder")
    return parser


def with_recipe_paths(argv: list[str]) -> list[str]:
    """`--config NAME` becomes the text of the recipe, under today's keys, once that has been found good by itself. It
    goes before all keys, or the parser would let it override those.
    """
    if argv[:1] == ["reproduce"]:  # which takes a recipe and no keys
        return argv
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
    values, _ = load_recipe(recipe_path(name))
    return yaml.safe_dump(values)


def config_keys(argv: Sequence[str]) -> list[str]:
    """The config's keys among the words of a command."""
    return [found[1] for word in argv if (found := re.match(r"--(\w+\.[\w.]+)", word))]


def in_our_words(complaint: str) -> str:
    """The parser's complaint, in which arguments are called what help calls them."""
    names = {"source": "DATA", "run": "RUN", "videos": "VIDEO", "labels": "LABELS", "table": "TABLE"}
    names |= {"what": "RECIPE_OR_RUN"}
    listed = re.search(r"arguments are required: (.*)", complaint)
    if listed:
        lacking = [word.rpartition(".")[2] for word in listed[1].split(", ")]
        return "expected " + " and ".join(names.get(name, f"--{name.replace('_', '-')}") for name in lacking)
    if complaint.startswith('expected "verb"'):
        return "expected a verb"
    if key := re.match(r'Parser key "([\w.]+)":', complaint):
        name = key[1] if "." in key[1] else key[1].replace("_", "-")
        complaint = f"--{name}:{complaint[key.end() :]}"
    return about_types(complaint)
