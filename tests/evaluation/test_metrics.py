"""Figures against slow implementations written from the definitions, and against maps small enough to count by hand."""

import numpy as np
import pytest
import torch
from torch import tensor

from airstreams.evaluation.metrics import (
    MultiLabelOutcomes,
    SegmentationMetrics,
    action_metrics,
    confusion,
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
    """The mean over the positives of the share of positives among all that score at least as high."""
    return np.mean([positive[scores >= scores[i]].mean() for i in np.flatnonzero(positive)])


@pytest.mark.parametrize("seed", range(5))
def test_accuracies_agree_with_their_definitions(seed):
    scores, targets = scores_and_targets(seed)
    ranked = [sorted(range(12), key=row.__getitem__, reverse=True) for row in scores]
    hits = np.array([ranks[0] == target for ranks, target in zip(ranked, targets, strict=True)])
    figures = action_metrics(scores, targets)
    assert figures["top1"] == pytest.approx(hits.mean())
    assert figures["top5"] == pytest.approx(np.mean([t in r[:5] for r, t in zip(ranked, targets, strict=True)]))
    assert figures["mean_per_class"] == pytest.approx(np.mean([hits[targets == name].mean() for name in set(targets)]))
    assert figures["map"] is None
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
def test_mean_average_precision_agrees_with_its_definition_with_ties_and_unlabelled_videos_last(seed):
    scores, targets = multi_label(seed, ties=True)
    last = np.where(targets.any(axis=1)[:, None], scores, -np.inf)
    figures = action_metrics(scores, targets)
    expected = np.mean([average_precision(last[:, k], targets[:, k]) for k in OCCURRING])
    assert figures["map"] == pytest.approx(expected, abs=1e-6)
    assert [figures[name] for name in ("top1", "top5", "mean_per_class")] == [None] * 3
    videos, precisions = outcomes_of(scores, targets).by_class(np.ones(60, dtype=np.int64))
    assert videos.tolist() == targets.sum(axis=0).tolist()
    for k in range(9):
        expected = average_precision(last[:, k], targets[:, k]) if k in OCCURRING else np.nan
        assert precisions[k] == pytest.approx(expected, abs=1e-6, nan_ok=True)
    competing = MultiLabelOutcomes(scores, targets, unlabelled_last=False).metrics(np.ones(60, dtype=np.int64))
    expected = np.mean([average_precision(scores[:, k], targets[:, k]) for k in OCCURRING])
    assert competing["map"] == pytest.approx(expected, abs=1e-6)
    assert expected < float(figures["map"] or 0)


@pytest.mark.parametrize("seed", range(3))
def test_mean_average_precision_agrees_with_a_walk_down_each_classs_ranking(seed):
    """As the official Charades script goes about it: videos without actions score -inf, and precision is summed up."""
    scores, targets = multi_label(seed, ties=False)
    precisions = []
    for k in OCCURRING:
        ranking = sorted(range(60), key=lambda n: scores[n, k] if any(targets[n]) else -np.inf, reverse=True)
        found, total = 0, 0.0
        for place, n in enumerate(ranking, start=1):
            if targets[n, k]:
                found += 1
                total += found / place
        precisions.append(total / found)
    assert action_metrics(scores, targets)["map"] == pytest.approx(np.mean(precisions), abs=1e-6)


def test_mean_average_precision_of_a_case_counted_by_hand():
    scores = np.array([[0.9, 0.1], [0.8, 0.5], [0.7, 0.5], [0.95, 0.9]])
    targets = np.array([[1, 0], [0, 1], [1, 0], [0, 0]])
    # Class 0: first and third of three. Class 1: one of two with the highest score. The last video stands behind.
    assert action_metrics(scores, targets)["map"] == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)
    # Now it leads both rankings.
    competing = MultiLabelOutcomes(scores, targets, unlabelled_last=False).metrics(np.ones(4, dtype=np.int64))
    assert competing["map"] == pytest.approx(((1 / 2 + 2 / 4) / 2 + 1 / 3) / 2)


def test_log_loss_is_torchs_cross_entropy_and_bounded():
    logits = torch.randn(20, 7, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(20) % 7
    expected = torch.nn.functional.cross_entropy(logits, targets)
    assert log_loss(logits.softmax(dim=1).numpy(), targets.numpy()) == pytest.approx(float(expected), rel=1e-5)
    many = torch.nn.functional.one_hot(targets, 7).float()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, many)
    assert log_loss(logits.sigmoid().numpy(), many.numpy()) == pytest.approx(float(expected), rel=1e-5)
    assert 10 < log_loss(np.array([[1.0, 0.0]]), np.array([1])) < 20


def test_mean_average_precision_says_nothing_where_no_class_occurs():
    assert action_metrics(np.eye(3, dtype=np.float32), np.zeros((3, 3)))["map"] is None


@pytest.mark.parametrize("seed", range(3))
def test_figures_of_videos_counted_several_times_are_those_of_their_copies(seed):
    counts = np.random.default_rng(seed).integers(0, 3, 60)
    scores, targets = scores_and_targets(seed, videos=60)
    scores = scores.round(2)  # some ties
    copies = action_metrics(np.repeat(scores, counts, axis=0), np.repeat(targets, counts))
    assert outcomes_of(scores, targets).metrics(counts) == pytest.approx(copies)
    scores, targets = multi_label(seed, ties=True)
    copies = action_metrics(np.repeat(scores, counts, axis=0), np.repeat(targets, counts, axis=0))
    assert outcomes_of(scores, targets).metrics(counts) == pytest.approx(copies)


def test_top5_says_nothing_of_five_classes_or_fewer():
    assert action_metrics(np.eye(5, dtype=np.float32), np.arange(5))["top5"] is None
    assert action_metrics(np.eye(6, dtype=np.float32), np.arange(6))["top5"] == 1.0


def test_of_equal_scores_the_class_of_the_lower_index_comes_first():
    scores = np.ones((7, 7), dtype=np.float32)
    figures = action_metrics(scores, np.arange(7))
    assert (figures["top1"], figures["top5"]) == (pytest.approx(1 / 7), pytest.approx(5 / 7))
    assert confusion(scores, np.arange(7))[:, 0].tolist() == [1] * 7


def test_scores_that_are_no_numbers_come_last():
    scores = np.full((3, 6), np.nan)
    scores[0, 1], scores[1, 2] = 0.1, 0.9
    found = action_metrics(scores, np.array([1, 3, 0]))
    assert found["top1"] == pytest.approx(2 / 3)  # the third by its place in the list alone
    assert confusion(scores, np.array([1, 3, 0]))[3, 2] == 1
    labels = np.array([[1, 0], [0, 1], [1, 1]])
    given = np.array([[0.5, 0.2], [0.3, np.nan], [np.nan, 0.1]])
    assert action_metrics(given, labels) == action_metrics(np.nan_to_num(given, nan=-1), labels)


def test_confusion_counts_true_classes_down_and_predicted_ones_across():
    scores = np.eye(3, dtype=np.float32)[[0, 2, 2, 1]]
    assert confusion(scores, np.array([0, 0, 1, 1])).tolist() == [[1, 0, 1], [0, 1, 1], [0, 0, 0]]


def counted(logits_NShw, labels_NHW, masks_NHW=None, classes=NAMES):
    figures = SegmentationMetrics(classes)
    figures.add(logits_NShw, labels_NHW, masks_NHW)
    return figures.metrics()


def logits_of(labels_Nhw, classes=3):
    """The logits of a segmenter that is sure of these classes on its grid."""
    return torch.nn.functional.one_hot(labels_Nhw.long(), classes).permute(0, 3, 1, 2).float() * 20


def test_segmentation_figures_of_maps_counted_by_hand():
    labels = tensor([[[0, 0, 1, 1], [0, 0, 1, 1]]], dtype=torch.uint8)
    predicted = tensor([[[0, 1, 1, 2], [0, 1, 1, 1]]])
    result = counted(logits_of(predicted), labels)
    assert result["pixel_accuracy"] == pytest.approx(5 / 8)
    # Background: 2 of 4. Person: 3 of 6. Dog occurs in no label map, so it takes no part in the mean.
    assert result["miou"] == pytest.approx((2 / 4 + 3 / 6) / 2)
    assert "person_iou" not in result


def test_pixels_without_label_count_for_nothing():
    labels = tensor([[[0, 255, 1, 1], [0, 255, 255, 1]]], dtype=torch.uint8)
    predicted = tensor([[[0, 1, 1, 2], [0, 0, 2, 1]]])
    figures = SegmentationMetrics(NAMES)
    figures.add(logits_of(predicted), labels, None)
    figures.add(logits_of(predicted), torch.full_like(labels, 255), None)
    figures.add(logits_of(predicted), None, None)
    result = figures.metrics()
    assert result is not None
    assert result["pixel_accuracy"] == pytest.approx(4 / 5)
    assert result["miou"] == pytest.approx((2 / 2 + 2 / 3) / 2)
    assert counted(logits_of(predicted), torch.full_like(labels, 255), torch.ones_like(labels)) is None


def test_person_figures_compare_segmenter_and_teacher_with_the_human_mask_on_labelled_frames():
    mask = tensor([[[1, 1, 0, 0], [1, 1, 0, 0]]] * 2, dtype=torch.uint8)
    labels = tensor([[[1, 1, 1, 0], [1, 2, 0, 255]], [[255] * 4] * 2], dtype=torch.uint8)
    predicted = tensor([[[1, 1, 1, 1], [1, 1, 1, 1]], [[1, 1, 0, 0]] * 2])
    result = counted(logits_of(predicted), labels, mask)
    assert result["person_iou"] == pytest.approx(4 / 8)
    assert result["teacher_person_iou"] == pytest.approx(3 / 5)
    assert result["ceiling"]["person_iou"] == 1
    assert "person_iou" not in counted(logits_of(predicted), labels, mask, ("background", "thing", "dog"))


def test_the_figures_of_two_shares_of_the_frames_add_up_to_those_of_all_frames():
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 3, 2, 2, generator=rng)
    labels = torch.randint(0, 3, (5, 8, 8), generator=rng)
    masks = torch.randint(0, 2, (5, 8, 8), generator=rng)
    whole, *shares = (SegmentationMetrics(NAMES) for _ in range(3))
    whole.add(logits, labels, masks)
    for share, frames in zip(shares, (slice(0, 2), slice(2, 5)), strict=True):
        share.add(logits[frames], labels[frames], masks[frames])
    result = whole.metrics()
    assert result is not None
    assert "person_iou" in result
    assert (shares[0] + shares[1]).metrics() == result
    assert shares[0].metrics() != result


def test_the_teachers_person_overlap_is_counted_as_numpy_counts_it(test_data):
    root = test_data / "jhmdb"
    overlaps = []  # each clip's intersection and union, in pixels
    figures = SegmentationMetrics(("background", "person", "anything else"))
    for clip in sorted((root / "teacher").glob("*/*.npz"))[::32]:
        teacher = np.load(clip)
        labels = np.minimum(teacher["labels"], 2)
        mask = np.load(root / "masks" / clip.relative_to(root / "teacher"))["mask"][teacher["frame_indices"]]
        overlaps.append([((labels == 1) & (mask == 1)).sum(), ((labels == 1) | (mask == 1)).sum()])
        # What the segmenter says does not matter here; a grid of one cell is the quickest.
        figures.add(torch.zeros(len(labels), 3, 1, 1), torch.from_numpy(labels), torch.from_numpy(mask))
    assert len(overlaps) == 29
    intersection, union = np.sum(overlaps, axis=0)
    result = figures.metrics()
    assert result is not None
    assert result["teacher_person_iou"] == pytest.approx(intersection / union)


def test_the_ceiling_of_labels_that_fit_the_grid_is_nearly_perfect_and_of_specks_is_not():
    blocks = tensor([[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [2, 2, 0, 0]])
    fitting = blocks.repeat_interleave(16, 0).repeat_interleave(16, 1)[None]
    assert (reduce_to_grid(fitting, (4, 4)) == fitting).float().mean() > 0.97
    specks = torch.zeros(1, 64, 64, dtype=torch.long)
    specks[:, 3::16, 3::16] = 1
    assert (reduce_to_grid(specks, (4, 4)) == 0).all()


def test_the_ceiling_knows_no_class_of_pixels_without_label():
    """A grid of one cell, of which class 1 has most after what is not labelled."""
    labels = torch.full((1, 4, 4), 255)
    labels[0, 0] = tensor([1, 1, 0, 1])
    ceiling = counted(torch.zeros(1, 3, 1, 1), labels)["ceiling"]
    assert ceiling == {"pixel_accuracy": 3 / 4, "miou": (0 / 1 + 3 / 4) / 2}


def test_no_segmenter_on_the_grid_beats_the_ceiling_of_half_planes():
    """An edge through the middle of a cell: the ceiling is as good as the best of many logits on that grid."""
    labels = torch.zeros(1, 64, 64, dtype=torch.long)
    labels[:, :, 24:] = 1
    assert (reduce_to_grid(labels, (4, 4)) == labels).all()
    labels[:, 40:] = 0
    labels = labels.to(torch.uint8)
    ceiling = counted(torch.zeros(1, 2, 4, 4), labels, classes=NAMES[:2])["ceiling"]["pixel_accuracy"]
    rng = torch.Generator().manual_seed(0)
    shares = torch.nn.functional.adaptive_avg_pool2d(labels.float()[None], 4)[0]
    for _ in range(200):
        noisy = shares + 0.2 * torch.randn(1, 4, 4, generator=rng)
        reached = counted(torch.stack([1 - noisy, noisy], dim=1), labels, classes=NAMES[:2])
        assert reached["pixel_accuracy"] <= ceiling + 0.01
