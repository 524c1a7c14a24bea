"""The whole path on a synthetic data set: render, train, evaluate, predict, look. `make demo` runs it; two to three
minutes on two CPU cores.

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
    air("predict", run, data / "videos/test" / f"{WHATS[0]}_{HOWS[0]}" / "000.mp4")
    picture = run / "evaluation/test/representations.png"

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


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
