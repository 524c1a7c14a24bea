"""From what a model found to a label map: the one place where scores, overlaps and doubt are settled.

Both functions know three kinds of findings. Sure ones, with a score of at least `score_threshold`, are drawn. Unsure
ones, from `unsure_from` up to the threshold, become 255, *no label here*, so that training learns nothing from them.
All others are background. Without `unsure_from` there are no unsure ones.

This happens in numpy, on the CPU: one thing for all teachers to agree on, at the price of moving each mask there.
"""

import numpy as np

from airstreams.data.label_maps import NO_LABEL

BACKGROUND_NAMES = frozenset({"background", "other"})
"""What a class must be called, in small letters, for its pixels to mean *nothing of note here*."""

SCORE_THRESHOLD = 0.5
"""From this score on a finding is drawn, unless the user gave another."""


def label_map(
    masks_NHW: np.ndarray,
    scores_N: np.ndarray,
    classes_N: np.ndarray,
    score_threshold: float = SCORE_THRESHOLD,
    unsure_from: float | None = None,
) -> np.ndarray:
    """Draw instances: uint8 (H, W) class ids, the surest on top; of equals, the one that comes first.

    masks_NHW: bool, one mask an instance; N may be 0. classes_N: class ids, 0 to 254.
    255 stands where there are unsure instances and no sure one.
    """
    labels_HW = np.zeros(masks_NHW.shape[1:], np.uint8)
    if unsure_from is not None:
        unsure_N = (scores_N >= unsure_from) & (scores_N < score_threshold)
        labels_HW[masks_NHW[unsure_N].any(axis=0)] = NO_LABEL
    surest_first = np.argsort(-scores_N, kind="stable")
    for i in reversed(surest_first[scores_N[surest_first] >= score_threshold]):
        labels_HW[masks_NHW[i]] = classes_N[i]
    return labels_HW


def pixel_map(
    likeliest_HW: np.ndarray,
    probability_HW: np.ndarray,
    score_threshold: float | None = None,
    unsure_from: float | None = None,
) -> np.ndarray:
    """Settle what a model says of each pixel: uint8 (H, W) class ids.

    likeliest_HW: the class id of the highest probability, 0 to 254. probability_HW: that probability, 0..1.
    With neither threshold given, `likeliest_HW` is taken at its word: a model that puts every pixel into a class has
    its own class for what is nothing, and is often below one half where classes meet.
    """
    if score_threshold is None and unsure_from is None:
        return likeliest_HW.astype(np.uint8)
    threshold = SCORE_THRESHOLD if score_threshold is None else score_threshold
    labels_HW = np.where(probability_HW >= threshold, likeliest_HW, 0).astype(np.uint8)
    if unsure_from is not None:
        labels_HW[(probability_HW >= unsure_from) & (probability_HW < threshold)] = NO_LABEL
    return labels_HW
