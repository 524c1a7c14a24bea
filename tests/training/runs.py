"""Helpers for tests of trainings: a config with one stream, and reading what a run wrote."""

import json
from dataclasses import replace

from airstreams.towers import Block, Layer

EVERY_LAYER = [
    Block(64, [Layer("conv2d", stride=2), Layer("pool2d", stride=2), Layer("conv1d")]),
    Block(64, [Layer("pool1d", stride=2), Layer("conv2d", stride=2), Layer("squeeze_excite")]),
    Block(128, [Layer("conv2d", stride=2), Layer("context_gating")]),
    Block(128, [Layer("conv1d")]),
]
"""A tower of few layers: every kind of the default tower's, for work that is repeated."""

SHAPES = '''
from torch import nn
from airstreams.data.targets import ClassesPerPixel
from airstreams.models.segmenter import upsample
from airstreams.models.tower import on_frames
from airstreams.representations import Representation, Supervised
from airstreams.representations.losses import class_loss

class Shapes(Supervised):
    """As in docs/new-stream.md, and smaller."""
    channels = 6
    target = ClassesPerPixel(6)
    def __init__(self):
        super().__init__()
        self.network = nn.Conv2d(3, 6, 5, stride=8, padding=2)
    def forward(self, clip):
        logits = on_frames(self.network, clip)
        seen = self.for_tower(logits)
        return Representation(on_frames(lambda frames: upsample(frames, clip.shape[-2:]), seen), logits)
    def loss(self, prediction, target):
        return class_loss(prediction, target)
'''
"""A module with a custom stream that learns from label maps of six classes."""


def of_one_stream(config, stream="rgb", **training):
    return replace(
        config,
        model=replace(config.model, streams=[stream]),
        training=replace(config.training, **{"epochs": 1, **training}),
    )


def entries(run):
    """The entries of metrics.jsonl, without a line that is still being written."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def epochs(run):
    return [entry for entry in entries(run) if "train" in entry]
