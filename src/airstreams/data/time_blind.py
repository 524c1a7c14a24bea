"""Videos of moving noise, in which no single frame shows anything (Upadhyay et al., *Time Blindness*, CVPR 2026).

The noise inside a mask moves one way, and the noise around it the opposite way. The mask stays in place. So only the
motion shows it.

A single frame carries nothing, exactly. Each frame starts as white noise on a grid that is `FINE` times as fine as the
pixels. Inside the mask it is a window of one white field, outside a window of another one. Independent white values
stay white wherever they are taken from, so this composition is white noise for every mask. One filter for all frames
then smooths it and takes the pixels. The windows move by whole steps of the fine grid, which are quarters of a pixel.
Each frame is encoded by itself, so the motion leaves no trace in it either.

Shapes: T frames, H, W pixels. Lengths are in pixels, x to the right, y down. Angles are in degrees, from x to y.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from airstreams.data.synthetic import encode
from airstreams.errors import InputError
from airstreams.files import replacing, write_json

Floats = NDArray[np.floating]
Mask = NDArray[np.bool_]
# Draws the mask (side, side) of a video, by its own random numbers.
MaskMaker = Callable[[int, np.random.Generator], Mask]

FINE = 4  # steps of the fine grid for each pixel
MEAN, DEVIATION = 127.5, 48.0  # of the grey values; one value in 125 is clipped
FILTER_REACH = 4  # deviations of the Gaussian on either side
SMALLEST_SIZE = 16
FPS = 30
RADIUS = (0.18, 0.29)  # of a shape, as a fraction of the side


@dataclass(frozen=True)
class Noise:
    """How the videos look and move.

    Attributes:
        size: px, of both sides; even, since H.264 stores colour at half resolution.
        frames: T, at least 2.
        speed: the least and the greatest speed of the noise, in px per frame. Each video draws one.
        directions: the range of the direction of the noise inside the mask, in degrees.
        grain: the deviation of the Gaussian that smooths the noise, in px.
        crf: the constant rate factor of H.264: 0 is lossless; the higher, the more detail is lost.
    """

    size: int = 128
    frames: int = 12
    speed: tuple[float, float] = (1.0, 2.0)
    directions: tuple[float, float] = (0.0, 360.0)
    grain: float = 1.0
    crf: int = 18

    def __post_init__(self) -> None:
        checks = (
            (self.size >= SMALLEST_SIZE and self.size % 2 == 0, "size", f"an even number from {SMALLEST_SIZE}"),
            (self.frames >= 2, "frames", "at least 2, since one frame shows no motion"),
            (0 <= self.speed[0] <= self.speed[1] < self.size, "speed", "the least and the greatest, in px per frame"),
            (self.directions[0] <= self.directions[1], "directions", "the first and the last angle, in degrees"),
            (0 < self.grain < self.size / (2 * FILTER_REACH), "grain", "px above 0, far below the size"),
            (0 <= self.crf <= 51, "crf", "0 to 51"),
        )
        for is_good, name, expected in checks:
            if not is_good:
                raise InputError(f"{name}: got {getattr(self, name)}, expected {expected}")


@dataclass(frozen=True)
class NoiseVideo:
    """A video with its ground truth.

    Attributes:
        frames: uint8 (T, H, W, 3), RGB; the three channels are equal.
        mask: bool (H, W): the pixels of which the mask covers at least half.
        flow: float32 (T - 1, H, W, 2), (x, y) in px from each frame to the next.
    """

    frames: NDArray[np.uint8]
    mask: Mask
    flow: Floats


def make_video(mask: Mask, noise: Noise, rng: np.random.Generator) -> NoiseVideo:
    """Draw one video.

    Args:
        mask: (FINE * size, FINE * size), on the fine grid.
        noise: how the video looks and moves.
        rng: the source of all random draws. They do not depend on the mask.
    """
    T, size, fine = noise.frames, noise.size, noise.size * FINE
    if mask.shape != (fine, fine):
        raise InputError(f"mask: got {mask.shape}, expected {(fine, fine)}: {FINE} steps for each of {size} pixels")
    angle = math.radians(rng.uniform(*noise.directions))
    speed = rng.uniform(*noise.speed)
    steps_T2 = np.rint(np.arange(T)[:, None] * speed * FINE * np.array([math.cos(angle), math.sin(angle)])).astype(int)

    filter_pixels = _filter(size, noise.grain)
    margin = (filter_pixels.shape[1] - size) // 2  # pixels around the frame that the filter reads
    reach = int(np.abs(steps_T2).max())
    side = fine + 2 * margin * FINE
    inside, outside = (_white(side + 2 * reach, rng) for _ in range(2))
    with_margin = np.pad(mask, margin * FINE, mode="edge")
    composed_TNN = np.empty((T, size + 2 * margin, size + 2 * margin), np.float32)
    for t, (x, y) in enumerate(steps_T2):
        # What moves by (x, y) is read from (-x, -y).
        here = inside[reach - y : reach - y + side, reach - x : reach - x + side]
        there = outside[reach + y : reach + y + side, reach + x : reach + x + side]
        white = np.where(with_margin, here, there)
        rows = np.stack([white[step::FINE] for step in range(FINE)]).sum(axis=0, dtype=np.int8)
        composed_TNN[t] = np.stack([rows[:, step::FINE] for step in range(FINE)]).sum(axis=0, dtype=np.int8)
    # Sums of FINE^2 values of +1 and -1 have the variance FINE^2.
    gain = DEVIATION / (FINE * float((filter_pixels[size // 2] ** 2).sum()))
    grey_THW = MEAN + gain * (filter_pixels @ composed_TNN @ filter_pixels.T)
    frames_THW = np.rint(np.clip(grey_THW, 0, 255)).astype(np.uint8)

    is_inside_HW = mask.reshape(size, FINE, size, FINE).mean(axis=(1, 3)) >= 0.5
    step_T2 = np.diff(steps_T2, axis=0).astype(np.float32) / FINE
    sign_HW = np.where(is_inside_HW, np.float32(1), np.float32(-1))
    return NoiseVideo(
        frames=np.repeat(frames_THW[..., None], 3, axis=3),
        mask=is_inside_HW,
        flow=sign_HW[None, :, :, None] * step_T2[:, None, None, :],
    )


@cache
def _filter(size: int, grain: float) -> Floats:
    """The Gaussian (size, size + 2 margin) for one dimension: each row gives one pixel."""
    margin = math.ceil(FILTER_REACH * grain)
    weights = np.exp(-0.5 * (np.arange(-margin, margin + 1) / grain) ** 2)
    matrix = np.zeros((size, size + 2 * margin), np.float32)
    for row in range(size):
        matrix[row, row : row + 2 * margin + 1] = weights / weights.sum()
    return matrix


def _white(side: int, rng: np.random.Generator) -> NDArray[np.int8]:
    """Independent values (side, side), +1 or -1."""
    bits = np.unpackbits(np.frombuffer(rng.bytes((side * side + 7) // 8), np.uint8))[: side * side]
    return (bits.astype(np.int8) * 2 - 1).reshape(side, side)


# Each shape as a function of coordinates in which its radius is 1. All are about as large as a disc of that radius.
SHAPES: dict[str, Callable[[Floats, Floats], Mask]] = {
    "disc": lambda x, y: np.hypot(x, y) < 1,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.85) < 0.3,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) < 0.9,
    "bar": lambda x, y: (np.abs(x) < 1.6) & (np.abs(y) < 0.45),
    "cross": lambda x, y: (np.minimum(np.abs(x), np.abs(y)) < 0.35) & (np.maximum(np.abs(x), np.abs(y)) < 1.2),
    "triangle": lambda x, y: np.maximum(y, 0.866 * np.abs(x) - y / 2) < 0.75,
    "l": lambda x, y: (np.maximum(np.abs(x), np.abs(y)) < 1.1) & ((x < -0.3) | (y > 0.3)),
    "two_discs": lambda x, y: np.hypot(np.abs(x) - 0.85, y) < 0.65,
}
REACH = 1.7  # of every shape: no part of it is further from its centre, in radii


def shape_mask(kind: str, turned: bool, size: int, rng: np.random.Generator) -> Mask:
    """A shape of random place and size, wholly in the picture.

    Args:
        kind: one of `SHAPES`.
        turned: draw a random angle, too. Else the shape is upright.
        size: px; the mask is (FINE * size, FINE * size).
        rng: the source of place, size and angle. They do not depend on the kind.
    """
    if kind not in SHAPES:
        raise InputError(f"shape: got {kind!r}, expected one of {', '.join(SHAPES)}")
    radius = float(rng.uniform(*RADIUS))
    room = max(0.5 - REACH * radius, 0)
    x_centre, y_centre = rng.uniform(0.5 - room, 0.5 + room, 2).tolist()
    angle = float(rng.uniform(0, 2 * math.pi)) if turned else 0.0
    at = (np.arange(size * FINE, dtype=np.float32) + 0.5) / (size * FINE)
    x, y = (at[None, :] - x_centre) / radius, (at[:, None] - y_centre) / radius
    cos, sin = math.cos(angle), math.sin(angle)
    return SHAPES[kind](cos * x + sin * y, cos * y - sin * x)


def word_mask(word: str, size: int, rng: np.random.Generator) -> Mask:
    """A word of random place and size, wholly in the picture, in bold DejaVu Sans, which matplotlib brings."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    fine = size * FINE
    font_file = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans-Bold.ttf")
    at_100 = ImageFont.truetype(str(font_file), 100).getbbox(word)
    largest = 0.95 * fine / max(at_100[2] - at_100[0], at_100[3] - at_100[1])
    font = ImageFont.truetype(str(font_file), int(100 * rng.uniform(0.8, 1.0) * largest))
    left, top, right, bottom = font.getbbox(word)
    picture = Image.new("L", (fine, fine))
    corner = rng.uniform(0, 1, 2) * (fine - (right - left), fine - (bottom - top))
    ImageDraw.Draw(picture).text((corner[0] - left, corner[1] - top), word, fill=255, font=font)
    return np.asarray(picture) >= 128


def object_mask(label_maps_HW: list[NDArray[np.uint8]], class_id: int, size: int, rng: np.random.Generator) -> Mask:
    """The silhouette of a class in one of some label maps, enlarged to the picture and moved to its middle."""
    silhouette = label_maps_HW[rng.integers(len(label_maps_HW))] == class_id
    if not silhouette.any():
        raise InputError(f"label map: no pixel has the class {class_id}. Give only label maps that show it.")
    rows, columns = silhouette.any(axis=1).nonzero()[0], silhouette.any(axis=0).nonzero()[0]
    silhouette = silhouette[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    fine = size * FINE
    scale = rng.uniform(0.5, 0.85) * fine / max(silhouette.shape)
    height, width = (max(round(side * scale), 1) for side in silhouette.shape)
    y, x = (np.arange(n) * side // n for n, side in zip((height, width), silhouette.shape, strict=True))
    mask = np.zeros((fine, fine), bool)
    top, left = (fine - height) // 2, (fine - width) // 2
    mask[top : top + height, left : left + width] = silhouette[y[:, None], x]
    return mask


def shapes(kinds: Iterable[str] = tuple(SHAPES), turned: bool = True) -> dict[str, MaskMaker]:
    """Classes for `render`: shapes."""
    return {kind: partial(shape_mask, kind, turned) for kind in kinds}


def words(texts: Iterable[str]) -> dict[str, MaskMaker]:
    """Classes for `render`: words."""
    return {text: partial(word_mask, text) for text in texts}


def objects(label_maps_of: Mapping[str, list[NDArray[np.uint8]]], class_id: int = 1) -> dict[str, MaskMaker]:
    """Classes for `render`: silhouettes. Each class has label maps (H, W) of its own, which show `class_id`."""
    return {name: partial(object_mask, maps, class_id) for name, maps in label_maps_of.items()}


def render(
    root: str | Path,
    classes: Mapping[str, MaskMaker],
    videos_per_class: Mapping[str, int],
    noise: Noise | None = None,
    seed: int = 0,
    workers: int | None = None,
) -> None:
    """Write a folder of videos for `airstreams train`. Existing videos are kept.

    - `<split>/<class>/<nnnnn>.mp4`: H.264, each frame coded by itself.
    - `settings.json`: the noise and the seed.

    A video depends only on the noise, the seed, and its split, class and number, so a larger data set contains the
    smaller ones.

    Args:
        root: the folder.
        classes: what makes the mask of each class: `shapes()`, `words(...)`, `objects(...)`, or functions
            `(size, rng) -> bool (FINE * size, FINE * size)` of your own.
        videos_per_class: the number of videos of each class in each split, such as `{"train": 100, "test": 30}`.
        noise: None: the defaults of `Noise`.
        seed: the seed of all videos.
        workers: processes; None: one for each core.

    Raises:
        InputError: the folder holds videos with other settings.
    """
    root, noise = Path(root), noise or Noise()
    settings = json.loads(json.dumps({"noise": asdict(noise), "seed": seed}))
    index = root / "settings.json"
    if index.exists() and (found := json.loads(index.read_text(encoding="utf-8"))) != settings:
        raise InputError(f"{index}: the folder has videos of other settings: {found}. Choose another folder.")
    write_json(index, settings)
    names = [
        f"{split}/{kind}/{number:05d}"
        for split, n in videos_per_class.items()
        for kind in classes
        for number in range(n)
    ]
    missing = [name for name in names if not (root / f"{name}.mp4").exists()]
    workers = min(workers or os.cpu_count() or 1, len(missing))
    write = partial(_write, root, dict(classes), noise, seed)
    if workers <= 1:
        for name in missing:
            write(name)
        return
    with ProcessPoolExecutor(workers) as pool:
        for _ in pool.map(write, missing, chunksize=16):
            pass


def _write(root: Path, classes: Mapping[str, MaskMaker], noise: Noise, seed: int, name: str) -> None:
    rng = np.random.default_rng([seed, *name.encode()])
    mask = classes[name.split("/")[1]](noise.size, rng)
    video = make_video(mask, noise, rng)
    path = root / f"{name}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        # A group of one picture: each frame is coded by itself.
        encode(temporary, video.frames, FPS, {"crf": str(noise.crf), "preset": "ultrafast", "g": "1"})
