"""Features of many videos, from a run or from published weights.

Legend of shape suffixes: N videos, V views, T frames, H, W pixels, C features.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor
from torch.utils.data import DataLoader

from airstreams.config import ClipConfig, Config, EvaluationConfig
from airstreams.console import Progress
from airstreams.data.check import BadVideo
from airstreams.data.dataset import VideoViews
from airstreams.data.listing import Video, segment_of
from airstreams.data.loader_processes import ends_its_loaders, loader_options
from airstreams.data.patience import patiently
from airstreams.errors import VideoError
from airstreams.evaluation.scoring import score_views
from airstreams.files import replacing
from airstreams.machine import cpus
from airstreams.models.pretrained import KNOWN
from airstreams.runs import saved_model as saved_models
from airstreams.runs.hub import local_run
from airstreams.teachers import i3d

I3D_CONFIG = Config(clip=ClipConfig(frames=16, stride=2, size=112), evaluation=EvaluationConfig(views=2))
"""The clips that published I3D gets, as in the recipe finetune-small."""
SAVE_EVERY = 200  # videos


@dataclass(frozen=True)
class Embedder:
    """Gives the features of a video.

    config: its `clip` and `evaluation` define the views.
    embed: features (C,) of a video's views, uint8 (V, T, H, W, 3).
    identity: a text that differs where the features would.
    run: the folder of the run; None for published weights.
    """

    config: Config
    embed: Callable[[Tensor], np.ndarray]
    identity: str
    run: Path | None


@dataclass(frozen=True)
class VideoFeatures:
    """The features of videos that could be read.

    videos: N of them.
    features_NC: theirs, float32.
    left_out: the others.
    """

    videos: list[Video]
    features_NC: np.ndarray
    left_out: list[BadVideo]


def load_embedder(name: str, device: torch.device, trust: Collection[str], precision: str | None) -> Embedder:
    """Load what gives features.

    Args:
        name: a run's folder, `hf:OWNER/NAME`, or the name of published weights, such as `i3d-kinetics400`.
        device: where it runs.
        trust: names of modules that may be imported for the custom streams of a run.
        precision: in which a run's model runs; None: the run's.

    Raises:
        InputError: there is no such run, or the weights are not there and cannot be fetched.
    """
    if name in KNOWN and not Path(name).exists():
        teacher = i3d.load(device, I3D_CONFIG.clip.size)
        return Embedder(I3D_CONFIG, lambda clips: teacher(clips.numpy()).mean(axis=0), name, None)
    run = local_run(name)
    saved = saved_models.load(run, device, trust, precision)
    saved.model.eval()

    def embed(clips_VTHW3: Tensor) -> np.ndarray:
        features = score_views(saved, clips_VTHW3, saved.config.answer_heads).features
        return torch.cat([*features.values()]).numpy()

    return Embedder(saved.config, embed, f"{saved_models.identity_of(run)} {saved.precision}", run)


@ends_its_loaders()
def features_of(embedder: Embedder, videos: Sequence[Video], file: Path, console: Console) -> VideoFeatures:
    """The features of videos. Those that an earlier call has left in `file` are not computed again.

    VideoError: no video can be read, or none arrives for `data.patience` seconds.
    """
    kept, left_out = _read(file, embedder.identity), list[BadVideo]()
    missing = [video for video in videos if _key(video) not in kept]
    workers = min(embedder.config.data.workers, cpus())
    loader = DataLoader(VideoViews(missing, embedder.config), batch_size=None, **loader_options(workers))
    with Progress(console) as progress:
        task = progress.add_task("computing features", len(missing))
        for done, views in enumerate(patiently(loader, embedder.config.data.patience), start=1):
            if isinstance(views, BadVideo):
                left_out.append(views)
            else:
                kept[_key(views.video)] = embedder.embed(views.clips).astype(np.float32)
            task.advance()
            if done % SAVE_EVERY == 0:
                _write(file, embedder.identity, kept)
    if missing:
        _write(file, embedder.identity, kept)
    read = [video for video in videos if _key(video) in kept]
    if not read:
        raise VideoError(f"none of {len(videos)} videos can be read; the first: {left_out[0].reason}")
    return VideoFeatures(read, np.stack([kept[_key(video)] for video in read]), left_out)


def _key(video: Video) -> str:
    return f"{video.content}{segment_of(video.name)}" if video.content else video.name


def _read(file: Path, identity: str) -> dict[str, np.ndarray]:
    """The features in a file, by video. None, if it is of another network or damaged."""
    try:
        with safe_open(file, framework="np") as content:
            if (content.metadata() or {}).get("identity") != identity:
                return {}
            return {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError):
        return {}


def _write(file: Path, identity: str, features: dict[str, np.ndarray]) -> None:
    with replacing(file) as temporary:
        temporary.write_bytes(save(features, {"identity": identity}))
