"""The annotation job against the bare teacher, in frames per second.

    python benchmarks/annotate_speed.py videos/ --teacher my_teacher.py:load --stride 2 --videos 60

The bare teacher gets the frames from memory, in batches of the same size. The job also decodes in other processes,
compresses and writes; its label maps go into a temporary folder. Rounds of both alternate, and medians are compared.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console

from airstreams.data.sources import open_source
from airstreams.data.video import iterate_frames, probe
from airstreams.distributed import device_of_process
from airstreams.machine import keep_freed_memory
from airstreams.teachers.annotate import Settings, annotate
from airstreams.teachers.teacher import load_teacher


def main() -> None:
    """Print both rates and their ratio."""
    parser = argparse.ArgumentParser(description="The annotation job against the bare teacher.")
    parser.add_argument("data", metavar="DATA", help="as for `airstreams annotate`")
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--stride", type=int, default=2)
    parser.add_argument("--videos", type=int, default=60, help="how many, evenly spaced in the list")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    call = parser.parse_args()
    keep_freed_memory()
    listed = open_source(call.data, for_training=False).videos
    videos = [listed[i] for i in np.linspace(0, len(listed) - 1, call.videos).astype(int)]
    teacher = load_teacher(call.teacher, {}, device_of_process())
    frames = [
        frame
        for video in videos
        for frame in iterate_frames(video.path, indices=range(0, probe(video.path).frames, call.stride))
    ]
    bare, job = [], []
    for _ in range(call.rounds):
        started = time.perf_counter()
        for first in range(0, len(frames), call.batch_size):
            teacher(np.stack(frames[first : first + call.batch_size]))
        bare.append(len(frames) / (time.perf_counter() - started))
        with tempfile.TemporaryDirectory() as folder:
            result = annotate(
                videos,
                teacher,
                Settings(call.stride),
                Path(folder) / "labels",
                call.batch_size,
                call.workers,
                Console(quiet=True),
            )
            assert result.frames == len(frames)
            job.append(result.frames / result.seconds)
    print(f"{len(frames)} frames of {len(videos)} videos, {call.rounds} rounds")
    ratio = median(job) / median(bare)
    print(f"frames per second: bare teacher {median(bare):.1f}, job {median(job):.1f}; ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
