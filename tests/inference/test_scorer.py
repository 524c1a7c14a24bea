"""The fast path of prediction gives the answers of the model itself."""

from dataclasses import replace

import pytest
import torch

from airstreams.data.dataset import ClipFrames
from airstreams.evaluation.scoring import score_views
from airstreams.inference.scorer import Scorer
from airstreams.models.airstreams import build
from airstreams.models.folding import folded_model
from airstreams.runs.saved_model import SavedModel

MODELS = {
    "all streams": {},
    "rgb": {"streams": ["rgb"]},
    "several merges": {"merge_levels": [2, 4]},
    "differences": {"streams": ["flow", "semantic"], "flow": {"kind": "difference"}},
    "another tower": {"streams": ["rgb", "flow"], "backbone": "r2plus1d18", "width": 0.125},
    "gains, mean of heads": {"merge_levels": [2, 4], "merge": "gain", "answer": "mean"},
    "scaled flow": {"streams": ["rgb", "flow"], "flow": {"scale": 0.5}},
    "flow of colours": {
        "streams": ["rgb", "flow"],
        "flow": {"input": "rgb", "learn_kernels": True, "kernels_per_channel": True},
    },
    "i3d": {"streams": ["rgb"], "backbone": "i3d", "width": 1.0},
}


def saved_model(config, changes):
    """With random weights, and batch statistics that are not those of a new model."""
    flow = replace(config.model.flow, **changes.get("flow", {}))
    config = replace(config, model=replace(config.model, **changes | {"flow": flow}))
    torch.manual_seed(0)
    model = build(config.model, 4, 3)
    for name, tensor in model.state_dict().items():
        if name.endswith(("running_mean", "running_var", "bias")):
            tensor.copy_(torch.rand_like(tensor) + 0.5)
        elif name.endswith("weight") and tensor.ndim == 1:
            tensor.copy_(torch.rand_like(tensor) * 0.5)
    return SavedModel(config, ("a", "b", "c", "d"), ("background", "x", "y"), False, 30.0, model=model.eval())


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("frames", [1, 4])
def test_clips_that_share_frames_get_the_models_answer(tiny, changes, frames):
    saved = saved_model(tiny, changes)
    torch.manual_seed(1)
    of_videos = [
        ClipFrames(
            torch.randint(0, 255, (count, 64, 64, 3), dtype=torch.uint8),
            (torch.arange(clips)[:, None] + 2 * torch.arange(frames)).clamp(max=count - 1),
        )
        for count, clips in ((9, 3), (5, 2), (1, 1))
    ]
    scores = Scorer(saved).score(of_videos, at_once=2)
    for probabilities, views in zip(scores, of_videos, strict=True):
        with torch.inference_mode():
            logits = saved.model(views.clips.permute(0, 4, 1, 2, 3), saved.config.answer_heads).logits
        expected_BK = (sum(logits.values()) / len(logits)).softmax(dim=1)
        assert probabilities.tolist() == pytest.approx(expected_BK.mean(dim=0).tolist(), abs=1e-6)


@pytest.mark.parametrize("name", ["gains, mean of heads", "i3d"])
def test_answers_in_bfloat16_are_those_of_evaluation(tiny, name):
    saved = replace(saved_model(tiny, MODELS[name]), precision="bfloat16")
    views = ClipFrames(torch.randint(0, 255, (9, 64, 64, 3), dtype=torch.uint8), torch.arange(8).view(2, 4))
    (found,) = Scorer(saved).score([views])
    folded = replace(saved, model=folded_model(saved.model))
    by_head, *_ = score_views(folded, views.clips, saved.config.answer_heads)
    expected = by_head[saved.config.answer]
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-4)
