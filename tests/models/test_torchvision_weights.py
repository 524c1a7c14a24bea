"""torchvision's weights for towers and for the segmenter. All files are written from random weights."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from airstreams.config import ModelConfig
from airstreams.errors import InputError
from airstreams.models.airstreams import build
from airstreams.models.backbones.torchvision_video import CHANNELS, DEVIATION, MEAN, torchvision_models
from airstreams.models.pretrained import torchvision_weights_of, weights_of_file
from airstreams.models.pretrained.torchvision_weights import recognise
from airstreams.training.start import read_start

SEMANTIC = ModelConfig(streams=["rgb", "semantic"], width=0.1)


@pytest.fixture(scope="session")
def torchvision() -> Any:
    """`torchvision.models`."""
    try:
        return torchvision_models("this test")
    except InputError as error:
        pytest.skip(f"NOT TESTED HERE: {error}")


def random_resnet18() -> dict[str, Tensor]:
    """Random weights under torchvision's names of a ResNet-18."""
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, Tensor] = {}

    def add(conv: str, norm: str, out: int, channels: int, kernel: int) -> None:
        spread = (2 / (channels * kernel**2)) ** 0.5
        weights[f"{conv}.weight"] = spread * torch.randn(out, channels, kernel, kernel, generator=generator)
        for name in ("weight", "bias", "running_mean", "running_var"):
            weights[f"{norm}.{name}"] = 0.5 + torch.rand(out, generator=generator)
        weights[f"{norm}.num_batches_tracked"] = torch.tensor(9)

    add("conv1", "bn1", 64, 3, 7)
    channels = 64
    for layer, out in enumerate((64, 128, 256, 512), start=1):
        for block in range(2):
            name = f"layer{layer}.{block}"
            add(f"{name}.conv1", f"{name}.bn1", out, channels, 3)
            add(f"{name}.conv2", f"{name}.bn2", out, out, 3)
            if channels != out:
                add(f"{name}.downsample.0", f"{name}.downsample.1", out, channels, 1)
            channels = out
    return weights | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}


def features_of_resnet18(weights: dict[str, Tensor], frames_N3HW: Tensor) -> Tensor:
    """The output of layer3, written from the paper (He et al. 2016), of padded and normalised frames."""

    def layer(x: Tensor, conv: str, norm: str, stride: int = 1, padding: int = 1) -> Tensor:
        mean, variance, scale, bias = (
            weights[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(F.conv2d(x, weights[f"{conv}.weight"], None, stride, padding), mean, variance, scale, bias)

    x = F.max_pool2d(layer(frames_N3HW, "conv1", "bn1", 2, 0).relu(), 3, 2, 1)
    for stage in (1, 2, 3):
        for block in (0, 1):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            skip = layer(x, f"{name}.downsample.0", f"{name}.downsample.1", 2, 0) if stride == 2 else x
            x = layer(x, f"{name}.conv1", f"{name}.bn1", stride).relu()
            x = (layer(x, f"{name}.conv2", f"{name}.bn2") + skip).relu()
    return x


def as_imagenet(frames_N3HW: Tensor) -> Tensor:
    """Frames in 0..1 with 3 px of grey around them, normalised as torchvision's ImageNet weights expect."""
    mean, deviation = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (F.pad(frames_N3HW, (3, 3, 3, 3), value=0.5) - mean) / deviation


def features_of_segmenter(model: Any, frames_N3HW: Tensor) -> Tensor:
    segmenter = model.representations["semantic"].segmenter
    with torch.no_grad():
        return segmenter.stages[:6](segmenter.stem(frames_N3HW - 0.5))


def started(init: str, config: ModelConfig, classes: int = 7) -> tuple[Any, Any]:
    model = build(config, classes, 4).eval()
    return model, read_start(init, offline=True).apply(model, config, [str(i) for i in range(classes)], [])


def test_the_segmenter_computes_what_resnet18_computes(tmp_path):
    weights = random_resnet18()
    torch.save(weights, tmp_path / "resnet18.pth")
    model, transfer = started(f"segmenter={tmp_path / 'resnet18.pth'}", SEMANTIC)
    frames_N3HW = torch.rand(2, 3, 64, 70)
    found, expected = features_of_segmenter(model, frames_N3HW), features_of_resnet18(weights, as_imagenet(frames_N3HW))
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5
    assert transfer.parts["semantic.representation"].startswith("taken from")
    assert all(outcome.startswith("not taken") for name, outcome in transfer.parts.items() if "semantic.r" not in name)
    assert all(name.startswith("representations.semantic.segmenter.") for name in transfer.names)
    dilated = model.representations["semantic"].segmenter.stages[7].state_dict()
    assert torch.equal(dilated["body.3.weight"], weights["layer4.1.conv2.weight"])


def test_torchvisions_resnet18_starts_the_segmenter(torchvision, tmp_path):
    network = torchvision.resnet18().eval()
    torch.save(network.state_dict(), tmp_path / "resnet18.pth")
    model, transfer = started(f"segmenter={tmp_path / 'resnet18.pth'}", SEMANTIC)
    frames_N3HW = torch.rand(2, 3, 64, 70)
    network.conv1.padding = (0, 0)
    with torch.no_grad():
        x = network.maxpool(network.relu(network.bn1(network.conv1(as_imagenet(frames_N3HW)))))
        expected = network.layer3(network.layer2(network.layer1(x)))
    found = features_of_segmenter(model, frames_N3HW)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5
    own = [p.numel() for name, p in network.named_parameters() if not name.startswith("fc.")]
    assert transfer.taken == sum(own)


@pytest.mark.parametrize("wrong", ["no semantic stream", "a tower", "width", "missing layer", "weights of a tower"])
def test_weights_that_the_segmenter_cannot_take_are_rejected(tmp_path, wrong):
    file = tmp_path / "resnet18.pth"
    weights = random_resnet18()
    if wrong == "missing layer":
        del weights["layer2.1.conv2.weight"]
    if wrong == "weights of a tower":
        weights = {"features.0.0.0.weight": torch.zeros(64, 3, 1, 7, 7), "classifier.1.weight": torch.zeros(4, 8)}
    torch.save(weights, file)
    config = {
        "no semantic stream": ModelConfig(streams=["rgb"], width=0.1),
        "width": ModelConfig(streams=["rgb", "semantic"], width=0.1, segmenter_width=0.5),
    }.get(wrong, SEMANTIC)
    with pytest.raises(InputError, match=r"resnet18\.pth") as raised:
        started(str(file) if wrong == "a tower" else f"segmenter={file}", config)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", CHANNELS)
def test_a_network_is_recognised_by_its_layers(name):
    kernel = torch.zeros(128, 64, 1 if name == "mc3_18" else 3, 3, 3)
    layers = {
        "s3d": {"features.0.0.0.weight": torch.zeros(64, 3, 1, 7, 7)},
        "r2plus1d_18": {"stem.3.weight": kernel, "layer4.1.conv2.0.3.weight": kernel},
    }.get(name, {"layer2.0.conv1.0.weight": kernel, "layer4.1.conv2.0.weight": kernel})
    classifier = "classifier.1" if name == "s3d" else "fc"
    layers |= {} if name == "s3d" else {"stem.0.weight": torch.zeros(45, 3, 1, 7, 7)}
    layers |= {f"{classifier}.weight": torch.zeros(5, 8, *[1] * (3 if name == "s3d" else 0))}
    found = recognise(layers | {f"{classifier}.bias": torch.zeros(5), "stem.1.num_batches_tracked": torch.tensor(1)})
    assert found is not None
    assert found[:2] == (name, 3)
    assert found[2]["classifier.weight"].shape == (5, 8)
    assert not any("num_batches" in key for key in found[2])
    assert recognise(layers | {"layer1.2.conv1.weight": kernel}) is None or name == "s3d"


@pytest.mark.parametrize("name", CHANNELS)
def test_a_file_of_torchvisions_gives_its_answers(torchvision, tmp_path, name):
    torch.manual_seed(0)
    network = getattr(torchvision.video, name)(num_classes=7).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    config = ModelConfig(streams=["rgb"], backbone=name)
    model, transfer = started(str(tmp_path / "weights.pth"), config)
    assert set(transfer.parts.values()) == {"taken"}
    assert transfer.taken == transfer.total
    clip_13THW = torch.rand(1, 3, 16, 224, 224) if name == "s3d" else torch.rand(1, 3, 4, 64, 64)
    mean, deviation = (torch.tensor(values)[:, None, None, None] for values in (MEAN, DEVIATION))
    with torch.no_grad():
        expected = network((clip_13THW - mean) / deviation)
        torch.testing.assert_close(model(clip_13THW).logits["rgb"], expected, rtol=0, atol=1e-5)


def test_files_with_missing_or_wrong_layers_are_rejected(torchvision, tmp_path):
    file = tmp_path / "weights.pth"
    weights = torchvision.video.mc3_18(num_classes=7).state_dict()
    config = ModelConfig(streams=["rgb"], backbone="mc3_18")
    for damage in ({"layer3.0.conv1.0.weight": None}, {"layer3.0.conv1.0.weight": torch.zeros(2, 2)}):
        torch.save({key: value for key, value in (weights | damage).items() if value is not None}, file)
        with pytest.raises(InputError, match=r"weights\.pth: the layer layer3\.0\.conv1\.0\.weight"):
            started(str(file), config)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"weights\.pth"):
        weights_of_file(file)


def test_torchvisions_names_are_looked_up_in_its_cache(torchvision, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("AIRSTREAMS_WEIGHTS", raising=False)
    with pytest.raises(InputError, match="--offline"):
        torchvision_weights_of("mc3_18", offline=True)
    file = tmp_path / "hub" / "checkpoints" / "mc3_18-a90a0ba3.pth"
    file.parent.mkdir(parents=True)
    torch.save(torchvision.video.mc3_18().state_dict(), file)
    for name in ("mc3_18", "MC3_18_Weights.KINETICS400_V1"):
        found = torchvision_weights_of(name, offline=True)
        assert (found.backbone, found.name) == ("mc3_18", f"torchvision:{name}")
        assert "MC3_18_Weights.KINETICS400_V1" in found.source
    with pytest.raises(InputError, match=r"MC3_18_Weights\.NONE"):
        torchvision_weights_of("MC3_18_Weights.NONE", offline=True)


def test_without_a_network_one_line_says_so(torchvision, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("AIRSTREAMS_WEIGHTS", raising=False)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"torchvision:mc3_18.*cannot be fetched") as raised:
        torchvision_weights_of("mc3_18", offline=False)
    assert "\n" not in str(raised.value)


def test_other_names_of_torchvisions_are_rejected():
    with pytest.raises(InputError, match=r"torchvision:resnet50.*r2plus1d_18"):
        read_start("torchvision:resnet50")
