"""`airstreams info RECIPE_OR_RUN`: parameters and cost, part by part."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from airstreams.commands.command import DONE, Command, add_trust_module, print_json
from airstreams.config import Config
from airstreams.console import say, stdout
from airstreams.plural import count_of
from airstreams.recipe import RECIPES, load_config, recipe_path
from airstreams.runs.trust import custom_classes, untrusted

CHANNELS = 3  # of a custom stream in a recipe, whose class is not imported
CLASSES = 51  # of HMDB-51, the paper's ablations: a recipe has no classes


def add_arguments(parser: ArgumentParser) -> None:
    """RECIPE_OR_RUN."""
    parser.add_argument(
        "what", metavar="RECIPE_OR_RUN", type=str, help="a recipe's name, a YAML file or a run's folder"
    )
    add_trust_module(parser)


def run(call: Namespace) -> int:
    """Count, and print the table."""
    from airstreams.models import cost
    from airstreams.viewing.tables import cost_table, for_console

    model = model_of(call.what)
    clip = model.config.clip
    not_imported = untrusted(model.config.model, call.trust_module)
    channels = _channels(call.what, model) if not_imported else None
    counted = cost.count(model.config, model.classes, model.segment_classes, channels)
    if not call.json:
        stdout.print(for_console(cost_table(counted, clip.frames), totals=4))
        say(
            stdout,
            f"A clip is {count_of(clip.frames, 'frame')} of {clip.size} px. Counted for {_classes(model)}. Training is "
            "a step's forward pass. Operations are twice the multiply-adds.",
        )
        if channels is not None:
            say(stdout, _without_modules(not_imported, channels))
        return DONE
    inference, training = sum(counted.inference.values()), sum(counted.training.values())
    parts = {
        name: {
            "parameters": counted.parameters[name],
            "inference": counted.inference[name],
            "training": counted.training[name],
        }
        for name in counted.parameters
    }
    print_json(
        {
            "parameters": sum(counted.parameters.values()),
            "multiply_adds": {"inference": inference, "training": training, "parts": parts},
            "operations": {"inference": 2 * inference, "training": 2 * training},
            "frames": clip.frames,  # of the clip that the counts are for
            "classes": model.classes,
            "segment_classes": model.segment_classes,
            "not_counted": [] if channels is None else [f"{stream}.representation" for stream in channels],
        }
    )
    return DONE


def _channels(what: str, model: "CountedModel") -> dict[str, int]:
    """The channels of each custom stream: a run's are those of its weights, a recipe does not tell them."""
    from airstreams.runs.saved_model import custom_channels

    streams = custom_classes(model.config.model)
    return dict.fromkeys(streams, CHANNELS) if model.assumed else custom_channels(Path(what))


def _without_modules(not_imported: Mapping[str, str], channels: Mapping[str, int]) -> str:
    """What is not counted, and what to do, as sentences."""
    modules = sorted({path.partition(":")[0] for path in not_imported.values()})
    towers = ", ".join(f"{stream} ({count_of(count, 'channel')})" for stream, count in channels.items())
    flags = " ".join(f"--trust-module {module}" for module in modules)
    return (
        f"The representations of these streams are not counted, since their modules are not imported: {towers}. "
        f"If you trust the authors, give {flags}."
    )


@dataclass
class CountedModel:
    """What a model's cost depends on: its config, and the numbers of action and segmentation classes.

    segment_classes: 0 for a model without the semantic stream.
    assumed: a recipe does not say how many classes there are, so the numbers are those of well-known data sets.
    """

    config: Config
    classes: int
    segment_classes: int
    assumed: bool


def _classes(model: CountedModel) -> str:
    """The numbers of classes in words, and where they come from."""
    kept = model.config.data.segment_classes
    text = count_of(model.classes, "action class") + (" (HMDB-51, as a recipe has no classes)" if model.assumed else "")
    if model.segment_classes:
        text += f" and {count_of(model.segment_classes, 'segmentation class')}"
        text += " (COCO)" if model.assumed and not kept else ""
    return text


def model_of(what: str) -> CountedModel:
    """The model of a recipe's name, a YAML file or a run. A recipe's name wins over a folder that is no run."""
    from airstreams.data.label_maps import COCO_CLASSES
    from airstreams.runs.folder import RunFolder
    from airstreams.runs.saved_model import read_description

    is_recipe = (RECIPES / f"{what}.yaml").is_file()  # `make demo` leaves a folder of the recipe's name
    if RunFolder(Path(what)).description.is_file() or (Path(what).is_dir() and not is_recipe):
        described = read_description(Path(what))
        config, classes, segment_classes = described.config, len(described.classes), len(described.segment_classes)
        assumed = False
    else:
        config, classes = load_config(recipe_path(what)), CLASSES
        segment_classes = config.segmenter_classes(len(COCO_CLASSES))
        assumed = True
    return CountedModel(config, classes, segment_classes if config.model.has_segmenter else 0, assumed)


COMMAND = Command("Count parameters and cost, part by part", "info jhmdb", add_arguments, run)
