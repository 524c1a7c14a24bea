"""The model as in Figure 2: the parts that run, their inputs, and valid clips."""

from copy import deepcopy
from dataclasses import replace
from itertools import combinations

import pytest
import torch

from airstreams.config import STREAMS, Config, FlowConfig, ModelConfig
from airstreams.errors import InputError
from airstreams.models.airstreams import build

SUBSETS = [list(subset) for size in (1, 2, 3) for subset in combinations(STREAMS, size)]
EACH_SUBSET = pytest.mark.parametrize("streams", SUBSETS, ids="+".join)


def small_model(streams=STREAMS, **changed):
    """A model in evaluation mode that looks trained: no weight has its initial value, and statistics fit the clips."""
    torch.manual_seed(0)
    small = ModelConfig(streams=list(streams), width=0.125, segmenter_width=0.125, flow=FlowConfig(iterations=3))
    config = replace(small, **changed)
    model = build(config, classes=4, segment_classes=5).train()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
                module.momentum = 1.0
        model(clip(batch=4), list(model.late))
    return model.eval()


def clip(frames=3, height=64, width=64, batch=2):
    return torch.rand(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(1))


def parts_run(model, *heads):
    """The names of the parts that a forward pass runs, in order."""
    ran = []
    for group in ("representations", "early", "late"):
        for name, part in getattr(model, group).items():
            part.register_forward_hook(lambda *_, of=f"{group}.{name}": ran.append(of))
    model(clip(), *heads)
    return ran


def test_uint8_and_float_clips_score_alike():
    model = small_model()
    bytes_B3THW = (clip() * 255).to(torch.uint8)
    from_bytes, from_floats = model(bytes_B3THW), model(bytes_B3THW.float() / 255)
    torch.testing.assert_close(from_bytes.logits["merged"], from_floats.logits["merged"], rtol=0, atol=1e-6)


@EACH_SUBSET
def test_any_streams_give_one_answer(streams):
    model = small_model(streams)
    with torch.no_grad():
        output = model(clip())
    answer = "merged" if len(streams) > 1 else streams[0]
    assert list(output.logits) == model.answer_heads == [answer]
    assert output.logits[answer].shape == (2, 4)
    assert set(output.representations) == set(streams)


@EACH_SUBSET
def test_only_several_streams_have_merged_weights(streams):
    has_merged = any(name.startswith("late.merged.") for name in small_model(streams).state_dict())
    assert has_merged == (len(streams) > 1)


@EACH_SUBSET
def test_inference_runs_the_early_towers_and_one_late_tower(streams):
    ran = parts_run(small_model(streams))
    answer = "merged" if len(streams) > 1 else streams[0]
    expected = [f"{group}.{name}" for group in ("representations", "early") for name in streams]
    assert sorted(ran) == sorted([*expected, f"late.{answer}"])


def test_removing_heads_leaves_the_others_as_they_were():
    model, smaller = small_model(), small_model()
    smaller.keep_heads(["rgb", "merged"])
    assert list(smaller.late) == ["rgb", "merged"]
    with torch.no_grad():
        expected, found = (one(clip(), ["rgb", "merged"]).logits for one in (model, smaller))
    assert all(torch.equal(found[head], expected[head]) for head in expected)
    with pytest.raises(InputError, match="flow"):
        smaller(clip(), ["flow"])


def test_only_the_parts_that_a_head_needs_run():
    assert sorted(parts_run(small_model(), ["rgb"])) == ["early.rgb", "late.rgb", "representations.rgb"]


def test_the_merged_tower_sees_the_mean_of_the_streams_features():
    model = small_model()
    with torch.no_grad():
        output = model(clip(), [*STREAMS, "merged"])
        features = {name: model.early[name](output.representations[name].tower_input, 3)[3] for name in STREAMS}
        mean = (features["rgb"] + features["flow"] + features["semantic"]) / 3
        torch.testing.assert_close(output.logits["merged"], model.late["merged"](mean)[0], rtol=0, atol=1e-5)
        for name in STREAMS:
            torch.testing.assert_close(output.logits[name], model.late[name](features[name])[0], rtol=0, atol=1e-5)


def test_each_merge_level_has_the_blocks_after_it():
    model = small_model(["rgb", "flow"], merge_levels=[3, 6, 1])
    heads = ["rgb", "flow", "merged_after_6", "merged_after_1", "merged"]
    assert (list(model.late), model.answer_heads) == (heads, ["merged"])
    levels = {"merged": 3, "merged_after_6": 6, "merged_after_1": 1}
    repetitions = {
        "merged": 5,
        "merged_after_6": 0,
        "merged_after_1": 9,
        "rgb": 0,
        "flow": 0,
    }  # the blocks have 1, 2, 2, 2, 2, 1
    assert {head: len(model.late[head].blocks) for head in heads} == repetitions
    with torch.no_grad():
        output = model(clip(), heads)
        rgb, flow = (model.early[name](output.representations[name].tower_input, 6) for name in ("rgb", "flow"))
        for head, level in levels.items():
            expected = model.late[head]((rgb[level] + flow[level]) / 2)[0]
            torch.testing.assert_close(output.logits[head], expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(output.logits["rgb"], model.late["rgb"](rgb[6])[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(model(clip()).logits["merged"], output.logits["merged"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("levels", "repetitions"), [([3, 6], 5), ([1, 4, 6], 1), ([6, 3], 10), ([6], 10), ([3], 5)])
def test_inference_skips_early_blocks_after_the_answers_merge(levels, repetitions):
    model = small_model(["rgb", "flow"], merge_levels=levels)
    ran = []
    for block in model.early["rgb"].blocks:
        block.register_forward_hook(lambda *_: ran.append(1))
    assert sorted(parts_run(model)) == sorted(
        ["early.flow", "early.rgb", "representations.flow", "representations.rgb", "late.merged"]
    )
    assert len(ran) == repetitions


def test_weights_have_the_names_of_saved_models():
    names = small_model(["rgb", "flow"]).state_dict()
    assert {name.split(".")[2] for name in names if name.startswith("early.rgb.")} == {
        "input_norm", "blocks", "output_norm",
    }  # fmt: skip
    assert {name.split(".")[1] for name in names if name.startswith("late.")} == {"rgb", "flow", "merged"}


def test_every_stream_changes_the_merged_answer():
    model = small_model()
    with torch.no_grad():
        answer = model(clip()).logits["merged"]
        for name in STREAMS:
            silenced = deepcopy(model)
            silenced.early[name].output_norm.weight.zero_()
            assert not torch.allclose(silenced(clip()).logits["merged"], answer, atol=1e-4)


def test_rgb2_and_rgb3_have_their_own_towers():
    config = ModelConfig(streams=["rgb", "rgb2", "rgb3"], width=0.25)
    model = build(config, 5, 3).eval()
    with torch.no_grad():
        output = model(clip(), ["merged"])
        features = [model.early[name](clip(), 3)[3] for name in config.streams]
        assert not torch.allclose(features[0], features[1], atol=1e-3)
        mean = sum(features) / 3
        torch.testing.assert_close(output.logits["merged"], model.late["merged"](mean)[0], rtol=0, atol=1e-5)
    whole = Config(model=config)
    assert whole.trained_heads() == ["rgb", "merged"]
    assert not whole.needs_labels


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_acts_only_in_training_and_before_every_head(dropout):
    model = small_model(["rgb", "flow"], dropout=dropout)

    def drawn(seed):
        torch.manual_seed(seed)
        with torch.no_grad():
            return model(clip(), ["rgb", "flow", "merged"]).logits.values()

    assert all(torch.equal(one, other) for one, other in zip(drawn(0), drawn(1), strict=True))
    model.train()
    assert all(torch.equal(one, other) == (dropout == 0) for one, other in zip(drawn(0), drawn(1), strict=True))


def test_one_stream_has_no_merge_at_any_level():
    model = small_model(["rgb"], merge_levels=[6, 3])
    assert list(model.late) == ["rgb"]
    assert model(clip()).logits["rgb"].shape == (2, 4)


def test_single_heads_do_not_change_the_merged_answer():
    model = small_model()
    with torch.no_grad():
        torch.testing.assert_close(
            model(clip(), [*STREAMS, "merged"]).logits["merged"], model(clip()).logits["merged"], rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("size", [(1, 64, 64), (2, 64, 97), (5, 71, 64), (9, 66, 65)])
def test_clips_may_have_any_length_and_any_size_from_64_px(size):
    frames, height, width = size
    with torch.no_grad():
        output = small_model()(clip(*size))
    assert output.logits["merged"].isfinite().all()
    assert output.representations["flow"].prediction.shape == (2, 2, frames, height, width)
    assert output.representations["semantic"].prediction.shape[:3] == (2, 5, frames)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (clip().double(), "torch.float64"),
        (clip().double(), "(2, 3, 3, 64, 64)"),
        (clip().half(), "torch.float16"),
        ((clip() * 255).long(), "torch.int64"),
        (clip()[0], "(3, 3, 64, 64)"),
        (clip(frames=4).permute(0, 2, 3, 4, 1), "(2, 4, 64, 64, 3)"),
    ],
)
def test_wrong_clips_are_refused(given, said):
    with pytest.raises(InputError, match=r"^clip: .*torch\.uint8.*torch\.float32") as raised:
        small_model(["rgb"])(given)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("heads", ["merged", [], ["rgb", "semantic"]])
def test_unknown_heads_are_rejected(heads):
    with pytest.raises(InputError, match=r"^heads: .*rgb, flow, merged") as raised:
        small_model(["rgb", "flow"])(clip(), heads)
    assert f"got {heads!r}" in str(raised.value)


def test_scores_do_not_depend_on_the_other_clips_of_the_batch():
    model, clips = small_model(), clip(batch=3)
    clips[1] *= 0.1
    with torch.no_grad():
        together = model(clips).logits["merged"]
        for index in range(3):
            alone = model(clips[index : index + 1]).logits["merged"]
            torch.testing.assert_close(together[index : index + 1], alone, rtol=0, atol=1e-5)
