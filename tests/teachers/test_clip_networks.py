"""I3D and torchvision's networks as teachers."""

import importlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from airstreams.errors import InputError
from airstreams.teachers import i3d, torchvision
from airstreams.teachers.teacher import load_teacher

CPU = torch.device("cpu")


def test_i3d_gives_the_published_features():
    folder = os.environ.get("AIRSTREAMS_WEIGHTS")
    if not folder:
        pytest.skip("AIRSTREAMS_WEIGHTS is not set: there are no published weights to read")
    check = np.load(Path(folder) / "i3d_check.npz")
    teacher = load_teacher("i3d-kinetics400", {}, CPU)
    assert (teacher.target.kind, teacher.target.clip_frames) == ("clip", 16)
    clip_13NHW = torch.from_numpy(check["frames_THW3"]).permute(3, 0, 1, 2)[None].float() / 255
    with torch.inference_mode():
        features_1CTHW = teacher._teacher._network(clip_13NHW)
    np.testing.assert_allclose(features_1CTHW.mean((2, 3, 4))[0], check["features"], atol=1e-3)


def test_i3d_sees_the_whole_frame_at_the_size_of_its_training():
    seen = []

    class Network(torch.nn.Module):
        def forward(self, clips):
            seen.append(tuple(clips.shape))
            return clips

    clips = np.zeros((2, 16, 60, 80, 3), np.uint8)
    clips[1, :, :, 40:, 2] = 255
    features = i3d.I3DTeacher(Network(), CPU)(clips)
    assert seen == [(2, 3, 16, 224, 299)]
    np.testing.assert_allclose(features, np.array([[0, 0, 0], [0, 0, 0.5]]), atol=1e-3)


@pytest.mark.parametrize("name", ["i3d-kinetics400", "torchvision:s3d"])
def test_thresholds_are_refused_by_networks_without_scores(name):
    with pytest.raises(InputError, match="--unsure-from"):
        load_teacher(name, {"unsure_from": 0.3}, CPU)


class FixedPeople(torch.nn.Module):
    """Finds three people, the second one with the highest score and the first one below 0.5."""

    def forward(self, images):
        keypoints = torch.arange(3 * 2 * 3.0).reshape(3, 2, 3)
        scores = torch.tensor([0.4, 0.9, 0.6])
        return [{"keypoints": keypoints, "scores": scores, "keypoints_scores": torch.zeros(3, 2)}] * len(images)


def test_keypoint_rcnn_lists_the_surest_people_first():
    teacher = torchvision.KeypointRCNN(FixedPeople(), ["left_eye", "right_eye"], CPU, 0.5)
    points_TMP3 = teacher(np.zeros((2, 10, 20, 3), np.uint8))
    assert points_TMP3.shape == (2, 8, 2, 3)
    np.testing.assert_allclose(points_TMP3[1, 0], [[6 / 20, 7 / 10, 0.5], [9 / 20, 10 / 10, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(points_TMP3[1, 1, 0], [12 / 20, 13 / 10, 0.5], rtol=1e-6)
    assert not points_TMP3[:, 2:].any()
    assert teacher.target.pairs == (("left_eye", "right_eye"),)


@pytest.fixture(scope="module")
def models():
    try:
        return importlib.import_module("torchvision.models")
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision does not load: {error}")


def test_torchvisions_video_networks_give_their_last_features(models):
    torch.manual_seed(0)
    network = models.video.r3d_18(weights=None)
    clips = np.random.default_rng(0).integers(0, 256, (1, 16, 32, 32, 3), np.uint8)
    inputs = torch.from_numpy(clips).permute(0, 4, 1, 2, 3).float() / 255
    with torch.inference_mode():
        logits = network.eval()(inputs)
    classifier = network.fc
    teacher = torchvision.VideoNetwork(network, lambda clips: clips.transpose(1, 2).float() / 255, CPU)
    with torch.inference_mode():
        np.testing.assert_allclose(classifier(torch.from_numpy(teacher(clips))), logits, rtol=1e-4, atol=1e-4)


def test_unknown_networks_are_refused(models):
    with pytest.raises(InputError, match="r3d_18"):
        load_teacher("torchvision:r3d_81", {}, CPU)


def test_a_missing_torchvision_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.delitem(sys.modules, "torchvision.models", raising=False)
    with pytest.raises(InputError, match="pip install torchvision torch=="):
        load_teacher("torchvision:keypointrcnn_resnet50_fpn", {}, CPU)
