"""What every backbone can do. A new one is tested as soon as `model.backbone` knows its name.

Torchvision's need a torchvision that fits the installed torch. Without one, they are skipped.
"""

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch.export import Dim

from airstreams.config import ClipConfig, Config, FlowConfig, ModelConfig
from airstreams.errors import InputError
from airstreams.inference.export import ClipScorer
from airstreams.models.airstreams import build
from airstreams.models.backbones import backbone_of
from airstreams.models.backbones.torchvision_video import CHANNELS, torchvision_models
from airstreams.models.cost import count
from airstreams.runs import saved_model as saved_models
from airstreams.runs.saved_model import SavedModel
from airstreams.towers import BACKBONES, LEAST_FRAMES, OTHER_BACKBONES
from airstreams.training.learner import make_optimizer

CLASSES = ("a", "b", "c")


@pytest.fixture(params=[*BACKBONES, *OTHER_BACKBONES])
def small(request):
    """A config with the backbone, for RGB alone and small clips; narrow if the backbone can be."""
    name = request.param
    if name in CHANNELS:
        try:
            torchvision_models(name)
        except InputError as error:
            pytest.skip(f"NOT TESTED HERE: {error}")
    model = ModelConfig(streams=["rgb"], backbone=name, width=0.05 if name in BACKBONES else 1.0, dropout=0.0)
    return Config(clip=ClipConfig(frames=LEAST_FRAMES.get(name, 2), size=64), model=model)


def a_clip(config, device=None):
    return torch.rand(2, 3, config.clip.frames, config.clip.size, config.clip.size + 1, device=device)


def step(model, optimizer, clip_23THW):
    """One training step; returns the loss."""
    model.train()
    loss = F.cross_entropy(model(clip_23THW).logits["rgb"], torch.tensor([0, 2]))
    optimizer.zero_grad()
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    optimizer.step()
    return loss.detach()


def test_streams_merge_after_any_block(small):
    levels = list(range(1, small.model.block_count() + 1))
    config = replace(small.model, streams=["rgb", "flow"], flow=FlowConfig(iterations=1), merge_levels=levels)
    channels = backbone_of(config).channels
    with torch.device("meta"):
        model = build(config, len(CLASSES), 5).eval()
        output = model(a_clip(small), config.heads)
        features = model.early["flow"](torch.rand(2, 2, *a_clip(small).shape[2:]), levels[-1])
    assert set(output.logits) == {"rgb", "flow", *config.merges}
    assert all(logits_BK.shape == (2, len(CLASSES)) for logits_BK in output.logits.values())
    assert all(pooled_BC.shape == (2, channels[-1]) for pooled_BC in output.pooled.values())
    assert [features[level].shape[1] for level in levels] == list(channels)
    sizes = [features[level].shape[2:] for level in levels]
    assert all(after[i] <= before[i] for before, after in pairwise(sizes) for i in range(3))


def test_info_counts_its_parts(small):
    cost = count(small, len(CLASSES), 5)
    assert set(cost.parameters) == set(cost.inference) == {"rgb.early", "rgb.late"}
    assert min(*cost.parameters.values(), *cost.inference.values()) > 0
    assert cost.parameters_at_inference == sum(cost.parameters.values())


def test_a_step_changes_all_weights_and_a_resumed_training_takes_the_same_step(small):
    torch.manual_seed(0)
    clip_23THW = a_clip(small)
    model, other = (build(small.model, len(CLASSES), 5) for _ in range(2))
    optimizer, resumed = (make_optimizer(trained, small.training) for trained in (model, other))
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    step(model, optimizer, clip_23THW)
    step(model, optimizer, clip_23THW)  # where a normalisation starts at 0, the layers before it wait for it
    same = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    assert not same
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert torch.equal(step(model, optimizer, clip_23THW), step(other, resumed, clip_23THW))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_a_saved_model_gives_the_same_answers(small, tmp_path):
    torch.manual_seed(0)
    model = build(small.model, len(CLASSES), 5).eval()
    saved_models.save(SavedModel(small, CLASSES, (), False, None, model), tmp_path)
    clip_23THW = a_clip(small)
    with torch.no_grad():
        loaded = saved_models.load(tmp_path).model
        assert torch.equal(loaded(clip_23THW).logits["rgb"], model(clip_23THW).logits["rgb"])


def test_torch_export_captures_it_for_any_number_of_clips(small):
    """The export of a run, read back and compared, is tested with one tower in tests/inference/test_export.py."""
    with torch.device("meta"):
        model = build(small.model, len(CLASSES), 5).eval()
        frames = torch.zeros(2, *a_clip(small).shape[2:], 3, dtype=torch.uint8)
    scorer = ClipScorer(SavedModel(small, CLASSES, (), False, None, model)).eval()
    program = torch.export.export(scorer, (frames,), dynamic_shapes={"frames": {0: Dim.DYNAMIC}})
    (output,) = program.graph.output_node().args[0]
    assert output.meta["val"].shape[1:] == (len(CLASSES),)
