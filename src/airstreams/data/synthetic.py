"""Synthetic videos with exact ground truth. What moves and how it moves make the class.

A class is a pair such as `disc_left`. Size, colour, texture, tilt and speed of the object, and the texture, clutter and
drift of the background, have the same distributions in every class. So only the shape tells *what*, and only the motion
tells *how*.

Everything is a formula of continuous coordinates (signed distances for shapes, sums of waves for textures) that is
evaluated for each frame. This is slower than shifting a picture, but sub-pixel motion stays sharp and the flow is
exact.

Paths are centred in the frame so that the object stays in it. The price: the position in the *first* or *last* frame
of a clip hints at the direction. Over all frames of a clip, the positions of `left` and `right` have the same
distribution, since each is the other one played backwards.

Shapes: T frames, H, W pixels. Lengths are in pixels, x to the right, y down. Pixel centres have whole coordinates.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from airstreams.data import label_maps
from airstreams.errors import InputError
from airstreams.files import replacing

Floats = NDArray[np.floating]

WHATS = ("disc", "square", "triangle", "ring", "cross")
HOWS = ("left", "right", "up", "down", "circle")
SEGMENT_CLASSES = ("background", *WHATS)

# Lengths as fractions of the frame's shorter side, so that a clip looks the same at any size.
OBJECT_RADIUS = (0.16, 0.23)
CLUTTER_RADIUS = (0.04, 0.11)
CLUTTER_COUNT = 16
SPEED = (1 / 64, 2 / 64)
LONGEST_PATH = 0.45
TILT = 0.3
DRIFT_OF_SPEED = (0.1, 0.4)

# With its macroblock tree, x264 writes different files each time for frames as small as these.
X264 = {"crf": "10", "preset": "veryfast", "x264-params": "mbtree=0"}


@dataclass(frozen=True)
class SyntheticClip:
    """A clip with its ground truth.

    Attributes:
        frames: uint8 (T, H, W, 3), RGB.
        label_map: uint8 (T, H, W), indices in `SEGMENT_CLASSES`; a pixel is the object's where the object covers at
            least half of it.
        flow: float32 (T - 1, H, W, 2), (x, y) in px from each frame to the next, of the surface visible at the pixel.
    """

    frames: NDArray[np.uint8]
    label_map: NDArray[np.uint8]
    flow: Floats


# The signed distance to each shape's edge, negative inside. All shapes of one radius have the area of a disc,
# pi radius^2, so that the area does not reveal the shape.
def _disc(x: Floats, y: Floats, radius: float) -> Floats:
    return np.hypot(x, y) - radius


def _square(x: Floats, y: Floats, radius: float) -> Floats:
    return np.maximum(np.abs(x), np.abs(y)) - radius * math.sqrt(math.pi) / 2


def _triangle(x: Floats, y: Floats, radius: float) -> Floats:
    # Equilateral, tip up. The last term is the radius of the inscribed circle of a triangle of the wanted area.
    return np.maximum(y, math.sqrt(3) / 2 * np.abs(x) - y / 2) - radius * math.sqrt(math.pi / math.sqrt(27))


def _ring(x: Floats, y: Floats, radius: float) -> Floats:
    outer = radius / math.sqrt(0.75)
    return np.abs(np.hypot(x, y) - 0.75 * outer) - 0.25 * outer


def _cross(x: Floats, y: Floats, radius: float) -> Floats:
    half_length = radius * math.sqrt(math.pi * 9 / 20)
    far, near = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
    return np.maximum(far - half_length, near - half_length / 3)


DISTANCES: dict[str, Callable[[Floats, Floats, float], Floats]] = {
    "disc": _disc,
    "square": _square,
    "triangle": _triangle,
    "ring": _ring,
    "cross": _cross,
}


def make_clip(what: str, how: str, frames: int, size: int | tuple[int, int], rng: np.random.Generator) -> SyntheticClip:
    """Draw one clip of the class `what_how`.

    Args:
        what: the object's shape, one of `WHATS`.
        how: its path, one of `HOWS`; `circle` is one full turn in a random direction.
        frames: T, at least 2. In clips of more than about 15 frames objects move more slowly, to stay in the picture.
        size: (H, W), or one number for a square; at least 16.
        rng: the source of all random draws. They do not depend on the class: with equal generators, two clips of one
            `how` move alike, and two clips of one `what` look alike.

    Raises:
        InputError: the shape or path is unknown, or there are too few frames or pixels.
    """
    height, width = _checked(what, how, frames, size)
    side = min(height, width)
    x_T1W = np.broadcast_to(np.arange(width, dtype=np.float32), (frames, 1, width))
    y_TH1 = np.broadcast_to(np.arange(height, dtype=np.float32)[:, None], (frames, height, 1))

    radius = rng.uniform(*OBJECT_RADIUS) * side
    fastest = min(SPEED[1], LONGEST_PATH / (frames - 1)) * side
    speed = rng.uniform(fastest * SPEED[0] / SPEED[1], fastest)
    position_T2 = _path(how, frames, speed, rng)
    centre_2 = np.array([width - 1, height - 1]) / 2
    room_2 = np.maximum(centre_2 - np.ptp(position_T2, axis=0) / 2 - radius, 0)
    position_T2 = position_T2 + centre_2 + rng.uniform(-1, 1, 2) * room_2

    heading = rng.uniform(0, 2 * np.pi)
    drift_2 = rng.uniform(*DRIFT_OF_SPEED) * speed * np.array([np.cos(heading), np.sin(heading)])
    drifted_T2 = np.arange(frames)[:, None] * drift_2

    # One of the two is bright and the other dark, independent of the class.
    bright, dark = rng.uniform(0.66, 0.85), rng.uniform(0.2, 0.38)
    object_grey, background_grey = (bright, dark) if rng.random() < 0.5 else (dark, bright)

    background_x, background_y = _seen_from(x_T1W, y_TH1, drifted_T2)
    picture_THW3 = _texture(background_x, background_y, _colour(background_grey, rng), 0.07, (0.2, 0.6), side, rng)
    for kind, (x, y), clutter_radius, tilt, colour in _clutter(height, width, background_grey, rng):
        distance_THW = _distance(kind, background_x - x, background_y - y, clutter_radius, tilt)
        _paint(picture_THW3, distance_THW, colour)

    object_x, object_y = _seen_from(x_T1W, y_TH1, position_T2)
    skin_THW3 = _texture(object_x, object_y, _colour(object_grey, rng), 0.1, (0.12, 0.25), side, rng)
    distance_THW = _distance(what, object_x, object_y, radius, rng.uniform(-TILT, TILT))
    _paint(picture_THW3, distance_THW, skin_THW3)

    is_object_THW = distance_THW <= 0
    step_T2 = np.diff(position_T2, axis=0)
    flow_THW2 = np.where(is_object_THW[:-1, ..., None], step_T2[:, None, None, :], drift_2)
    return SyntheticClip(
        frames=np.rint(np.clip(picture_THW3, 0, 1) * 255).astype(np.uint8),
        label_map=is_object_THW.astype(np.uint8) * np.uint8(SEGMENT_CLASSES.index(what)),
        flow=flow_THW2.astype(np.float32),
    )


def render(
    root: str | Path,
    whats: Sequence[str],
    hows: Sequence[str],
    videos_per_class: dict[str, int],
    frames: int,
    size: int | tuple[int, int],
    seed: int,
    fps: int = 30,
) -> None:
    """Write a data set of all classes `what_how` into the folder `root`. Existing files are kept.

    - `videos/<split>/<class>/<nnn>.mp4`: H.264.
    - `labels/labels.json` and `labels/<split>/<class>/<nnn>.npz`: a label store (see `label_maps.py`).
    - `flow/<split>/<class>/<nnn>.npz`: `flow` float16 (T - 1, H, W, 2), in px.

    For given frames and size a video depends only on the seed and on its split, class and number, so a larger data set
    contains the smaller ones.

    Args:
        root: the folder of the data set.
        whats: what moves, as in `make_clip`.
        hows: how it moves, as in `make_clip`.
        videos_per_class: the number of videos of each class in each split, such as `{"train": 40, "test": 15}`.
        frames: the length of each video.
        size: (H, W) or one number, even, since H.264 stores colour at half resolution.
        seed: the seed of all videos.
        fps: frames per second of the files.

    Raises:
        InputError: as `make_clip`, or the size is odd, or the folder holds videos with other settings.
    """
    root = Path(root)
    for what, how in product(whats, hows):
        height, width = _checked(what, how, frames, size)
    if height % 2 or width % 2:
        raise InputError(f"size: got {(height, width)}, expected even numbers, which H.264 needs")
    _write_index(root / "labels" / "labels.json", {"seed": seed, "frames": frames, "size": [height, width], "fps": fps})

    for split, count in videos_per_class.items():
        for what, how, number in product(whats, hows, range(count)):
            name = f"{split}/{what}_{how}/{number:03d}"
            if all((root / path).exists() for path in (f"videos/{name}.mp4", f"labels/{name}.npz", f"flow/{name}.npz")):
                continue
            clip = make_clip(what, how, frames, size, np.random.default_rng([seed, *name.encode()]))
            _write(root, name, clip, fps)


def _write(root: Path, name: str, clip: SyntheticClip, fps: int) -> None:
    label_maps.save(root / "labels", name, clip.label_map, range(len(clip.label_map)))
    with replacing(root / "flow" / f"{name}.npz") as temporary:
        np.savez_compressed(temporary, flow=clip.flow.astype(np.float16))
    with replacing(root / "videos" / f"{name}.mp4") as temporary:
        encode(temporary, clip.frames, fps)


def _checked(what: str, how: str, frames: int, size: int | tuple[int, int]) -> tuple[int, int]:
    if what not in WHATS:
        raise InputError(f"what: got {what!r}, expected one of {', '.join(WHATS)}")
    if how not in HOWS:
        raise InputError(f"how: got {how!r}, expected one of {', '.join(HOWS)}")
    if frames < 2:
        raise InputError(f"frames: got {frames}, expected at least 2, since one frame shows no motion")
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 16:
        raise InputError(f"size: got {(height, width)}, expected at least 16 pixels per side")
    return height, width


def _path(how: str, frames: int, speed: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Positions (T, 2) of an object that moves `speed` px per frame, with the middle of their range at the origin."""
    phase, turning = rng.uniform(0, 2 * np.pi), rng.choice([-1, 1])
    if how == "circle":
        angle_T = phase + turning * 2 * np.pi * np.arange(frames) / (frames - 1)
        path_radius = speed / (2 * np.sin(np.pi / (frames - 1))) if frames > 2 else 0.0
        position_T2 = path_radius * np.stack([np.cos(angle_T), np.sin(angle_T)], axis=1)
    else:
        direction_2 = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}[how]
        position_T2 = np.arange(frames)[:, None] * speed * np.array(direction_2)
    return position_T2 - (position_T2.min(axis=0) + position_T2.max(axis=0)) / 2


def _seen_from(x_T1W: Floats, y_TH1: Floats, position_T2: NDArray[np.float64]) -> tuple[Floats, Floats]:
    """The pixels' coordinates relative to an object at `position_T2`."""
    position_T211 = position_T2.astype(np.float32)[:, :, None, None]
    return x_T1W - position_T211[:, 0], y_TH1 - position_T211[:, 1]


def _distance(kind: str, x: Floats, y: Floats, radius: float, tilt: float) -> Floats:
    cos, sin = math.cos(tilt), math.sin(tilt)
    return DISTANCES[kind](cos * x + sin * y, cos * y - sin * x, radius)


def _paint(picture_THW3: Floats, distance_THW: Floats, colour: Floats) -> None:
    """Draw a shape over the picture. At the edge, a pixel is blended by the fraction that the shape covers."""
    coverage_THW1 = np.clip(0.5 - distance_THW, 0, 1)[..., None]
    picture_THW3 += coverage_THW1 * (colour - picture_THW3)


def _colour(grey: float, rng: np.random.Generator) -> Floats:
    """A random colour, RGB in 0..1, whose channels average to about `grey`."""
    tint_3 = rng.uniform(-0.2, 0.2, 3)
    return (grey + tint_3 - tint_3.mean()).astype(np.float32)


def _texture(
    x: Floats,
    y: Floats,
    colour_3: Floats,
    contrast: float,
    wavelengths: tuple[float, float],
    side: int,
    rng: np.random.Generator,
) -> Floats:
    """A colour with three waves of random direction and tint (T, H, W, 3); wavelengths are fractions of `side`."""
    wave_THW3 = np.zeros((*np.broadcast_shapes(x.shape, y.shape), 3), np.float32)
    for _ in range(3):
        angle, phase = rng.uniform(0, 2 * np.pi, 2)
        wavenumber = 2 * np.pi / (rng.uniform(*wavelengths) * side)
        tint_3 = rng.uniform(0.4, 1, 3).astype(np.float32) * np.float32(contrast)
        along_x = x * np.float32(np.cos(angle) * wavenumber)
        along_y = y * np.float32(np.sin(angle) * wavenumber) + np.float32(phase)
        wave_THW3 += np.sin(along_x + along_y)[..., None] * tint_3
    return colour_3 + wave_THW3


def _clutter(
    height: int, width: int, background_grey: float, rng: np.random.Generator
) -> Iterator[tuple[str, tuple[float, float], float, float, Floats]]:
    """Small pale shapes that move with the background: kind, position, radius, tilt and colour of each."""
    side = min(height, width)
    for _ in range(round(CLUTTER_COUNT * height * width / side**2)):
        # Some start outside the picture, since the background drifts by up to a fifth of the side.
        position = rng.uniform(-0.2, 1.2) * width, rng.uniform(-0.2, 1.2) * height
        grey = background_grey + rng.choice([-1, 1]) * rng.uniform(0.06, 0.15)
        yield (
            WHATS[rng.integers(len(WHATS))],
            position,
            rng.uniform(*CLUTTER_RADIUS) * side,
            rng.uniform(0, 2 * np.pi),
            _colour(grey, rng),
        )


def _write_index(path: Path, settings: dict[str, object]) -> None:
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))["settings"]
        if found != settings:
            raise InputError(
                f"{path} describes videos with other settings: got {settings}, expected {found}; choose another folder"
            )
        return
    label_maps.create(path.parent, "synthetic", SEGMENT_CLASSES, settings)


def encode(path: Path, frames_THW3: NDArray[np.uint8], fps: int, options: dict[str, str] = X264) -> None:
    """Write an MP4 file with H.264. options: of x264."""
    _, height, width, _ = frames_THW3.shape
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps), options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        # Starting threads takes longer than encoding such small frames.
        stream.codec_context.thread_count = 1
        for frame_HW3 in frames_THW3:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HW3, format="rgb24")))
        container.mux(stream.encode())
