"""From the command line's DATA to a list of videos with class names and splits.

DATA is a folder of class folders, a folder with `train/`, `val/`, `test/` of class folders, a CSV file, or a published
data set (`benchmarks/`). Everything is checked before anything runs, and what does not fit is refused with the line
and the way to mend it: a mistake in a list costs a second here and a night of training later. No video is decoded;
whether each one can be is the business of `check-data`.
"""

import functools
import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path, PurePosixPath

from airstreams.data.benchmarks import BENCHMARKS, open_benchmark
from airstreams.data.csv_list import read_csv
from airstreams.data.label_maps import LabelStore
from airstreams.data.listing import SPLITS, Source, Video, composed, listed, some, without_suffix
from airstreams.data.remarks import leaks, nearly_one_class, one_level_too_high, with_copies_in_groups
from airstreams.errors import InputError

VIDEO_SUFFIXES = (
    ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m2v", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts",
    ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv",
)  # fmt: skip
_NAMES_OF_SPLITS = {*SPLITS, "training", "valid", "validation", "dev", "eval", "evaluation", "testing"}


def open_source(data: str, labels: Path | None = None, to_learn_from: bool = True, missing_too: bool = False) -> Source:
    """List the videos of `data`: a folder, a CSV file or NAME:ROOT[?key=value&...].

    `labels`: the folder of a label store, which goes before one that the data set brings along; its keys are the
    videos' names without suffix. `to_learn_from`: refuse what no model could learn from, such as a single class; what
    is there to be scored may be so. `missing_too`: list what a CSV file names, also where it is not
    there. InputError when anything is missing or contradicts itself.
    """
    path = Path(data)
    if path.is_dir():
        try:
            source = _read_folder(data, path)
        except OSError as error:
            raise InputError(f"{error.filename} cannot be listed ({error.strerror}); make it readable") from error
    elif path.is_file() and _is_video(path.name):
        raise InputError(f"{data} is a video; expected a folder of class folders or a CSV file; predict takes videos")
    elif path.is_file():
        source = read_csv(data, path, missing_too)
    elif ":" in data:
        source = replace(open_benchmark(data), name=data)
    else:
        raise InputError(
            f"{data} does not exist; expected a folder of class folders, a CSV file, or NAME:ROOT of a published data "
            f"set ({', '.join(BENCHMARKS)})"
        )
    if path.exists():
        _refuse_files_with_two_names(source)
        source = with_copies_in_groups(source)
        source = replace(source, remarks=(*source.remarks, *leaks(source.videos), *nearly_one_class(source.classes)))
    if to_learn_from:
        _check_classes(source)
    if to_learn_from or labels is not None or source.label_store is not None:
        _refuse_shared_label_maps(source)
    if labels is None:
        return source
    store = LabelStore.open(labels)
    keys = [video.label_map for video in source.videos if video.label_map is not None]
    if not any(store.has(key) for key in keys):
        raise InputError(
            f"{labels} has label maps of none of the {len(source.videos)} videos of {data}; expected files such as "
            f"{keys[0]}.npz; give the folder that holds those of these videos"
        )
    return replace(source, label_store=store)


def _read_folder(data: str, root: Path) -> Source:
    names = {folder.name for folder in _subfolders(root)}
    parents: list[tuple[Path, str | None]] = [(root, None)]
    lookalikes = {name for name in names if name.lower() in _NAMES_OF_SPLITS}
    # A lone `test/` of class folders is data to evaluate on; one with videos in it is a class of that name.
    splits_only = bool(names) and names <= set(SPLITS)
    if splits_only and (
        "train" in names or not any(_is_video(p.name) for name in names for p in (root / name).iterdir())
    ):
        parents = [(root / split, split) for split in SPLITS if split in names]
    elif len(lookalikes) > 1:
        raise InputError(
            f"{data} has the folders {some(sorted(names))}; expected either class folders, or train, val and test "
            "and nothing beside them, with train among them; rename the folders or move the others away"
        )
    videos: list[Video] = []
    others: Counter[str] = Counter()
    empty: list[str] = []
    for parent, split in parents:
        for folder in _class_folders(parent):
            paths = _videos_below(folder, others)
            if not paths:
                empty.append(folder.relative_to(root).as_posix())
            for path in paths:
                name, label = path.relative_to(root).as_posix(), composed(folder.name)
                recording = re.fullmatch(r"(.+_g\d+)_c\d+", path.stem)  # so UCF-101 calls the clips of one
                group = None if recording is None else composed(recording[1])
                videos.append(Video(path, composed(name), (label,), split, group=group, label_map=without_suffix(name)))
    if not videos:
        raise InputError(
            f"{data} holds no videos; expected DATA/<class>/<video> with files such as .mp4, .avi, .mkv, .mov or .webm"
        )
    remarks = []
    if empty:
        remarks.append(f"no class, since there is no video in it: {some(empty)}")
    if others:
        kinds = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in others.most_common(5))
        remarks.append(f"{others.total()} files passed over, which are no videos by their names: {kinds}")
    if not splits_only:
        remarks += one_level_too_high(videos)
        if any(video.group for video in videos):
            remarks.append("clips of one recording by their names, as UCF-101's v_Biking_g01_c01, stay together")
    return replace(listed(data, videos, multi_label=False), remarks=tuple(remarks))


def _subfolders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _class_folders(parent: Path) -> list[Path]:
    loose = sorted(p.name for p in parent.iterdir() if _is_video(p.name) and p.is_file())
    if loose:
        raise InputError(
            f"{parent} holds {len(loose)} videos outside any class folder, such as {loose[0]}; expected "
            f"{parent}/<class>/<video>; move each into a folder named after its class, or list them in a CSV file"
        )
    return _subfolders(parent)


def _videos_below(folder: Path, others: Counter[str]) -> list[Path]:
    """The videos; `others` counts the files that are none by suffix. A link never leads through a folder twice."""

    def fail(error: OSError) -> None:
        raise error

    found, seen = [], {os.path.realpath(folder)}
    for walked, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        names = sorted((name for name in folders if not name.startswith(".")), reverse=True)
        new = {os.path.realpath(Path(walked, name)): name for name in names}  # of several names, the alphabet's first
        folders[:] = [name for real, name in new.items() if real not in seen]
        seen.update(new)
        found += [Path(walked, name) for name in files if _is_video(name)]
        others.update(PurePosixPath(name).suffix for name in files if not (_is_video(name) or name.startswith(".")))
    for path in found:
        name = path.relative_to(folder.parent).as_posix()
        if name.encode("utf-8", "replace").decode() != name:
            raise InputError(f"{folder.parent} holds {name!a}, a name that is not UTF-8; rename it")
    return found


def _is_video(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES and not name.startswith(".")


def _check_classes(source: Source) -> None:
    """Refuse what no model could learn from; a source without a training split is there to evaluate on only."""
    data, videos = source.name, source.videos
    splits = {video.split for video in videos}
    if splits.isdisjoint({None, "train"}):
        return
    classes = {label for video in videos for label in video.labels}
    if not classes or (len(classes) == 1 and all(len(video.labels) == 1 for video in videos)):
        mend = "add a folder or rows with videos of another one"
        if Path(data).is_dir() and all(len(PurePosixPath(video.name).parts) > 2 for video in videos):
            inner = Path(data) / PurePosixPath(videos[0].name).parts[0]
            mend += f", or give {inner} if the folders in it are the classes"
        raise InputError(
            f"{data} has only the class {some(sorted(classes))}; expected at least 2 classes to tell apart; {mend}"
        )
    trained = {label for video in videos if video.split in (None, "train") for label in video.labels}
    unseen = sorted(classes - trained)
    if unseen:
        raise InputError(
            f"{data} has no training video of {some(unseen)}, only videos in val or test; expected every class in the "
            "split train; move a video of it there, or take the class out of the others"
        )


def _refuse_shared_label_maps(source: Source) -> None:
    # Mostly two encodings of one video, which would also stand in train and test at once.
    owner: dict[str, Video] = {}
    for video in source.videos:
        other = owner.setdefault(video.label_map or video.name, video)
        if other.path != video.path:
            raise InputError(
                f"{source.name} has both {other.name} and {video.name}; expected names that differ in more than the "
                "suffix, as label maps are kept under the name without it; delete or rename one"
            )


def _refuse_files_with_two_names(source: Source) -> None:
    # They could stand in train and test at once.
    real_folder = functools.cache(os.path.realpath)
    owner: dict[str, Video] = {}
    for video in source.videos:
        real = Path(real_folder(video.path.parent), video.path.name)
        other = owner.setdefault(os.path.realpath(real) if real.is_symlink() else str(real), video)
        if other.path != video.path:
            raise InputError(
                f"{source.name} has both {other.name} and {video.name}, which are one file; expected it once; delete "
                "one (a video of two classes stands in one row of a CSV file, with both labels)"
            )
