"""Clips per second by decoding and from the cache, and the time that a training needs to start with and without it.

    python benchmarks/feeding.py 'jhmdb:data/jhmdb?split=1' --recipe jhmdb

Random clips of the training split are read by one thread of one process, with the files in the operating system's
memory. Three measurements:

1. `read_frames` of each clip, reduced to the recipe's size. The file has been probed before, as in training. The
   reference is a bare PyAV loop: open the file, decode from its start to the clip's last frame, and convert the clip's
   frames at full size. Target: at least 0.8 of the reference.
2. The same clips, and their label maps if there are any, from a `FrameCache`. The reference is reading without it.
3. The time before the first step, each in a new process: the check alone, the check with the first build of the cache,
   and the same with a complete cache.

The clip rates are medians over interleaved repetitions. The starts are timed once, with one thread per core.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import av
import numpy as np
from rich.console import Console

from airstreams.config import Config
from airstreams.console import Progress
from airstreams.data.cache import FrameCache
from airstreams.data.check import check_videos
from airstreams.data.clips import clip_indices, frame_range, latest_start
from airstreams.data.listing import Source, Video
from airstreams.data.sources import open_source
from airstreams.data.video import read_frames
from airstreams.recipe import load_config, recipe_path

CLIPS = 300
REPETITIONS = 7
LIMIT_BYTES = 10**12

Clip = tuple[Video, np.ndarray]


def main() -> None:
    """Print a line for each measurement."""
    parser = argparse.ArgumentParser(description="Clips per second by decoding and from the cache; seconds to start.")
    parser.add_argument("data", metavar="DATA", help="as for `airstreams train`")
    parser.add_argument("--labels", type=Path, help="label maps to read as well")
    parser.add_argument("--recipe", default="jhmdb", help="a packaged recipe's name or a YAML file (default: jhmdb)")
    arguments = parser.parse_args()
    config = load_config(recipe_path(arguments.recipe))
    source = open_source(arguments.data, arguments.labels)
    print(f"{source.name}, {arguments.recipe}: clips of {config.clip.frames} frames, sides of {config.decoded_side} px")
    with tempfile.TemporaryDirectory() as folder:
        measure_starts(arguments.data, arguments.labels, config, Path(folder))
        cache = FrameCache(Path(folder), LIMIT_BYTES, config.decoded_side)
        good = start(source, cache)
        stored = sum(file.stat().st_size for file in Path(folder).rglob("*.npy"))
        print(f"cache: {stored / 1e9:.2f} GB for {len(good)} videos")
        measure_rates(source, draw_clips(good, config), cache)


def measure_rates(source: Source, clips: Sequence[Clip], cache: FrameCache) -> None:
    """Print the clips per second of each reader, and their ratios."""
    side, store = cache.short_side, source.label_store
    readers: dict[str, Callable[[Video, np.ndarray], object]] = {
        "bare PyAV loop": bare_loop,
        "read_frames": lambda video, indices: read_frames(video.path, indices, short_side=side),
        "frames from the cache": lambda video, indices: cache.read_frames(video.path, indices),
    }
    labelled = [
        (video, indices) for video, indices in clips if store and video.label_map and store.has(video.label_map)
    ]
    if store is not None and labelled:
        readers["label maps from the store"] = lambda video, indices: store.read(str(video.label_map), indices)
        readers["label maps from the cache"] = lambda video, indices: cache.read_label_maps(
            store, str(video.label_map), indices
        )
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for repetition in range(-1, REPETITIONS):  # the repetition -1 is a warm-up
        for name, read in readers.items():
            read_clips = labelled if name.startswith("label") else clips
            began = time.perf_counter()
            for video, indices in read_clips:
                read(video, indices)
            if repetition >= 0:
                rates[name].append(len(read_clips) / (time.perf_counter() - began))
    references = {
        "read_frames": "bare PyAV loop",
        "frames from the cache": "read_frames",
        "label maps from the cache": "label maps from the store",
    }
    print(f"{'':28}clips/s  ms/clip   ratio")
    for name in readers:
        rate = median(rates[name])
        line = f"{name:28}{rate:7.0f}{1e3 / rate:9.2f}"
        if name in references:
            turns = zip(rates[name], rates[references[name]], strict=True)
            line += f"{median(own / other for own, other in turns):8.2f} of the {references[name]}"
        print(line)


def draw_clips(videos: Sequence[Video], config: Config) -> list[Clip]:
    """Draw random clips of random videos of the training split, as training does."""
    rng = np.random.default_rng(config.seed)
    pool = [video for video in videos if video.split == "train"] or videos
    clips = []
    for number in rng.integers(0, len(pool), CLIPS):
        part = frame_range(pool[number])
        begin = int(rng.integers(part.first, latest_start(part, config.clip) + 1))
        clips.append((pool[number], clip_indices(part, begin, config.clip)))
    return clips


def bare_loop(video: Video, indices: np.ndarray) -> list[np.ndarray]:
    """Decode the file from its start and return the clip's frames."""
    wanted, last = set(indices.tolist()), int(indices.max())
    frames = []
    with av.open(str(video.path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for index, frame in enumerate(container.decode(stream)):
            if index in wanted:
                frames.append(frame.to_ndarray(format="rgb24"))
            if index == last:
                break
    return frames


def start(source: Source, cache: FrameCache | None) -> list[Video]:
    """Do what training does before its first step; return the good videos."""
    with Progress(console=Console(quiet=True)) as progress:
        good, _, _ = check_videos(source.videos, progress, cache)
        if cache is not None:
            cache.prepare(good, source.label_store, progress)
    return good


def timed_start(data: str, labels: Path | None, folder: Path | None, side: int) -> float:
    """The seconds of `start` in a new process."""
    source = open_source(data, labels)
    began = time.perf_counter()
    start(source, None if folder is None else FrameCache(folder, LIMIT_BYTES, side))
    return time.perf_counter() - began


def measure_starts(data: str, labels: Path | None, config: Config, folder: Path) -> None:
    """Print the seconds of a start without the cache, with its first build, and with a complete cache."""
    print(f"{'':28}      s")
    for name, root in (("start without cache", None), ("first start, which builds", folder), ("later start", folder)):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            seconds = pool.apply(timed_start, (data, labels, root, config.decoded_side))
        print(f"{name:28}{seconds:7.2f}")


if __name__ == "__main__":
    main()
