"""Helpers for tests of trainings: a config with one stream, and reading what a run wrote."""

import json
from dataclasses import replace


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
