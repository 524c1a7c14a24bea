"""The label store compared with two lossless video codecs: size, and the time to read a clip's label maps.

    python benchmarks/label_store.py 'jhmdb:data/jhmdb?split=1'
    python benchmarks/label_store.py videos/ --labels labels/

Each video's label maps are written in three formats: as the store writes them (an npz of deflated chunks of 16 maps),
as FFV1 and as lossless HEVC, both grey video in Matroska with a key frame every 16 frames. Then the label maps of a
clip that starts at a random frame are read back, compared and timed. The time to decode the same frames from the video
is given for comparison.
"""

import argparse
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
from rich.box import MARKDOWN
from rich.console import Console
from rich.progress import track
from rich.table import Table

from airstreams.data import label_maps
from airstreams.data.sources import open_source
from airstreams.data.video import probe, read_frames

FRAMES = 16  # of a clip
CODECS = {
    "FFV1": ("ffv1", {"level": "3", "g": "16"}),
    "lossless HEVC": ("libx265", {"x265-params": "lossless=1:keyint=16:log-level=none"}),
}
STORE = "npz, chunks of 16"


def main() -> None:
    """Print a line for each format."""
    parser = argparse.ArgumentParser(description="The label store compared with two lossless video codecs.")
    parser.add_argument("data", metavar="DATA", help="as for `airstreams train`, with label maps")
    parser.add_argument("--labels", type=Path, help="the store, where DATA brings none")
    parser.add_argument("--videos", type=int, default=200, help="number of videos, evenly chosen (default: 200)")
    call = parser.parse_args()
    source = open_source(call.data, call.labels, for_training=False)
    store = source.label_store
    if store is None:
        parser.error(f"{call.data} brings no label maps; give --labels LABELS")
    keys = {video.label_map: video.path for video in source.videos if video.label_map and store.has(video.label_map)}
    chosen = [sorted(keys)[i] for i in np.linspace(0, len(keys) - 1, min(call.videos, len(keys))).astype(int)]
    rng = np.random.default_rng(0)
    raw = 0
    size: Counter[str] = Counter()
    seconds: defaultdict[str, float] = defaultdict(float)
    with tempfile.TemporaryDirectory() as folder:
        copy = label_maps.create(Path(folder), store.teacher, store.classes, store.settings)
        for key in track(chosen, console=Console(stderr=True)):
            frames = store.labelled_frames(key)
            maps_NHW = store.read(key, frames)
            assert maps_NHW is not None
            raw += maps_NHW.nbytes
            first = int(rng.integers(max(probe(keys[key]).frames - FRAMES, 0) + 1))
            clip = np.arange(first, min(first + FRAMES, probe(keys[key]).frames))
            here = np.flatnonzero(np.isin(frames, clip))
            label_maps.save(copy.root, key, maps_NHW, frames)
            file = label_maps.file_of(copy.root, key)
            size[STORE] += file.stat().st_size
            copy.labelled_frames(key)  # training remembers these
            seconds[STORE] += timed(lambda: copy.read(key, clip))  # noqa: B023
            for name, (codec, options) in CODECS.items():
                video = file.with_suffix(f".{codec}.mkv")
                encode(video, maps_NHW, codec, options)
                size[name] += video.stat().st_size
                seconds[name] += timed(lambda: decode(video, here))  # noqa: B023
                assert np.array_equal(decode(video, here), maps_NHW[here])
            seconds["the clip's frames"] += timed(lambda: read_frames(keys[key], clip))  # noqa: B023
    table = Table("", "fraction of the raw bytes", "ms per clip", "of the frames' decoding", box=MARKDOWN)
    for name in (STORE, *CODECS, "the clip's frames"):
        fraction = f"{size[name] / raw:.2%}" if name in size else ""
        ratio = seconds[name] / seconds["the clip's frames"]
        table.add_row(name, fraction, f"{seconds[name] / len(chosen) * 1e3:.2f}", f"{ratio:.2f}")
    Console().print(table)


def timed(read: Callable[[], object]) -> float:
    """The seconds that a call takes."""
    started = time.perf_counter()
    read()
    return time.perf_counter() - started


def encode(path: Path, maps_NHW: np.ndarray, codec: str, options: dict[str, str]) -> None:
    """Write label maps as grey video."""
    with av.open(str(path), "w", format="matroska") as container:
        stream: Any = container.add_stream(codec, rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = maps_NHW.shape[2], maps_NHW.shape[1], "gray"
        for label_map_HW in maps_NHW:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(label_map_HW, format="gray")))
        container.mux(stream.encode(None))


def decode(path: Path, indices: np.ndarray) -> np.ndarray:
    """Decode consecutive label maps, from the key frame before the first."""
    found = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        container.seek(round(int(indices[0]) / 30 * 1000), stream=stream)  # Matroska counts in ms
        for frame in container.decode(stream):
            index = round((frame.time or 0.0) * 30)
            if index in indices:
                found.append(frame.to_ndarray())
            if index >= indices[-1]:
                break
    return np.stack(found)


if __name__ == "__main__":
    main()
