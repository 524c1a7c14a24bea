"""HMDB-51: 6766 clips from films and the web with 51 actions. Each split uses 5100 of them.

H. Kuehne, H. Jhuang, E. Garrote, T. Poggio, T. Serre: HMDB: a large video database for human motion recognition. ICCV
2011. Videos and split files: https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database
(`hmdb51_org.rar`, which holds one archive per class, and `test_train_splits.rar`). The annotations are under CC BY 4.0;
the clips come from films with their own copyright. Each of the three official splits has 3570 training and 1530 test
videos, 70 and 30 per class. Report the mean of the three.

The folder given as ROOT holds
- `videos/<class>/<clip>.avi` (or `.mp4`; or `hmdb51_org/`), and
- `<class>_test_split<1|2|3>.txt` in `splits/` or, by its official name, `testTrainMulti_7030_splits/`: one line
  per clip, `<clip>.avi 1` (train), `2` (test) or `0` (not used in this split, and left out here).
A data set with missing files is refused: metrics on a part of it are not comparable with published ones. Clips that the
split leaves out may be missing.
"""

from collections.abc import Sequence
from pathlib import Path

from airstreams.data.listing import Source, Video
from airstreams.errors import InputError

CLASSES = (
    "brush_hair", "cartwheel", "catch", "chew", "clap", "climb", "climb_stairs", "dive", "draw_sword", "dribble",
    "drink", "eat", "fall_floor", "fencing", "flic_flac", "golf", "handstand", "hit", "hug", "jump", "kick",
    "kick_ball", "kiss", "laugh", "pick", "pour", "pullup", "punch", "push", "pushup", "ride_bike", "ride_horse", "run",
    "shake_hands", "shoot_ball", "shoot_bow", "shoot_gun", "sit", "situp", "smile", "smoke", "somersault", "stand",
    "swing_baseball", "sword", "sword_exercise", "talk", "throw", "turn", "walk", "wave",
)  # fmt: skip
SPLIT_OF_DIGIT = {"0": None, "1": "train", "2": "test"}
SPLIT_FOLDERS = ("splits", "testTrainMulti_7030_splits")
VIDEO_FOLDERS = ("videos", "hmdb51_org")
SUFFIXES = (".avi", ".mp4")


def read_hmdb51(root: Path, split: str) -> Source:
    """The data set in the folder `root` with its official split "1", "2" or "3".

    Groups are those of `read_split_lists`. InputError: files are missing, or a split file has another format.
    """
    clips = first_folder(root, VIDEO_FOLDERS)
    videos, missing = read_split_lists(CLASSES, first_folder(root, SPLIT_FOLDERS), clips, split)
    if missing:
        raise InputError(
            f"{root} lacks {len(missing)} of the {len(missing) + len(videos)} videos and split files, such "
            f"as {', '.join(str(path.relative_to(root)) for path in missing[:3])}. Put HMDB-51's "
            f"videos/<class>/<clip>.avi (or .mp4) into it, and <class>_test_split<n>.txt into "
            f"{' or '.join(SPLIT_FOLDERS)} in it. Get them from "
            "https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database (annotations: CC BY 4.0)."
        )
    return Source(
        name=f"hmdb51:{root}?split={split}",
        classes=CLASSES,
        videos=tuple(sorted(videos, key=lambda video: video.name)),
    )


def first_folder(root: Path, names: Sequence[str]) -> Path:
    """The first of these folders that exists, or the first name where none does."""
    return next((root / name for name in names if (root / name).is_dir()), root / names[0])


def read_split_lists(classes: Sequence[str], lists: Path, clips: Path, split: str) -> tuple[list[Video], list[Path]]:
    """The clips that `<class>_test_split<n>.txt` names for training and test, and the missing files.

    J-HMDB has the same lists. A video's group is its class and the film it was cut from, the part of its name before
    `_<class>_` (its first occurrence). Two films with similar names may get one group, but one film never gets two.
    InputError: a list has another format or is
    truncated.
    """
    videos, missing = [], []
    for label in classes:
        listed_in = lists / f"{label}_test_split{split}.txt"
        if not listed_in.is_file():
            missing.append(listed_in)
            continue
        uses = set()
        for line in listed_in.read_text(encoding="utf-8").splitlines():
            clip, _, digit = line.strip().rpartition(" ")
            if digit not in SPLIT_OF_DIGIT or not clip.endswith(".avi"):
                raise InputError(
                    f"{listed_in} has the line {line!r}; expected `<clip>.avi 0`, `1` or `2`; download it again"
                )
            used_for = SPLIT_OF_DIGIT[digit]
            uses.add(used_for)
            if used_for is None:
                continue
            stem = clip.removesuffix(".avi")
            candidates = [clips / label / f"{stem}{suffix}" for suffix in SUFFIXES]
            path = next((candidate for candidate in candidates if candidate.is_file()), None)
            if path is None:
                missing.append(candidates[0])
                continue
            videos.append(
                Video(
                    path=path,
                    name=f"{label}/{path.name}",
                    labels=(label,),
                    split=used_for,
                    group=f"{label}/{stem.partition(f'_{label}_')[0]}",
                    label_map=f"{label}/{stem}",
                )
            )
        if not uses >= {"train", "test"}:
            raise InputError(f"{listed_in} lists no training clip or no test clip; expected both; download it again")
    return videos, missing
