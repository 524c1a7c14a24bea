"""Does Grad-CAM show where and when a model looks? On rendered videos the answer is known.

    python benchmarks/grad_cam.py render known-place/
    airstreams train known-place/videos --config known-place/recipe.yaml --out run
    python benchmarks/grad_cam.py measure run known-place/videos --labels known-place/labels

Each rendered video has four parts, two by two. All show an object. The object of one part moves for half of the time,
and its motion is the class. All else stands still. The label maps have that object, in the frames in which it moves.

`measure` also replaces the weights by random ones, layer by layer from the top (Adebayo et al. 2018, cascading
randomisation). A map that stays the same would show edges of the video, not what the model has learnt.
"""

import argparse
import copy
from collections.abc import Iterator, Sequence
from itertools import product, zip_longest
from pathlib import Path
from typing import cast

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from torch import Tensor, nn

from airstreams.data import label_maps
from airstreams.data.check import BadVideo
from airstreams.data.dataset import VideoViews
from airstreams.data.sources import open_source
from airstreams.data.synthetic import HOWS, WHATS, encode, make_clip
from airstreams.evaluation.grad_cam import GradCam, enlarged, grad_cam
from airstreams.evaluation.intervals import draws, proportion_interval
from airstreams.models.airstreams import AIRStreams
from airstreams.models.tower import EarlyTower, LateTower
from airstreams.percent import percent, with_interval
from airstreams.representations.teaching import open_targets
from airstreams.runs import saved_model as saved_models

TILE, FRAMES = 64, 16
MOTIONS = ("left", "right", "up", "down")
CLASSES = ("background", "moving object")
RECIPE = """\
# Videos whose class is the motion of one of four objects (benchmarks/grad_cam.py). The tower divides the height and
# width by 16, so its last map has 8 x 8 places on 128 px.
clip: {frames: 16, stride: 1, size: 128}
data: {crop_scale: [0.9, 1.0], crop_aspect: 1.05, flip: false, colour: 0.2, label_stride: 1}
model:
  streams: [rgb, flow]
  width: 0.25
  dropout: 0.2
  flow: {iterations: 10}
  tower:
    - {channels: 32, layers: [{kind: conv2d, stride: 2}, {kind: pool2d, stride: 2}, {kind: conv1d}]}
    - {channels: 64, layers: [{kind: pool1d, stride: 2}, {kind: conv2d}, {kind: conv1d}]}
    - {channels: 128, layers: [{kind: conv2d, stride: 2}, {kind: conv1d}]}
    - {channels: 256, layers: [{kind: conv2d, stride: 2}, {kind: conv1d}]}
    - {channels: 256, layers: [{kind: conv2d}, {kind: conv1d}]}
loss_weights: {rgb: 1.0, flow: 1.0, semantic: 0.0, merged: 1.0, interm: 0.0}
training: {epochs: 12, batch_size: 16, lr: 2.0e-3, warmup_epochs: 1.0, label_smoothing: 0.0}
evaluation: {views: 1}
"""


def render(root: Path, videos_per_class: dict[str, int]) -> None:
    """Write `videos/`, `labels/` and the recipe of a model for them."""
    labels = root / "labels"
    label_maps.create(labels, "synthetic", CLASSES, {"frames": FRAMES, "tile": TILE})
    for split, count in videos_per_class.items():
        for how, number in product(MOTIONS, range(count)):
            name = f"{split}/{how}/{number:03d}"
            frames_THW3, map_THW = known_place(how, np.random.default_rng([0, *name.encode()]))
            path = root / "videos" / f"{name}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            encode(path, frames_THW3, fps=25)
            label_maps.save(labels, name, map_THW, range(FRAMES))
    (root / "recipe.yaml").write_text(RECIPE, encoding="utf-8")


def known_place(how: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Frames uint8 (T, H, W, 3) in which one of four objects moves for half of the time, and its mask (T, H, W)."""
    moving, first = int(rng.integers(4)), int(rng.integers(2)) * FRAMES // 2
    frames_THW3 = np.empty((FRAMES, 2 * TILE, 2 * TILE, 3), np.uint8)
    map_THW = np.zeros(frames_THW3.shape[:3], np.uint8)
    for part in range(4):
        row, column = (place * TILE for place in divmod(part, 2))
        clip = make_clip(str(rng.choice(WHATS)), how if part == moving else str(rng.choice(HOWS)), 9, TILE, rng)
        shown_T = np.clip(np.arange(FRAMES) - first, 0, 8) if part == moving else np.zeros(FRAMES, int)
        frames_THW3[:, row : row + TILE, column : column + TILE] = clip.frames[shown_T]
        if part == moving:
            during = slice(first, first + FRAMES // 2)
            map_THW[during, row : row + TILE, column : column + TILE] = clip.label_map[shown_T[during]] > 0
    return frames_THW3, map_THW


def measure(run: Path, data: str, labels: Path, randomised: int) -> None:
    """Print where the maps of the test videos have their peaks, and what random weights make of the maps."""
    saved = saved_models.load(run)
    source = open_source(data, labels)
    targets = open_targets(source, saved.config, ("semantic",))
    clips, masks, labels_N = [], [], []
    read = VideoViews(source.split("test"), saved.config, targets)
    for views in map(read.__getitem__, range(len(read))):
        if isinstance(views, BadVideo) or not views.label_maps:
            continue
        middle = len(views.clips) // 2
        clips.append(views.clips[middle].permute(3, 0, 1, 2)[None])
        mask_THW = views.label_maps["semantic"][middle]
        masks.append((mask_THW != 0) & (mask_THW != label_maps.NO_LABEL))
        labels_N.append(views.video.labels)
    model = saved.model.eval()
    with torch.inference_mode():
        answers = [model(clip).logits[model.answer_heads[-1]].argmax().item() for clip in clips]
    right = [saved.classes[answer] in labels for answer, labels in zip(answers, labels_N, strict=True)]
    original = [grad_cam(model, clip, [answer]) for clip, answer in zip(clips, answers, strict=True)]
    console = Console(width=110)
    console.print(f"{len(clips)} test videos, answers right: {percent(float(np.mean(right)))}")
    console.print(_peaks(original, masks))
    few = slice(0, None, max(1, len(clips) // randomised))
    table = Table("random weights down to", *maps_of(original[0]))
    for name, changed in cascade(model):
        after = [grad_cam(changed, clip, [answer]) for clip, answer in zip(clips[few], answers[few], strict=True)]
        table.add_row(name, *(f"{_agreement(original[few], after, part):+.2f}" for part in maps_of(original[0])))
    console.print(f"mean rank correlation with the map of the trained model, {len(clips[few])} videos")
    console.print(table)


def maps_of(found: GradCam) -> dict[str, Tensor]:
    """The maps (T', H', W') of one clip, by name."""
    by_name = {head: map_1thw[0] for head, map_1thw in found.heads.items()}
    return by_name | {f"{stream}, before the merge": map_1thw[0] for stream, map_1thw in found.streams.items()}


def _peaks(found: Sequence[GradCam], masks: Sequence[Tensor]) -> Table:
    """How often the peak of each map lies on the object, at its place, and at its time, beside chance."""
    table = Table("map", "size", "on the object", "at its place", "at its time", title="the peak lies")
    hits: dict[str, list[list[bool]]] = {}
    chance = []
    for cam, mask_THW in zip(found, masks, strict=True):
        place_HW, time_T = mask_THW.any(dim=0), mask_THW.flatten(1).any(dim=1)
        chance.append([mask.float().mean().item() for mask in (mask_THW, place_HW, time_T)])
        for name, map_thw in maps_of(cam).items():
            peak = int(enlarged(map_thw[None], mask_THW.shape)[0].argmax())
            time, row, column = (int(index) for index in np.unravel_index(peak, mask_THW.shape))
            seen = bool(map_thw.any())
            on = [mask_THW[time, row, column], place_HW[row, column], time_T[time]]
            hits.setdefault(name, []).append([seen and bool(value) for value in on])
    for name, rows in hits.items():
        size = " x ".join(map(str, maps_of(found[0])[name].shape))
        table.add_row(name, size, *map(_share, zip(*rows, strict=True)))
    table.add_row("a random place", "", *map(percent, np.mean(chance, axis=0).tolist()))
    return table


def _share(hits: Sequence[bool]) -> str:
    values_N = np.array(hits, dtype=float)
    names = [str(number) for number in range(len(hits))]
    drawn_RS = np.array([[counts_N @ values_N / counts_N.sum()] for counts_N in draws(names)])
    return with_interval(values_N.mean(), proportion_interval(values_N.mean(keepdims=True), drawn_RS, len(hits)))


def cascade(model: AIRStreams) -> Iterator[tuple[str, AIRStreams]]:
    """A copy of the model whose layers get random weights, one after the other from the top: their names, and it."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    late = [cast(LateTower, model.late[head]) for head in model.answer_heads]
    early = [cast(EarlyTower, tower) for tower in model.early.values()]
    stages: list[tuple[str, list[nn.Module | None]]] = [("classifier", [tower.classifier for tower in late])]
    stages += [("a late block", [*layers]) for layers in zip_longest(*(reversed(tower.blocks) for tower in late))]
    stages += [("merge", [*(tower.merge for tower in late), *(tower.output_norm for tower in early)])]
    stages += [("an early block", [*layers]) for layers in zip_longest(*(reversed(tower.blocks) for tower in early))]
    stages += [("representations", [*model.representations.values()])]
    for name, layers in stages:
        for layer in filter(None, layers):
            for values in layer.parameters():  # of the same mean and deviation, so that no layer dies
                if values.numel() > 1:
                    noise = torch.randn(values.shape, generator=generator)
                    values.data.copy_(noise * values.std() + values.mean())
        yield name, model


def _agreement(original: Sequence[GradCam], after: Sequence[GradCam], part: str) -> float:
    """The mean rank correlation of two lists of maps. It counts as 0 where a map has a single value."""
    found = [
        float(spearmanr(maps_of(one)[part].flatten(), maps_of(other)[part].flatten()).statistic)
        if all(len(maps_of(cam)[part].unique()) > 1 for cam in (one, other))
        else 0.0
        for one, other in zip(original, after, strict=True)
    ]
    return float(np.mean(found))


def main(words: Sequence[str] | None = None) -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(dest="task", required=True)
    rendering = tasks.add_parser("render")
    rendering.add_argument("out", type=Path)
    rendering.add_argument("--videos", type=int, nargs=2, default=[60, 40], help="per class: of training and of test")
    measuring = tasks.add_parser("measure")
    measuring.add_argument("run", type=Path)
    measuring.add_argument("data")
    measuring.add_argument("--labels", type=Path, required=True, help="label maps of the object")
    measuring.add_argument("--randomised", type=int, default=40, help="how many videos get maps of random weights")
    arguments = parser.parse_args(words)
    if arguments.task == "render":
        train, test = arguments.videos
        render(arguments.out, {"train": train, "test": test})
    else:
        measure(arguments.run, arguments.data, arguments.labels, arguments.randomised)


if __name__ == "__main__":
    main()
