"""The packaged streams with a teacher, together in one run: they have the rights of the stream semantic."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from airstreams import api
from airstreams.config import LossWeights, ModelConfig
from airstreams.data import label_maps
from airstreams.data.sources import open_source
from airstreams.data.value_store import ValueStore, create
from airstreams.errors import InputError
from airstreams.evaluation.evaluate import evaluate
from airstreams.models.airstreams import build
from airstreams.representations import Supervised
from airstreams.representations.keypoints import COCO_KEYPOINTS, Keypoints
from airstreams.representations.make import make_representation
from airstreams.representations.teaching import open_targets
from airstreams.runs import saved_model as saved_models
from airstreams.runs.checkpoint import saved_states
from airstreams.runs.folder import RunFolder
from airstreams.towers import Block, Layer
from airstreams.training.learner import freeze
from airstreams.training.loop import train
from airstreams.viewing.representations import streams_picture
from tests.training.runs import epochs

QUIET = Console(quiet=True)
STREAMS = ("parts", "depth", "keypoints", "distil")
TOWER = [Block(16, [Layer("conv2d", stride=4)]), *(Block(16, [Layer("conv2d")]) for _ in range(3))]


@pytest.fixture(scope="module")
def folders(synthetic, tmp_path_factory):
    """A folder of targets for each stream, made from the label maps of the synthetic videos."""
    root = tmp_path_factory.mktemp("targets")
    names = ("background", *(f"part {number}" for number in range(24)))
    parts = label_maps.create(root / "parts", "maths", names, {})
    stores = {
        "depth": ValueStore(root / "depth", "maths", "maps", ("depth",)),
        "keypoints": ValueStore(root / "keypoints", "maths", "points", COCO_KEYPOINTS),
        "distil": ValueStore(root / "distil", "maths", "clip", tuple(map(str, range(70)))),
    }
    depth, keypoints, distil = (create(store) for store in stores.values())
    labels = label_maps.LabelStore.open(synthetic / "labels")
    for key in list(labels.keys()):
        frames = labels.labelled_frames(key)
        maps_NHW = labels.read(key, frames)
        assert maps_NHW is not None
        label_maps.save(parts.root, key, maps_NHW, frames)
        depth.write(key, frames, (maps_NHW[:, None] > 0) + 0.01 * np.arange(64))
        points = np.full((len(frames), 1, 17, 3), 1.0)
        points[..., :2] = [[[np.mean(np.nonzero(one)[::-1], axis=1) / 64] * 17] for one in maps_NHW]
        keypoints.write(key, frames, points)
        distil.write(key, frames[:1], np.sin(np.arange(70) * int(maps_NHW.max()))[None])
    return {stream: root / stream for stream in STREAMS}


@pytest.fixture(scope="module")
def source(synthetic, folders):
    return open_source(str(synthetic / "videos"), targets=folders)


@pytest.fixture(scope="module")
def config(tiny):
    model = ModelConfig([*STREAMS], tower=TOWER, segmenter_width=0.125, stop_gradient=["depth"], dropout=0.0)
    weights = LossWeights(interm={"parts": 0.5, "depth": 1.0}, custom={"distil": 1.0})
    training = replace(tiny.training, epochs=1, batch_size=8, save_every=1, keep=10)
    return replace(tiny, model=model, loss_weights=weights, training=training, data=replace(tiny.data, flip=True))


@pytest.fixture(scope="module")
def taught(source, config, tmp_path_factory):
    """A run of all four, and what it was after its first epoch. Not to be written to."""
    root = tmp_path_factory.mktemp("runs")
    copied = root / "before"
    train(
        source, config, root / "run", False, QUIET, after_epoch=lambda _: shutil.copytree(root / "run", copied) and None
    )
    return root / "run", copied


def test_each_stream_has_a_loss_of_its_own(taught):
    losses = epochs(taught[0])[-1]["train"]["losses"]
    assert losses.keys() == {"distil", "merged", "total", *(f"interm.{stream}" for stream in STREAMS)}
    assert all(np.isfinite(loss) and loss > 0 for loss in losses.values())


def test_a_run_resumes_to_the_same_bits(taught, source, config, tmp_path):
    run, before = taught
    again = shutil.copytree(before, tmp_path / "again")
    for path in saved_states(again)[:-2]:  # it ended after its first step
        path.unlink()
    RunFolder(again).weights.unlink()
    RunFolder(again).description.unlink()
    train(source, config, again, True, QUIET)
    expected, found = (load_file(RunFolder(folder).weights) for folder in (run, again))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_evaluation_scores_each_stream_and_predictions_need_no_teacher(taught, source, tmp_path, synthetic):
    run = shutil.copytree(taught[0], tmp_path / "run")
    metrics = evaluate(run, source, "test", QUIET).metrics
    assert metrics.targets.keys() == set(STREAMS)
    assert all(found.loss is not None and found.loss > 0 for found in metrics.targets.values())
    assert metrics.targets["parts"].segmentation is not None
    saved = saved_models.load(run)
    streams_picture(tmp_path / "seen.png", saved, source.split("test"), open_targets(source, saved.config), QUIET)
    assert (tmp_path / "seen.png").is_file()
    video = sorted((synthetic / "videos").rglob("*.mp4"))[0]
    assert api.load(run).predict(video).probabilities


def test_the_tower_of_distil_gets_the_gradient_of_its_teacher(config):
    torch.manual_seed(0)
    model = build(replace(config.model, streams=["rgb", "distil"]), 4, 6)
    clip = torch.rand(2, 3, 4, 64, 64)
    output = model(clip, ["distil", "merged"])
    part = model.representations["distil"]
    assert isinstance(part, Supervised)
    assert "distil.representation" in model.parts()
    loss, count = part.loss(output.representations["distil"].prediction, torch.randn(2, 64))
    loss.backward(retain_graph=True)
    reached = {name.split(".")[1] for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == {"distil"}
    assert count == 2
    model.zero_grad()
    sum(logits.sum() for logits in output.logits.values()).backward()
    assert all(parameter.grad is None for parameter in part.parameters())
    assert model(clip, ["merged"]).representations["distil"].prediction is None
    model_config = replace(config.model, streams=["rgb", "distil"])
    untaught = replace(config, model=model_config, loss_weights=LossWeights(interm={"distil": 0.0}))
    freeze(model, untaught)
    assert not any(parameter.requires_grad for parameter in part.parameters())


def test_distil_without_a_head_is_refused(source, config, tmp_path):
    weights = replace(config.loss_weights, custom={})
    with pytest.raises(InputError, match=r"loss_weights\.custom\.distil"):
        train(source, replace(config, loss_weights=weights), tmp_path / "run", False, QUIET)


def test_a_custom_stream_may_have_a_packaged_name():
    made = torch.nn.Identity()
    model = ModelConfig(["depth"], {"depth": "my_streams:Depth"})
    assert make_representation("depth", model, 6, lambda *_: made) is made


def test_the_pictures_of_keypoints_show_where_they_are():
    part = Keypoints(0.125, 16, None, stop_gradient=False)
    points = torch.zeros(2, 4, 17, 3)
    points[:, 0, 3] = torch.tensor([0.75, 0.25, 1.0])
    of_target = part.picture(points)
    logits = torch.zeros(17, 2, 4, 4)
    logits[3, :, 1, 3] = 20
    of_prediction = part.picture(logits)
    assert of_target.shape == (2, 32, 32, 3)
    assert divmod(int(of_target[0].sum(-1).argmax()), 32) in {(7, 23), (8, 24), (7, 24), (8, 23)}
    hue = of_prediction[0, 1, 3]
    assert of_prediction.shape == (2, 4, 4, 3)
    assert torch.isfinite(of_prediction).all()
    assert 0 <= hue.min() <= hue.max() <= 1
