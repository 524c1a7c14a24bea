"""What papers report on each published data set, and with which views, as far as there is a custom.

The AIRStreams paper names figures ("standard protocols", section 4) but neither clips nor views, and no split of
HMDB-51. A recipe of the data set's name has these views; `evaluate` scores by those that the run was trained with, and
says where they differ.
"""

from collections.abc import Mapping
from typing import NamedTuple

from airstreams.config import EvaluationConfig
from airstreams.data.benchmarks import BENCHMARKS
from airstreams.data.listing import Source

NAMES = {"top1": "top-1", "top5": "top-5", "mean_per_class": "mean per class", "map": "mAP"}  # in tables


class Published(NamedTuple):
    """A data set's protocol.

    figures: those that are reported, the first one foremost.
    views, crops: of a video, as in `EvaluationConfig`.
    note: what else a reported figure has to do; a value of the data set's option is data of its own here.
    options: of which data the customary figure is; of several it is the mean.
    videos: how many are scored of the data with each option; "": it has none. Left out where no source says.
    """

    figures: tuple[str, ...]
    views: int
    crops: int
    note: str = ""
    split: str = "test"
    options: tuple[str, ...] = ()
    videos: Mapping[str, int] = {}


MEAN_OF_SPLITS = "report the mean of split=1, split=2 and split=3"
SPLITS = ("split=1", "split=2", "split=3")

PUBLISHED = {
    # Figure: Kuehne et al., ICCV 2011. Views: ours; ten clips of a second, as the videos last a few seconds.
    # Papers average the centres of many clips, some all of them at a stride (the code of Tran et al., CVPR
    # 2018: facebookresearch/VMZ, c2/tutorials/dense_prediction.md).
    "hmdb51": Published(
        ("top1",), views=10, crops=1, note=MEAN_OF_SPLITS, options=SPLITS, videos=dict.fromkeys(SPLITS, 1530)
    ),
    # Figure: Jhuang et al., ICCV 2013. Views: ours; the clips last 15 to 40 frames, which 5 views cover several times.
    "jhmdb": Published(
        ("top1",),
        views=5,
        crops=1,
        note=MEAN_OF_SPLITS,
        options=SPLITS,
        videos=dict(zip(SPLITS, (268, 270, 265), strict=True)),
    ),
    # Figures: Monfort et al., PAMI 2019, and the challenge at http://moments.csail.mit.edu/challenge.html; on the
    # validation videos, called "test" here. Views: ours; three clips of a second cover a video.
    "moments": Published(
        ("top1", "top5"),
        views=3,
        crops=1,
        note="say which release: 339 (the paper's) or 305",
        options=("release=339",),
        videos={"release=339": 33_900, "release=305": 30_500},  # a hundred a class
    ),
    # Figure: Charades_v1_classify.m of the data set. Views: those of SlowFast (Feichtenhofer et al., ICCV 2019;
    # configs/Charades of its code). It takes each class's highest score over them, here it is the mean: ours.
    "charades": Published(
        ("map",),
        views=10,
        crops=3,
        note="the custom is each class's highest score over the views, not the mean",
        videos={"": 1863},
    ),
    # Figures: section 4.3.3 and Table 6, after Das et al., ICCV 2019. Views: ours; three squares cover the 4:3 frame,
    # at whose sides people act as well, and ten clips an action of minutes.
    "smarthome": Published(
        ("top1", "mean_per_class"),
        views=10,
        crops=3,
        note="say which protocol: cs (the paper's), cv1 or cv2",
        options=("protocol=cs",),
    ),
}


def published_for(source: Source) -> tuple[str, Published] | None:
    """The name and protocol of the data set that NAME:ROOT means; None for a folder or a CSV file."""
    name, colon, _ = source.name.partition(":")
    return (name, PUBLISHED[name]) if colon and name in PUBLISHED else None


def options_of(source: Source) -> str:
    """The options of NAME:ROOT[?OPTIONS], or the default ones."""
    name, _, rest = source.name.partition(":")
    defaults = "&".join(f"{key}={values[0]}" for key, values in BENCHMARKS[name].options.items())
    options = rest.rpartition("?")[2] if "?" in rest else defaults
    return options.replace("=auto", f"={len(source.classes)}")  # Moments' releases are called by their classes


def deviations(
    published: Published, source: Source, split: str, evaluation: EvaluationConfig, left_out: int
) -> list[str]:
    """What keeps a figure on `published` data from being compared with published ones, in words."""
    said = []
    if split != published.split:
        said.append(f"split {split}, not {published.split}")
    listed = len(source.split(split))
    if split == published.split and published.videos.get(options_of(source), listed) != listed:
        said.append(f"{listed} videos listed, not {published.videos[options_of(source)]}")
    for key in ("views", "crops"):
        ours, customary = getattr(evaluation, key), getattr(published, key)
        if ours != customary:
            said.append(f"{ours} {key}, not {customary}")
    if left_out:
        said.append(f"{left_out} videos left out")
    return said
