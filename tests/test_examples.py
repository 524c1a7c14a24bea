import importlib.util
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from airstreams.config import FlowConfig
from airstreams.data.dataset import VideoViews, Views
from airstreams.data.sources import open_source
from airstreams.models import saved as saved_models
from airstreams.models.airstreams import build
from airstreams.models.flow import RepresentationFlow

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def learned_flow():
    """The example's `main`."""
    spec = importlib.util.spec_from_file_location("learned_flow", EXAMPLES / "learned_flow.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example.main


def printed(text):
    """Row name to its two numbers."""
    found = re.findall(r"(tau|lambda|theta|mean flow, px)\s+\S\s+([\d.]+)\s+\S\s+([\d.]+)", text)
    return {name: (float(before), float(after)) for name, before, after in found}


def saturation(panel_HW3):
    return (np.ptp(panel_HW3, axis=2) / np.maximum(panel_HW3.max(axis=2), 1e-6)).mean()


def test_learned_flow_shows_what_the_layer_was_and_what_it_has_become(
    learned_flow, synthetic, trained, tmp_path, capsys
):
    saved = saved_models.load(trained)
    layer = saved.model.representations["flow"].layer
    assert isinstance(layer, RepresentationFlow)
    with torch.no_grad():
        layer.tau_logit.fill_(0.0)  # tau = 1/8
        layer.log_lambda.fill_(np.log(0.015))  # a tenth: much less flow
        layer.log_theta.fill_(np.log(0.25))
    changed = tmp_path / "changed"
    saved_models.save(saved, changed)

    picture = tmp_path / "flow.png"
    assert learned_flow([str(changed), str(synthetic / "videos"), str(picture), "--videos", "3"]) == 0
    figures = printed(capsys.readouterr().out)
    assert figures["tau"] == (0.2, 0.125)
    assert figures["lambda"] == (0.15, 0.015)
    assert figures["theta"] == (0.3, 0.25)

    # The same through the whole model, of the first test video of each of three classes.
    first = {video.labels: video for video in reversed(open_source(str(synthetic / "videos")).split("test"))}
    videos = sorted(first.values(), key=lambda video: video.name)[:3]
    views = [read for read in map(VideoViews(videos, saved.config).__getitem__, range(3)) if isinstance(read, Views)]
    clips_B3THW = torch.cat([read.clips for read in views]).permute(0, 4, 1, 2, 3)
    fresh = build(saved.config.model, len(saved.classes), len(saved.segment_classes)).eval()
    with torch.inference_mode():
        expected = [
            model(clips_B3THW).representations["flow"].shown.norm(dim=1).mean().item() for model in (fresh, saved.model)
        ]
    assert expected[1] < 0.5 * expected[0]
    assert figures["mean flow, px"] == pytest.approx(expected, abs=1e-4)

    # Three columns: frame, before, after; the weaker flow is paler on the one scale of its row.
    drawn = imread(picture)[..., :3]
    height, width = drawn.shape[:2]
    panels = [
        drawn[int(0.05 * height) : int(0.85 * height), int(width * k / 3) : int(width * (k + 1) / 3)] for k in (1, 2)
    ]
    before, after = map(saturation, panels)
    assert before > 2 * after > 0


def test_learned_flow_of_an_unchanged_layer_is_the_same(learned_flow, synthetic, tiny, tmp_path, capsys):
    source = open_source(str(synthetic / "videos"))
    model = build(tiny.model, len(source.classes), 2).eval()
    saved_models.save(saved_models.SavedModel(tiny, source.classes, ("background", "x"), False, model), tmp_path)
    assert learned_flow([str(tmp_path), source.name, str(tmp_path / "flow.png")]) == 0
    figures = printed(capsys.readouterr().out)
    assert len(figures) == 4
    assert all(before == after > 0 for before, after in figures.values())


def test_learned_flow_refuses_a_run_without_it(learned_flow, synthetic, tiny, tmp_path, capsys):
    source = open_source(str(synthetic / "videos"))
    without = {
        "streams rgb, semantic": replace(tiny.model, streams=["rgb", "semantic"]),
        "flow of kind difference": replace(tiny.model, flow=FlowConfig(kind="difference")),
    }
    for reason, model_config in without.items():
        run = tmp_path / reason
        model = build(model_config, len(source.classes), 2)
        description = (replace(tiny, model=model_config), source.classes, ("background", "x"), False)
        saved_models.save(saved_models.SavedModel(*description, model), run)
        assert learned_flow([str(run), source.name, str(tmp_path / "flow.png")]) == 2
        answer = capsys.readouterr()
        assert answer.out == ""
        assert answer.err.startswith(f"learned_flow: {run}: {reason}: expected a run with learned flow")
        assert answer.err.count("\n") == 1
    assert not (tmp_path / "flow.png").exists()


def test_learned_flow_exits_with_its_status(synthetic, tmp_path):
    words = [EXAMPLES / "learned_flow.py", tmp_path, synthetic / "videos", tmp_path / "flow.png"]
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 2
    assert "model.json" in done.stderr
    assert "Traceback" not in done.stderr
