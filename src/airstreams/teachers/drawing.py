"""From a model's detections to a label map. All teachers share these rules for scores and overlaps.

Both functions have three cases:

- A score of at least `score_threshold` is sure: its class is drawn.
- A score from `unsure_from` up to the threshold is unsure: it becomes 255, *no label here*, which training ignores.
- Everything else is background.

Without `unsure_from` nothing is unsure. All of this is numpy on the CPU, so every teacher behaves alike; the price is
that each mask is moved there.

Legend of shape suffixes: N instances, H, W pixels.
"""

import numpy as np

from airstreams.data.label_maps import NO_LABEL

BACKGROUND_NAMES = frozenset({"background", "other"})
"""Names, in lower case, that class 0 may have."""

SCORE_THRESHOLD = 0.5
"""The default of `score_threshold`."""


def label_map(
    masks_NHW: np.ndarray,
    scores_N: np.ndarray,
    classes_N: np.ndarray,
    score_threshold: float = SCORE_THRESHOLD,
    unsure_from: float | None = None,
) -> np.ndarray:
    """Draw instances into a label map, uint8 (H, W).

    Where instances overlap, the one with the highest score is on top; of equal scores the first one. Pixels with only
    unsure instances become 255.

    Args:
        masks_NHW: bool, one mask per instance; N may be 0.
        scores_N: 0..1.
        classes_N: class ids, 0 to 254.
        score_threshold: see the module.
        unsure_from: see the module.
    """
    labels_HW = np.zeros(masks_NHW.shape[1:], np.uint8)
    if unsure_from is not None:
        unsure_N = (scores_N >= unsure_from) & (scores_N < score_threshold)
        labels_HW[masks_NHW[unsure_N].any(axis=0)] = NO_LABEL
    highest_first = np.argsort(-scores_N, kind="stable")
    for i in reversed(highest_first[scores_N[highest_first] >= score_threshold]):
        labels_HW[masks_NHW[i]] = classes_N[i]
    return labels_HW


def pixel_map(
    likeliest_HW: np.ndarray,
    probability_HW: np.ndarray,
    score_threshold: float | None = None,
    unsure_from: float | None = None,
) -> np.ndarray:
    """Turn a semantic segmentation into a label map, uint8 (H, W).

    With neither threshold given, every pixel gets its most probable class: such a model has a background class of its
    own, and its probabilities are often below one half at borders between classes.

    Args:
        likeliest_HW: the most probable class id, 0 to 254.
        probability_HW: its probability, 0..1.
        score_threshold: see the module; None with `unsure_from` given: `SCORE_THRESHOLD`.
        unsure_from: see the module.
    """
    if score_threshold is None and unsure_from is None:
        return likeliest_HW.astype(np.uint8)
    threshold = SCORE_THRESHOLD if score_threshold is None else score_threshold
    labels_HW = np.where(probability_HW >= threshold, likeliest_HW, 0).astype(np.uint8)
    if unsure_from is not None:
        labels_HW[(probability_HW >= unsure_from) & (probability_HW < threshold)] = NO_LABEL
    return labels_HW
