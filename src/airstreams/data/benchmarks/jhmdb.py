"""J-HMDB: 928 clips of 15 to 40 frames, 21 actions, with the actor's outline drawn in every frame.

H. Jhuang, J. Gall, S. Zuffi, C. Schmid, M. J. Black: Towards understanding action recognition. ICCV 2013. The videos
and the split files are had from http://jhmdb.is.tue.mpg.de, for research; the clips are some of HMDB-51's, cut from
films with rights of their own. Its three official splits share out 660/268, 658/270 and 663/265 clips; report the mean
of the three.

The folder given as ROOT holds
- `videos/<class>/<clip>.mp4` (or `.avi`; or `ReCompress_Videos/`, its official name),
- `splits/<class>_test_split<1|2|3>.txt`, a line `<clip>.avi 1` (train) or `2` (test) a clip,
- optionally `teacher/<class>/<clip>.npz`, label maps by a teacher trained on MS-COCO, and
- optionally `masks/<class>/<clip>.npz`, `mask` uint8 (T, H, W), 1 = the acting person.
A data set with files missing is refused: figures on a part of it could not be compared with published ones.
"""

from pathlib import Path

from airstreams.data.labels import COCO_CLASSES, LabelStore
from airstreams.data.listing import Source, Video
from airstreams.errors import InputError

CLASSES = (
    "brush_hair", "catch", "clap", "climb_stairs", "golf", "jump", "kick_ball", "pick", "pour", "pullup", "push", "run",
    "shoot_ball", "shoot_bow", "shoot_gun", "sit", "stand", "swing_baseball", "throw", "walk", "wave",
)  # fmt: skip
SPLIT_OF_DIGIT = {"1": "train", "2": "test"}
VIDEO_FOLDERS = ("videos", "ReCompress_Videos")
SUFFIXES = (".mp4", ".avi")


def read_jhmdb(root: Path, split: str) -> Source:
    """The data set in the folder `root` with its official split "1", "2" or "3".

    A video's group is its class and the film it was cut from, the part of its name before `_<class>_`. Where a film's
    own name holds the class too, the first place counts: films of like names may pass for one, but never one for two.
    InputError when files are missing or a split file has another format.
    """
    clips = next((root / name for name in VIDEO_FOLDERS if (root / name).is_dir()), root / VIDEO_FOLDERS[0])
    videos, missing = [], []
    for label in CLASSES:
        listed_in = root / "splits" / f"{label}_test_split{split}.txt"
        if not listed_in.is_file():
            missing.append(listed_in)
            continue
        uses = set()
        for line in listed_in.read_text(encoding="utf-8").splitlines():
            clip, _, digit = line.strip().rpartition(" ")
            if digit not in SPLIT_OF_DIGIT or not clip.endswith(".avi"):
                raise InputError(f"{listed_in} has the line {line!r}; expected `<clip>.avi 1` or `2`; fetch it anew")
            uses.add(SPLIT_OF_DIGIT[digit])
            stem = clip.removesuffix(".avi")
            places = [clips / label / f"{stem}{suffix}" for suffix in SUFFIXES]
            path = next((place for place in places if place.is_file()), None)
            if path is None:
                missing.append(places[0])
                continue
            mask = root / "masks" / label / f"{stem}.npz"
            videos.append(
                Video(
                    path=path,
                    name=f"{label}/{path.name}",
                    labels=(label,),
                    split=SPLIT_OF_DIGIT[digit],
                    group=f"{label}/{stem.partition(f'_{label}_')[0]}",
                    label_map=f"{label}/{stem}",
                    mask=mask if mask.is_file() else None,
                )
            )
        if not uses >= {"train", "test"}:
            raise InputError(f"{listed_in} lists no clip of train, or none of test; expected both; fetch it anew")
    if missing:
        raise InputError(
            f"{root} lacks {len(missing)} of the {len(missing) + len(videos)} videos and split files looked for, such "
            f"as {', '.join(str(path.relative_to(root)) for path in missing[:3])}; expected J-HMDB's "
            "videos/<class>/<clip>.mp4 (or .avi) and splits/<class>_test_split<n>.txt; get them from "
            "http://jhmdb.is.tue.mpg.de (for research)"
        )
    teacher = root / "teacher"
    return Source(
        name=f"jhmdb:{root}?split={split}",
        classes=CLASSES,
        videos=tuple(sorted(videos, key=lambda video: video.name)),
        # The files do not say which model saw this, only its classes.
        label_store=LabelStore(teacher, "teacher", COCO_CLASSES) if teacher.is_dir() else None,
    )
