"""Gradient checkpointing gives the same gradients and batch statistics from less memory."""

from copy import deepcopy

import pytest
import torch

from airstreams.config import FlowConfig, ModelConfig
from airstreams.models.airstreams import build

DEFAULT = ModelConfig(
    streams=["rgb", "flow"], width=0.25, merge_levels=[3, 6], merge="gain", flow=FlowConfig(iterations=1)
)
I3D = ModelConfig(streams=["rgb"], backbone="i3d")


def set_checkpointing(model, checkpointing):
    for tower in (*model.early.values(), *model.late.values()):
        tower.checkpointing = checkpointing


def trained_once(model, checkpointing):
    """A pass forward and backward; returns the bytes that the forward pass keeps for the gradients."""
    set_checkpointing(model, checkpointing)
    kept = {}

    def count(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(2)  # dropout
    clip = torch.rand(2, 3, 4, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        logits = model.train()(clip, list(model.late)).logits
        loss = sum(values.square().sum() for values in logits.values())
    parameters = {parameter.data_ptr() for parameter in model.parameters()}
    loss.backward()
    return sum(size for place, size in kept.items() if place not in parameters)


@pytest.mark.parametrize("config", [DEFAULT, I3D], ids=["default", "i3d"])
def test_gradients_and_statistics_are_the_same_and_less_is_kept(config):
    torch.manual_seed(0)
    model = build(config, 4, 3)
    for name, parameter in model.named_parameters():
        if ".merge." in name:
            torch.nn.init.uniform_(parameter)
    other = deepcopy(model)
    assert trained_once(other, checkpointing=True) < 0.5 * trained_once(model, checkpointing=False)
    gradients, others = ({name: p.grad for name, p in one.named_parameters()} for one in (model, other))
    for name, gradient in gradients.items():
        assert gradient is not None
        torch.testing.assert_close(others[name], gradient, rtol=0, atol=0, msg=name)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, other.get_buffer(name)), name
    assert all(counted == 1 for name, counted in other.named_buffers() if name.endswith("num_batches_tracked"))


def test_checkpointing_acts_in_training_alone():
    torch.manual_seed(0)
    model = build(I3D, 4, 3)
    clip = torch.rand(1, 3, 4, 64, 64)
    expected = model.eval()(clip).logits["rgb"]
    set_checkpointing(model, True)
    assert torch.equal(model(clip).logits["rgb"], expected)
