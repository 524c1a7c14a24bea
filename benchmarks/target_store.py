"""Containers for teachers' targets compared: size, and the time to write a video and to read a clip.

    python benchmarks/target_store.py 'jhmdb:data/jhmdb?split=1' --teacher bodypix.py:load

The teacher must have a method `soft` that gives a person's probability (T, h, w) and those of body parts (T, P, h, w).
Three targets are made of each video: the probabilities of the parts as uint8, the same times the probability of a
person, which is nearly 0 in most places, and the logits as float16, which stand for features on a grid. Each is written
in each container. Then the 16 frames of a clip that starts at a random frame are read back, compared and timed. zarr is
compared only where it is installed.
"""

import argparse
import importlib.util
import tempfile
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import MARKDOWN
from rich.console import Console
from rich.progress import track
from rich.table import Table
from safetensors import safe_open
from safetensors.numpy import save_file

from airstreams.data.sources import open_source
from airstreams.data.video import probe, read_frames
from airstreams.teachers.teacher import factory_in

FRAMES = 16  # of a clip, and of a piece
UNCOMPRESSED = "safetensors"
Write = Callable[[Path, np.ndarray], None]
Read = Callable[[Path, np.ndarray], np.ndarray]


def main() -> None:
    """Print a line for each target and container."""
    parser = argparse.ArgumentParser(description="Containers for teachers' targets compared.")
    parser.add_argument("data", metavar="DATA", help="as for `airstreams train`")
    parser.add_argument("--teacher", metavar="FILE.py:FACTORY", required=True, help="a teacher with the method `soft`")
    parser.add_argument("--videos", type=int, default=60, help="number of videos, evenly chosen (default: 60)")
    call = parser.parse_args()
    file, _, factory = call.teacher.rpartition(":")
    teacher = factory_in(Path(file), factory)()
    paths = sorted({video.path for video in open_source(call.data, for_training=False).videos})
    chosen = [paths[i] for i in np.linspace(0, len(paths) - 1, min(call.videos, len(paths))).astype(int)]
    rng = np.random.default_rng(0)
    raw: defaultdict[str, int] = defaultdict(int)
    sums: defaultdict[tuple[str, str], np.ndarray] = defaultdict(lambda: np.zeros(3))
    with tempfile.TemporaryDirectory() as folder:
        for number, path in enumerate(track(chosen, console=Console(stderr=True))):
            person_Thw, parts_TPhw = teacher.soft(read_frames(path, range(probe(path).frames)))
            for target, values in targets(person_Thw, parts_TPhw).items():
                raw[target] += values.nbytes
                first = int(rng.integers(max(len(values) - FRAMES, 0) + 1))
                clip = np.arange(first, min(first + FRAMES, len(values)))
                for container, (write, read) in CONTAINERS.items():
                    place = Path(folder) / f"{number}-{target}-{container}".replace(" ", "_")
                    written = seconds(lambda: write(place, values))  # noqa: B023
                    found = read(place, clip)
                    assert np.array_equal(found, values[clip])
                    reading = min(seconds(lambda: read(place, clip)) for _ in range(3))  # noqa: B023
                    sums[target, container] += size_of(place), written, reading
    titles = ("target", "container", "of the raw bytes", "write, ms a video", "read, ms a clip", "of safetensors'")
    table = Table(*titles, box=MARKDOWN)
    for (target, container), (size, writing, reading) in sums.items():
        each = 1e3 / len(chosen)
        share = f"{size / raw[target]:.1%}"
        table.add_row(
            target,
            container,
            share,
            f"{writing * each:.1f}",
            f"{reading * each:.2f}",
            f"{reading / sums[target, UNCOMPRESSED][2]:.0f}",
        )
    Console(width=120).print(table)


def targets(person_Thw: np.ndarray, parts_TPhw: np.ndarray) -> dict[str, np.ndarray]:
    """The targets of a video by name."""
    inside = parts_TPhw.clip(1e-6, 1 - 1e-6)
    return {
        "parts, uint8": np.rint(parts_TPhw * 254).astype(np.uint8),
        "parts of people, uint8": np.rint(parts_TPhw * person_Thw[:, None] * 254).astype(np.uint8),
        "logits of parts, float16": np.log(inside / (1 - inside)).astype(np.float16),
    }


def write_npz(path: Path, values: np.ndarray) -> None:
    """Deflated pieces of `FRAMES` frames."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for start in range(0, len(values), FRAMES):
            with archive.open(f"{start}.npy", "w") as file:
                np.lib.format.write_array(file, values[start : start + FRAMES], allow_pickle=False)


def read_npz(path: Path, positions: np.ndarray) -> np.ndarray:
    """The values at consecutive positions."""
    first = positions[0] // FRAMES * FRAMES
    with np.load(path) as archive:
        pieces = [archive[str(start)] for start in range(first, positions[-1] + 1, FRAMES)]
    return np.concatenate(pieces)[positions - first]


def write_safetensors(path: Path, values: np.ndarray) -> None:
    """One tensor, without compression."""
    save_file({"values": np.ascontiguousarray(values)}, path)


def read_safetensors(path: Path, positions: np.ndarray) -> np.ndarray:
    """The values at consecutive positions."""
    with safe_open(path, "numpy") as file:
        found: np.ndarray = file.get_slice("values")[int(positions[0]) : int(positions[-1]) + 1]
    return found


def write_zarr(path: Path, values: np.ndarray) -> None:
    """Pieces of `FRAMES` frames by zstd, in a zip file: one file for each video, as the others."""
    zarr: Any = importlib.import_module("zarr")
    with zarr.storage.ZipStore(path, mode="w") as store:
        chunks = (min(FRAMES, len(values)), *values.shape[1:])
        zarr.create_array(store, data=values, chunks=chunks, compressors=zarr.codecs.ZstdCodec(level=3))


def read_zarr(path: Path, positions: np.ndarray) -> np.ndarray:
    """The values at consecutive positions."""
    zarr: Any = importlib.import_module("zarr")
    with zarr.storage.ZipStore(path, mode="r") as store:
        array = zarr.open_array(store, mode="r")
        return np.asarray(array[int(positions[0]) : int(positions[-1]) + 1])


CONTAINERS: dict[str, tuple[Write, Read]] = {
    "npz, deflated pieces of 16": (write_npz, read_npz),
    UNCOMPRESSED: (write_safetensors, read_safetensors),
}
if importlib.util.find_spec("zarr") is not None:
    CONTAINERS["zarr, zstd pieces of 16"] = (write_zarr, read_zarr)


def seconds(work: Callable[[], object]) -> float:
    """The seconds that a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def size_of(path: Path) -> int:
    """The bytes of a file."""
    return path.stat().st_size


if __name__ == "__main__":
    main()
