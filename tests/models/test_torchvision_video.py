"""torchvision's backbones compared with torchvision's own networks.

They need a torchvision that fits the installed torch. Without one, these tests are skipped.
"""

import builtins
from typing import Any

import pytest
import torch

from airstreams.config import ClipConfig, Config, ModelConfig
from airstreams.errors import InputError
from airstreams.models.airstreams import build
from airstreams.models.backbones import torchvision_video
from airstreams.models.backbones.torchvision_video import CHANNELS, DEVIATION, MEAN
from airstreams.models.cost import count
from airstreams.towers import OTHER_BACKBONES

RESNETS = ("r2plus1d_18", "r3d_18", "mc3_18")


@pytest.fixture(scope="session")
def video():
    """`torchvision.models.video`."""
    try:
        return torchvision_video.torchvision_models("this test").video
    except InputError as error:
        pytest.skip(f"NOT TESTED HERE: {error}")


def their_network(video: Any, name: str) -> Any:
    """torchvision's network with random weights, with normalisations that do something."""
    torch.manual_seed(0)
    network = getattr(video, name)(num_classes=7).eval()
    for key, tensor in network.state_dict().items():
        if "running" in key:
            tensor.uniform_(0.5, 1.5)
    return network


def with_their_weights(network: Any, config: ModelConfig) -> Any:
    """Our model for RGB alone with the weights of torchvision's network."""
    model = build(config, classes=7, segment_classes=3).eval()
    theirs = network.state_dict()
    classifier = "fc" if hasattr(network, "fc") else "classifier.1"
    for tower in (model.early["rgb"], model.late["rgb"]):
        for key, own in tower.state_dict().items():
            name = key.split(".", 2)[2] if key.startswith("blocks.") else key.replace("classifier", classifier)
            own.copy_(theirs[name].reshape(own.shape))
    return model


@pytest.mark.parametrize("name", CHANNELS)
def test_any_split_gives_torchvisions_logits(video, name):
    network = their_network(video, name)
    # s3d's own pooling needs 2 x 7 x 7 features. Its mean over all is the same only there.
    size = (16, 224, 224) if name == "s3d" else (3, 64, 70)
    clip_13THW = torch.rand(1, 3, *size)
    mean, deviation = (torch.tensor(values)[:, None, None, None] for values in (MEAN, DEVIATION))
    with torch.no_grad():
        expected = network((clip_13THW - mean) / deviation)
        for level in range(1, OTHER_BACKBONES[name] + 1):
            model = with_their_weights(network, ModelConfig(streams=["rgb"], backbone=name, merge_levels=[level]))
            torch.testing.assert_close(model(clip_13THW).logits["rgb"], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CHANNELS)
def test_size_and_cost_are_those_that_torchvision_publishes(video, name):
    weights = next(getattr(video, entry) for entry in dir(video) if entry.lower() == f"{name}_weights").DEFAULT
    scaling = weights.transforms()
    assert (tuple(scaling.mean), tuple(scaling.std)) == (MEAN, DEVIATION)
    clip = ClipConfig(size=224) if name == "s3d" else ClipConfig()
    cost = count(Config(clip=clip, model=ModelConfig(streams=["rgb"], backbone=name)), 400, 3)
    assert sum(cost.parameters.values()) == weights.meta["num_params"]
    assert sum(cost.inference.values()) == pytest.approx(weights.meta["_ops"] * 1e9, rel=1e-3)


@pytest.mark.parametrize("name", CHANNELS)
def test_random_weights_have_torchvisions_spread(video, name):
    torch.manual_seed(0)
    theirs = getattr(video, name)().state_dict()
    ours = build(ModelConfig(streams=["rgb"], backbone=name), 400, 3).state_dict()
    for key, own in ours.items():
        layer = key.split(".blocks.")[-1].partition(".")[2]
        if own.is_floating_point() and layer in theirs and own.numel() > 5000:
            assert float(own.std() / theirs[layer].std()) == pytest.approx(1, abs=0.06), key


def test_the_first_layer_takes_the_channels_of_each_stream(video):
    model = build(ModelConfig(streams=["rgb", "flow", "semantic"], backbone="mc3_18"), 4, 5)
    for stream, channels in (("rgb", 3), ("flow", 2), ("semantic", 8)):
        assert model.early[stream].state_dict()["blocks.0.stem.0.weight"].shape[1] == channels


def test_s3d_needs_eight_frames():
    with pytest.raises(InputError, match=r"clip\.frames"):
        Config(clip=ClipConfig(frames=7), model=ModelConfig(streams=["rgb"], backbone="s3d"))


def test_a_missing_torchvision_is_named_with_what_to_install(monkeypatch):
    torchvision_video._without_weights.cache_clear()
    importing = builtins.__import__

    def broken(name, *args, **kwargs):
        if name.startswith("torchvision"):
            raise RuntimeError("operator torchvision::nms does not exist")
        return importing(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(InputError, match=r"r3d_18.*pip install torchvision torch==") as raised:
        build(ModelConfig(streams=["rgb"], backbone="r3d_18"), 4, 5)
    assert "\n" not in str(raised.value)
