"""Charades: 9848 videos of about 30 s from people's homes with 157 classes of actions, each with start and end.

G. A. Sigurdsson, G. Varol, X. Wang, A. Farhadi, I. Laptev, A. Gupta: Hollywood in Homes: Crowdsourcing Data Collection
for Activity Understanding. ECCV 2016. Annotations and videos: https://prior.allenai.org/projects/charades
(`Charades.zip`, and `Charades_v1_480.zip` or the larger `Charades_v1.zip`), under a licence for non-commercial use
without redistribution. The official split has 7985 training and 1863 test videos.

The folder given as ROOT holds
- `Charades_v1_train.csv`, `Charades_v1_test.csv` and `Charades_v1_classes.txt`, in itself or in `Charades/`, and
- the videos `<id>.mp4` in `Charades_v1_480/`, `Charades_v1/` or `videos/`, the first of these that exists.
A data set with missing files is refused: metrics on a part of it are not comparable with published ones. To use a part,
shorten the CSV files, and reduce the list of classes to those with training videos.

A class name is its code and its text, such as "c000 Holding some clothes", so sorted names have the official order.
Actions that end after their video, or have no duration, are kept: they do no harm.
"""

import csv
import math
from collections.abc import Mapping
from pathlib import Path

from airstreams.data.listing import Action, Source, Video
from airstreams.errors import InputError

CLASSES_FILE = "Charades_v1_classes.txt"
SPLIT_FILES = {"train": "Charades_v1_train.csv", "test": "Charades_v1_test.csv"}
VIDEO_FOLDERS = ("Charades_v1_480", "Charades_v1", "videos")
EXPECTED = (
    f"Put {', '.join(SPLIT_FILES.values())} and {CLASSES_FILE} into it or into Charades/ in it, and the videos "
    f"<id>.mp4 into {', '.join(VIDEO_FOLDERS[:-1])} or {VIDEO_FOLDERS[-1]}. Get Charades.zip and Charades_v1_480.zip "
    "from https://prior.allenai.org/projects/charades (for non-commercial use)."
)


def read_charades(root: Path) -> Source:
    """The data set in the folder `root` with its official split. A video's group is its subject.

    InputError: files are missing, or a row or class has another format.
    """
    folder = root if (root / CLASSES_FILE).is_file() else root / "Charades"
    lacking = [name for name in (*SPLIT_FILES.values(), CLASSES_FILE) if not (folder / name).is_file()]
    if lacking:
        raise InputError(f"{root} lacks {', '.join(lacking)}. {EXPECTED}")
    classes = _read_classes(folder / CLASSES_FILE)
    videos_in = next((root / name for name in VIDEO_FOLDERS if (root / name).is_dir()), root / VIDEO_FOLDERS[0])
    videos: dict[str, Video] = {}
    for split, name in SPLIT_FILES.items():
        for location, row in _read_rows(folder / name):
            if row["id"] in videos:
                raise InputError(f"{location}: {row['id']} is listed twice; expected each video once; delete a row")
            actions = _read_actions(location, row["actions"], classes)
            path = videos_in / f"{row['id']}.mp4"
            videos[row["id"]] = Video(
                path=path,
                name=path.name,
                labels=tuple(dict.fromkeys(action.label for action in actions)),
                split=split,
                group=row["subject"],
                label_map=row["id"],
                actions=actions,
            )
    missing = sorted(str(video.path.relative_to(root)) for video in videos.values() if not video.path.is_file())
    if missing:
        raise InputError(f"{root} lacks {len(missing)} of {len(videos)} videos, such as {missing[0]}. {EXPECTED}")
    return Source(
        name=f"charades:{root}",
        classes=tuple(sorted(classes.values())),
        videos=tuple(sorted(videos.values(), key=lambda video: video.name)),
        multi_label=True,
    )


def _read_classes(path: Path) -> dict[str, str]:
    """The class name of each code."""
    classes: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        code, _, text = line.strip().partition(" ")
        if not text or code in classes:
            raise InputError(
                f"{path}, line {number}: {line!r}; expected a code that occurs once and a text, such as "
                "`c000 Holding some clothes`; download the file again"
            )
        classes[code] = f"{code} {text.strip()}"
    return classes


def _read_rows(path: Path) -> list[tuple[str, dict[str, str]]]:
    """The rows of an official list, each with the text "PATH, line N" for messages. N is the row's last line."""
    expected = "expected the official CSV file with the columns id, subject and actions; download it again"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns = reader.fieldnames or ()
            rows = [(f"{path}, line {reader.line_num}", row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}); {expected}") from error
    if not {"id", "subject", "actions"} <= set(columns):
        raise InputError(f"{path} has the columns {', '.join(columns) or 'none'}; {expected}")
    for location, row in rows:
        if None in row or None in row.values():  # DictReader's marks for too many and too few cells
            raise InputError(f"{location}: more or fewer cells than in the header; {expected}")
    return rows


def _read_actions(location: str, cell: str, classes: Mapping[str, str]) -> tuple[Action, ...]:
    """Parse a cell such as `c092 11.90 21.20;c147 0.00 12.60`."""
    actions = []
    for item in filter(None, cell.split(";")):
        try:
            code, start, end = item.split()
            action = Action(classes[code], float(start), float(end))
        except (KeyError, ValueError):
            action = None
        if action is None or not 0 <= action.start <= action.end < math.inf:
            raise InputError(
                f"{location}: the action {item!r}; expected a code of {CLASSES_FILE}, a start and an end not before "
                "it, both in s, such as `c092 11.90 21.20`; download the file again, or correct the row"
            )
        actions.append(action)
    return tuple(actions)
