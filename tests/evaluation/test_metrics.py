"""Metrics against slow code written from their definitions, and against maps small enough to count by hand."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import tensor

from airstreams.evaluation.metrics import (
    ActionMetrics,
    MultiLabelOutcomes,
    Overlap,
    SegmentationCounts,
    action_metrics,
    chance_metrics,
    confusion,
    constant_answer_metrics,
    log_loss,
    outcomes_of,
    reduce_to_grid,
)

NAMES = ("background", "person", "dog")


def scores_and_targets(seed, videos=80, classes=12):
    """Random scores; three classes never occur, and two occur once."""
    rng = np.random.default_rng(seed)
    scores = rng.random((videos, classes)).astype(np.float32)
    scores /= scores.sum(axis=1, keepdims=True)
    targets = rng.integers(0, classes - 5, videos)
    targets[:2] = classes - 5, classes - 4
    return scores, targets


def average_precision(scores, positive):
    """The mean over the positives of the share of positives among all videos that score at least as high."""
    return np.mean([positive[scores >= scores[i]].mean() for i in np.flatnonzero(positive)])


@pytest.mark.parametrize("seed", range(5))
def test_accuracies_follow_their_definitions(seed):
    scores, targets = scores_and_targets(seed)
    ranked = [sorted(range(12), key=row.__getitem__, reverse=True) for row in scores]
    hits = np.array([ranks[0] == target for ranks, target in zip(ranked, targets, strict=True)])
    found = action_metrics(scores, targets)
    assert found.top1 == pytest.approx(hits.mean())
    assert found.top5 == pytest.approx(np.mean([t in r[:5] for r, t in zip(ranked, targets, strict=True)]))
    assert found.mean_per_class == pytest.approx(np.mean([hits[targets == name].mean() for name in set(targets)]))
    assert found.map is None
    videos, shares = outcomes_of(scores, targets).by_class(np.ones(80, dtype=np.int64))
    for name in range(12):
        assert videos[name] == (targets == name).sum()
        expected = hits[targets == name].mean() if name in targets else np.nan
        assert shares[name] == pytest.approx(expected, nan_ok=True)


def multi_label(seed, ties):
    """Scores and targets of 60 videos; two of nine classes never occur, ten videos have no label."""
    rng = np.random.default_rng(seed)
    scores = rng.random((60, 9)).astype(np.float32)
    if ties:
        scores = scores.round(1)
    targets = (rng.random((60, 9)) < 0.15).astype(np.float32)
    targets[:, [2, 5]] = 0
    targets[rng.permutation(60)[:10]] = 0
    assert (~targets.any(axis=1)).sum() >= 10
    return scores, targets


OCCURRING = (0, 1, 3, 4, 6, 7, 8)


@pytest.mark.parametrize("seed", range(5))
def test_map_follows_its_definition_with_ties_and_unlabelled_videos(seed):
    scores, targets = multi_label(seed, ties=True)
    last = np.where(targets.any(axis=1)[:, None], scores, -np.inf)
    found = action_metrics(scores, targets)
    expected = np.mean([average_precision(last[:, k], targets[:, k]) for k in OCCURRING])
    assert found.map == pytest.approx(expected, abs=1e-6)
    assert (found.top1, found.top5, found.mean_per_class) == (None, None, None)
    videos, precisions = outcomes_of(scores, targets).by_class(np.ones(60, dtype=np.int64))
    assert videos.tolist() == targets.sum(axis=0).tolist()
    for k in range(9):
        expected = average_precision(last[:, k], targets[:, k]) if k in OCCURRING else np.nan
        assert precisions[k] == pytest.approx(expected, abs=1e-6, nan_ok=True)
    ranked_by_score = MultiLabelOutcomes(scores, targets, unlabelled_last=False).metrics(np.ones(60, dtype=np.int64))
    expected = np.mean([average_precision(scores[:, k], targets[:, k]) for k in OCCURRING])
    assert ranked_by_score.map == pytest.approx(expected, abs=1e-6)
    assert expected < float(found.map or 0)


@pytest.mark.parametrize("seed", range(3))
def test_map_agrees_with_a_walk_down_each_ranking(seed):
    """The official Charades script does so: videos without actions score -inf, and precisions are summed up."""
    scores, targets = multi_label(seed, ties=False)
    precisions = []
    for k in OCCURRING:
        ranking = sorted(range(60), key=lambda n: scores[n, k] if any(targets[n]) else -np.inf, reverse=True)
        found, total = 0, 0.0
        for rank, n in enumerate(ranking, start=1):
            if targets[n, k]:
                found += 1
                total += found / rank
        precisions.append(total / found)
    assert action_metrics(scores, targets).map == pytest.approx(np.mean(precisions), abs=1e-6)


def test_map_of_a_case_counted_by_hand():
    scores = np.array([[0.9, 0.1], [0.8, 0.5], [0.7, 0.5], [0.95, 0.9]])
    targets = np.array([[1, 0], [0, 1], [1, 0], [0, 0]])
    # Class 0: first and third of three. Class 1: one of two with the highest score. The unlabelled video ranks last.
    assert action_metrics(scores, targets).map == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)
    # By its scores the unlabelled video leads both rankings.
    ranked_by_score = MultiLabelOutcomes(scores, targets, unlabelled_last=False).metrics(np.ones(4, dtype=np.int64))
    assert ranked_by_score.map == pytest.approx(((1 / 2 + 2 / 4) / 2 + 1 / 3) / 2)


def test_log_loss_is_cross_entropy_and_bounded():
    logits = torch.randn(20, 7, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(20) % 7
    expected = torch.nn.functional.cross_entropy(logits, targets)
    assert log_loss(logits.softmax(dim=1).numpy(), targets.numpy()) == pytest.approx(float(expected), rel=1e-5)
    many = torch.nn.functional.one_hot(targets, 7).float()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, many)
    assert log_loss(logits.sigmoid().numpy(), many.numpy()) == pytest.approx(float(expected), rel=1e-5)
    assert 10 < log_loss(np.array([[1.0, 0.0]]), np.array([1])) < 20


def test_map_is_none_without_any_label():
    assert action_metrics(np.eye(3, dtype=np.float32), np.zeros((3, 3))).map is None


@pytest.mark.parametrize("seed", range(3))
def test_weights_of_videos_act_like_copies(seed):
    counts = np.random.default_rng(seed).integers(0, 3, 60)
    scores, targets = scores_and_targets(seed, videos=60)
    scores = scores.round(2)  # some ties
    copies = action_metrics(np.repeat(scores, counts, axis=0), np.repeat(targets, counts))
    assert asdict(outcomes_of(scores, targets).metrics(counts)) == pytest.approx(asdict(copies))
    scores, targets = multi_label(seed, ties=True)
    copies = action_metrics(np.repeat(scores, counts, axis=0), np.repeat(targets, counts, axis=0))
    assert asdict(outcomes_of(scores, targets).metrics(counts)) == pytest.approx(asdict(copies))


def test_top5_needs_more_than_five_classes():
    assert action_metrics(np.eye(5, dtype=np.float32), np.arange(5)).top5 is None
    assert action_metrics(np.eye(6, dtype=np.float32), np.arange(6)).top5 == 1.0


def test_the_first_of_equally_scored_classes_wins():
    scores = np.ones((7, 7), dtype=np.float32)
    found = action_metrics(scores, np.arange(7))
    assert (found.top1, found.top5) == (pytest.approx(1 / 7), pytest.approx(5 / 7))
    assert confusion(scores, np.arange(7))[:, 0].tolist() == [1] * 7


def test_chance_is_what_random_scores_reach_on_average():
    targets = np.array([0, 1, 1, 2, 3, 4, 5, 5])  # class 6 has no videos
    rng = np.random.default_rng(0)
    drawn = [action_metrics(rng.random((8, 7)), targets) for _ in range(4000)]
    for name in ("top1", "top5", "mean_per_class"):
        assert chance_metrics(7, targets)[name] == pytest.approx(np.mean([row[name] for row in drawn]), abs=0.01)
    assert chance_metrics(5, targets[:6]) == ActionMetrics(top1=0.2, mean_per_class=0.2)


def test_chance_of_multi_label_data_is_the_mean_share_of_a_class():
    targets = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]])  # the last one has no label
    assert chance_metrics(3, targets).map == pytest.approx((3 / 4 + 2 / 4) / 2)


def test_a_constant_answer_is_right_for_one_class_only():
    targets = np.array([0, 1, 1, 3])
    for answer in range(5):
        scores = np.tile(np.eye(5)[answer], (4, 1))
        assert constant_answer_metrics(answer, targets) == action_metrics(scores, targets)


def test_nan_scores_rank_last():
    scores = np.full((3, 6), np.nan)
    scores[0, 1], scores[1, 2] = 0.1, 0.9
    found = action_metrics(scores, np.array([1, 3, 0]))
    assert found.top1 == pytest.approx(2 / 3)  # the third one wins only because its class is the first of equals
    assert confusion(scores, np.array([1, 3, 0]))[3, 2] == 1
    labels = np.array([[1, 0], [0, 1], [1, 1]])
    given = np.array([[0.5, 0.2], [0.3, np.nan], [np.nan, 0.1]])
    assert action_metrics(given, labels) == action_metrics(np.nan_to_num(given, nan=-1), labels)


def test_confusion_has_a_row_per_true_class():
    scores = np.eye(3, dtype=np.float32)[[0, 2, 2, 1]]
    assert confusion(scores, np.array([0, 0, 1, 1])).tolist() == [[1, 0, 1], [0, 1, 1], [0, 0, 0]]


def counted(logits_NShw, labels_NHW, masks_NHW=None, classes=NAMES):
    counts = SegmentationCounts(classes)
    counts.add(logits_NShw, labels_NHW, masks_NHW)
    return counts.metrics()


def logits_of(labels_Nhw, classes=3):
    """The logits of a segmenter that predicts these classes on its grid with high confidence."""
    return torch.nn.functional.one_hot(labels_Nhw.long(), classes).permute(0, 3, 1, 2).float() * 20


def test_segmentation_metrics_of_maps_counted_by_hand():
    labels = tensor([[[0, 0, 1, 1], [0, 0, 1, 1]]], dtype=torch.uint8)
    predicted = tensor([[[0, 1, 1, 2], [0, 1, 1, 1]]])
    result = counted(logits_of(predicted), labels)
    assert result.pixel_accuracy == pytest.approx(5 / 8)
    # Background: 2 of 4. Person: 3 of 6. No label map has a dog, so the mean leaves dogs out.
    assert result.miou == pytest.approx((2 / 4 + 3 / 6) / 2)
    assert result.person_iou is None


def test_pixels_without_label_are_ignored():
    labels = tensor([[[0, 255, 1, 1], [0, 255, 255, 1]]], dtype=torch.uint8)
    predicted = tensor([[[0, 1, 1, 2], [0, 0, 2, 1]]])
    counts = SegmentationCounts(NAMES)
    counts.add(logits_of(predicted), labels, None)
    counts.add(logits_of(predicted), torch.full_like(labels, 255), None)
    counts.add(logits_of(predicted), None, None)
    result = counts.metrics()
    assert result is not None
    assert result.pixel_accuracy == pytest.approx(4 / 5)
    assert result.miou == pytest.approx((2 / 2 + 2 / 3) / 2)
    assert counted(logits_of(predicted), torch.full_like(labels, 255), torch.ones_like(labels)) is None


def test_person_iou_is_scored_on_labelled_frames_only():
    mask = tensor([[[1, 1, 0, 0], [1, 1, 0, 0]]] * 2, dtype=torch.uint8)
    labels = tensor([[[1, 1, 1, 0], [1, 2, 0, 255]], [[255] * 4] * 2], dtype=torch.uint8)
    predicted = tensor([[[1, 1, 1, 1], [1, 1, 1, 1]], [[1, 1, 0, 0]] * 2])
    result = counted(logits_of(predicted), labels, mask)
    assert result.person_iou == pytest.approx(4 / 8)
    assert result.teacher_person_iou == pytest.approx(3 / 5)
    assert result.ceiling.person_iou == 1
    without_person = counted(logits_of(predicted), labels, mask, ("background", "thing", "dog"))
    assert without_person.person_iou is None
    assert without_person.ceiling.person_iou is None


def test_counts_of_two_shares_of_the_frames_add_up():
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 3, 2, 2, generator=rng)
    labels = torch.randint(0, 3, (5, 8, 8), generator=rng)
    masks = torch.randint(0, 2, (5, 8, 8), generator=rng)
    whole, *shares = (SegmentationCounts(NAMES) for _ in range(3))
    whole.add(logits, labels, masks)
    for share, frames in zip(shares, (slice(0, 2), slice(2, 5)), strict=True):
        share.add(logits[frames], labels[frames], masks[frames])
    result = whole.metrics()
    assert result is not None
    assert result.person_iou is not None
    assert (shares[0] + shares[1]).metrics() == result
    assert shares[0].metrics() != result


def test_the_teachers_person_iou_agrees_with_numpy(test_data):
    root = test_data / "jhmdb"
    overlaps = []  # each clip's intersection and union, in pixels
    counts = SegmentationCounts(("background", "person", "anything else"))
    for clip in sorted((root / "teacher").glob("*/*.npz"))[::64]:
        teacher = np.load(clip)
        labels = np.minimum(teacher["labels"], 2)
        mask = np.load(root / "masks" / clip.relative_to(root / "teacher"))["mask"][teacher["frame_indices"]]
        overlaps.append([((labels == 1) & (mask == 1)).sum(), ((labels == 1) | (mask == 1)).sum()])
        # The segmenter's output does not matter here; a grid of one cell is fastest.
        counts.add(torch.zeros(len(labels), 3, 1, 1), torch.from_numpy(labels), torch.from_numpy(mask))
    assert len(overlaps) == 15
    intersection, union = np.sum(overlaps, axis=0)
    result = counts.metrics()
    assert result is not None
    assert result.teacher_person_iou == pytest.approx(intersection / union)


def test_the_grid_keeps_large_blocks_and_loses_specks():
    blocks = tensor([[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [2, 2, 0, 0]])
    fitting = blocks.repeat_interleave(16, 0).repeat_interleave(16, 1)[None]
    assert (reduce_to_grid(fitting, (4, 4)) == fitting).float().mean() > 0.97
    specks = torch.zeros(1, 64, 64, dtype=torch.long)
    specks[:, 3::16, 3::16] = 1
    assert (reduce_to_grid(specks, (4, 4)) == 0).all()


def test_the_ceiling_ignores_pixels_without_label():
    """A grid of one cell. Most of it has no label; class 1 has most of the rest."""
    labels = torch.full((1, 4, 4), 255)
    labels[0, 0] = tensor([1, 1, 0, 1])
    ceiling = counted(torch.zeros(1, 3, 1, 1), labels).ceiling
    assert ceiling == Overlap(pixel_accuracy=3 / 4, miou=(0 / 1 + 3 / 4) / 2)


def test_no_segmenter_beats_the_ceiling():
    """An edge through the middle of a cell: the ceiling is as good as the best of many logits on that grid."""
    labels = torch.zeros(1, 64, 64, dtype=torch.long)
    labels[:, :, 24:] = 1
    assert (reduce_to_grid(labels, (4, 4)) == labels).all()
    labels[:, 40:] = 0
    labels = labels.to(torch.uint8)
    ceiling = counted(torch.zeros(1, 2, 4, 4), labels, classes=NAMES[:2]).ceiling.pixel_accuracy
    rng = torch.Generator().manual_seed(0)
    shares = torch.nn.functional.adaptive_avg_pool2d(labels.float()[None], 4)[0]
    for _ in range(200):
        noisy = shares + 0.2 * torch.randn(1, 4, 4, generator=rng)
        reached = counted(torch.stack([1 - noisy, noisy], dim=1), labels, classes=NAMES[:2])
        assert reached.pixel_accuracy <= ceiling + 0.01
