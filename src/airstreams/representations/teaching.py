"""The targets of a model's streams in a data source: opened, found by the videos' contents, and required.

Training, evaluation, searches and tables all ask here. What a stream learns from, its representation says.
"""

from collections.abc import Collection, Mapping
from typing import Any

from rich.console import Console

from airstreams.config import SUPERVISED, Config, own_loss, targets_option
from airstreams.data.content import keys_by_content, with_contents
from airstreams.data.listing import Source
from airstreams.data.targets import TargetKind, Targets
from airstreams.errors import InputError
from airstreams.representations.make import target_kind


def open_targets(source: Source, config: Config, streams: Collection[str] | None = None) -> dict[str, Targets]:
    """The targets of streams that learn from a teacher, without the streams for which the source has none.

    streams: None: those that the config trains on targets.

    InputError: a custom stream's class learns from no teacher, or a folder does not hold its kind of targets.
    """
    found = {}
    for stream in config.taught if streams is None else streams:
        if (folder := source.target_folders.get(stream)) is not None:
            kind = _kind_of(stream, config).at_stride(config.data.label_stride)
            found[stream] = Targets(kind, folder.store or kind.open(folder.path), folder.keys)
    return found


def _kind_of(stream: str, config: Config) -> TargetKind:
    kind = target_kind(stream, config.model)
    if kind is None:
        fix = "Leave --targets and loss_weights.interm out for it"
        if class_path := config.model.representations.get(stream):
            fix += f", or make {class_path} a subclass of airstreams.representations.Supervised"
        raise InputError(f"--targets {stream}: the stream {stream} learns from no teacher. {fix}.")
    return kind


def follow_targets(source: Source, config: Config, console: Console, streams: Collection[str] | None = None) -> Source:
    """The source with each video's key in the streams' stores, found by content. A second time changes nothing.

    streams: None: those that the config trains on targets.

    InputError: as `open_targets`, or a store has targets of none of the videos.
    """
    opened = open_targets(source, config, streams)
    if not any(targets.store.knows_contents for targets in opened.values()):
        return source
    followed = source = with_contents(source, console)
    for stream, targets in opened.items():
        keys = {video.name: targets.key_of(video) for video in source.all_videos}
        if targets.store.knows_contents:
            keys = keys_by_content(targets.store, source.all_videos, keys, console)
        followed = followed.with_target_keys(stream, keys)
    return followed


def require_targets(source: Source, config: Config, streams: Collection[str] | None = None) -> None:
    """InputError: the source has no targets for one of the streams. None: those that the config trains on targets."""
    for stream in config.taught if streams is None else streams:
        if stream not in source.target_folders:
            raise InputError(f"{source.name}: {without_targets(stream)}")


def without_targets(stream: str) -> str:
    """What a message says of a stream without targets."""
    return (
        f"no targets for the stream {stream}. Give {targets_option(stream)}, set --loss_weights.{own_loss(stream)} 0, "
        f"or leave {stream} out of --model.streams."
    )


def identities(targets: Mapping[str, Targets]) -> dict[str, str]:
    """The identity of each stream's teacher."""
    return {stream: found.store.identity for stream, found in targets.items()}


def recorded_identities(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with the identities of all teachers in `targets`. That of semantic was in `teacher` before."""
    rest = {name: value for name, value in record.items() if name != "teacher"}
    if "teacher" not in record:
        return rest
    of_labels = {SUPERVISED[0]: record["teacher"]} if record["teacher"] else {}
    return rest | {"targets": of_labels | record.get("targets", {})}
