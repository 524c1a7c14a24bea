"""The whole path on a synthetic data set: render, train, evaluate, predict, look. `make demo` runs it; two to three
minutes on two CPU cores.

    python examples/demo.py demo
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from airstreams.data.dataset import VideoViews, Views
from airstreams.data.labels import LabelStore
from airstreams.data.listing import Video
from airstreams.data.synthetic import render
from airstreams.models.saved import load
from airstreams.models.segmenter import upsample
from airstreams.viewing.figures import RepresentationRow, representations_figure

WHATS, HOWS = ["disc", "cross"], ["left", "right", "up", "down"]
VIDEOS_PER_CLASS = {"train": 40, "test": 12}


def main(folder: Path) -> None:
    """Leave data, run and picture in `folder`; a folder that a demo left before is used again, its run renewed."""
    started = time.perf_counter()
    data, labels = folder / "data", folder / "data/labels"
    run = folder / "runs" / time.strftime("%Y-%m-%d-%H%M%S")
    print(f"rendering {len(WHATS) * len(HOWS) * sum(VIDEOS_PER_CLASS.values())} videos into {data}/videos", flush=True)
    render(data, WHATS, HOWS, VIDEOS_PER_CLASS, frames=12, size=64, seed=0)
    air("train", data / "videos", "--labels", labels, "--out", run, "--config", "demo")
    figures = json.loads(air("evaluate", run, data / "videos", "--labels", labels, "--json"))
    # One test video of a shape each, for the prediction and the picture.
    examples = [Path("test") / f"{what}_{how}" / "000" for what, how in zip(WHATS, HOWS, strict=False)]
    video = data / "videos" / examples[0].with_suffix(".mp4")
    air("predict", run, video)
    picture = folder / "representations.png"
    draw(run, data, labels, examples, picture)

    table = Table("head", "top-1")
    for name in ("merged", "rgb", "flow", "semantic"):
        table.add_row(name, f"{figures['streams'][name]['top1']:.1%}")
    table.add_row("chance", f"{1 / (len(WHATS) * len(HOWS)):.1%}")
    console = Console()
    console.print(table)
    console.print(f"pixel accuracy of the segmentation: {figures['segmentation']['pixel_accuracy']:.1%}")
    console.print(f"the run: {run}\nthe picture: {picture}", highlight=False)
    console.print(f"{time.perf_counter() - started:.0f} s in all", highlight=False)


def air(*words: object) -> str:
    """Run the command line as a user would; progress goes to the terminal, the answer is shown and returned."""
    command = ["airstreams", *map(str, words)]
    print("$", *command, flush=True)
    done = subprocess.run([sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True, check=True)
    if "--json" not in command:
        print(done.stdout, end="", flush=True)
    return done.stdout


def draw(run: Path, data: Path, labels: Path, examples: list[Path], picture: Path) -> None:
    """Frame, flow, segmentation and label map of each example, as the network sees them."""
    saved = load(run)
    store = LabelStore.open(labels)
    rows = []
    for key in examples:
        video = Video(data / "videos" / key.with_suffix(".mp4"), str(key), (), label_map=str(key))
        views = VideoViews([video], saved.config, store)[0]
        assert isinstance(views, Views)
        assert views.label_maps is not None
        clip_THW3, label_map_THW = views.clips[0], views.label_maps[0]
        with torch.inference_mode():
            seen = saved.model(clip_THW3[None].permute(0, 4, 1, 2, 3)).representations
        middle = len(clip_THW3) // 2
        logits_1Shw = seen["semantic"].shown[:, :, middle]
        rows.append(
            RepresentationRow(
                title=key.parent.name,
                frame=clip_THW3[middle].numpy(),
                flow=seen["flow"].shown[0, :, middle].permute(1, 2, 0).numpy(),
                segmentation=upsample(logits_1Shw, clip_THW3.shape[1:3]).argmax(1)[0].numpy(),
                teacher=label_map_THW[middle].numpy(),
            )
        )
    representations_figure(picture, rows, saved.segment_classes)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
