"""From a decoded frame to a picture: RGB, upright, and no larger than needed."""

import math
from dataclasses import dataclass

import numpy as np
from av.sidedata.sidedata import SideDataContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from airstreams.errors import InputError


@dataclass(frozen=True, eq=False)
class Orientation:
    """How a stored picture is turned upright: transposed first, then flipped."""

    transpose: bool
    flip_rows: bool
    flip_columns: bool

    @classmethod
    def of(cls, frame: VideoFrame) -> "Orientation":
        """Read the display matrix itself, since PyAV's angle is wrong for mirrored pictures."""
        # frame.side_data makes a reference cycle: the picture (12 MB in 4K) would stay in memory until Python's garbage
        # collector runs, which is rare.
        # Displayed x = a x + c y, displayed y = b x + d y, rounded to the nearest quarter turn.
        try:
            matrix = SideDataContainer(frame).get("DISPLAYMATRIX")  # type: ignore[call-arg]
        except ValueError:  # there is side data of a kind that PyAV does not know, such as a camera's EXIF
            angle = math.radians(frame.rotation)
            a, b, c, d = math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)
        else:
            if matrix is None:
                return cls(False, False, False)
            a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
        transpose = abs(b) > abs(a)
        return cls(transpose, flip_rows=(b if transpose else d) < 0, flip_columns=(c if transpose else a) < 0)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """The upright picture's width and height."""
        return (height, width) if self.transpose else (width, height)

    def apply(self, picture_HW3: np.ndarray) -> np.ndarray:
        """Turn a stored picture upright."""
        picture = picture_HW3.transpose(1, 0, 2) if self.transpose else picture_HW3
        return picture[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]


def upright(
    converter: VideoReformatter, frame: VideoFrame, orientation: Orientation, width: int, height: int
) -> np.ndarray:
    """The frame in RGB, resized to `width` and `height` as stored, then turned upright."""
    picture = converter.reformat(frame, width, height, "rgb24", interpolation="AREA", threads=1).to_ndarray()
    return orientation.apply(picture)


def reduced_size(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """A frame's width and height, px, after reduction to a shorter side. InputError: a short side below 1."""
    if short_side is None:
        return width, height
    if short_side < 1:
        raise InputError(f"short_side: got {short_side}, expected a number of pixels of at least 1, or None")
    shorter = min(width, height)
    if shorter <= short_side:
        return width, height
    return round(width * short_side / shorter), round(height * short_side / shorter)
