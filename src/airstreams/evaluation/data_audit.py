"""What may be wrong in a labelled data set: labels, copies of one video, and videos unlike all others.

Everything is judged by features of the videos, and no video's label is judged by a classifier that has seen it. The
classifier of labels is linear, and cross-validated over groups of videos. Such scores are those of confident learning
(Northcutt et al. 2021, Confident Learning: Estimating Uncertainty in Dataset Labels). The package cleanlab, which the
extra `audit` brings, ranks the labels by them.

Legend of shape suffixes: N videos, C features, K classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Literal

import numpy as np

from airstreams.data.listing import Source, Video, groups_of
from airstreams.data.splits import folds_of
from airstreams.errors import InputError
from airstreams.evaluation.metrics import log_loss

Kind = Literal["label", "duplicate_class", "duplicate_split", "outlier"]

FOLDS = 5
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
"""Of the classifier's weights, as scikit-learn's C: the smaller, the stronger. The one with the least loss is taken."""
OF_CHANCE = 0.5
"""The probability under which a label is doubtful, as a share of that of chance, 1 / K."""
NEIGHBOURS = 10
FENCE = 3.0
"""Outliers are so many interquartile ranges above the upper quartile: the far fence of Tukey 1977."""
_BLOCK = 1024  # videos that are compared with all others at once, to limit the memory


@dataclass(frozen=True)
class Problem:
    """Something about a video that a person should look at.

    kind: `label`: its label is doubtful. `duplicate_class`, `duplicate_split`: a nearly identical video has
        another label, or is in another split. `outlier`: it is unlike all videos of other groups.
    suggested: for `label`, the label of the classifier.
    score: for `label` and `outlier`: the higher, the more probable is the problem.
    other: for duplicates, the nearly identical video.
    """

    video: Video
    kind: Kind
    suggested: str | None = None
    score: float | None = None
    other: Video | None = None


def require_audit() -> None:
    """InputError: the packages of the extra `audit` are missing."""
    if missing := [name for name in ("cleanlab", "sklearn") if find_spec(name) is None]:
        raise InputError(f"audit-data: {missing[0]} is missing. Run pip install 'airstreams[audit]'.")


def with_recordings(source: Source) -> list[Video]:
    """The labelled videos with a group each: their own one, joined with those of the videos that look alike."""
    joined = groups_of(source.videos, [alike.names for alike in source.alike or ()])
    return [replace(video, group=joined[video.name]) for video in source.videos]


@dataclass(frozen=True)
class JudgedLabels:
    """Labels, and what a classifier says that has not seen their videos.

    videos: N of them, each with one label.
    classes: the K labels that were judged, sorted.
    target_N: the index of each video's label in `classes`.
    probabilities_NK: of the classifier.
    """

    videos: list[Video]
    classes: list[str]
    target_N: np.ndarray
    probabilities_NK: np.ndarray


def judge_labels(videos: Sequence[Video], features_NC: np.ndarray) -> JudgedLabels | None:
    """Judge each label by a classifier that has seen no video of its group.

    Where the classifier has not seen the label either, because all its videos are in one fold, it is left out.

    videos: with one label each.

    Returns:
        None: there are too few groups or classes.
    """
    folds = min(FOLDS, len(set(groups_of(videos).values())))
    if folds < 2:
        return None
    fold_of = folds_of(videos, folds)
    fold_N = np.array([fold_of[video.name] for video in videos])
    label_N = np.array([video.labels[0] for video in videos])
    judged_N = np.array([(label_N[fold_N != fold] == label).any() for fold, label in zip(fold_N, label_N, strict=True)])
    classes, target_N = np.unique(label_N[judged_N], return_inverse=True)
    if len(classes) < 2:
        return None
    probabilities_NK = out_of_fold(features_NC[judged_N], target_N, fold_N[judged_N])
    judged = [video for video, is_judged in zip(videos, judged_N, strict=True) if is_judged]
    return JudgedLabels(judged, classes.tolist(), target_N, probabilities_NK)


def label_problems(judged: JudgedLabels) -> list[Problem]:
    """Labels that are doubtful, the most doubtful first: those with less than half of the probability of chance.

    The order is by cleanlab's self-confidence. Its estimate of how many labels are wrong is not used: it was far too
    high where the classifier was weak, and too low on small data.
    """
    from cleanlab.rank import get_label_quality_scores

    quality_N = get_label_quality_scores(judged.target_N, judged.probabilities_NK, method="self_confidence")
    found = [
        Problem(judged.videos[n], "label", judged.classes[judged.probabilities_NK[n].argmax()], 1 - float(quality_N[n]))
        for n in np.flatnonzero(quality_N < OF_CHANCE / len(judged.classes))
    ]
    return sorted(found, key=_by_score)


def out_of_fold(features_NC: np.ndarray, target_N: np.ndarray, fold_N: np.ndarray) -> np.ndarray:
    """Each video's class probabilities (N, K) by a linear classifier that has not seen the video's fold.

    Of several penalties of its weights, that with the least log loss is taken. target_N: 0 to K - 1, each occurs.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    found = []
    for penalty in PENALTIES:
        probabilities_NK = np.zeros((len(target_N), target_N.max() + 1))
        for fold in np.unique(fold_N):
            is_seen_N = fold_N != fold
            classifier = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=500))
            classifier.fit(features_NC[is_seen_N], target_N[is_seen_N])
            place = np.ix_(~is_seen_N, classifier.classes_)
            probabilities_NK[place] = classifier.predict_proba(features_NC[~is_seen_N])
        found.append(probabilities_NK)
    return min(found, key=lambda probabilities_NK: log_loss(probabilities_NK, target_N))


def outliers(videos: Sequence[Video], features_NC: np.ndarray) -> list[Problem]:
    """Videos that are far from all videos of other groups, the farthest first.

    The score is the mean cosine distance to the nearest `NEIGHBOURS` of them, in features without the mean of all.
    """
    names = {group: number for number, group in enumerate(sorted({video.group or video.name for video in videos}))}
    group_N = np.array([names[video.group or video.name] for video in videos])
    distance_N = neighbour_distances(features_NC, group_N)
    known = distance_N[np.isfinite(distance_N)]
    if not len(known):
        return []
    lower, upper = np.quantile(known, [0.25, 0.75])
    limit = upper + FENCE * (upper - lower)
    found = [
        Problem(video, "outlier", score=float(distance))
        for video, distance in zip(videos, distance_N, strict=True)
        if distance > limit  # NaN is not
    ]
    return sorted(found, key=_by_score)


def neighbour_distances(features_NC: np.ndarray, group_N: np.ndarray) -> np.ndarray:
    """The mean cosine distance (N,) of each video to its nearest neighbours in other groups; NaN without any."""
    centred_NC = features_NC - features_NC.mean(axis=0)
    unit_NC = centred_NC / np.maximum(np.linalg.norm(centred_NC, axis=1, keepdims=True), 1e-12)
    found = []
    for first in range(0, len(unit_NC), _BLOCK):
        rows = slice(first, first + _BLOCK)
        distance_nN = 1 - unit_NC[rows] @ unit_NC.T
        distance_nN[group_N[rows, None] == group_N] = np.nan
        nearest_nk = np.sort(distance_nN, axis=1)[:, :NEIGHBOURS]  # NaN comes last
        counts_n = np.isfinite(nearest_nk).sum(axis=1)
        found.append(np.where(counts_n > 0, np.nansum(nearest_nk, axis=1) / np.maximum(counts_n, 1), np.nan))
    return np.concatenate(found)


def duplicates(source: Source) -> list[Problem]:
    """Pairs of videos with nearly identical frames that differ in their labels or in their split.

    source: with `alike`. Each video of such a set is paired with the first that differs from it.
    """
    by_name = {video.name: video for video in source.videos}
    found = []
    for alike in source.alike or ():
        if alike.by != "frames":
            continue
        members = [by_name[name] for name in alike.names]
        for place, video in enumerate(members):
            for kind, value_of in _DIFFERENCES.items():
                others = (
                    other
                    for other in members[:place]
                    if other.path != video.path and value_of(other) != value_of(video)
                )
                if (other := next(others, None)) is not None:
                    found.append(Problem(video, kind, other=other))
    return found


_DIFFERENCES: Mapping[Kind, Callable[[Video], object]] = {
    "duplicate_class": lambda video: set(video.labels),
    "duplicate_split": lambda video: video.split,
}


def _by_score(problem: Problem) -> tuple[float, str]:
    return -(problem.score or 0.0), problem.video.name
