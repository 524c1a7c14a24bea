"""What a new training does where the call leaves it open: the recipe for the machine, the streams for the labels."""

from dataclasses import replace

from rich.console import Console

from airstreams.config import Config
from airstreams.console import say
from airstreams.data.listing import Source
from airstreams.distributed import device_of_process, is_main_process
from airstreams.machine import hardware
from airstreams.recipe import GivenConfig, load_config, recipe_path, with_keys

CPU_RECIPE, FULL_RECIPE = "small", "jhmdb"


def config_of_new_run(given: GivenConfig, source: Source, console: Console, published: bool = False) -> Config:
    """The config of a new training. Without a recipe, a CPU gets a small one. Without label maps, no stream needs them.

    Args:
        given: what the caller asks for.
        source: the data.
        console: receives a line for each choice that is made here.
        published: the training starts from published weights, which fit no smaller towers.

    InputError: the device is missing.
    """
    device = device_of_process(given.config.training.device, "training.device")
    console = console if is_main_process() else Console(quiet=True)
    config = given.config
    if not (given.has_recipe or published) and device.type != "cuda":
        config = with_keys(load_config(recipe_path(CPU_RECIPE)), config, given.named)
        say(
            console,
            f"Training on {hardware(device)}, without a CUDA card: with the recipe {CPU_RECIPE}, clips of "
            f"{config.clip.frames} frames of {config.clip.size} px. For the full size, give --config {FULL_RECIPE}.",
        )
    if source.label_store is None and config.needs_labels and "model.streams" not in given.named:
        config = _without_semantic(config)
        say(
            console,
            f"No label maps: training the streams {', '.join(config.model.streams)}. To add semantic, run "
            f"`airstreams annotate {source.name} --teacher maskrcnn --out labels`, and train with --labels labels.",
        )
    return config


def _without_semantic(config: Config) -> Config:
    streams = [stream for stream in config.model.streams if stream != "semantic"]
    return replace(config, model=replace(config.model, streams=streams))
