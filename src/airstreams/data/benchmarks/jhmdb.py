"""J-HMDB: 928 clips of 15 to 40 frames with 21 actions, and with a mask of the actor in every frame.

H. Jhuang, J. Gall, S. Zuffi, C. Schmid, M. J. Black: Towards understanding action recognition. ICCV 2013. Videos and
split files: http://jhmdb.is.tue.mpg.de, for research. The clips are a part of HMDB-51's and come from films with their
own copyright. The three official splits have 660/268, 658/270 and 663/265 training and test clips. Report the mean of
the three. Together they test only 564 of the clips. A cross-validation over films (`folds=10&fold=3`) tests all 928.

The folder given as ROOT holds
- `videos/<class>/<clip>.avi` (or `.mp4`; or `ReCompress_Videos/`, its official name),
- `splits/<class>_test_split<1|2|3>.txt`, one line per clip, `<clip>.avi 1` (train) or `2` (test),
- optionally `teacher/<class>/<clip>.npz`, label maps by a teacher trained on MS-COCO, and
- optionally `masks/<class>/<clip>.npz`, `mask` uint8 (T, H, W), 1 = the acting person.
A data set with missing files is refused: metrics on a part of it are not comparable with published ones.
"""

from dataclasses import replace
from pathlib import Path

from airstreams.data.benchmarks.hmdb51 import first_folder, read_split_lists
from airstreams.data.label_maps import COCO_CLASSES, LabelStore
from airstreams.data.listing import Source
from airstreams.data.splits import with_fold
from airstreams.errors import InputError

CLASSES = (
    "brush_hair", "catch", "clap", "climb_stairs", "golf", "jump", "kick_ball", "pick", "pour", "pullup", "push", "run",
    "shoot_ball", "shoot_bow", "shoot_gun", "sit", "stand", "swing_baseball", "throw", "walk", "wave",
)  # fmt: skip
VIDEO_FOLDERS = ("videos", "ReCompress_Videos")


def read_jhmdb(root: Path, split: str) -> Source:
    """The data set in the folder `root` with its official split "1", "2" or "3".

    Groups are those of HMDB-51's lists. InputError: files are missing, or a split file has another format.
    """
    videos, missing = read_split_lists(CLASSES, root / "splits", first_folder(root, VIDEO_FOLDERS), split)
    if missing:
        raise InputError(
            f"{root} lacks {len(missing)} of the {len(missing) + len(videos)} videos and split files, such "
            f"as {', '.join(str(path.relative_to(root)) for path in missing[:3])}. Put J-HMDB's "
            "videos/<class>/<clip>.avi (or .mp4) and splits/<class>_test_split<n>.txt into it. Get them from "
            "http://jhmdb.is.tue.mpg.de (for research)."
        )
    masks = {video.name: root / "masks" / f"{video.label_map}.npz" for video in videos}
    videos = [replace(video, mask=masks[video.name] if masks[video.name].is_file() else None) for video in videos]
    teacher = root / "teacher"
    return Source(
        name=f"jhmdb:{root}?split={split}",
        classes=CLASSES,
        videos=tuple(sorted(videos, key=lambda video: video.name)),
        # The files do not record the teacher, only its classes.
        label_store=LabelStore(teacher, "teacher", COCO_CLASSES) if teacher.is_dir() else None,
    )


def read_jhmdb_fold(root: Path, folds: int, fold: int) -> Source:
    """The data set with the clips of one of `folds` folds as test clips, and the others as training clips.

    The groups are films, also across classes, so no film is in two folds. Everybody gets the same folds.
    """
    source = read_jhmdb(root, "1")  # each split lists all clips
    films = (replace(video, group=(video.group or "").partition("/")[2]) for video in source.videos)
    source = replace(source, name=f"jhmdb:{root}?folds={folds}&fold={fold}", videos=tuple(films))
    return with_fold(source, folds, fold)
