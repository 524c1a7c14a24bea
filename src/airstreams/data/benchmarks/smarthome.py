"""Toyota Smarthome: 16115 clips of 18 older people at home with 31 actions, recorded by seven cameras.

S. Das, R. Dai, M. Koperski, L. Minciullo, L. Garattoni, F. Bremond, G. Francesca: Toyota Smarthome: Real-World
Activities of Daily Living. ICCV 2019. The trimmed version is available on request from
https://project.inria.fr/toyotasmarthome under a licence for academic research.

The folder given as ROOT holds the videos, in itself or in `mp4/`, under their original names
`<Class>_p<subject>_r<repetition>_v<version>_c<camera>.mp4`. There is no list of all videos. A copy without some videos
is accepted if each class has a training and a test video, and each subject or camera that the protocol trains on has a
video, too. Compare the numbers of videos with the official ones:

| protocol | trains on | tests on | classes | train | test |
| --- | --- | --- | --- | --- | --- |
| cs | 11 subjects | the other 7 subjects | 31 | 10682 | 5433 |
| cv1 | camera 1 | camera 2 | 19 | 1877 | 1901 |
| cv2 | cameras 1, 3, 4, 6, 7 | camera 2 | 19 | 7806 | 1901 |

Videos that a protocol does not use are left out: other classes (a few videos show an action that is not among the 31),
and in the cross-view protocols camera 5, with which the data set's authors select their epoch.
"""

import re
from pathlib import Path
from typing import NamedTuple

from airstreams.data.listing import Source, Video
from airstreams.errors import InputError

CLASSES = (
    "Cook.Cleandishes", "Cook.Cleanup", "Cook.Cut", "Cook.Stir", "Cook.Usestove", "Cutbread", "Drink.Frombottle",
    "Drink.Fromcan", "Drink.Fromcup", "Drink.Fromglass", "Eat.Attable", "Eat.Snack", "Enter", "Getup", "Laydown",
    "Leave", "Makecoffee.Pourgrains", "Makecoffee.Pourwater", "Maketea.Boilwater", "Maketea.Insertteabag",
    "Pour.Frombottle", "Pour.Fromcan", "Pour.Fromkettle", "Readbook", "Sitdown", "Takepills", "Uselaptop", "Usetablet",
    "Usetelephone", "Walk", "WatchTV",
)  # fmt: skip
CROSS_VIEW_CLASSES = (
    "Cutbread", "Drink.Frombottle", "Drink.Fromcan", "Drink.Fromcup", "Drink.Fromglass", "Eat.Attable", "Eat.Snack",
    "Enter", "Getup", "Leave", "Pour.Frombottle", "Pour.Fromcan", "Readbook", "Sitdown", "Takepills", "Uselaptop",
    "Usetablet", "Usetelephone", "Walk",
)  # fmt: skip
NAME = re.compile(r"(?P<label>[A-Za-z.]+)_p(?P<subject>\d+)_r(?P<repetition>\d+)_v\d+_c(?P<camera>\d+)\.mp4")


class Protocol(NamedTuple):
    """The training and test videos, by the number after `key` in their names. `test` None: all others."""

    classes: tuple[str, ...]
    key: str
    train: frozenset[int]
    test: frozenset[int] | None


PROTOCOLS = {
    "cs": Protocol(CLASSES, "subject", frozenset({3, 4, 6, 7, 9, 12, 13, 15, 17, 19, 25}), None),
    "cv1": Protocol(CROSS_VIEW_CLASSES, "camera", frozenset({1}), frozenset({2})),
    "cv2": Protocol(CROSS_VIEW_CLASSES, "camera", frozenset({1, 3, 4, 6, 7}), frozenset({2})),
}
EXPECTED = (
    "expected <Class>_p<subject>_r<repetition>_v<version>_c<camera>.mp4, such as "
    "Cook.Cleandishes_p02_r00_v02_c03.mp4, in mp4/ or in the folder itself"
)
WHERE = (
    "get Toyota Smarthome's trimmed videos, on request and for academic research, from "
    "https://project.inria.fr/toyotasmarthome"
)


def read_smarthome(root: Path, protocol: str) -> Source:
    """The data set in the folder `root` with the split of the protocol "cs", "cv1" or "cv2".

    Several cameras film one moment. Validation videos must not show a moment that another camera filmed for training,
    so a video's group is at least its subject and repetition. The cross-subject protocol measures the recognition of
    unknown people: there the group is the subject.

    InputError: a name has another format, or whole parts of the data set are missing.
    """
    rules = PROTOCOLS[protocol]
    folder = root / "mp4" if (root / "mp4").is_dir() else root
    names = sorted(
        path.name for path in folder.iterdir() if path.suffix.lower() == ".mp4" and not path.name.startswith(".")
    )
    if not names:
        raise InputError(f"{root} holds no videos; {EXPECTED}; {WHERE}")
    videos = []
    used = set()
    for name in names:
        parts = NAME.fullmatch(name)
        if parts is None:
            raise InputError(f"{folder} has a video named {name}; {EXPECTED}; rename it or move it away")
        number = int(parts[rules.key])
        split = "train" if number in rules.train else "test" if rules.test is None or number in rules.test else None
        if split is None or parts["label"] not in rules.classes:
            continue
        used.add(number)
        subject = f"p{parts['subject']}"
        videos.append(
            Video(
                path=folder / name,
                name=name,
                labels=(parts["label"],),
                split=split,
                group=subject if rules.key == "subject" else f"{subject}_r{parts['repetition']}",
                label_map=name.removesuffix(".mp4"),
            )
        )
    there = {(video.split, video.labels[0]) for video in videos}
    wanted = [(split, label) for label in rules.classes for split in ("train", "test")]
    lacking = [f"{label} in {split}" for split, label in wanted if (split, label) not in there]
    lacking += [f"{rules.key} {number} in train" for number in sorted(rules.train) if number not in used]
    if lacking:
        raise InputError(
            f"{root} has no video of {len(lacking)} of the {len(wanted) + len(rules.train)} parts of {protocol}, "
            f"such as {', '.join(lacking[:3])}, among {len(names)} videos; {EXPECTED}; {WHERE}"
        )
    return Source(
        name=f"smarthome:{root}?protocol={protocol}",
        classes=rules.classes,
        videos=tuple(videos),
    )
