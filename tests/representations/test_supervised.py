"""What every representation keeps to, and what those that learn from a teacher keep to, custom ones included."""

import importlib
import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from jsonargparse import Namespace
from rich.console import Console
from safetensors.torch import load_file

from airstreams.commands.command import targets_of
from airstreams.config import ClipConfig, Config, LossWeights, ModelConfig
from airstreams.console import stderr
from airstreams.data.label_maps import NO_LABEL
from airstreams.data.sources import open_source
from airstreams.errors import InputError
from airstreams.models.airstreams import build
from airstreams.recipe import GivenConfig
from airstreams.representations import Supervised
from airstreams.representations.custom import load_custom, try_out
from airstreams.representations.make import make_representation, target_kind
from airstreams.runs.checkpoint import saved_states
from airstreams.runs.folder import RunFolder
from airstreams.training.defaults import config_of_new_run
from airstreams.training.learner import freeze
from airstreams.training.loop import train
from tests.training.runs import SHAPES, epochs

QUIET = Console(quiet=True)
TAUGHT = ("semantic", "shapes", "parts", "depth", "keypoints")
STREAMS = ("rgb", "flow", *TAUGHT)
CLIP = ClipConfig(frames=3, size=64)
CLASSES = 6


@pytest.fixture(autouse=True)
def shape_streams(tmp_path, monkeypatch):
    (tmp_path / "shape_streams.py").write_text(SHAPES)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("shape_streams", None)


def model_config(streams, **further):
    representations = {"shapes": "shape_streams:Shapes"}
    return ModelConfig(streams, representations, width=0.125, segmenter_width=0.125, **further)


def made(stream, **further):
    torch.manual_seed(0)
    return make_representation(stream, model_config([stream], **further), CLASSES)


def clip(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def target(stream="semantic", clips=2):
    """Targets of two clips. In the first one, some places have none."""
    blank = made(stream).target.blank(CLIP)
    values = torch.rand(clips, *blank.shape, generator=torch.Generator().manual_seed(1))
    values[0, :, :5] = 0 if stream == "keypoints" else torch.nan
    if blank.dtype != torch.uint8:
        return values
    return torch.where(values.isnan(), NO_LABEL, values * CLASSES).to(torch.uint8)


@pytest.mark.parametrize("stream", STREAMS)
def test_the_tower_input_has_the_size_of_the_clip(stream):
    for shape in ((2, 3, 3, 64, 64), (1, 3, 2, 64, 80)):
        representation = made(stream).eval()
        seen, _ = representation(clip(*shape))
        assert seen.shape == (shape[0], representation.channels, *shape[2:])
        assert seen.dtype == torch.float32


@pytest.mark.parametrize("stream", STREAMS)
def test_a_clip_is_independent_of_its_batch_and_stays_as_it_was(stream):
    representation, clips = made(stream).eval(), clip(2, 3, 3, 64, 64)
    together = representation(clips).tower_input
    torch.testing.assert_close(representation(clips[1:]).tower_input, together[1:], rtol=1e-4, atol=1e-5)
    assert torch.equal(clips, clip(2, 3, 3, 64, 64))


@pytest.mark.parametrize("stream", STREAMS)
def test_it_runs_without_values(stream):
    with torch.device("meta"):
        assert made(stream)(torch.empty(1, 3, 3, 64, 64)).tower_input.is_meta
        assert (target_kind(stream, model_config([stream])) is not None) == (stream in TAUGHT)


@pytest.mark.parametrize("stream", TAUGHT)
def test_losses_of_shares_add_up(stream):
    representation, clips = made(stream).eval(), clip(2, 3, 3, 64, 64)
    wanted = target(stream)
    whole, count = representation.loss(representation(clips).prediction, wanted)
    shares = [representation.loss(representation(clips[i : i + 1]).prediction, wanted[i : i + 1]) for i in (0, 1)]
    assert whole.item() == pytest.approx(sum(share.item() for share, _ in shares), rel=1e-5)
    assert count == representation.target.count(wanted)
    assert count.item() == pytest.approx(sum(number.item() for _, number in shares))


@pytest.mark.parametrize("stream", TAUGHT)
def test_a_clip_without_targets_has_no_loss_and_no_gradient(stream):
    representation = made(stream)
    blank = representation.target.blank(CLIP)
    assert blank.shape == target(stream)[0].shape
    loss, count = representation.loss(representation(clip(1, 3, 3, 64, 64)).prediction, blank.unsqueeze(0))
    loss.backward()
    assert (loss, count) == (0, 0)
    assert not any(parameter.grad is not None and parameter.grad.any() for parameter in representation.parameters())


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("stream", TAUGHT)
def test_a_stopped_gradient_reaches_only_by_the_teachers_loss(stream, stopped):
    config = model_config(["rgb", stream], stop_gradient=[stream] if stopped else [])
    model = build(config, 4, CLASSES)
    representation = model.representations[stream]
    assert isinstance(representation, Supervised)
    network: torch.nn.Module = getattr(representation, "network" if stream == "shapes" else "segmenter")
    output = model(clip(2, 3, 3, 64, 64), ["merged"])
    output.logits["merged"].square().sum().backward(retain_graph=True)
    by_action = any(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())
    assert by_action != stopped
    representation.loss(output.representations[stream].prediction, target(stream))[0].backward()
    assert any(parameter.grad.any() for parameter in network.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("stream", TAUGHT)
def test_what_no_loss_reaches_is_frozen(stream):
    model = model_config(["rgb", stream], stop_gradient=[stream])
    for weight in (0.0, 0.5):
        config = Config(model=model, loss_weights=LossWeights(interm={stream: weight}))
        built = build(model, 4, CLASSES)
        freeze(built, config)
        representation = built.representations[stream]
        assert isinstance(representation, Supervised)
        taught = [parameter for part in representation.taught() for parameter in part.parameters()]
        assert all(parameter.requires_grad == (weight > 0) for parameter in taught)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("seen = self.for_tower(logits)", "seen = logits"), "for_tower"),
        (("return class_loss(prediction, target)", "return class_loss(prediction, target)[0]"), "loss"),
        (("return class_loss(prediction, target)", "return prediction.sum(), 7"), "count"),
        (("seen), logits)", "seen), None)"), "prediction"),
    ],
)
def test_unusable_teachings_are_refused(tmp_path, change, said):
    assert change[0] in SHAPES
    (tmp_path / "shape_streams.py").write_text(SHAPES.replace(*change))
    importlib.invalidate_caches()
    representation = load_custom("shapes", "shape_streams:Shapes", stop_gradient=True)
    with pytest.raises(InputError, match=f"shape_streams:Shapes.*{said}"):
        try_out(representation, CLIP, torch.device("cpu"))


@pytest.mark.parametrize(
    ("given", "key"),
    [("shapes", "shapes"), ("=folder", "folder"), ("shapes=a,shapes=b", "shapes=b")],
)
def test_wrong_targets_are_refused(given, key):
    with pytest.raises(InputError, match=f"--targets.*{key}"):
        targets_of(Namespace(targets=given.split(",")))


def config_of(source, tiny, **model):
    config = replace(
        tiny,
        model=replace(model_config(["shapes"]), **model),
        training=replace(tiny.training, epochs=1, batch_size=6, save_every=1, keep=10),
    )
    return config_of_new_run(GivenConfig(config, frozenset({"model.streams"}), True), source, stderr)


def test_a_stream_without_targets_or_without_a_teacher_is_refused(synthetic, tiny, tmp_path):
    videos, labels = str(synthetic / "videos"), synthetic / "labels"
    config = config_of(open_source(videos), tiny)
    with pytest.raises(InputError, match=r"shapes.*--targets shapes=FOLDER"):
        train(open_source(videos), config, tmp_path / "run", False, QUIET)
    with pytest.raises(InputError, match=r"--targets rgb="):
        config_of(open_source(videos, targets={"rgb": labels}), tiny)
    with pytest.raises(InputError, match=r"--targets shapes=.*no such folder"):
        open_source(videos, targets={"shapes": labels / "nothing"})
    (tmp_path / "shape_streams.py").write_text(SHAPES.replace("ClassesPerPixel(6)", "ClassesPerPixel(25)"))
    del sys.modules["shape_streams"]
    source = open_source(videos, targets={"shapes": labels})
    with pytest.raises(InputError, match=r"6 classes.*25"):
        train(source, config_of(source, tiny), tmp_path / "run", False, QUIET)


def test_a_training_resumes_within_an_epoch_to_the_same_bits(synthetic, tiny, tmp_path):
    source = open_source(str(synthetic / "videos"), targets={"shapes": synthetic / "labels"})
    config = config_of(source, tiny, stop_gradient=["shapes"])
    assert config.loss_weights.interm == {"semantic": 1.0, "shapes": 1.0}
    whole, again = tmp_path / "whole", tmp_path / "again"
    train(source, config, whole, False, QUIET, after_epoch=lambda record: shutil.copytree(whole, again) and None)
    for path in saved_states(again)[:-2]:  # it ended after its first step
        path.unlink()
    folder = RunFolder(again)
    folder.weights.unlink()
    folder.description.unlink()
    other = shutil.copytree(synthetic / "labels", tmp_path / "other")
    about = json.loads((other / "labels.json").read_text()) | {"teacher": "another"}
    (other / "labels.json").write_text(json.dumps(about))
    of_another = open_source(str(synthetic / "videos"), targets={"shapes": other})
    with pytest.raises(InputError, match=r"other teachers' targets"):
        train(of_another, config, again, True, QUIET)
    train(source, config, again, True, QUIET)
    expected, found = load_file(RunFolder(whole).weights), load_file(folder.weights)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert epochs(whole)[-1]["train"]["losses"].keys() == {"shapes", "interm.shapes", "total"}
