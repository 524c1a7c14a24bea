"""Colours for optical flow and for the classes of label maps.

Legend of shape suffixes: H, W pixels, S segmentation classes.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from airstreams.data.label_maps import NO_LABEL
from airstreams.errors import InputError

Bytes = NDArray[np.uint8]

# Baker et al., "A Database and Evaluation Methodology for Optical Flow", IJCV 2011: the number of steps on the wheel
# from each colour to the next. There are more steps where the eye distinguishes hues well.
WHEEL_STEPS = {"red": 15, "yellow": 6, "green": 4, "cyan": 11, "blue": 13, "magenta": 6}
WHEEL_CORNERS = {
    "red": (255, 0, 0),
    "yellow": (255, 255, 0),
    "green": (0, 255, 0),
    "cyan": (0, 255, 255),
    "blue": (0, 0, 255),
    "magenta": (255, 0, 255),
}


LINE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
"""For lines of a plot. Okabe and Ito, "Color Universal Design" (2008), without its yellow, which is faint on white."""

NO_LABEL_GREY = 199
"""Of pixels without label, in 0..255 for each channel."""

COLOUR_BLIND = {
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.01182, 0.04294, 0.968881)),
}
"""From linear RGB to the linear RGB that looks the same to people without one kind of cone. Machado et al., "A
Physiologically-based Model for Simulation of Color Vision Deficiency", IEEE TVCG 2009, severity 1."""


def flow_to_colour(flow_HW2: ArrayLike, max_px: float | None = None) -> Bytes:
    """Draw flow in the colours of Baker et al.: hue is direction, white is no motion, full colour is `max_px`.

    Motion to the right is red, down is yellow, left is blue-green, up is violet. Motion above `max_px` is darker.

    Args:
        flow_HW2: (x, y) in px, x to the right and y down.
        max_px: the length that gets full colour; by default the 99th percentile of the lengths.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        InputError: the last axis does not have size 2.
    """
    flow_HW2 = np.asarray(flow_HW2, dtype=np.float64)
    if flow_HW2.ndim != 3 or flow_HW2.shape[2] != 2:
        raise InputError(f"The flow has shape {flow_HW2.shape}. Give (height, width, 2), with x and y last.")
    x_HW, y_HW = flow_HW2[..., 0], flow_HW2[..., 1]
    length_HW = np.hypot(x_HW, y_HW)
    if max_px is None:
        max_px = full_colour_px(length_HW)

    wheel = _colour_wheel()
    step_HW = np.mod(np.arctan2(y_HW, x_HW) / (2 * np.pi), 1) * len(wheel)
    before_HW = step_HW.astype(int) % len(wheel)
    share_HW1 = (step_HW - np.floor(step_HW))[..., None]
    hue_HW3 = (1 - share_HW1) * wheel[before_HW] + share_HW1 * wheel[(before_HW + 1) % len(wheel)]

    strength_HW1 = length_HW[..., None] / max_px
    colour_HW3 = np.where(strength_HW1 <= 1, 255 - strength_HW1 * (255 - hue_HW3), 0.75 * hue_HW3)
    return np.rint(colour_HW3).astype(np.uint8)


def label_colours(classes: int) -> Bytes:
    """A fixed palette that colour-blind people can use, too: class 0, the background, is almost black.

    Each next colour is the one, from a coarse grid of strong colours, that looks most different from all before it and
    from the grey of pixels without label. The difference of two colours is the smallest of three: as most people see
    them, and as people with protanopia and deuteranopia do. So the first classes differ most, and even 81 colours stay
    distinct side by side. Nobody can name one colour out of 81, so legends list only the classes that occur.

    The choice does not depend on the number of classes: a class has the same colour in palettes of all sizes.

    Args:
        classes: S, from 1 to 255.

    Returns:
        uint8 (S, 3), RGB.

    Raises:
        InputError: no classes, or more than label maps can hold (255 means *no label*).
    """
    if not 1 <= classes <= NO_LABEL:
        raise InputError(
            f"There are {classes} segmentation classes. Use label maps of a teacher with 1 to {NO_LABEL} classes."
        )
    levels = np.linspace(0, 255, 10).round()
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lightness = _oklab(candidates)[:, 0]
    # Near-black looks like background, and near-white or grey like a pixel without label.
    candidates = candidates[(lightness > 0.38) & (lightness < 0.93) & (np.ptp(candidates, axis=1) > 60)]
    seen_candidates = _seen(candidates)

    def difference(colour: NDArray[np.number]) -> NDArray[np.float64]:
        between = np.linalg.norm(seen_candidates - _seen(colour[None]), axis=-1)
        return np.asarray(between.min(axis=0))

    chosen = [np.array([38, 38, 42]), np.array([30, 100, 255])]
    smallest = np.min([difference(colour) for colour in (*chosen, np.full(3, NO_LABEL_GREY))], axis=0)
    while len(chosen) < classes:
        chosen.append(candidates[int(np.argmax(smallest))])
        smallest = np.minimum(smallest, difference(chosen[-1]))
    return np.array(chosen[:classes]).astype(np.uint8)


def _seen(rgb_N3: NDArray[np.number]) -> NDArray[np.float64]:
    """Colours in Oklab as three kinds of eyes see them: (3, N, 3), most people's first."""
    linear_N3 = _linear(rgb_N3)
    matrices = (np.eye(3), *map(np.array, COLOUR_BLIND.values()))
    return np.stack([_linear_to_oklab(np.clip(linear_N3 @ matrix.T, 0, 1)) for matrix in matrices])


def full_colour_px(length_HW: NDArray[np.floating]) -> float:
    """The 99th percentile of the lengths, px. The maximum would let a few outliers make all else pale."""
    return max(float(np.percentile(length_HW, 99)), 1e-6)


def _colour_wheel() -> NDArray[np.float64]:
    """The 55 colours (55, 3) in 0..255, from red through yellow, green, cyan, blue and magenta back towards red."""
    corners = [np.array(corner, dtype=float) for corner in WHEEL_CORNERS.values()]
    colours = []
    for corner, steps in enumerate(WHEEL_STEPS.values()):
        share = np.arange(steps)[:, None] / steps
        colours.append((1 - share) * corners[corner] + share * corners[(corner + 1) % len(corners)])
    return np.concatenate(colours)


def _oklab(rgb: NDArray[np.number]) -> NDArray[np.float64]:
    """sRGB in 0..255, on the last axis, to Oklab (Ottosson 2020), where equal distances look about equal."""
    return _linear_to_oklab(_linear(rgb))


def _linear(rgb: NDArray[np.number]) -> NDArray[np.float64]:
    """sRGB in 0..255 to linear RGB in 0..1."""
    encoded = rgb / 255
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def _linear_to_oklab(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    cones = linear @ np.array(
        [
            [0.4122214708, 0.2119034982, 0.0883024619],
            [0.5363325363, 0.6806995451, 0.2817188376],
            [0.0514459929, 0.1073969566, 0.6299787005],
        ]
    )
    return np.cbrt(cones) @ np.array(
        [
            [0.2104542553, 1.9779984951, 0.0259040371],
            [0.7936177850, -2.4285922050, 0.7827717662],
            [-0.0040720468, 0.4505937099, -0.8086757660],
        ]
    )
