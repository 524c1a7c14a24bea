"""Pictures of what models see, against the models themselves."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from rich.console import Console

from airstreams.config import FlowConfig
from airstreams.data.dataset import VideoViews, Views
from airstreams.data.label_maps import LabelStore, create, save
from airstreams.data.targets import ClassesPerPixel, Targets
from airstreams.errors import InputError, VideoError
from airstreams.models.airstreams import build
from airstreams.models.flow import RepresentationFlow
from airstreams.models.segmenter import upsample
from airstreams.representations.semantic import Semantic
from airstreams.runs import saved_model as saved_models
from airstreams.runs.saved_model import SavedModel
from airstreams.viewing import representations
from airstreams.viewing.pictures import RepresentationRow
from airstreams.viewing.representations import learned_flow_picture, segmenters_picture

QUIET = Console(quiet=True)


def one_per_class(videos, count):
    first = {video.labels: video for video in reversed(videos)}
    return sorted(first.values(), key=lambda video: video.name)[:count]


def saturation(panel_HW3):
    return (np.ptp(panel_HW3, axis=2) / np.maximum(panel_HW3.max(axis=2), 1e-6)).mean()


@pytest.mark.parametrize("with_labels", [True, False])
def test_the_picture_shows_what_the_streams_computed(source, trained, tmp_path, monkeypatch, with_labels):
    saved = saved_models.load(trained)
    rows: list[RepresentationRow] = []
    monkeypatch.setattr(
        representations, "representations_picture", lambda path, new_rows, classes: rows.extend(new_rows)
    )
    targets = {"semantic": Targets(ClassesPerPixel(), source.label_store)} if with_labels else {}
    representations.streams_picture(tmp_path / "a.png", saved, source.split("test"), targets, QUIET)
    videos = one_per_class(source.split("test"), 4)
    assert [row.title for row in rows] == [video.labels[0] for video in videos]
    for row, views in zip(rows, map(VideoViews(videos, saved.config, targets).__getitem__, range(4)), strict=True):
        assert isinstance(views, Views)
        candidates = [(v, t) for v in range(2) for t in range(4) if (views.clips[v, t].numpy() == row.frame).all()]
        for view, frame in candidates:  # in short videos two views may contain the frame
            with torch.inference_mode():
                found = saved.model(views.clips[view : view + 1].permute(0, 4, 1, 2, 3)).representations
            assert row.flow is not None
            flow_HW2 = found["flow"].prediction[0, :, frame].permute(1, 2, 0).numpy()
            logits_1Shw = found["semantic"].prediction[:, :, frame]
            segmentation_HW = upsample(logits_1Shw, row.frame.shape[:2]).argmax(dim=1)[0].numpy()
            if np.allclose(flow_HW2, row.flow, atol=1e-4) and (segmentation_HW == row.panels["semantic"]).mean() > 0.99:
                break
        else:
            pytest.fail(f"{row.title}: no view's frame has this flow and segmentation")
        assert ("semantic, teacher" in row.panels) == with_labels
        if with_labels:
            np.testing.assert_array_equal(row.panels["semantic, teacher"], views.label_maps["semantic"][view, frame])


def test_models_without_flow_and_segmentation_get_no_picture(source, tiny, tmp_path):
    for streams, flow in ((["rgb"], FlowConfig()), (["rgb", "flow"], FlowConfig(kind="difference"))):
        config = replace(tiny, model=replace(tiny.model, streams=streams, flow=flow))
        saved = SavedModel(config, source.classes, ("0", "1"), False, None, build(config.model, 4, 2).eval())
        representations.streams_picture(tmp_path / "a.png", saved, source.split("test"), {}, QUIET)
    assert not list(tmp_path.iterdir())


def test_learned_flow_compares_before_and_after_training(source, trained, tmp_path):
    saved = saved_models.load(trained)
    layer = saved.model.representations["flow"].layer
    assert isinstance(layer, RepresentationFlow)
    with torch.no_grad():
        layer.tau_logit.fill_(0.0)  # tau = 1/8
        layer.log_lambda.fill_(np.log(0.015))  # a tenth, so much less flow
        layer.log_theta.fill_(np.log(0.25))

    picture = tmp_path / "flow.png"
    flow = learned_flow_picture(picture, saved, source.split("test"), 3, QUIET)
    assert flow.parameters["tau"] == pytest.approx((0.2, 0.125))
    assert flow.parameters["lambda"] == pytest.approx((0.15, 0.015))
    assert flow.parameters["theta"] == pytest.approx((0.3, 0.25))

    # The same with the whole model, for the first test video of three classes.
    videos = one_per_class(source.split("test"), 3)
    assert flow.videos == [video.name for video in videos]
    views = [read for read in map(VideoViews(videos, saved.config).__getitem__, range(3)) if isinstance(read, Views)]
    clips_B3THW = torch.cat([read.clips for read in views]).permute(0, 4, 1, 2, 3)
    fresh = build(saved.config.model, len(saved.classes), len(saved.segment_classes)).eval()
    with torch.inference_mode():
        expected = [
            model(clips_B3THW).representations["flow"].prediction.norm(dim=1).mean().item()
            for model in (fresh, saved.model)
        ]
    assert expected[1] < 0.5 * expected[0]
    assert flow.mean_px == pytest.approx(expected, abs=1e-4)

    # Three columns: frame, before, after. The weaker flow is paler, since its row has one scale.
    drawn = imread(picture)[..., :3]
    height, width = drawn.shape[:2]
    panels = [
        drawn[int(0.05 * height) : int(0.85 * height), int(width * k / 3) : int(width * (k + 1) / 3)] for k in (1, 2)
    ]
    before, after = map(saturation, panels)
    assert before > 2 * after > 0


def test_learned_flow_of_an_untrained_model_is_unchanged(source, tiny, tmp_path):
    model = build(tiny.model, len(source.classes), 2).eval()
    saved = SavedModel(tiny, source.classes, ("background", "x"), False, None, model)
    flow = learned_flow_picture(tmp_path / "flow.png", saved, source.split("test"), 4, QUIET)
    assert all(before == after > 0 for before, after in (*flow.parameters.values(), flow.mean_px))
    assert len(flow.videos) == 4


def test_models_without_trainable_flow_are_refused(source, tiny, tmp_path):
    without = {
        "streams rgb, semantic": replace(tiny.model, streams=["rgb", "semantic"]),
        "flow of kind difference": replace(tiny.model, flow=FlowConfig(kind="difference")),
    }
    for reason, model_config in without.items():
        model = build(model_config, len(source.classes), 2)
        description = (replace(tiny, model=model_config), source.classes, ("background", "x"), False, None)
        with pytest.raises(InputError, match=reason):
            learned_flow_picture(tmp_path / "flow.png", SavedModel(*description, model), source.videos, 4, QUIET)
    assert not (tmp_path / "flow.png").exists()


def predicts_everywhere(saved, label):
    """The same model with a segmenter that predicts one class for every pixel."""
    model = build(saved.config.model, len(saved.classes), len(saved.segment_classes)).eval()
    semantic = model.representations["semantic"]
    assert isinstance(semantic, Semantic)
    classifier = semantic.segmenter.classifier
    assert classifier.bias is not None
    with torch.no_grad():
        classifier.weight.zero_()
        classifier.bias.zero_()
        classifier.bias[label] = 1.0
    return replace(saved, model=model)


def panels(picture, rows, columns):
    """The mean colour (rows, columns, 3) of the middle of each panel; the legend below is one line."""
    drawn_HW3 = imread(picture)[..., :3]
    height, width = drawn_HW3.shape[0] - 45, drawn_HW3.shape[1]
    return np.array(
        [
            [
                drawn_HW3[
                    int(height * (row + 0.4) / rows) : int(height * (row + 0.6) / rows),
                    int(width * (column + 0.45) / columns) : int(width * (column + 0.55) / columns),
                ].mean(axis=(0, 1))
                for column in range(columns)
            ]
            for row in range(rows)
        ]
    )


def test_segmentations_have_the_colours_of_their_classes(source, trained, tmp_path):
    saved = saved_models.load(trained)
    videos = one_per_class(source.split("test"), 3)
    # The teacher labelled a single frame, as class 1 everywhere.
    store = create(tmp_path / "labels", "by hand", saved.segment_classes, {})
    for video in videos:
        save(store.root, video.label_map, np.ones((1, 64, 64), np.uint8), [5])
    models = {"one": predicts_everywhere(saved, 1), "background": predicts_everywhere(saved, 0)}
    picture = tmp_path / "segmentations.png"
    names = segmenters_picture(
        picture, models, "semantic", True, Targets(ClassesPerPixel(), store), source.split("test"), 4, QUIET
    )
    assert names == [video.name for video in videos]  # the fourth class has no label maps
    _, one, background, teacher = panels(picture, 4, 3)
    assert one == pytest.approx(teacher, abs=0.06)  # the labelled frame was chosen: all others are hatched in this row
    assert (one[:, 2] > one[:, 0] + 0.3).all()  # class 1 is blue
    assert (np.ptp(background, axis=1) < 0.1).all()


def test_segmentations_need_label_maps_and_videos(source, trained, synthetic, tmp_path):
    models = {"all": saved_models.load(trained)}
    empty = create(tmp_path / "none", "nobody", models["all"].segment_classes, {})
    of_none, targets = (Targets(ClassesPerPixel(), store) for store in (empty, LabelStore.open(synthetic / "labels")))
    with pytest.raises(InputError, match="8 test videos"):
        segmenters_picture(tmp_path / "x.png", models, "semantic", True, of_none, source.split("test"), 4, QUIET)
    broken = tmp_path / "broken.mp4"
    shutil.copy(synthetic / "labels" / "labels.json", broken)
    videos = [replace(video, path=broken) for video in source.split("test")]
    with pytest.raises(VideoError, match="none of 8 videos"):
        segmenters_picture(tmp_path / "x.png", models, "semantic", True, targets, videos, 4, QUIET)
    assert not (tmp_path / "x.png").exists()
