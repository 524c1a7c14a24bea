"""From decoded frames to a clip of the network's size: crop, flip and colour, drawn once a clip.

Geometry is applied alike to frames (bilinear with anti-aliasing) and label maps (nearest), which may have another
resolution, hence the relative coordinates; colour is applied to frames only. Normalisation is the model's business.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from airstreams.config import DataConfig

LUMA = (0.299, 0.587, 0.114)  # what red, green and blue add to brightness, by ITU-R BT.601


@dataclass(frozen=True)
class Crop:
    """A rectangle in shares of the frame's height and width, and whether it is mirrored."""

    top: float
    left: float
    height: float
    width: float
    flip: bool = False


@dataclass(frozen=True)
class Colour:
    """Factors of 1 leave the clip as it is."""

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0


def draw_crop(height: int, width: int, config: DataConfig, rng: np.random.Generator) -> Crop:
    """A random rectangle inside a frame of height x width px; its area is a share of the largest square's."""
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


def draw_colour(strength: float, rng: np.random.Generator) -> Colour:
    """Brightness, contrast and saturation, each scaled by up to `strength` more or less."""
    return Colour(*rng.uniform(1 - strength, 1 + strength, size=3).tolist())


def square_crops(height: int, width: int, crops: int) -> list[Crop]:
    """The largest squares of a frame, evenly spaced along its longer side; one: the centre."""
    side = min(height, width)
    places = [0.5] if crops == 1 else np.linspace(0, 1, crops).tolist()
    return [
        Crop(place * (height - side) / height, place * (width - side) / width, side / height, side / width)
        for place in places
    ]


def crop_frames(frames_THW3: np.ndarray, crop: Crop, size: int) -> torch.Tensor:
    """The crop of uint8 frames (T, H, W, 3), resized to uint8 (T, size, size, 3)."""
    H, W = frames_THW3.shape[1:3]
    top, left = round(crop.top * H), round(crop.left * W)
    height, width = max(1, round(crop.height * H)), max(1, round(crop.width * W))
    frames_T3HW = torch.from_numpy(frames_THW3[:, top : top + height, left : left + width]).permute(0, 3, 1, 2)
    if frames_T3HW.shape[-2:] != (size, size):
        frames_T3HW = F.interpolate(frames_T3HW, (size, size), mode="bilinear", antialias=True)
    if crop.flip:
        frames_T3HW = frames_T3HW.flip(-1)
    return frames_T3HW.permute(0, 2, 3, 1).contiguous()


def crop_label_map(labels_THW: np.ndarray, crop: Crop, size: int) -> torch.Tensor:
    """The same crop of uint8 label maps (T, H', W'), nearest, to uint8 (T, size, size)."""
    H, W = labels_THW.shape[1:3]
    centres = (np.arange(size) + 0.5) / size
    rows = np.clip(((crop.top + crop.height * centres) * H).astype(int), 0, H - 1)
    columns = np.clip(((crop.left + crop.width * centres) * W).astype(int), 0, W - 1)
    if crop.flip:
        columns = columns[::-1]
    return torch.from_numpy(labels_THW[:, rows[:, None], columns])


def apply_colour(frames_THW3: torch.Tensor, colour: Colour) -> torch.Tensor:
    """Brightness, then contrast about the clip's mean, then saturation about each pixel's grey; uint8 in and out."""
    frames = frames_THW3.float() * colour.brightness
    # Summed as whole numbers: a float sum changes with the number of threads, and so with the number of workers.
    mean = frames_THW3.sum(dtype=torch.long).item() / frames_THW3.numel() * colour.brightness
    frames = (frames - mean) * colour.contrast + mean
    grey = (frames * torch.tensor(LUMA)).sum(dim=-1, keepdim=True)
    frames = (frames - grey) * colour.saturation + grey
    return frames.round_().clamp_(0, 255).to(torch.uint8)
