"""The usual protocol of each published data set: its metrics and its views.

The AIRStreams paper names metrics ("standard protocols", section 4), but neither clips nor views, and no split of
HMDB-51. The recipe that is named after a data set has the views given here. `evaluate` uses the views of the run's
config and reports where they differ.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from airstreams.config import EvaluationConfig
from airstreams.data.benchmarks import BENCHMARKS
from airstreams.data.listing import Source
from airstreams.plural import count_of

NAMES = {"top1": "top-1", "top5": "top-5", "mean_per_class": "mean per class", "map": "mAP"}
"""What the metrics are called in tables."""


@dataclass(frozen=True)
class Published:
    """A data set's protocol.

    metrics: those that papers report, the main one first.
    views, crops: per video, as in `EvaluationConfig`.
    note: what else a comparable result needs.
    split: the one that is scored.
    options: the options of NAME:ROOT whose results papers report; where there are several, they report the mean.
    videos: how many videos are scored, by option ("" for a data set without options). Empty where no source says.
    """

    metrics: tuple[str, ...]
    views: int
    crops: int
    note: str = ""
    split: str = "test"
    options: tuple[str, ...] = ()
    videos: Mapping[str, int] = field(default_factory=dict)


MEAN_OF_SPLITS = "report the mean of split=1, split=2 and split=3"
SPLITS = ("split=1", "split=2", "split=3")

PUBLISHED = {
    # Metric: Kuehne et al., ICCV 2011. Views: our choice; ten clips of a second, as the videos last a few
    # seconds. Papers average the centre crops of many clips; some take all clips at a stride (the code of Tran et al.,
    # CVPR 2018: facebookresearch/VMZ, c2/tutorials/dense_prediction.md).
    "hmdb51": Published(
        ("top1",), views=10, crops=1, note=MEAN_OF_SPLITS, options=SPLITS, videos=dict.fromkeys(SPLITS, 1530)
    ),
    # Metric: Jhuang et al., ICCV 2013. Views: our choice; the videos have 15 to 40 frames, and 5 views cover
    # them several times.
    "jhmdb": Published(
        ("top1",),
        views=5,
        crops=1,
        note=MEAN_OF_SPLITS,
        options=SPLITS,
        videos=dict(zip(SPLITS, (268, 270, 265), strict=True)),
    ),
    # Metrics: Monfort et al., PAMI 2019, and the challenge at http://moments.csail.mit.edu/challenge.html; on the
    # validation videos, called "test" here. Views: our choice; three clips of a second cover a video.
    "moments": Published(
        ("top1", "top5"),
        views=3,
        crops=1,
        note="say which release: 339 (the paper's) or 305",
        options=("release=339",),
        videos={"release=339": 33_900, "release=305": 30_500},  # a hundred per class
    ),
    # Metric: Charades_v1_classify.m of the data set. Views: those of SlowFast (Feichtenhofer et al., ICCV 2019;
    # configs/Charades of its code). SlowFast takes each class's highest score over the views; we take the mean.
    "charades": Published(
        ("map",),
        views=10,
        crops=3,
        note="papers take each class's highest score over the views, not the mean",
        videos={"": 1863},
    ),
    # Metrics: section 4.3.3 and Table 6, after Das et al., ICCV 2019. Views: our choice; three square crops cover
    # the 4:3 frame, since people also act at its sides, and ten clips cover an action of minutes.
    "smarthome": Published(
        ("top1", "mean_per_class"),
        views=10,
        crops=3,
        note="say which protocol: cs (the paper's), cv1 or cv2",
        options=("protocol=cs",),
    ),
}


def published_for(source: Source) -> tuple[str, Published] | None:
    """Name and protocol of a source that was given as NAME:ROOT; None for a folder or a CSV file."""
    name, colon, _ = source.name.partition(":")
    return (name, PUBLISHED[name]) if colon and name in PUBLISHED else None


def options_of(source: Source) -> str:
    """The options of NAME:ROOT[?OPTIONS], or the default ones."""
    name, _, rest = source.name.partition(":")
    defaults = "&".join(f"{key}={values[0]}" for key, values in BENCHMARKS[name].options.items())
    options = rest.rpartition("?")[2] if "?" in rest else defaults
    return options.replace("=auto", f"={len(source.classes)}")  # a release of Moments is named by its number of classes


def deviations(
    published: Published, source: Source, split: str, evaluation: EvaluationConfig, left_out: int
) -> list[str]:
    """What differs from the published protocol, so that results are not comparable, in words."""
    found = []
    if split != published.split:
        found.append(f"split {split}, not {published.split}")
    if "folds=" in options_of(source):
        found.append("a fold of our own, not an official split")
    listed = len(source.split(split))
    if split == published.split and published.videos.get(options_of(source), listed) != listed:
        found.append(f"{listed} videos listed, not {published.videos[options_of(source)]}")
    for key in ("views", "crops"):
        ours, usual = getattr(evaluation, key), getattr(published, key)
        if ours != usual:
            found.append(f"{count_of(ours, key[:-1])}, not {usual}")
    if left_out:
        found.append(f"{count_of(left_out, 'video')} left out")
    return found
