"""From the command line's DATA to a list of videos with class names and splits.

DATA is a folder of class folders, a folder with `train/`, `val/`, `test/` of class folders, a CSV file (with
`?root=DIR` for paths relative to DIR), a file of an annotation tool (`importers/`), or a published data set
(`benchmarks/`). The list is checked before anything
runs: a mistake costs a second here and a night of training later. No video is decoded here; `check-data` does that.
"""

import functools
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from airstreams.config import SUPERVISED
from airstreams.data.benchmarks import BENCHMARKS, open_benchmark
from airstreams.data.csv_list import read_csv
from airstreams.data.importers import TOOLS, is_annotation_file, read_annotations
from airstreams.data.importers.annotation import number
from airstreams.data.label_maps import LabelStore
from airstreams.data.listing import (
    CONTROL_CHARACTERS,
    SPLITS,
    UNLABELLED,
    Source,
    TargetFolder,
    Video,
    make_source,
    require_label_maps,
    shortlist,
    to_nfc,
    without_suffix,
)
from airstreams.data.source_warnings import (
    folder_level,
    group_copies,
    shared_between_splits,
    similar_class_names,
    spelling,
)
from airstreams.errors import InputError, require
from airstreams.plural import count_of

VIDEO_SUFFIXES = (
    ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m2v", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts",
    ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv",
)  # fmt: skip
_NAMES_OF_SPLITS = {*SPLITS, "training", "valid", "validation", "dev", "eval", "evaluation", "testing"}
# What systems and archives leave in folders, in lower case: folders and files that nobody put there.
_LEFT_BY_SYSTEMS = {
    "__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "thumbs.db",
    "ehthumbs.db", "desktop.ini",
}  # fmt: skip
_ARCHIVES = {".zip", ".tar", ".gz", ".tgz", ".rar", ".7z"}
_UCF_RECORDING = re.compile(r"(.+_g\d+)_c\d+")  # UCF-101 gives the clips of one recording such names


def open_source(
    data: str | os.PathLike[str],
    labels: str | os.PathLike[str] | None = None,
    for_training: bool = True,
    include_missing: bool = False,
    targets: Mapping[str, str | os.PathLike[str]] | None = None,
) -> Source:
    """List the videos of a data source. No video is opened.

    Args:
        data: a folder, a CSV file or that of an annotation tool, FILE?root=DIR, or NAME:ROOT[?key=value&...].
        labels: the folder of a label store, used instead of the data set's own store. Its keys are the videos' names
            without suffix. `follow_label_maps` finds label maps by the videos' contents, too.
        for_training: refuse what no model can be trained on, such as a single class.
        include_missing: list the videos of a CSV file that do not exist, too.
        targets: the folders of teachers' targets by stream. That of semantic is the same as `labels`.

    Raises:
        InputError: something is missing or contradicts itself.
    """
    for key, given in (("data", data), ("labels", labels)):
        if given is not None or key == "data":
            require(isinstance(given, str | os.PathLike), key, repr(given), "a path as str or Path")
    folders = dict(targets or {})
    if SUPERVISED[0] in folders:
        require(labels is None, f"targets.{SUPERVISED[0]}", folders[SUPERVISED[0]], "nothing beside --labels")
        labels = folders.pop(SUPERVISED[0])
    name = os.fspath(data)
    source = _read(name, include_missing)
    if _file_and_options(name)[0].exists():
        _refuse_files_with_two_names(source)
        source = group_copies(source)
        found = shared_between_splits(source.videos) + similar_class_names(source.classes)
        source = replace(source, warnings=(*source.warnings, *found))
    if for_training:
        _require_trainable_classes(source)
    if for_training or labels is not None or folders or source.label_store is not None:
        _refuse_shared_label_maps(source)
    source = replace(source, targets={stream: _target_folder(stream, Path(path)) for stream, path in folders.items()})
    return source if labels is None else _with_label_store(source, Path(labels))


def _read(data: str, include_missing: bool) -> Source:
    """Choose the reader by what `data` is."""
    path = Path(data)
    if path.is_dir():
        try:
            return _read_folder(data, path)
        except OSError as error:
            raise InputError(f"{error.filename} cannot be listed ({error.strerror}); make it readable") from error
    if path.is_file() and _is_video(path.name):
        raise InputError(f"{data} is a video; expected a folder of class folders or a CSV file; predict takes videos")
    path, options = _file_and_options(data)
    root = Path(options["root"]) if "root" in options else None
    if path.is_file():
        if root is not None and not root.is_dir():
            raise InputError(
                f"{data}: the root {root} is not a folder. Give the folder that the paths are relative to."
            )
        if is_annotation_file(path):
            around = _around(data, options)
            return read_annotations(data, path, root, options.get("tier"), around, include_missing)
        if options.keys() - {"root"}:
            raise InputError(f"{data}: a CSV file takes no ?tier= and no ?around=. Leave them out.")
        return read_csv(data, path, include_missing, root)
    if path.is_dir() and options:
        raise InputError(f"{data}: {path} is a folder, and only a file takes options. Leave them out.")
    if ":" in data:
        return replace(open_benchmark(data), name=data)
    raise InputError(
        f"{data} does not exist; expected a folder of class folders, a CSV file, a file of {TOOLS}, or NAME:ROOT of "
        f"a published data set ({', '.join(BENCHMARKS)})"
    )


def _file_and_options(data: str) -> tuple[Path, dict[str, str]]:
    """The path of a file or folder, and the options of `FILE?root=DIR&tier=NAME&around=SECONDS`."""
    parts = re.split(r"[?&](?=(?:root|tier|around)=)", data)
    if Path(data).exists() or len(parts) == 1:
        return Path(data), {}
    return Path(parts[0]), dict(part.split("=", 1) for part in parts[1:])


def _around(data: str, options: dict[str, str]) -> float | None:
    """The seconds of `?around=SECONDS`. InputError: they are no number over 0."""
    if "around" not in options:
        return None
    seconds = number(options["around"])
    if seconds is None or seconds <= 0:
        raise InputError(f"{data}: around is {options['around']!r}. Give seconds over 0, such as ?around=1.")
    return seconds


def _with_label_store(source: Source, labels: Path) -> Source:
    source = replace(source, label_store=LabelStore.open(labels))
    require_label_maps(source, unless_contents=True)
    return source


def _target_folder(stream: str, path: Path) -> TargetFolder:
    if not path.is_dir():
        raise InputError(f"--targets {stream}={path}: there is no such folder. Give the folder of a teacher's targets.")
    return TargetFolder(path)


def _read_folder(data: str, root: Path) -> Source:
    parents = _parents_of_class_folders(data, root)
    videos: list[Video] = []
    unlabelled: list[Video] = []
    other_suffixes: Counter[str] = Counter()
    empty: list[str] = []
    for parent, split in parents:
        for folder in [parent] if parent.name == UNLABELLED else _class_folders(parent):
            paths = videos_below(folder, other_suffixes)
            if not paths:
                empty.append(folder.relative_to(root).as_posix())
            if folder.name == UNLABELLED:
                unlabelled += [_unlabelled_in_folder(data, path, root, split) for path in paths]
            else:
                videos += [_video_in_folder(path, root, folder.name, split) for path in paths]
    if not (videos or unlabelled):
        found = f" but {_kinds(other_suffixes)}" if other_suffixes else ""
        raise InputError(
            f"{data} holds no videos{found}; expected DATA/<class>/<video> with files such as .mp4, .avi, .mkv, "
            f".mov or .webm{'; unpack the archives' if _ARCHIVES & set(other_suffixes) else ''}"
        )
    _refuse_repeated_names(data, [*videos, *unlabelled])
    source = make_source(data, videos, multi_label=False, unlabelled=unlabelled)
    return replace(source, warnings=tuple(_folder_warnings(videos, empty, other_suffixes)))


def _parents_of_class_folders(data: str, root: Path) -> list[tuple[Path, str | None]]:
    """The root alone, without a split, or the folders of the splits and that of unlabelled videos beside them."""
    found = {folder.name for folder in _subfolders(root)}
    names = found - {UNLABELLED}
    if names and names <= set(SPLITS):
        # A lone `test/` of class folders is data to evaluate on. One with videos in it is a class of that name.
        if "train" in names or not any(_is_video(path.name) for name in names for path in (root / name).iterdir()):
            beside = [(root / UNLABELLED, None)] if UNLABELLED in found else []
            return [*((root / split, split) for split in SPLITS if split in names), *beside]
    elif sum(name.lower() in _NAMES_OF_SPLITS for name in names) > 1:
        raise InputError(
            f"{data} has the folders {shortlist(sorted(names))}; expected either class folders, or train, val and test "
            "and nothing beside them, with train among them; rename the folders or move the others away"
        )
    return [(root, None)]


def _video_in_folder(path: Path, root: Path, class_folder: str, split: str | None) -> Video:
    name = path.relative_to(root).as_posix()
    recording = _UCF_RECORDING.fullmatch(path.stem)
    return Video(
        path,
        to_nfc(name),
        (to_nfc(class_folder),),
        split,
        group=None if recording is None else to_nfc(recording[1]),
        label_map=without_suffix(name),
    )


def _unlabelled_in_folder(data: str, path: Path, root: Path, split: str | None) -> Video:
    if split not in (None, "train"):
        raise InputError(
            f"{data} has unlabelled videos in {split}, such as {path.relative_to(root)}, but no metric can be given "
            f"for them. Move {split}/{UNLABELLED} into train, or beside it."
        )
    return replace(_video_in_folder(path, root, UNLABELLED, "train"), labels=())


def _folder_warnings(videos: list[Video], empty: list[str], other_suffixes: Counter[str]) -> list[str]:
    warnings = []
    if empty:
        warnings.append(f"folders without videos are not classes: {shortlist(empty)}.")
    if other_suffixes:
        skipped = count_of(other_suffixes.total(), "file")
        warnings.append(f"{skipped} skipped, since the suffix is no video's: {_kinds(other_suffixes)}.")
    if videos and videos[0].split is None:
        warnings += folder_level(videos)
        if any(video.group for video in videos):
            warnings.append("clips of one recording, by names such as UCF-101's v_Biking_g01_c01, stay in one split.")
    return warnings


def _kinds(suffixes: Counter[str]) -> str:
    return ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in suffixes.most_common(5))


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _is_hidden(path.name))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LEFT_BY_SYSTEMS


def _class_folders(parent: Path) -> list[Path]:
    loose = sorted(p.name for p in parent.iterdir() if _is_video(p.name) and p.is_file())
    if loose:
        raise InputError(
            f"{parent} holds {count_of(len(loose), 'video')} outside any class folder, such as {loose[0]}; expected "
            f"{parent}/<class>/<video>; move each into a folder named after its class, or list them in a CSV file"
        )
    return _subfolders(parent)


def videos_below(folder: Path, other_suffixes: Counter[str]) -> list[Path]:
    """The videos. `other_suffixes` counts all other files. Of several links to a folder only one is followed."""

    def fail(error: OSError) -> None:
        raise error

    found, seen = [], {os.path.realpath(folder)}
    for walked, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        names = sorted((name for name in folders if not _is_hidden(name)), reverse=True)
        new = {os.path.realpath(Path(walked, name)): name for name in names}  # keeps the first name in the alphabet
        folders[:] = [name for real, name in new.items() if real not in seen]
        seen.update(new)
        found += [Path(walked, name) for name in files if _is_video(name)]
        others = (name for name in files if not (_is_video(name) or _is_hidden(name)))
        other_suffixes.update(PurePosixPath(name).suffix for name in others)
    for path in found:
        name = path.relative_to(folder.parent).as_posix()
        if name.encode("utf-8", "replace").decode() != name:
            raise InputError(f"{folder.parent} holds {name!a}, whose name is not UTF-8; rename it")
        if CONTROL_CHARACTERS.search(name):
            raise InputError(f"{folder.parent} holds {name!a}, whose name has a line break or the like; rename it")
    return found


def _is_video(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES and not name.startswith(".")


def _require_trainable_classes(source: Source) -> None:
    """Refuse classes that no model can be trained on. Without a training split, the source is for evaluation only."""
    data, videos = source.name, source.videos
    if source.unlabelled and not videos:
        raise InputError(f"{data} has only unlabelled videos. Add labelled videos of at least 2 classes.")
    splits = {video.split for video in videos}
    if splits.isdisjoint({None, "train"}):
        return
    classes = {label for video in videos for label in video.labels}
    if not classes or (len(classes) == 1 and all(len(video.labels) == 1 for video in videos)):
        fix = "add a folder or rows with videos of another class"
        if Path(data).is_dir() and all(len(PurePosixPath(video.name).parts) > 2 for video in videos):
            inner = Path(data) / PurePosixPath(videos[0].name).parts[0]
            fix += f", or give {inner} if the folders in it are the classes"
        raise InputError(f"{data} has only the class {shortlist(sorted(classes))}; expected at least 2 classes; {fix}")
    in_training = {label for video in videos if video.split in (None, "train") for label in video.labels}
    lacking = sorted(classes - in_training)
    if lacking:
        trained = {spelling(name): name for name in in_training}
        alike = [f"{name!r} is {trained[spelling(name)]!r} in train" for name in lacking if spelling(name) in trained]
        fix = f"give these classes one name: {shortlist(alike)}; else " if alike else ""
        raise InputError(
            f"{data} has no training video of {shortlist(lacking)}, only videos in val or test; expected every class "
            f"in the split train; {fix}move a video of each class there, or remove the class from the other splits"
        )


def _refuse_repeated_names(data: str, videos: list[Video]) -> None:
    # Two folders or files whose names look the same, with accents written in two ways.
    owner: dict[str, Video] = {}
    for video in videos:
        other = owner.setdefault(video.name, video)
        if other is not video:
            raise InputError(
                f"{data} has two videos whose names look the same, {str(other.path)!a} and {str(video.path)!a}; "
                "expected names that differ in more than how an accent is stored; delete or rename one"
            )


def _refuse_shared_label_maps(source: Source) -> None:
    # These are mostly two encodings of one video, which could be in train and test at once.
    owner: dict[str, Video] = {}
    for video in source.all_videos:
        other = owner.setdefault(video.label_map or video.name, video)
        if other.path != video.path:
            raise InputError(
                f"{source.name} has both {other.name} and {video.name}; expected names that differ in more than the "
                "suffix, since the name without suffix is the key of the label maps; delete or rename one"
            )


def _refuse_files_with_two_names(source: Source) -> None:
    # One file could otherwise be in train and test at once.
    real_folder = functools.cache(os.path.realpath)
    owner: dict[str, Video] = {}
    for video in source.all_videos:
        real = Path(real_folder(video.path.parent), video.path.name)
        is_link = os.path.islink(real)  # noqa: PTH114 (Path.is_symlink raises OSError for a name of 5000 letters)
        other = owner.setdefault(os.path.realpath(real) if is_link else str(real), video)
        if other.path != video.path:
            raise InputError(
                f"{source.name} has both {other.name} and {video.name}, which are one file; expected it once; delete "
                "one, or write a video of two classes as one row of a CSV file with both labels"
            )
