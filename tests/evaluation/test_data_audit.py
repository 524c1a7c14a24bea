"""What an audit of a data set finds, on planted features."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from airstreams.data.listing import Alike, Source, Video
from airstreams.evaluation.data_audit import (
    duplicates,
    judge_labels,
    label_problems,
    neighbour_distances,
    outliers,
    with_recordings,
)

CLASSES = ("clap", "jump", "run", "walk", "wave")


def videos_of(classes=CLASSES, groups=12, per_group=2):
    """Videos in groups of one class each."""
    return [
        Video(Path(f"{label}/{group}_{number}.mp4"), f"{label}/{group}_{number}.mp4", (label,), group=f"{label}{group}")
        for label in classes
        for group in range(groups)
        for number in range(per_group)
    ]


def features_of(videos, seed=0, noise=0.3):
    rng = np.random.default_rng(seed)
    centres = {label: rng.normal(size=16) for label in CLASSES}
    return np.stack([centres[video.labels[0]] + noise * rng.normal(size=16) for video in videos])


def with_wrong_labels(videos, wrong):
    others = {label: CLASSES[(number + 2) % len(CLASSES)] for number, label in enumerate(CLASSES)}
    return [
        replace(video, labels=(others[video.labels[0]],)) if number in wrong else video
        for number, video in enumerate(videos)
    ]


def test_swapped_labels_are_found_with_the_right_suggestion():
    pytest.importorskip("cleanlab")
    right = videos_of()
    wrong = {3, 30, 57, 84, 101, 119}
    given = with_wrong_labels(right, wrong)
    judged = judge_labels(given, features_of(right))
    assert judged is not None
    assert len(judged.videos) == 120
    found = label_problems(judged)
    assert {problem.video.name for problem in found} == {right[number].name for number in wrong}
    label_of = {video.name: video.labels[0] for video in right}
    assert all(problem.suggested == label_of[problem.video.name] for problem in found)
    scores = [problem.score or 0 for problem in found]
    assert scores == sorted(scores, reverse=True)
    clean = judge_labels(right, features_of(right))
    assert clean is not None
    assert label_problems(clean) == []


def test_no_label_is_judged_by_a_classifier_that_has_seen_its_group():
    """The features tell the group and nothing else, so a classifier that has seen the group knows the label."""
    pytest.importorskip("sklearn")
    videos = videos_of(groups=8)
    groups = [video.group for video in videos]
    features_NC = np.eye(len(set(groups)))[np.unique(groups, return_inverse=True)[1]]
    judged = judge_labels(videos, features_NC)
    assert judged is not None
    own = judged.probabilities_NK[np.arange(len(videos)), judged.target_N]
    assert own.max() < 0.5
    alone = judge_labels([replace(video, group=None) for video in videos], features_NC)
    assert alone is not None
    assert np.median(alone.probabilities_NK[np.arange(len(videos)), alone.target_N]) > own.max()


def test_a_label_that_only_one_group_has_is_not_judged():
    pytest.importorskip("sklearn")
    videos = [*videos_of(CLASSES[:2]), *videos_of(CLASSES[2:3], groups=1)]
    judged = judge_labels(videos, features_of(videos))
    assert judged is not None
    assert judged.classes == ["clap", "jump"]
    assert len(judged.videos) == len(videos) - 2
    assert judge_labels(videos_of(CLASSES[:2], groups=1), np.zeros((4, 3))) is None


def test_outliers_are_far_from_the_videos_of_other_groups():
    videos = videos_of()
    features_NC = features_of(videos)
    assert outliers(videos, features_NC) == []
    odd = np.random.default_rng(1).normal(size=(2, 16)) * [[3], [-3]]
    features_NC[:2] = odd[0] + 0.01 * odd  # one group: each has the other as a near neighbour
    assert {problem.video.name for problem in outliers(videos, features_NC)} == {video.name for video in videos[:2]}


def test_neighbour_distances_are_means_of_cosine_distances():
    rng = np.random.default_rng(0)
    features_NC, group_N = rng.normal(size=(40, 5)), np.arange(40) // 2
    centred = features_NC - features_NC.mean(axis=0)
    for n, found in enumerate(neighbour_distances(features_NC, group_N)):
        others = centred[group_N != group_N[n]]
        cosines = others @ centred[n] / np.linalg.norm(others, axis=1) / np.linalg.norm(centred[n])
        assert found == pytest.approx(np.sort(1 - cosines)[:10].mean())
    assert np.isnan(neighbour_distances(features_NC, np.zeros(40))).all()


def test_duplicates_differ_in_their_labels_or_in_their_split():
    first, same, other_class, other_split, by_name = (
        Video(Path(f"{name}.mp4"), name, (label,), split=split)
        for name, label, split in (
            ("a", "run", "train"),
            ("b", "run", "train"),
            ("c", "walk", "train"),
            ("d", "run", "test"),
            ("e", "walk", "test"),
        )
    )
    part = replace(first, name="a#t=1,2", labels=("walk",))
    videos = (first, part, same, other_class, other_split, by_name)
    alike = (Alike(("a", "a#t=1,2", "b", "c", "d"), "frames"), Alike(("a", "e"), "names"))
    found = duplicates(Source("data", ("run", "walk"), videos, alike=alike))
    pairs = {(problem.video.name, problem.kind, problem.other.name) for problem in found if problem.other}
    assert ("c", "duplicate_class", "a") in pairs
    assert ("d", "duplicate_split", "a") in pairs
    assert not any({"a", "a#t=1,2"} == {one, other} for one, _, other in pairs)
    assert not any("e" in (one, other) for one, _, other in pairs)


def test_videos_that_look_alike_are_one_group():
    videos = tuple(replace(video, group=None) for video in videos_of(CLASSES[:1], groups=3, per_group=1))
    alike = (Alike((videos[0].name, videos[2].name), "names"),)
    first, second, third = with_recordings(Source("data", CLASSES[:1], videos, alike=alike))
    assert first.group == third.group != second.group
