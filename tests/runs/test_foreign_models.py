"""A stranger's model file is refused in one line and at once, whatever it holds; its checksums are right."""

import json
import time
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file, save_file

from airstreams.config import ClipConfig, Config, ModelConfig
from airstreams.errors import InputError
from airstreams.models.airstreams import build
from airstreams.runs import saved_model as saved_models
from airstreams.runs.saved_model import SavedModel, load, read_description
from airstreams.towers import Block, Layer

TOWER = [Block(8, [Layer("conv2d", stride=2)]), Block(8, [Layer("conv2d")])]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    run = tmp_path_factory.mktemp("foreign") / "run"
    model = ModelConfig(streams=["rgb"], tower=TOWER, merge_levels=[1])
    torch.manual_seed(0)
    network = build(model, 2, 1).eval()
    config = Config(clip=ClipConfig(frames=2, size=64), model=model)
    saved_models.save(SavedModel(config, ("a", "b"), ("background",), False, 25.0, model=network), run)
    return run


@pytest.fixture
def forge(original, tmp_path):
    """A function that writes the run again with other values in model.json, and with the right checksums."""
    weights = load_file(original / "model.safetensors")

    def write(**values):
        content = json.loads((original / "model.json").read_text())
        for key, value in values.items():
            section = content
            *path, last = key.split("__")
            for name in path:
                section = section[name]
            section[last] = value
        sums = {
            "sha256": saved_models._sum_of_weights(weights),
            "description": saved_models._sum_of_description(content),
            "kept": saved_models._sum_of(content.get("kept")),
        }
        save_file(weights, tmp_path / "model.safetensors", {"sums": json.dumps(sums)})
        (tmp_path / "model.json").write_text(saved_models._as_text(content))
        return tmp_path

    return write


def test_an_unchanged_file_loads(forge):
    assert load(forge()).classes == ("a", "b")


WRONG = [
    {"versions": 5},
    {"versions": {"airstreams": ["0.3"]}},
    {"classes": [["a"], "b"]},
    {"classes": ["a", "a"]},
    {"classes": "ab"},
    {"classes": []},
    {"classes": ["a", 7]},
    {"segment_classes": {"a": 1}},
    {"multi_label": "no"},
    {"frame_rate": "x"},
    {"frame_rate": -1},
    {"frame_rate": float("nan")},
    {"kept": 3},
    {"kept": {"epoch": "x", "why": "best"}},
    {"kept": {"epoch": 1, "why": "best", "interval": ["a", "b"]}},
    {"config": None},
    {"config": []},
    {"config__model": "x"},
    {"config__clip": {"frames": [1]}},
    {"config__model__streams": "rgb\x00"},
    {"config__model__tower": [{"channels": 8}]},
    {"format": "x"},
    {"format": None},
]
ENDLESS = [
    {"config__model__width": 60.0},
    {"config__model__width": 1e9},
    {"config__model__width": float("inf")},
    {"config__evaluation__views": 10**9},
    {"config__evaluation__crops": 10**7},
    {"config__evaluation__window": 1e-9},
    {"config__evaluation__window": float("nan")},
    {"config__clip__size": 10**6},
    {"config__clip__frames": 10**9},
    {"config__clip__rate": 1e-300},
    {"config__clip__stride": 10**18},
    {"config__data__crop_aspect": float("inf")},
    {"config__seed": 10**30},
    {"config__model__flow__iterations": 10**9},
    {"config__model__flow__levels": 10**9},
    {"config__model__tower": [asdict(block) | {"repeats": 10**9} for block in TOWER]},
    {"config__model__tower": [asdict(block) | {"channels": 10**12} for block in TOWER]},
    {"config__model__tower": [{"channels": 8, "layers": [asdict(Layer("conv2d"))] * 9000}] * 2},
    {"classes": [f"class {number}" for number in range(100_000)]},
]


@pytest.mark.parametrize("values", WRONG + ENDLESS, ids=lambda values: f"{values}"[:60])
def test_wrong_values_are_refused_in_one_line(values, forge):
    run = forge(**values)
    began = time.process_time()
    with pytest.raises(InputError) as raised:
        load(run)
    assert time.process_time() - began < 5
    message = str(raised.value)
    assert "\n" not in message
    assert len(message) < 1000
    assert str(run) in message


@pytest.mark.parametrize("values", WRONG, ids=lambda values: f"{values}"[:60])
def test_a_description_alone_is_checked_too(values, forge):
    with pytest.raises(InputError):
        read_description(forge(**values))
