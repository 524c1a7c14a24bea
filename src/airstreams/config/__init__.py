"""All settings of a run: one tree of typed dataclasses.

A recipe is a YAML file with some of these keys; the rest keep their defaults. `airstreams train --help` prints the text
below each key.

Sections and tables refer to the paper, *Adaptive Intermediate Representations for Video Understanding*. It gives no
clip size, augmentation, optimiser or number of views. So a value without a section is our own choice.
"""

from airstreams.config.config import Config
from airstreams.config.data import ClipConfig, DataConfig
from airstreams.config.evaluation import LEAST_WINDOW, EvaluationConfig, EvolutionConfig
from airstreams.config.limits import MOST_ITERATIONS, MOST_LAYERS, MOST_PIXELS, MOST_STEP
from airstreams.config.losses import LossWeights
from airstreams.config.model import FULL_SIZE, FlowConfig, ModelConfig
from airstreams.config.streams import ANSWER, BUILT_IN_STREAMS, STREAMS, SUPERVISED, own_loss, stream_of, targets_option
from airstreams.config.training import TrainingConfig

__all__ = [
    "ANSWER",
    "BUILT_IN_STREAMS",
    "FULL_SIZE",
    "LEAST_WINDOW",
    "MOST_ITERATIONS",
    "MOST_LAYERS",
    "MOST_PIXELS",
    "MOST_STEP",
    "STREAMS",
    "SUPERVISED",
    "ClipConfig",
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "EvolutionConfig",
    "FlowConfig",
    "LossWeights",
    "ModelConfig",
    "TrainingConfig",
    "own_loss",
    "stream_of",
    "targets_option",
]
