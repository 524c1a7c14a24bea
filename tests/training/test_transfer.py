"""A new model copies the parts of a saved one that fit, and no others."""

from dataclasses import replace

import pytest
import torch

from airstreams.config import Config, FlowConfig, LossWeights, ModelConfig
from airstreams.errors import InputError
from airstreams.models.airstreams import build
from airstreams.runs.saved_model import SavedModel, load, save
from airstreams.towers import Block, Layer, default_tower
from airstreams.training.transfer import Transfer, take_over, take_stream

CLASSES = ("catch", "clap", "climb")
SEGMENT_CLASSES = ("background", "person", "ball", "dog")
CLIP = torch.rand(2, 3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def small(**changes):
    return replace(ModelConfig(width=0.125, segmenter_width=0.125, flow=FlowConfig(iterations=2)), **changes)


def source(classes=CLASSES, segment_classes=SEGMENT_CLASSES, **changes):
    """A saved model that looks trained: every weight and statistic differs from its initial value."""
    torch.manual_seed(0)
    model = build(small(**changes), len(classes), len(segment_classes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        model(CLIP, list(model.late))
    config = Config(model=small(**changes), loss_weights=LossWeights(flow=1, semantic=1))
    return SavedModel(config, classes, segment_classes, False, None, model.eval())


def fresh(classes=CLASSES, segment_classes=SEGMENT_CLASSES, **changes):
    torch.manual_seed(1)
    return build(small(**changes), len(classes), len(segment_classes))


def copied(model):
    return {key: weight.clone() for key, weight in model.state_dict().items()}


def assert_taken(model, before, theirs, *, except_for=()):
    """Every weight was copied, except those under the prefixes in `except_for`, which are as they were built."""
    for key, weight in model.state_dict().items():
        expected = before if key.startswith(tuple(except_for)) else theirs.state_dict()
        assert torch.equal(weight, expected[key]), key


def scores(model):
    with torch.no_grad():
        return model.eval()(CLIP, list(model.late)).logits


def test_the_same_classes_give_the_same_scores(tmp_path):
    save(source(), tmp_path / "run")
    saved, model = load(tmp_path / "run"), fresh()
    unlike = scores(model)
    transfer = take_over(model, CLASSES, SEGMENT_CLASSES, saved)
    for name, logits in scores(saved.model).items():
        assert torch.equal(scores(model)[name], logits)
        assert not torch.equal(unlike[name], logits)
    assert transfer.parts == dict.fromkeys(model.parts(), "taken")
    assert transfer.unused == ()
    assert transfer.taken == transfer.total == sum(parameter.numel() for parameter in model.parameters())


def test_heads_that_were_not_saved_start_from_random_weights(tmp_path):
    saved = source()
    save(replace(saved, config=replace(saved.config, loss_weights=LossWeights())), tmp_path / "run")
    model = fresh()
    before = copied(model)
    transfer = take_over(model, CLASSES, SEGMENT_CLASSES, load(tmp_path / "run"))
    not_saved = {name for name, done in transfer.parts.items() if done == "not taken: not in the saved model"}
    assert not_saved == {"flow.late", "semantic.late"}
    assert_taken(model, before, saved.model, except_for=["late.flow.", "late.semantic."])


def test_the_two_models_share_no_memory():
    saved, model = source(), fresh()
    take_over(model, CLASSES, SEGMENT_CLASSES, saved)
    theirs = copied(saved.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert all(torch.equal(weight, theirs[key]) for key, weight in saved.model.state_dict().items())


@pytest.mark.parametrize(
    ("classes", "text"),
    [
        (("walk", "wave"), "3 classes there, 2 here"),
        (("walk", "wave", "wink"), "3 classes there, 3 others here"),
        (CLASSES[::-1], "3 classes there, 3 others here"),
    ],
    ids=["fewer", "as many others", "another order"],
)
def test_other_classes_renew_only_the_classifiers_of_the_heads(classes, text):
    saved, model = source(), fresh(classes)
    before = copied(model)
    transfer = take_over(model, classes, SEGMENT_CLASSES, saved)
    heads = ("rgb", "flow", "semantic", "merged")
    assert_taken(model, before, saved.model, except_for=[f"late.{head}.classifier." for head in heads])
    for name, done in transfer.parts.items():
        assert done == (f"taken without its classifier ({text})" if name.endswith(".late") else "taken"), name
    renewed = sum(parameter.numel() for head in heads for parameter in model.late[head].classifier.parameters())
    assert transfer.taken == transfer.total - renewed


@pytest.mark.parametrize(
    ("segment_classes", "text"),
    [
        (("background", "person"), "4 classes there, 2 here"),
        (("background", "person", "dog", "ball"), "4 classes there, 4 others here"),
    ],
    ids=["fewer", "another order"],
)
def test_other_segmentation_classes_renew_only_the_segmenters_classifiers_and_reduction(segment_classes, text):
    saved, model = source(segmenter_stride=4), fresh(segment_classes=segment_classes, segmenter_stride=4)
    before = copied(model)
    transfer = take_over(model, CLASSES, segment_classes, saved)
    renewed = ("segmenter.classifier.", "segmenter.finer_classifiers.", "reduction.")
    assert_taken(model, before, saved.model, except_for=[f"representations.semantic.{layer}" for layer in renewed])
    assert transfer.parts.pop("semantic.representation") == f"taken without its classifier and reduction ({text})"
    assert set(transfer.parts.values()) == {"taken"}


@pytest.mark.parametrize(("there", "here"), [(16, 4), (4, 8)])
def test_another_segmenter_stride_renews_only_the_finer_classifiers(there, here):
    saved, model = source(segmenter_stride=there), fresh(segmenter_stride=here)
    before = copied(model)
    transfer = take_over(model, CLASSES, SEGMENT_CLASSES, saved)
    assert_taken(model, before, saved.model, except_for=["representations.semantic.segmenter.finer_classifiers."])
    assert transfer.parts.pop("semantic.representation") == "taken without its finer classifiers (another stride)"
    assert set(transfer.parts.values()) == {"taken"}


def test_streams_that_only_one_model_has_are_named():
    saved, model = source(streams=["rgb", "flow"]), fresh(streams=["rgb", "semantic"])
    before = copied(model)
    transfer = take_over(model, CLASSES, SEGMENT_CLASSES, saved)
    new = [name for name in transfer.parts if name.startswith("semantic.")]
    assert new == ["semantic.representation", "semantic.early", "semantic.late"]
    for name, done in transfer.parts.items():
        assert done == ("not taken: not in the saved model" if name in new else "taken"), name
    assert transfer.unused == ("flow.representation", "flow.early", "flow.late")
    only_new = ["representations.semantic.", "early.semantic.", "late.semantic."]
    assert_taken(model, before, saved.model, except_for=only_new)


def test_a_saved_single_stream_has_no_merged_tower():
    saved, model = source(streams=["rgb"]), fresh(streams=["rgb", "flow"])
    before = copied(model)
    transfer = take_over(model, CLASSES, SEGMENT_CLASSES, saved)
    assert transfer.parts["rgb.early"] == transfer.parts["rgb.late"] == "taken"
    assert transfer.parts["merged.late"] == "not taken: not in the saved model"
    assert_taken(
        model, before, saved.model, except_for=["representations.flow.", "early.flow.", "late.flow.", "late.merged."]
    )


def test_a_new_single_stream_takes_its_tower_and_not_the_merged_one():
    saved, model = source(), fresh(streams=["flow"])
    transfer = take_over(model, CLASSES, SEGMENT_CLASSES, saved)
    assert transfer.parts == dict.fromkeys(["flow.representation", "flow.early", "flow.late"], "taken")
    assert "merged.late" in transfer.unused
    assert torch.equal(scores(model)["flow"], scores(saved.model)["flow"])


def test_towers_of_another_width_are_not_taken():
    """Even weights whose shapes fit, such as the normalisation of the input, are not taken."""
    saved, model = source(), fresh(width=0.25)
    before = copied(model)
    transfer = take_over(model, CLASSES, SEGMENT_CLASSES, saved)
    assert transfer.parts["semantic.representation"] == "taken"
    assert transfer.parts["rgb.early"].startswith("not taken: other shapes (blocks.")
    assert_taken(model, before, saved.model, except_for=["early.", "late."])


def test_another_last_block_leaves_the_early_towers_taken():
    tower = [*default_tower()[:-1], Block(512, [Layer("conv2d")], skip=False)]
    saved, model = source(), fresh(tower=tower)
    before = copied(model)
    transfer = take_over(model, CLASSES, SEGMENT_CLASSES, saved)
    assert transfer.parts["merged.late"].startswith("not taken: other shapes (")
    assert transfer.parts["flow.early"] == "taken"
    assert_taken(model, before, saved.model, except_for=["late."])


def test_a_tower_with_an_extra_saved_layer_is_not_taken():
    longer = [*default_tower()[:-1], Block(512, default_tower()[-1].layers, repeats=2)]
    saved, model = source(tower=longer), fresh()
    transfer = take_over(model, CLASSES, SEGMENT_CLASSES, saved)
    assert "absent here" in transfer.parts["merged.late"]


def test_the_text_of_a_transfer_lists_each_part():
    saved, model = source(streams=["rgb", "flow"]), fresh(("walk", "wave"), streams=["rgb"])
    lines = str(take_over(model, ("walk", "wave"), SEGMENT_CLASSES, saved)).splitlines()
    million = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert lines[0].endswith(f"of {million:.2f} million parameters")
    assert lines[1].split(maxsplit=1) == ["rgb.early", "taken"]
    assert lines[2].split(maxsplit=1) == ["rgb.late", "taken without its classifier (3 classes there, 2 here)"]
    assert lines[3].strip() == "not used from the saved model: flow.representation, flow.early, flow.late, merged.late"
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("theirs", "ours", "text"),
    [
        ({"streams": ["rgb"]}, {"streams": ["flow"]}, ["rgb.early, rgb.late", "flow.early, flow.late"]),
        ({"streams": ["rgb"]}, {"streams": ["rgb"], "width": 0.25}, ["rgb.early not taken: other shapes", "widths"]),
        ({"streams": ["rgb", "flow"]}, {"streams": ["flow"], "width": 0.25}, ["flow.early not taken: other shapes"]),
    ],
    ids=["no stream in common", "another width", "nothing but the flow's three parameters"],
)
def test_an_error_lists_the_parts_if_nothing_fits(theirs, ours, text):
    saved, model = source(**theirs), fresh(**ours)
    before = copied(model)
    with pytest.raises(InputError) as raised:
        take_over(model, CLASSES, SEGMENT_CLASSES, saved)
    assert "\n" not in str(raised.value)
    assert all(words in str(raised.value) for words in text)
    assert all(torch.equal(weight, before[key]) for key, weight in model.state_dict().items())


def test_a_merged_tower_is_taken_without_gains_of_other_streams():
    model, theirs = fresh(streams=["rgb", "flow"], merge="gain"), source(streams=["rgb", "flow"])
    before = copied(model)
    transfer = take_over(model, CLASSES, SEGMENT_CLASSES, theirs)
    assert_taken(model, before, theirs.model, except_for=["late.merged.merge."])
    assert "gains" in transfer.parts["merged.late"]
    again = fresh(streams=["rgb", "flow"], merge="gain")
    gains = source(streams=["rgb", "flow"], merge="gain")
    take_over(again, CLASSES, SEGMENT_CLASSES, gains)
    assert_taken(again, {}, gains.model)


def test_one_stream_is_taken_from_a_run_beside_the_start_of_the_others():
    """As after training the flow tower alone first."""
    theirs, model = source(streams=["flow"]), fresh(streams=["rgb", "flow"], merge="gain")
    before = copied(model)
    nothing = Transfer({"rgb.early": "not taken"}, (), 0, 0, origin="")
    config = small(streams=["rgb", "flow"])
    transfer = take_stream(model, config, "flow", "RUN", CLASSES, SEGMENT_CLASSES, theirs, nothing)
    own = ("representations.flow.", "early.flow.", "late.flow.")
    for key, weight in model.state_dict().items():
        expected = theirs.model.state_dict() if key.startswith(own) else before
        assert torch.equal(weight, expected[key]), key
    assert transfer.names == {key for key in before if key.startswith(own)}
    assert transfer.parts["flow.early"].startswith("taken from RUN")
    assert 0 < transfer.taken < transfer.total


@pytest.mark.parametrize(
    ("theirs", "ours", "stream", "said"),
    [
        (["rgb"], {"streams": ["rgb", "flow"]}, "flow", "no stream flow"),
        (["rgb"], {"streams": ["flow"]}, "rgb", "no stream rgb"),
        (["flow"], {"streams": ["rgb", "flow"], "backbones": {"flow": "r2plus1d18"}}, "flow", "backbone"),
    ],
)
def test_a_stream_that_one_of_both_lacks_or_that_differs_is_rejected(theirs, ours, stream, said):
    nothing = Transfer({}, (), 0, 0)
    with pytest.raises(InputError, match=rf"--init {stream}=RUN: .*{said}"):
        take_stream(
            fresh(**ours), small(**ours), stream, "RUN", CLASSES, SEGMENT_CLASSES, source(streams=theirs), nothing
        )
