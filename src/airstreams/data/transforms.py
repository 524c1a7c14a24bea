"""From decoded frames to a clip of the network's size: crop, flip and colour change, drawn once per clip.

For training, `augment` transforms a whole batch on its device by two matrix products. Evaluation crops each view by
itself (`crop_frames`) in the decoding processes. Frames (bilinear with anti-aliasing) and label maps (nearest pixel)
get the same crop and flip. They may differ in resolution, so crops have relative coordinates. Colour changes frames
only. The model normalises.

Legend of shape suffixes: B clips, T frames, H, W pixels of the decoded frames, S pixels of the clip's height and width.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from av import VideoFrame
from torch import Tensor

from airstreams.config import DataConfig
from airstreams.data.video import reduced_size

LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in brightness, ITU-R BT.601


@dataclass(frozen=True)
class Crop:
    """A rectangle, in fractions of the frame's height and width, and whether it is mirrored."""

    top: float
    left: float
    height: float
    width: float
    flip: bool = False


def draw_crop(height: int, width: int, config: DataConfig, rng: np.random.Generator) -> Crop:
    """Draw a rectangle inside a frame of height x width px. Its area is a fraction of the largest square's."""
    side = min(height, width)
    smallest, largest = config.crop_scale
    area = rng.uniform(smallest, largest)
    aspect = np.exp(rng.uniform(-1, 1) * np.log(config.crop_aspect))
    crop_height = min(side * np.sqrt(area / aspect), height)
    crop_width = min(side * np.sqrt(area * aspect), width)
    top = rng.uniform(0, height - crop_height)
    left = rng.uniform(0, width - crop_width)
    flip = config.flip and rng.random() < 0.5
    return Crop(top / height, left / width, crop_height / height, crop_width / width, bool(flip))


def draw_colour(strength: float, rng: np.random.Generator) -> np.ndarray:
    """Draw factors (3,) of brightness, contrast and saturation, each from 1 - strength to 1 + strength."""
    return rng.uniform(1 - strength, 1 + strength, size=3)


def square_crops(height: int, width: int, crops: int) -> list[Crop]:
    """The largest squares of a frame, evenly spaced along its longer side. A single one is in the centre."""
    side = min(height, width)
    positions = [0.5] if crops == 1 else np.linspace(0, 1, crops).tolist()
    return [
        Crop(position * (height - side) / height, position * (width - side) / width, side / height, side / width)
        for position in positions
    ]


def reduced(frame_HW3: np.ndarray, short_side: int) -> np.ndarray:
    """Reduce a uint8 RGB frame to this shorter side, px, if it is larger, by the area average of `read_frames`.

    `read_frames` averages the file's YUV colours, which most files store at half resolution. The results differ by one
    or two grey levels on average, and by more at edges between colours.
    """
    H, W = frame_HW3.shape[:2]
    width, height = reduced_size(W, H, short_side)
    if (width, height) == (W, H):
        return frame_HW3
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(frame_HW3), format="rgb24")
    return frame.reformat(width, height, interpolation="AREA", threads=1).to_ndarray()


def crop_frames(frames_THW3: np.ndarray, crop: Crop, size: int) -> Tensor:
    """Crop uint8 frames (T, H, W, 3) and resize them to uint8 (T, size, size, 3)."""
    H, W = frames_THW3.shape[1:3]
    top, left = round(crop.top * H), round(crop.left * W)
    height, width = max(1, round(crop.height * H)), max(1, round(crop.width * W))
    frames_T3HW = torch.from_numpy(frames_THW3[:, top : top + height, left : left + width]).permute(0, 3, 1, 2)
    if frames_T3HW.shape[-2:] != (size, size):
        frames_T3HW = F.interpolate(frames_T3HW, (size, size), mode="bilinear", antialias=True)
    if crop.flip:
        frames_T3HW = frames_T3HW.flip(-1)
    return frames_T3HW.permute(0, 2, 3, 1).contiguous()


def crop_label_map(maps_THW: np.ndarray, crop: Crop, size: int) -> Tensor:
    """Crop uint8 label maps (T, H', W') and resize them to uint8 (T, size, size) by the nearest pixel."""
    H, W = maps_THW.shape[1:3]
    centres = (np.arange(size) + 0.5) / size
    rows = np.clip(((crop.top + crop.height * centres) * H).astype(int), 0, H - 1)
    columns = np.clip(((crop.left + crop.width * centres) * W).astype(int), 0, W - 1)
    if crop.flip:
        columns = columns[::-1]
    return torch.from_numpy(maps_THW[:, rows[:, None], columns])


def crop_values(values_NCHW: np.ndarray, crop: Crop, size: int) -> Tensor:
    """Crop maps (N, C, H, W) and resize them to (N, C, size, size), float32, bilinear with anti-aliasing.

    Values that are NaN take no part. A pixel of which they make up more than half becomes NaN.
    """
    H, W = values_NCHW.shape[2:]
    start = torch.tensor([crop.top * H, crop.left * W], dtype=torch.float32)
    length = torch.tensor([crop.height * H, crop.width * W], dtype=torch.float32)
    inside = torch.tensor([H, W])
    down_SH = _resampling(start[:1], length[:1], inside[:1], size, H)[0]
    across_SW = _resampling(start[1:], length[1:], inside[1:], size, W)[0]
    if crop.flip:
        across_SW = across_SW.flip(0)
    values = torch.from_numpy(np.ascontiguousarray(values_NCHW, np.float32))
    known = ~values.isnan()
    if known.all():
        return down_SH @ values @ across_SW.T
    weight = down_SH @ known.float() @ across_SW.T
    resampled = down_SH @ values.nan_to_num(0.0) @ across_SW.T
    # Weights of whole pixels may add up to a little less than a half.
    return torch.where(weight > 0.5 - 1e-6, resampled / weight, torch.nan)


def augment(
    frames_BTHW3: Tensor, box_B4: Tensor, inside_B2: Tensor, flip_B: Tensor, colour_B3: Tensor, size: int
) -> Tensor:
    """Crop, resize, flip and change the colour of a batch, on its device.

    Args:
        frames_BTHW3: uint8; there may be padding below and right of a clip's own frames.
        box_B4: each clip's crop: top, left, height and width in px, fractions allowed.
        inside_B2: height and width, px, of each clip's own frames. The padding beyond is not used.
        flip_B: bool, mirror left and right.
        colour_B3: factors of brightness, of contrast about the clip's mean and of saturation about each pixel's grey,
            applied in this order; 1 changes nothing.
        size: S, px.

    Returns:
        (B, 3, T, S, S), float32 in 0..1, channels last in memory.
    """
    B, T, H, W = frames_BTHW3.shape[:4]
    top_B, left_B, height_B, width_B = box_B4.unbind(1)
    down_BSH = _resampling(top_B, height_B, inside_B2[:, 0], size, H)
    across_BSW = _resampling(left_B, width_B, inside_B2[:, 1], size, W)
    across_BSW = torch.where(flip_B[:, None, None], across_BSW.flip(1), across_BSW)
    rows = torch.matmul(down_BSH[:, None], frames_BTHW3.flatten(3).float() / 255).flatten(1, 2)  # B, T S, W 3
    # One matrix resamples along a row and changes the colour at once, so the memory layout stays as it is.
    mix_B33 = _colour_matrix(colour_B3)
    columns = torch.einsum("bsw,bcd->bwcsd", across_BSW, mix_B33).reshape(B, W * 3, size * 3)
    mean_B = torch.einsum("bwc,bw->b", rows.mean(dim=1).view(B, W, 3), across_BSW.mean(dim=1)) / 3
    brightness_B, contrast_B = colour_B3[:, 0], colour_B3[:, 1]
    offset_B11 = ((1 - contrast_B) * brightness_B * mean_B)[:, None, None]
    clip_BTSS3 = torch.baddbmm(offset_B11, rows, columns).clamp_(0, 1).view(B, T, size, size, 3)
    return clip_BTSS3.permute(0, 4, 1, 2, 3)


def _resampling(start_B: Tensor, length_B: Tensor, inside_B: Tensor, size: int, pixels: int) -> Tensor:
    """Matrices (B, size, pixels) that resample a part of a row of pixels, bilinear with anti-aliasing.

    Each row holds the weights of a triangle whose half-width is one pixel of the coarser grid, truncated at the ends.
    """
    device = start_B.device
    scale_B1 = (length_B / size)[:, None]
    centre_BS1 = (start_B[:, None] + (torch.arange(size, device=device) + 0.5) * scale_B1)[:, :, None]
    pixel_P = torch.arange(pixels, device=device)
    weights_BSP = (1 - (pixel_P + 0.5 - centre_BS1).abs() / scale_B1[:, :, None].clamp(min=1)).clamp(min=0)
    weights_BSP = weights_BSP * (pixel_P < inside_B[:, None, None])
    return weights_BSP / weights_BSP.sum(dim=2, keepdim=True)


def _colour_matrix(colour_B3: Tensor) -> Tensor:
    """Matrices (B, 3, 3) by which rows of red, green and blue are multiplied: all but the offset of contrast."""
    brightness_B11, contrast_B11, saturation_B11 = colour_B3[:, :, None, None].unbind(1)
    one_33 = torch.eye(3, device=colour_B3.device)
    # Each column gives the pixel's grey. torch.full, since torch.tensor would copy from the host and synchronise.
    grey_33 = torch.stack([torch.full((3,), weight, device=colour_B3.device) for weight in LUMA])
    return brightness_B11 * contrast_B11 * (saturation_B11 * one_33 + (1 - saturation_B11) * grey_33)
