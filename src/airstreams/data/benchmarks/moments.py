"""Moments in Time: about 800 000 training and 30 000 validation clips of 3 s, each with one of 339 or 305 classes.

M. Monfort, A. Andonian, B. Zhou, K. Ramakrishnan, S. A. Bargal, T. Yan, L. Brown, Q. Fan, D. Gutfreund, C. Vondrick,
A. Oliva: Moments in Time Dataset: one million videos for event understanding. PAMI 2019. It is available through
the form at http://moments.csail.mit.edu for non-commercial research and education, without redistribution. There are
two releases: the older one has 339 classes, and the AIRStreams paper uses it; the newer one has 305. Results on the two
are not comparable, so tables name the release. `?release=` selects it.

The folder given as ROOT holds, as unpacked,
- `moments_categories.txt`, one line `name,index` per class (339), or `moments_classes.txt`, one name per line (305),
- `trainingSet.csv` and `validationSet.csv` without header, rows `file name,label,votes for,votes against`, and
- the videos `training/<file name>` and `validation/<file name>`; a file name is such as `dancing/yt-abc_205.mp4`.
The labels of the official test split are not public. Published results are on the validation split, which is called
"test" here, so nothing may be selected with it.

A data set with missing files is refused: metrics on a part of it are not comparable with published ones. To use a part,
shorten the CSV files. Each class folder is listed once, since asking for a million files would take minutes on a
network disk.
"""

import csv
import os
from collections.abc import Iterator
from pathlib import Path

from airstreams.data.listing import Source, Video
from airstreams.errors import InputError

CLASS_FILES = {"339": "moments_categories.txt", "305": "moments_classes.txt"}
SPLIT_OF_FOLDER = {"training": "train", "validation": "test"}
FORM = "http://moments.csail.mit.edu (for non-commercial research)"
EXPECTED = (
    f"Put {' or '.join(f'{name} ({release} classes)' for release, name in CLASS_FILES.items())}, trainingSet.csv and "
    "validationSet.csv into it, and the videos into training/ and validation/ in it. Get them through the form at "
    f"{FORM}."
)


def read_moments(root: Path, release: str) -> Source:
    """The data set in the folder `root`: the release "339" or "305", or with "auto" the one whose class file exists.

    A video's group is the original video: its file name up to the last `_`, without the class folder.
    InputError: files are missing, a row or class has another format, or the classes are not those of a release.
    """
    lists = {folder: root / f"{folder}Set.csv" for folder in SPLIT_OF_FOLDER}
    lacking = [path.name for path in lists.values() if not path.is_file()]
    if lacking:
        raise InputError(f"{root} lacks {', '.join(lacking)}. {EXPECTED}")
    classes = _read_classes(root, release)
    label_of = {label: (label,) for label in classes}  # one tuple for all videos of a class saves 50 MB
    videos: dict[str, Video] = {}
    files_in: dict[str, set[str]] = {}
    missing = []
    for folder, path in lists.items():
        for line, file, label in _read_rows(path):
            name = f"{folder}/{file}"
            if label not in label_of:
                raise InputError(
                    f"{path}, line {line}: {label!r} is not among the {len(classes)} classes; expected lists and "
                    "classes of one release; download all again"
                )
            if name in videos:
                raise InputError(f"{path}, line {line}: {file} is listed twice; expected it once; delete a row")
            class_folder, _, clip = name.rpartition("/")
            if class_folder not in files_in:
                files_in[class_folder] = _files(root / class_folder)
            if clip not in files_in[class_folder]:
                missing.append(name)
            stem = clip.removesuffix(".mp4")
            videos[name] = Video(
                path=root / name,
                name=name,
                labels=label_of[label],
                split=SPLIT_OF_FOLDER[folder],
                group=stem.rpartition("_")[0] or stem,
                label_map=f"{class_folder}/{stem}",
            )
    if missing:
        raise InputError(f"{root} lacks {len(missing)} of {len(videos)} videos, such as {min(missing)}. {EXPECTED}")
    return Source(
        name=f"moments:{root}?release={len(classes)}",
        classes=classes,
        videos=tuple(videos[name] for name in sorted(videos)),
    )


def _read_classes(root: Path, release: str) -> tuple[str, ...]:
    """The class names, sorted, of the release asked for."""
    found = [name for name in CLASS_FILES if (root / CLASS_FILES[name]).is_file()]
    if not found or release not in ("auto", *found):
        wanted = " or ".join(CLASS_FILES.values()) if release == "auto" else CLASS_FILES[release]
        if not found:
            raise InputError(f"{root} lacks {wanted}. {EXPECTED}")
        raise InputError(
            f"{root} lacks {wanted} but has {CLASS_FILES[found[0]]}, of release={found[0]}. Use ?release={found[0]}, "
            f"or add {wanted}, with the lists and the videos of its release. Get them through the form at {FORM}."
        )
    if release == "auto" and len(found) > 1:
        raise InputError(
            f"{root} has {' and '.join(CLASS_FILES.values())}; choose one by ?release={' or '.join(found)}"
        )
    release = found[0] if release == "auto" else release
    path = root / CLASS_FILES[release]
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    names = {line.rpartition(",")[0] if release == "339" else line for line in lines}
    if len(names) != int(release) or "" in names:
        raise InputError(
            f"{path} has {len(names - {''})} class names in {len(lines)} lines; expected {release}, one per line, as "
            f"`{'name,index' if release == '339' else 'name'}`; download it again"
        )
    return tuple(sorted(names))


def _read_rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield line number, file name and label of each row. A list of all rows would double time and memory."""
    expected = "expected rows `file name,label,votes for,votes against`, such as `dancing/yt-abc_205.mp4,dancing,3,0`"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for cells in reader:
                if len(cells) != 4 or not all(cells[:2]):
                    raise InputError(
                        f"{path}, line {reader.line_num}: {','.join(cells)!r}; {expected}; download it again"
                    )
                yield reader.line_num, cells[0], cells[1]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}); {expected}; download it again") from error


def _files(folder: Path) -> set[str]:
    """The names of the files in a folder; none where the folder does not exist."""
    if not folder.is_dir():
        return set()
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if entry.is_file()}
