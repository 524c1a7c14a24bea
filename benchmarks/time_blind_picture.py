"""The picture of docs/time-blind.md: frames of moving noise, and the flow that an untrained flow layer computes.

python benchmarks/time_blind_picture.py docs/time-blind.png
"""

import sys

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from airstreams.data.time_blind import Noise, make_video, shape_mask
from airstreams.models.flow import RepresentationFlow
from airstreams.viewing.colours import flow_to_colour

KINDS = ("cross", "ring", "l", "two_discs")


def main(path: str) -> None:
    """One column for each shape: a frame above, its flow below."""
    layer = RepresentationFlow(iterations=10)
    figure = Figure(figsize=(8.4, 4.4), facecolor="white", layout="constrained")
    axes = figure.subplots(2, len(KINDS))
    for column, kind in enumerate(KINDS):
        rng = np.random.default_rng(column + 5)
        video = make_video(shape_mask(kind, True, 128, rng), Noise(), rng)
        grey_TH1W = torch.from_numpy(video.frames[..., 0]).float()[:, None] / 255
        small_THW = F.interpolate(grey_TH1W, size=64, mode="bilinear", antialias=True)[:, 0]
        with torch.inference_mode():
            flow_2HW = layer(small_THW[None, None, :8])[0].mean(dim=1)
        axes[0, column].imshow(video.frames[0])
        axes[0, column].set_title(kind.replace("_", " "), fontsize=11)
        axes[1, column].imshow(flow_to_colour(flow_2HW.permute(1, 2, 0).numpy()))
    for ax in axes.flat:
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[:].set_visible(False)
    axes[0, 0].set_ylabel("a frame")
    axes[1, 0].set_ylabel("the flow stream's input")
    figure.savefig(path, dpi=72)


if __name__ == "__main__":
    main(sys.argv[1])
