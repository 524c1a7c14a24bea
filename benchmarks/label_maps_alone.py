r"""How much the teacher's label maps alone tell about the actions: paint them as videos, then train RGB on these.

    python benchmarks/label_maps_alone.py 'jhmdb:data/jhmdb?split=1' --out painted/
    python benchmarks/label_maps_alone.py 'jhmdb:data/jhmdb?split=1' --out painted-30/ --cell 30
    airstreams train painted/videos.csv --out runs/painted --config jhmdb-small --model.streams '[rgb]' \
        --clip.stride 1 --data.colour 0

Only labelled frames are painted, so divide the clips' stride by the teacher's. Red is person, green any other class,
and blue distinguishes the classes. With `--cell N` a map is reduced to cells of about N px, which get the mean colour
of their pixels, and enlarged again, as a segmenter's logits are.
"""

import argparse
import csv
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track

from airstreams.data.label_maps import NO_LABEL, file_of
from airstreams.data.sources import open_source
from airstreams.files import replacing
from airstreams.models.segmenter import upsample


def main() -> None:
    """Write a video of label maps for each video, and `videos.csv`."""
    parser = argparse.ArgumentParser(description="Paint label maps as videos, to train on them alone.")
    parser.add_argument("data", metavar="DATA", help="as for `airstreams train`, with label maps and splits")
    parser.add_argument("--labels", type=Path, help="the label maps, if DATA has none of its own")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--cell", type=int, default=1, help="size of a cell in px (default: 1)")
    call = parser.parse_args()
    if call.cell < 1:
        parser.error(f"--cell {call.cell} is too small. Give at least 1.")
    source = open_source(call.data, call.labels)
    store = source.label_store
    if store is None:
        parser.error(f"{call.data} has no label maps. Give --labels LABELS.")
    if not source.has_splits:
        parser.error(f"{call.data} has no splits. Give data with splits, such as a CSV file with the column split.")
    if any(video.start is not None or video.end is not None for video in source.videos):
        parser.error(f"{call.data} has segments of videos. Give whole videos, as label maps belong to these.")
    person = store.classes.index("person") if "person" in store.classes else None
    rows = []
    for video in track(source.videos, console=Console(stderr=True)):
        if video.label_map is None or not store.has(video.label_map):
            continue
        maps_NHW = np.concatenate([maps for _, maps in store.chunks(video.label_map)])
        path = file_of(call.out, video.label_map).with_suffix(".mkv")
        write(path, in_cells(painted(maps_NHW, person), call.cell))
        rows.append((path.relative_to(call.out), ";".join(video.labels), video.split, video.group or ""))
    with replacing(call.out / "videos.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "split", "group"))
        writer.writerows(rows)
    print(f"{len(rows)} of {len(source.videos)} videos have label maps and were painted")


def painted(maps_NHW: np.ndarray, person: int | None) -> np.ndarray:
    """Label maps as colours, uint8 (N, H, W, 3)."""
    background = (maps_NHW == 0) | (maps_NHW == NO_LABEL)
    red = 255 * (maps_NHW == (NO_LABEL if person is None else person)) * ~background
    green = 255 * ~background - red
    blue = np.where(background, 0, 37 * maps_NHW.astype(int) % 256)
    return np.stack((red, green, blue), axis=-1).astype(np.uint8)


def in_cells(frames_NHW3: np.ndarray, cell: int) -> np.ndarray:
    """The frames reduced to cells of `cell` px, and enlarged again."""
    if cell == 1:
        return frames_NHW3
    frames_N3HW = torch.from_numpy(frames_NHW3).permute(0, 3, 1, 2).float()
    height, width = (max(1, round(side / cell)) for side in frames_NHW3.shape[1:3])
    cells = F.adaptive_avg_pool2d(frames_N3HW, (height, width))
    larger: np.ndarray = upsample(cells, frames_NHW3.shape[1:3]).permute(0, 2, 3, 1).round().byte().numpy()
    return larger


def write(path: Path, frames_NHW3: np.ndarray) -> None:
    """Write a lossless video."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=Fraction(15), options={"level": "3"})
        stream.height, stream.width = frames_NHW3.shape[1:3]
        stream.pix_fmt = "bgr0"
        for frame in frames_NHW3:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


if __name__ == "__main__":
    main()
