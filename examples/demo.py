"""All steps on a synthetic data set: render, train, evaluate, predict, look at a picture.

`make demo` runs it. It takes two to three minutes on two CPU cores.

    python examples/demo.py demo
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from airstreams.data.synthetic import render

SHAPES, MOTIONS = ["disc", "cross"], ["left", "right", "up", "down"]
VIDEOS_PER_CLASS = {"train": 40, "test": 12}


def main(folder: Path) -> None:
    """Write the data, a new run and its picture into `folder`. Data of an earlier demo is kept."""
    started = time.perf_counter()
    data, labels = folder / "data", folder / "data/labels"
    run = folder / "runs" / time.strftime("%Y-%m-%d-%H%M%S")
    count = len(SHAPES) * len(MOTIONS) * sum(VIDEOS_PER_CLASS.values())
    print(f"rendering {count} videos into {data}/videos", flush=True)
    render(data, SHAPES, MOTIONS, VIDEOS_PER_CLASS, frames=12, size=64, seed=0)
    airstreams("train", data / "videos", "--labels", labels, "--out", run, "--config", "demo")
    metrics = json.loads(airstreams("evaluate", run, data / "videos", "--labels", labels, "--json"))
    airstreams("predict", run, data / "videos/test" / f"{SHAPES[0]}_{MOTIONS[0]}" / "000.mp4")
    picture = run / "evaluation/test/representations.png"

    table = Table("head", "top-1")
    for name in ("merged", "rgb", "flow", "semantic"):
        table.add_row(name, f"{metrics['streams'][name]['top1']:.1%}")
    table.add_row("chance", f"{1 / (len(SHAPES) * len(MOTIONS)):.1%}")
    console = Console()
    console.print(table)
    console.print(f"pixel accuracy of the segmentation: {metrics['segmentation']['pixel_accuracy']:.1%}")
    console.print(f"the run: {run}\nthe picture: {picture}", highlight=False)
    console.print(f"{time.perf_counter() - started:.0f} s in all", highlight=False)


def airstreams(*words: object) -> str:
    """Run a command as a user would. Its stdout is returned and, unless it is JSON, shown."""
    command = ["airstreams", *map(str, words)]
    print("$", *command, flush=True)
    done = subprocess.run([sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True, check=True)
    if "--json" not in command:
        print(done.stdout, end="", flush=True)
    return done.stdout


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
