"""What `--init` names: a run, published weights of a known name, a file of weights, or some of these by stream."""

from dataclasses import dataclass, field
from pathlib import Path

from airstreams.config import BUILT_IN_STREAMS
from airstreams.errors import InputError
from airstreams.models.pretrained import KNOWN, PublishedWeights, published_weights, weights_of_file
from airstreams.runs.saved_model import SavedModel
from airstreams.runs import saved_model as saved_models


@dataclass(frozen=True)
class Start:
    """The weights that a training starts from.

    run: the folder of a run; None: published weights.
    everywhere: published weights for every tower that `by_stream` does not name.
    by_stream: published weights of single streams.
    """

    run: Path | None = None
    everywhere: PublishedWeights | None = None
    by_stream: dict[str, PublishedWeights] = field(default_factory=dict)

    @property
    def backbone(self) -> str | None:
        """The backbone that the published weights are for; None for a run."""
        given = self.everywhere or next(iter(self.by_stream.values()), None)
        return given.backbone if given else None


def read_start(init: str, offline: bool = False) -> Start:
    """Read what `--init` names.

    init: `RUN`, `FILE`, `NAME`, or several with commas between them, those after the first with their stream:
        `rgb_imagenet.pt,flow=flow_imagenet.pt`.
    offline: fetch nothing.

    Raises:
        InputError: it names nothing, a damaged file, or weights that cannot be fetched.
    """
    if Path(init).is_dir():
        return Start(run=Path(init))
    everywhere = None
    by_stream: dict[str, PublishedWeights] = {}
    for number, part in enumerate([init] if Path(init).is_file() else init.split(",")):
        stream, equals, name = part.partition("=")
        if not equals or Path(part).is_file():
            if number:
                raise InputError(f"--init: {part} has no stream. Write STREAM={part}, such as flow={part}.")
            everywhere = _weights(part, offline)
        elif stream not in BUILT_IN_STREAMS and not stream.isidentifier():
            raise InputError(f"--init: {stream} is no stream. Give one of model.streams before the =.")
        else:
            by_stream[stream] = _weights(name, offline)
    return Start(None, everywhere, by_stream)


def _weights(name: str, offline: bool) -> PublishedWeights:
    if name in KNOWN:
        return published_weights(name, offline)
    if Path(name).is_dir():
        raise InputError(f"--init {name}: a run's weights are for the whole model. Give the run alone.")
    if not Path(name).is_file():
        raise InputError(
            f"--init {name}: there is no such run or file. Give a run's folder, a file of weights, or one of "
            f"{', '.join(KNOWN)}."
        )
    return weights_of_file(Path(name))
