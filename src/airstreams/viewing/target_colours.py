"""A teacher's values as colours: maps, drawn points, and three principal components.

Legend of shape suffixes: C maps or components, H, W pixels, M people, P points.
"""

import math
from collections.abc import Sequence

import numpy as np

from airstreams.data.value_store import ValueStore
from airstreams.teachers.inspect_values import ValueSample
from airstreams.viewing.colours import NO_LABEL_GREY, Bytes, flow_to_colour, label_colours

CANVAS = (120, 160)  # px, of points without a frame
LOW, HIGH = 2, 98  # the percentiles of all samples that get the darkest and the brightest colour
VIRIDIS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""Five colours of matplotlib's map viridis, from low to high."""


def colours_of(store: ValueStore, samples: Sequence[ValueSample]) -> list[Bytes]:
    """The values of each sample as colours, uint8 (H, W, 3). Places without a value are grey.

    One map goes from dark blue to yellow, by the range of its own frame. Flow has the colours of its direction. Three
    maps are red, green and blue. Of more maps, each pixel has the colour of the largest, as bright as its value. Points
    are drawn into the frame. Features on a grid show their first three components as red, green and blue, by the range
    of all samples. The features of a clip are squares in the order of the rows of a page.
    """
    rows = [sample.row for sample in samples]
    if store.kind == "points":
        return [_points(row, sample.frame) for row, sample in zip(rows, samples, strict=True)]
    if store.kind == "grid":
        return _components(rows)
    if store.kind == "clip":
        low, high = _range(np.concatenate([row.ravel() for row in rows]))
        return [_ramp(_square(row), low, high) for row in rows]
    return [_maps(store, row) for row in rows]


def _maps(store: ValueStore, row_CHW: np.ndarray) -> Bytes:
    count = len(row_CHW)
    unknown_HW = np.isnan(row_CHW).any(axis=0)
    known_CHW = np.nan_to_num(row_CHW)
    if count == 1:
        return _ramp(row_CHW[0], *_range(row_CHW, whole=True))
    if count == 2 and store.in_px:
        along_x = 0 if store.names[0] in store.negated else 1
        colours = flow_to_colour(np.stack([known_CHW[along_x], known_CHW[1 - along_x]], axis=-1))
    elif count <= 3:
        low, high = _range(row_CHW, whole=True)
        absent_HW = np.full_like(known_CHW[0], low)
        channels = [_unit(known_HW, low, high) for known_HW in (*known_CHW, absent_HW)[:3]]
        colours = _bytes(np.stack(channels, axis=-1))
    else:
        palette = label_colours(min(count + 1, 255))[1:].astype(float)
        largest_HW = known_CHW.argmax(axis=0)
        low, high = _range(row_CHW, whole=True)
        brightness_HW1 = _unit(known_CHW.max(axis=0), low, high)[..., None]
        colours = _bytes(brightness_HW1 * palette[largest_HW % len(palette)] / 255)
    colours[unknown_HW] = NO_LABEL_GREY
    return colours


def _points(row_MP3: np.ndarray, frame: Bytes | None) -> Bytes:
    drawn = np.zeros((*CANVAS, 3), np.uint8) if frame is None else frame.copy()
    H, W = drawn.shape[:2]
    radius = max(2.0, min(H, W) / 60)
    palette = label_colours(min(row_MP3.shape[1] + 1, 255))[1:]
    y_HW, x_HW = np.mgrid[:H, :W] + 0.5
    for person_P3 in row_MP3:
        for place, (x, y, visible) in enumerate(person_P3):
            if visible > 0:
                distance_HW = np.hypot(x_HW - x * W, y_HW - y * H)
                drawn[distance_HW <= radius + 1] = 0  # a rim, so that a point is seen on any colour
                drawn[distance_HW <= radius] = palette[place % len(palette)]
    return drawn


def _components(rows: Sequence[np.ndarray]) -> list[Bytes]:
    shown = min(3, rows[0].shape[0])
    ranges = [_range(np.concatenate([row[place].ravel() for row in rows])) for place in range(shown)]
    pictures = []
    for row in rows:
        channels = [_unit(np.nan_to_num(row[place]), *ranges[place]) for place in range(shown)]
        colours = _bytes(np.stack([*channels, *[channels[0] * 0] * (3 - shown)], axis=-1))
        colours[np.isnan(row).any(axis=0)] = NO_LABEL_GREY
        pictures.append(colours)
    return pictures


def _square(row_D: np.ndarray) -> np.ndarray:
    """The values of a vector in the rows of a square, NaN where there are too few."""
    side = math.isqrt(len(row_D) - 1) + 1
    padded = np.full(side * side, np.nan)
    padded[: len(row_D)] = row_D
    return padded.reshape(side, side)


def _range(values: np.ndarray, whole: bool = False) -> tuple[float, float]:
    known = values[~np.isnan(values)]
    if not known.size:
        return 0.0, 1.0
    low, high = (known.min(), known.max()) if whole else np.percentile(known, (LOW, HIGH))
    return float(low), float(high)


def _unit(values: np.ndarray, low: float, high: float) -> np.ndarray:
    unit: np.ndarray = np.clip((values - low) / max(high - low, 1e-9), 0, 1)
    return unit


def _ramp(values_HW: np.ndarray, low: float, high: float) -> Bytes:
    steps = np.linspace(0, 1, len(VIRIDIS))
    unit_HW = _unit(np.nan_to_num(values_HW, nan=low), low, high)
    colours = np.stack([np.interp(unit_HW, steps, channel) for channel in np.array(VIRIDIS).T], axis=-1)
    colours[np.isnan(values_HW)] = NO_LABEL_GREY
    return np.rint(colours).astype(np.uint8)


def _bytes(unit: np.ndarray) -> Bytes:
    return np.rint(255 * unit).astype(np.uint8)
