"""From a decoded frame to a picture: RGB, upright, and no larger than needed."""

import math
from dataclasses import dataclass

import numpy as np
from av.sidedata.sidedata import SideDataContainer
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, VideoReformatter

from airstreams.data.hdr import HLG, PQ, to_usual_video
from airstreams.errors import InputError

HDR_TRANSFERS = (PQ, HLG)
ASPECT_TOLERANCE = 0.01  # pixels whose aspect differs from 1 by less are squares: sizes are rounded
_LARGEST_ASPECT = 4.0  # a header that says more is wrong
_UNSPECIFIED = 2  # FFmpeg's number of an unknown colour space
_HD_WIDTH, _SD_HEIGHT = 1280, 576  # px


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
    """The frame in RGB, resized to `width` and `height` as stored, then turned upright. HDR becomes usual video."""
    if frame.color_trc in HDR_TRANSFERS:
        is_plain = frame.format.is_rgb or frame.colorspace != _UNSPECIFIED
        matrix = None if is_plain else Colorspace.BT2020
        scaled = converter.reformat(frame, width, height, "rgb48le", matrix, interpolation="AREA", threads=1)
        return orientation.apply(to_usual_video(scaled.to_ndarray(), frame.color_trc))
    matrix = Colorspace.ITU709 if _is_untagged_hd(frame) else None
    picture = converter.reformat(frame, width, height, "rgb24", matrix, interpolation="AREA", threads=1).to_ndarray()
    return orientation.apply(picture)


def _is_untagged_hd(frame: VideoFrame) -> bool:
    """Whether a frame of HD size does not say how its colours are stored. HD is in BT.709, smaller video in BT.601."""
    in_yuv = not (frame.format.is_rgb or frame.format.has_palette)
    return in_yuv and frame.colorspace == _UNSPECIFIED and (frame.width >= _HD_WIDTH or frame.height > _SD_HEIGHT)


def square_width(width: int, pixel_aspect: float) -> int:
    """A picture's width, px, after its pixels are stretched to squares."""
    is_plain = abs(pixel_aspect - 1) <= ASPECT_TOLERANCE or not 1 / _LARGEST_ASPECT <= pixel_aspect <= _LARGEST_ASPECT
    return width if is_plain else max(1, round(width * pixel_aspect))


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
