"""What the processes of a test's training do: torchrun's agent, and a training in double precision."""

import os
import sys
from pathlib import Path
from uuid import uuid4

import pytest
import torch
from rich.console import Console
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from airstreams.cli import main
from airstreams.data.sources import open_source
from airstreams.recipe import load_config
from airstreams.training import learner, loop, step


def run_job(processes, function, *arguments):
    """Call a function in processes of one job, as `torchrun --standalone` does, but forked: they import nothing."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=str(uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="fork",
    )
    elastic_launch(config, function)(*arguments)


def exit_as_main(words):
    sys.exit(main(words))


def train_exactly(config, videos, labels, run):
    """In double precision only the algorithm can differ. Fused optimisers need float32, so this uses a plain one.

    The module of the custom stream lies beside the config.
    """

    class Sgd(torch.optim.SGD):
        def step(self, closure=None):
            self.__dict__.pop("found_inf", None)
            return super().step(closure)

    def augment(frames, box, inside, flip, colour, size):
        return real(frames, box.double(), inside, flip, colour.double(), size)

    def make_optimizer(model, config, taken):
        return Sgd([parameter for parameter in model.parameters() if parameter.requires_grad], config.lr, momentum=0.9)

    real = step.augment
    torch.set_default_dtype(torch.float64)
    patch = pytest.MonkeyPatch()
    patch.setattr(torch.Tensor, "float", torch.Tensor.double)
    patch.setattr(step, "augment", augment)
    patch.setattr(learner, "make_optimizer", make_optimizer)
    sys.path.insert(0, str(Path(config).parent))
    if "WORLD_SIZE" in os.environ:  # a batch that two processes cannot share
        words = ["train", videos, "--labels", labels, "--config", config, "--out", run]
        words += ["--targets", f"shapes={labels}", "--trust-module", "shape_streams"]
        assert main([*words, "--training.batch_size", "5", "--training.accumulate", "1"]) == 2
        assert not Path(run, "config.yaml").exists()
    source = open_source(videos, Path(labels), targets={"shapes": labels})
    loop.train(source, load_config(Path(config)), Path(run), False, Console(quiet=True))
