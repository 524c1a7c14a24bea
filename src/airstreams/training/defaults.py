"""What a new training does where the call leaves it open: the recipe for its start and machine, and the streams."""

from collections.abc import Collection
from dataclasses import replace

from rich.console import Console

from airstreams.config import SUPERVISED, Config, own_loss
from airstreams.console import say, warn
from airstreams.data.listing import Source
from airstreams.distributed import device_of_process, is_main_process
from airstreams.errors import InputError
from airstreams.machine import hardware
from airstreams.recipe import GivenConfig, load_config, recipe_path, with_keys
from airstreams.training.start import Start, with_backbone_of, with_flow_of

CPU_RECIPE, FULL_RECIPE = "small", "jhmdb"
FINETUNE_CPU_RECIPE, FINETUNE_RECIPE = "finetune-small", "finetune"
"""Those for published weights of towers."""


def config_of_new_run(given: GivenConfig, source: Source, console: Console, start: Start | None = None) -> Config:
    """The config of a new training. Without a recipe, the machine and the start choose one.

    Without targets, the model gets no packaged stream that learns from them, unless the caller names the streams.

    Args:
        given: what the caller asks for.
        source: the data.
        console: receives a line for each choice that is made here.
        start: what the training starts from; None: random weights.

    InputError: the device is missing, or a key does not fit the recipe.
    """
    device = device_of_process(given.config.training.device, "training.device")
    console = console if is_main_process() else Console(quiet=True)
    has_card = device.type == "cuda"
    recipe, full = _recipe_for(start, has_card)
    config = given.config
    if not given.has_recipe and recipe is not None:
        config = with_keys(load_config(recipe_path(recipe)), config, given.named)
        if start is not None:
            config = _with_tower_of(start, config, given.named)
        where = f"{hardware(device)}{'' if has_card else ', without a CUDA card'}"
        advice = "" if recipe == full else f" For the full size, give --config {full}."
        say(
            console,
            f"Training on {where}: with the recipe {recipe}, clips of {config.clip.frames} frames of "
            f"{config.clip.size} px.{advice}",
        )
    elif start is not None:
        config = with_backbone_of(start, config)
    if start is not None:
        config = with_flow_of(start, config)
    lacking = [stream for stream in config.taught if stream in SUPERVISED and stream not in source.target_folders]
    if lacking and "model.streams" not in given.named:
        config = _without(lacking, config)
        say(
            console,
            f"No label maps: training the streams {', '.join(config.model.streams)}. To add {', '.join(lacking)}, run "
            f"`airstreams annotate {source.name} --teacher maskrcnn --out labels`, and train with --labels labels.",
        )
    return with_target_weights(config, source)


def warn_of_unused_start(config: Config, console: Console) -> None:
    """Warn of a config for layers that `--init` takes, in a training that starts from random weights."""
    training = config.training
    if training.lr_taken is None and not training.hold_epochs and training.taken_norms == "learnt":
        return
    if is_main_process():
        warn(
            console,
            "this recipe is for a start from published weights, but training starts from random weights. Give --init "
            "i3d-kinetics400, or another --config.",
        )


def _recipe_for(start: Start | None, has_card: bool) -> tuple[str | None, str]:
    """The recipe of a call that gives none, and the full-size one. None: the defaults."""
    if start is not None and start.backbone is not None:
        return FINETUNE_RECIPE if has_card else FINETUNE_CPU_RECIPE, FINETUNE_RECIPE
    # A segmenter's published weights fit none of another width.
    return None if has_card or (start is not None and not start.runs) else CPU_RECIPE, FULL_RECIPE


def _with_tower_of(start: Start, config: Config, named: Collection[str]) -> Config:
    """A packaged recipe with the backbone of published weights instead of its own, unless the caller named a tower."""
    model = config.model
    if start.backbone is None or "model.backbone" in named:
        return config
    if model.tower:
        return replace(config, model=replace(model, backbone=None))
    of_weights = replace(model, backbone=start.backbone, merge_levels=[1])  # type: ignore[arg-type]
    levels = model.merge_levels
    if "model.merge_levels" not in named:  # another backbone may have fewer blocks
        levels = list(dict.fromkeys(min(level, of_weights.block_count()) for level in levels))
    return replace(config, model=replace(of_weights, merge_levels=levels))


def _without(lacking: Collection[str], config: Config) -> Config:
    """A config without some streams, and without what it has for these streams alone."""
    model, training = config.model, config.training
    streams = [stream for stream in model.streams if stream not in lacking]
    backbones = {stream: name for stream, name in model.backbones.items() if stream not in lacking}
    factors = {stream: factor for stream, factor in training.lr_factors.items() if stream not in lacking}
    return replace(
        config,
        model=replace(model, streams=streams, backbones=backbones),
        training=replace(training, lr_factors=factors),
    )


def with_target_weights(config: Config, source: Source) -> Config:
    """The config with a weight of 1 for the loss of each stream that has targets and no weight.

    InputError: targets are given for a stream that the model lacks.
    """
    for stream, folder in source.targets.items():
        known = [name for name in config.model.streams if name in (*SUPERVISED, *config.model.representations)]
        if stream not in known:
            raise InputError(
                f"--targets {stream}={folder.path}: the model has no stream {stream} that could learn from a teacher. "
                f"Choose from {', '.join(known) or 'none'}, or name it in model.streams and model.representations."
            )
    weights = config.loss_weights
    missing = {own_loss(stream): 1.0 for stream in source.targets if stream not in weights.own_losses}
    return replace(config, loss_weights=weights.updated(missing)) if missing else config
