"""What `--init` names: a run, published weights of a known name, a file of weights, or some of these by stream."""

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePath

import torch

from airstreams.config import Config, FlowConfig, ModelConfig
from airstreams.data.listing import Video
from airstreams.errors import InputError
from airstreams.files import write_json
from airstreams.models.airstreams import AIRStreams
from airstreams.models.pretrained import (
    KNOWN,
    PublishedWeights,
    published_weights,
    torchvision_weights_of,
    weights_of_file,
)
from airstreams.models.pretrained.torchvision_weights import NETWORKS, SEGMENTER
from airstreams.representations.make import has_segmenter
from airstreams.runs import saved_model as saved_models
from airstreams.runs.folder import RunFolder
from airstreams.runs.hub import HUB, local_run
from airstreams.runs.known_videos import KnownVideos
from airstreams.training.published_start import take_published
from airstreams.training.transfer import Transfer, take_over, take_stream

TORCHVISION = "torchvision:"
"""What the names of torchvision's weights begin with."""

FLOW_CHANNELS, FLOW_SCALE = 2, 20.0
"""The input of I3D's weights for flow, the only published ones: its channels, and the px at which flow is clipped."""


@dataclass(frozen=True)
class Start:
    """The weights that a training starts from.

    given: as the user wrote it.
    run: the folder of a run; None: published weights.
    everywhere: published weights for every tower that `by_stream` does not name.
    by_stream: published weights of single streams.
    segmenter: published weights of a ResNet-18 for the segmenter.
    trust: names of modules that may be imported for the custom streams of runs.
    run_of: the folders of runs that give one stream each, by stream.
    """

    given: str
    run: Path | None = None
    everywhere: PublishedWeights | None = None
    by_stream: dict[str, PublishedWeights] = field(default_factory=dict)
    segmenter: PublishedWeights | None = None
    trust: Collection[str] = ()
    run_of: dict[str, Path] = field(default_factory=dict)

    @property
    def runs(self) -> list[Path]:
        """The runs that give weights."""
        return [*([] if self.run is None else [self.run]), *self.run_of.values()]

    @property
    def published(self) -> dict[str, PublishedWeights]:
        """All published weights: those of every tower have the name "", others that of their stream, or `segmenter`."""
        named = {"": self.everywhere, **self.by_stream, "segmenter": self.segmenter}
        return {name: weights for name, weights in named.items() if weights is not None}

    @property
    def backbone(self) -> str | None:
        """The backbone that the published weights are for; None for a run."""
        given = self.everywhere or next(iter(self.by_stream.values()), None)
        return given.backbone if given else None

    @property
    def source(self) -> str:
        """Where published weights come from, with their licence; empty if that is not known.

        Of a run: where those come from that it started from.
        """
        records = [StartRecord.read(RunFolder(run)) for run in self.runs]
        sources = [record.source for record in records if record] + [found.source for found in self.published.values()]
        return "; ".join(dict.fromkeys(source for source in sources if source))

    def for_streams(self, streams: Collection[str]) -> "Start":
        """What these streams take of it: weights of other streams are left out. InputError: nothing is left."""
        segmenter = self.segmenter if any(map(has_segmenter, streams)) else None
        by_stream = {stream: weights for stream, weights in self.by_stream.items() if stream in streams}
        run_of = {stream: run for stream, run in self.run_of.items() if stream in streams}
        start = replace(self, by_stream=by_stream, segmenter=segmenter, run_of=run_of)
        if not start.runs and not start.published:
            raise InputError(
                f"--init {self.given}: it has no weights for a model of {', '.join(streams)} alone. Give weights of a "
                "tower for RGB, such as i3d-kinetics400."
            )
        return start

    def digest(self) -> str:
        """A checksum of the weights. InputError: a run is none."""
        digests = []
        for run in self.runs:
            saved_models.read_description(run)
            with RunFolder(run).weights.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        if self.run is not None:
            return digests[0]
        digest = hashlib.sha256("".join(digests).encode())
        for name, published in self.published.items():
            for layer, tensor in sorted(published.weights.items()):
                digest.update(f"{name} {layer}".encode())
                digest.update(tensor.flatten().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def overlap_warnings(self, videos: Sequence[Video], called: str) -> list[str]:
        """What to warn of, where its runs were trained on some of the videos that will score the training.

        called: what these videos are, in the plural.
        """
        warnings = []
        for run in self.runs:
            if again := KnownVideos(RunFolder(run).trained_on()).overlapping(videos):
                warnings.append(
                    f"{run} was trained on {len(again)} of the {len(videos)} {called}, such as {again[0].name}. "
                    "Metrics on these videos will be too high"
                )
        return warnings

    def apply(
        self, model: AIRStreams, config: ModelConfig, classes: Sequence[str], segment_classes: Sequence[str]
    ) -> Transfer:
        """Copy the weights that fit into a freshly built model. InputError: none fits."""
        if self.run is not None:
            return take_over(model, classes, segment_classes, saved_models.load(self.run, trust=self.trust))
        transfer = take_published(model, config, self.everywhere, self.by_stream, self.segmenter)
        for stream, run in self.run_of.items():
            saved = saved_models.load(run, trust=self.trust)
            transfer = take_stream(model, config, stream, str(run), classes, segment_classes, saved, transfer)
        return transfer


@dataclass(frozen=True)
class StartRecord:
    """What a run keeps about its start.

    init: what `--init` named.
    source: where published weights come from, with their licence. Of a run: those that it started from.
    taken: the names of the weights that were taken.
    """

    init: str
    source: str
    taken: list[str]

    def write(self, folder: RunFolder) -> None:
        """Write it into a run's folder."""
        write_json(folder.start, asdict(self))

    def without_folders(self) -> "StartRecord":
        """The record without the folders of absolute paths, which tell only where one person keeps the weights."""
        parts = []
        for part in [self.init] if PurePath(self.init).is_absolute() and "=" not in self.init else self.init.split(","):
            stream, equals, name = part.rpartition("=")
            parts.append(f"{stream}{equals}{PurePath(name).name if PurePath(name).is_absolute() else name}")
        return replace(self, init=",".join(parts))

    @classmethod
    def read(cls, folder: RunFolder) -> "StartRecord | None":
        """Read it from a run's folder. None: the run started from random weights. InputError: the file is damaged."""
        if not folder.start.is_file():
            return None
        try:
            return cls(**json.loads(folder.start.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise InputError(f"{folder.start}: the file is damaged ({error}). Copy the run again.") from error


def with_backbone_of(start: Start, config: Config) -> Config:
    """The config with the backbone of published weights, unless it names a tower itself."""
    model = config.model
    if start.backbone is None or model.backbone is not None or model.tower or model.backbones:
        return config
    return replace(config, model=replace(model, backbone=start.backbone))  # type: ignore[arg-type]


def with_flow_of(start: Start, config: Config) -> Config:
    """The config with the scale of flow that the weights of its tower expect, unless it names one itself.

    From a run, a config with the default flow also takes the run's iterations, levels and warps, but not its kernel.
    """
    model, flow = config.model, config.model.flow
    if "flow" not in model.streams or flow.scale is not None:
        return config
    if "flow" in start.run_of:
        theirs = saved_models.read_description(start.run_of["flow"]).config.model.flow
        is_default = replace(flow, kernel="torch") == FlowConfig()
        flow = replace(theirs, kernel=flow.kernel) if is_default else replace(flow, scale=theirs.scale)
    else:
        weights = start.by_stream.get("flow", start.everywhere)
        if weights is not None and weights.input_channels == FLOW_CHANNELS and flow.kind == "tvl1":
            flow = replace(flow, scale=FLOW_SCALE)
    return replace(config, model=replace(model, flow=flow))


def read_start(init: str, offline: bool = False, trust: Collection[str] = ()) -> Start:
    """Read what `--init` names.

    init: `RUN`, `hf:REPO`, `FILE`, `NAME`, `torchvision:NAME`, or several of the last three with commas between them,
        those after the first with their stream or `segmenter`: `rgb_imagenet.pt,flow=flow_imagenet.pt`. A stream may
        also have a run: `i3d-kinetics400,flow=RUN`.
    offline: fetch nothing.
    trust: names of modules that may be imported for the custom streams of a run.

    Raises:
        InputError: it names nothing, a damaged file, or weights that cannot be fetched.
    """
    if Path(init).is_dir():
        return Start(init, Path(init), trust=trust)
    if init.startswith(HUB):
        return Start(init, local_run(init, offline), trust=trust)
    everywhere = segmenter = None
    by_stream: dict[str, PublishedWeights] = {}
    run_of: dict[str, Path] = {}
    for number, part in enumerate([init] if Path(init).is_file() else init.split(",")):
        stream, equals, name = part.partition("=")
        if not equals or Path(part).is_file():
            if number:
                raise InputError(f"--init: {part} has no stream. Write STREAM={part}, such as flow={part}.")
            everywhere = _weights_of_tower(part, offline)
        elif stream == "segmenter":
            segmenter = _weights(name, offline)
            if segmenter.backbone != SEGMENTER:
                raise InputError(
                    f"--init {part}: these weights are for {segmenter.backbone}. Give {SEGMENTER} to the segmenter."
                )
        elif Path(name).is_dir():
            run_of[stream] = Path(name)
        elif name.startswith(HUB):
            run_of[stream] = local_run(name, offline)
        else:
            by_stream[stream] = _weights_of_tower(name, offline)
    return Start(init, None, everywhere, by_stream, segmenter, trust, run_of)


def _weights_of_tower(name: str, offline: bool) -> PublishedWeights:
    weights = _weights(name, offline)
    if weights.backbone == SEGMENTER:
        raise InputError(f"--init {name}: no tower is a {SEGMENTER}, but the segmenter is. Give segmenter={name}.")
    return weights


def _weights(name: str, offline: bool) -> PublishedWeights:
    if name.startswith(TORCHVISION):
        return torchvision_weights_of(name.removeprefix(TORCHVISION), offline)
    if name in KNOWN:
        return published_weights(name, offline)
    if Path(name).is_dir():
        raise InputError(f"--init {name}: a run's weights are for the whole model. Give the run alone.")
    if not Path(name).is_file():
        raise InputError(
            f"--init {name}: there is no such run or file. Give a run's folder, a file of weights, hf:REPO, or one of "
            f"{', '.join((*KNOWN, *(TORCHVISION + network for network in NETWORKS)))}."
        )
    return weights_of_file(Path(name))
