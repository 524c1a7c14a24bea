"""From the command line's DATA to a list of videos with class names and splits.

DATA is a folder of class folders, a folder with `train/`, `val/`, `test/` of class folders, a CSV file, or a published
data set (`benchmarks/`). Everything is checked before anything runs, and what does not fit is refused with the place
and the way to mend it: a mistake in a list costs a second here and a night of training later. No video is opened;
whether each one decodes is the business of `check-data`.
"""

import csv
import functools
import math
import os
import random
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from airstreams.data.benchmarks import BENCHMARKS, open_benchmark
from airstreams.data.labels import LabelStore
from airstreams.data.listing import SPLITS, Source, Video
from airstreams.errors import InputError
from airstreams.files import replacing

VIDEO_SUFFIXES = (
    ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m2v", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts",
    ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv",
)  # fmt: skip
SPLIT_FILE = "split.csv"  # in a run: which video was used for what
_NAMES_OF_SPLITS = {*SPLITS, "training", "valid", "validation", "dev", "eval", "evaluation", "testing"}
REQUIRED_COLUMNS = ("path", "label")
OPTIONAL_COLUMNS = ("split", "start", "end", "group")


def open_source(data: str, labels: Path | None = None, to_learn_from: bool = True) -> Source:
    """List the videos of `data`: a folder, a CSV file or NAME:ROOT[?key=value&...].

    `labels`: the folder of a label store, which goes before one that the data set brings along; its keys are the
    videos' names without suffix. `to_learn_from`: refuse what no model could learn from, such as a single class; what
    is there to be scored may be so. InputError when anything is missing or contradicts itself.
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
        source = _read_csv(data, path)
    elif ":" in data:
        source = replace(open_benchmark(data), name=data)
    else:
        raise InputError(
            f"{data} does not exist; expected a folder of class folders, a CSV file, or NAME:ROOT of a published data "
            f"set ({', '.join(BENCHMARKS)})"
        )
    if path.exists():
        _refuse_files_with_two_names(source)
    if to_learn_from:
        _check_classes(source)
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


def automatic_split(
    videos: Iterable[Video], seed: int, val_fraction: float = 0.1, test_fraction: float = 0.2
) -> dict[str, str]:
    """Share the videos out by chance: name -> "train", "val" or "test", the same for the same seed in any order.

    Every class comes as close to the fractions as whole groups allow (a video without group is a group, and so are all
    segments of one file), keeps at least one training video, and gives to the test as soon as it has two groups; val
    takes what can be spared after that. A class of n videos gives val n times the fraction, rounded up or down so that
    the sum over the classes comes out right.
    """
    if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
        raise InputError(
            f"given a val fraction of {val_fraction} and a test fraction of {test_fraction}; "
            "expected both at least 0 and less than 1 together, so that videos to train with are left"
        )
    members: dict[str, list[Video]] = defaultdict(list)
    for video in videos:
        members[video.group or str(video.path)].append(video)
    groups = sorted(members)
    random.Random(seed).shuffle(groups)
    # Videos without actions count as a class of their own, named "", so that they are shared out evenly as well.
    rest = {group: Counter(label for video in members[group] for label in video.labels or ("",)) for group in groups}
    class_sizes = _sum(rest.values())
    group_counts = Counter(label for content in rest.values() for label in content)
    tested = {label for label, count in group_counts.items() if count > 1 and test_fraction > 0}

    split_of_group = dict.fromkeys(groups, "train")
    for split, fraction, served in (("test", test_fraction, tested), ("val", val_fraction, set[str]())):
        for group in _draw(rest, _shares(class_sizes, fraction), served):
            split_of_group[group] = split
            del rest[group]
    return {video.name: split_of_group[group] for group in groups for video in members[group]}


def with_splits(source: Source, assignment: Mapping[str, str]) -> Source:
    """The source with the split of each video taken from `assignment`, name -> split; other names in it are ignored.

    InputError when a video has no split there.
    """
    lacking = [video.name for video in source.videos if video.name not in assignment]
    if lacking:
        raise InputError(
            f"the splits given have none for {len(lacking)} of the {len(source.videos)} videos of {source.name}, such "
            f"as {lacking[0]}; expected one for each; give the splits that were made for this data"
        )
    return replace(source, videos=tuple(replace(video, split=assignment[video.name]) for video in source.videos))


def write_splits(path: Path, source: Source) -> None:
    """Write the split of each video as a CSV file with the header `name,split`; every video must have one."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("name", "split"))
        writer.writerows((video.name, video.split) for video in source.videos)


def read_splits(path: Path) -> dict[str, str]:
    """What `write_splits` wrote: name -> split. InputError when the file is missing or says something else."""
    splits: dict[str, str] = {}
    for line, row in _read_rows(path, required=("name", "split"), optional=()):
        _check_split(path, line, row["split"])
        name = _composed(row["name"])
        if name in splits:
            raise InputError(f"{path}, line {line}: {name} stands there twice; expected it once; delete a line")
        splits[name] = row["split"]
    return splits


def _read_folder(data: str, root: Path) -> Source:
    names = {folder.name for folder in _subfolders(root)}
    places: list[tuple[Path, str | None]] = [(root, None)]
    lookalikes = {name for name in names if name.lower() in _NAMES_OF_SPLITS}
    # A lone `test/` of class folders is data to evaluate on; one with videos in it is a class of that name.
    splits_only = bool(names) and names <= set(SPLITS)
    if splits_only and (
        "train" in names or not any(_is_video(p.name) for name in names for p in (root / name).iterdir())
    ):
        places = [(root / split, split) for split in SPLITS if split in names]
    elif len(lookalikes) > 1:
        raise InputError(
            f"{data} has the folders {_some(sorted(names))}; expected either class folders, or train, val and test "
            "and nothing beside them, with train among them; rename the folders or move the others away"
        )
    videos: list[Video] = []
    others: Counter[str] = Counter()
    empty: list[str] = []
    for place, split in places:
        for folder in _class_folders(place):
            paths = _videos_below(folder, others)
            if not paths:
                empty.append(folder.relative_to(root).as_posix())
            for path in paths:
                name, label = path.relative_to(root).as_posix(), _composed(folder.name)
                videos.append(Video(path, _composed(name), (label,), split, label_map=_without_suffix(name)))
    if not videos:
        raise InputError(
            f"{data} holds no videos; expected DATA/<class>/<video> with files such as .mp4, .avi, .mkv, .mov or .webm"
        )
    remarks = []
    if empty:
        remarks.append(f"no class, since there is no video in it: {_some(empty)}")
    if others:
        kinds = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in others.most_common(5))
        remarks.append(f"{others.total()} files passed over, which are no videos by their names: {kinds}")
    return replace(_source(data, videos, multi_label=False), remarks=tuple(remarks))


def _subfolders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _class_folders(place: Path) -> list[Path]:
    loose = sorted(p.name for p in place.iterdir() if _is_video(p.name) and p.is_file())
    if loose:
        raise InputError(
            f"{place} holds {len(loose)} videos outside any class folder, such as {loose[0]}; expected "
            f"{place}/<class>/<video>; move each into a folder named after its class, or list them in a CSV file"
        )
    return _subfolders(place)


def _videos_below(folder: Path, others: Counter[str]) -> list[Path]:
    """The videos; `others` counts the files that are none by suffix. No link leads through a folder twice."""

    def fail(error: OSError) -> None:
        raise error

    found, seen = [], {os.path.realpath(folder)}
    for place, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        names = sorted((name for name in folders if not name.startswith(".")), reverse=True)
        new = {os.path.realpath(Path(place, name)): name for name in names}  # of several names, the alphabet's first
        folders[:] = [name for real, name in new.items() if real not in seen]
        seen.update(new)
        found += [Path(place, name) for name in files if _is_video(name)]
        others.update(PurePosixPath(name).suffix for name in files if not (_is_video(name) or name.startswith(".")))
    for path in found:
        name = path.relative_to(folder.parent).as_posix()
        if name.encode("utf-8", "replace").decode() != name:
            raise InputError(f"{folder.parent} holds {name!a}, a name that is not UTF-8; rename it")
    return found


def _composed(name: str) -> str:
    """A name with its accents in one piece with their letters, however the system that wrote it keeps them. What lies
    beside a video, such as its label maps, is found by the name as it stands on the disk.
    """
    return unicodedata.normalize("NFC", name)


def _is_video(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES and not name.startswith(".")


def _read_csv(data: str, path: Path) -> Source:
    rows = [
        (line, {name: cell.strip() for name, cell in row.items()})
        for line, row in _read_rows(path, REQUIRED_COLUMNS, OPTIONAL_COLUMNS)
    ]
    multi_label = any(";" in row["label"] for _, row in rows)
    line_of: dict[str, int] = {}
    videos, missing = [], []
    for line, row in rows:
        video = _video_of_row(path, line, row)
        if not multi_label and not video.labels:
            raise InputError(
                f"{path}, line {line}: the label is empty; expected a class name (a video without actions can only "
                "stand in a file where other rows have several labels joined by ;)"
            )
        if video.name in line_of:
            raise InputError(
                f"{path}, line {line}: {video.name} stands in line {line_of[video.name]} already; expected one row for "
                "each video or segment; delete one, or join their labels by ;"
            )
        line_of[video.name] = line
        videos.append(video)
        if not video.path.is_file():
            missing.append(video)
    if missing:
        name = missing[0].name
        raise InputError(
            f"{path}, line {line_of[name]}: there is no file {missing[0].path}, and {len(missing)} of {len(rows)} rows "
            f"name files that are missing; expected paths relative to {path.parent}; mend the paths or delete the rows"
        )
    unsplit = [video for video in videos if video.split is None]
    if 0 < len(unsplit) < len(videos):
        raise InputError(
            f"{path}, line {line_of[unsplit[0].name]}: no split, as in {len(unsplit)} of {len(rows)} rows; "
            "expected one in every row or in none; fill the column or delete it"
        )
    return _source(data, videos, multi_label)


def _read_rows(path: Path, required: tuple[str, ...], optional: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV file with a header, each with its line number and a text for every known column."""
    expected = f"expected a CSV file with the header {','.join(required)}{''.join(f'[,{name}]' for name in optional)}"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            table = [(reader.line_num, cells) for cells in reader if any(cells)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        mend = "; save it as UTF-8" if isinstance(error, UnicodeDecodeError) else ""
        raise InputError(f"{path} cannot be read as text ({error}); {expected}{mend}") from error
    header = [name.strip() for name in table[0][1]] if table else []
    if len(header) == 1 and (found := re.search(r"[;\t|]", header[0])):
        raise InputError(f"{path} has {found[0]!r} between its cells; {expected}; save it with commas")
    for name in required:
        if name not in header:
            raise InputError(f"{path} has no column {name!r} but {_some(header)}; {expected}; add it to the first line")
    for name in header:
        if name not in required + optional:
            raise InputError(f"{path} has the unknown column {name!r}; {expected}; rename or delete it")
        if header.count(name) > 1:
            raise InputError(f"{path} has the column {name!r} {header.count(name)} times; {expected}; delete one")
    if len(table) == 1:
        raise InputError(f"{path} has a header but no rows; {expected} and a row for each video; add them")
    blank = dict.fromkeys(required + optional, "")
    rows = []
    for line, cells in table[1:]:
        if len(cells) != len(header):
            raise InputError(
                f"{path}, line {line}: {len(cells)} cells; expected {len(header)} as in the first line; "
                'put a cell that holds a comma in double quotes ("")'
            )
        rows.append((line, blank | dict(zip(header, cells, strict=True))))
    return rows


def _video_of_row(path: Path, line: int, row: Mapping[str, str]) -> Video:
    if row["split"]:
        _check_split(path, line, row["split"])
    start, end = (_seconds(path, line, column, row[column]) for column in ("start", "end"))
    if end is not None and end <= (start or 0):
        raise InputError(
            f"{path}, line {line}: the end {end:g} s does not lie after the start {start or 0:g} s; expected a later "
            "end; swap the two or leave end empty for the end of the file"
        )
    cell = PurePosixPath(row["path"]).as_posix()
    if cell == ".":
        raise InputError(f"{path}, line {line}: the path is empty; expected a video's; fill it in or delete the row")
    segment = (
        "" if start is None and end is None else "#t=" + ",".join("" if t is None else f"{t}" for t in (start, end))
    )
    return Video(
        path=path.parent / cell,
        name=_composed(cell) + segment,
        labels=tuple(dict.fromkeys(filter(None, (_composed(label.strip()) for label in row["label"].split(";"))))),
        split=row["split"] or None,
        start=start,
        end=end,
        group=row["group"] or None,
        label_map=_without_suffix(cell),
    )


def _seconds(path: Path, line: int, column: str, cell: str) -> float | None:
    if not cell:
        return None
    try:
        seconds = float(cell)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise InputError(
            f"{path}, line {line}: the {column} is {cell!r}; expected seconds from the first frame, such as 1.5; "
            "write a number of at least 0 or leave the cell empty"
        )
    return seconds


def _check_split(path: Path, line: int, split: str) -> None:
    if split not in SPLITS:
        raise InputError(f"{path}, line {line}: the split is {split!r}; expected {', '.join(SPLITS)}; rename it")


def _check_classes(source: Source) -> None:
    """Refuse what no model could learn from; a source without a training split is there to evaluate on only."""
    data, videos = source.name, source.videos
    splits = {video.split for video in videos}
    if splits.isdisjoint({None, "train"}):
        return
    classes = {label for video in videos for label in video.labels}
    if not classes or (len(classes) == 1 and all(len(video.labels) == 1 for video in videos)):
        raise InputError(
            f"{data} has only the class {_some(sorted(classes))}; expected at least 2 classes to tell apart; "
            "add a folder or rows with videos of another one"
        )
    trained = {label for video in videos if video.split in (None, "train") for label in video.labels}
    unseen = sorted(classes - trained)
    if unseen:
        raise InputError(
            f"{data} has no training video of {_some(unseen)}, only videos in val or test; expected every class in the "
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


def _source(data: str, videos: list[Video], multi_label: bool) -> Source:
    classes = sorted({label for video in videos for label in video.labels})
    return Source(data, tuple(classes), tuple(sorted(videos, key=lambda video: video.name)), multi_label)


def _without_suffix(name: str) -> str:
    return PurePosixPath(name).with_suffix("").as_posix()


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "none"


def _shares(class_sizes: Mapping[str, int], fraction: float) -> dict[str, int]:
    """The fraction of each class in whole videos; what one class loses by rounding, the next one gains."""
    shares, before = {}, 0
    for label in sorted(class_sizes):
        up_to_here = before + class_sizes[label]
        shares[label] = round(fraction * up_to_here) - round(fraction * before)
        before = up_to_here
    return shares


def _draw(groups: Mapping[str, Counter[str]], shares: Mapping[str, int], served: Collection[str]) -> set[str]:
    """The groups that leave the training set for one split; `groups` says how many videos of each class one holds.

    Taken in the given order is each group that still fits in its classes' shares. Largest first would fill the shares
    a little better, but it would send the same long recordings to the test for every seed. Then each class in `served`
    that still has nothing gets its smallest group, and what is open is closed from the smallest group upwards where
    that comes closer to the shares, counted a class and in all: with groups larger than any class's share, only the
    sum says when to stop. No group leaves that holds all training videos of a class.
    """
    left = _sum(groups.values())
    wanted = dict(shares)
    wanted_in_all = sum(shares.values())
    drawn: set[str] = set()
    unserved = set(served)

    def fits(content: Counter[str]) -> bool:
        return all(wanted[label] >= count for label, count in content.items())

    def serves(content: Counter[str]) -> bool:
        return not unserved.isdisjoint(content)

    def comes_closer(content: Counter[str]) -> bool:
        change = sum(abs(wanted[label] - count) - abs(wanted[label]) for label, count in content.items())
        return change + abs(wanted_in_all - content.total()) - abs(wanted_in_all) < 0

    smallest_first = sorted(groups, key=lambda group: groups[group].total())
    for rule, order in ((fits, list(groups)), (serves, smallest_first), (comes_closer, smallest_first)):
        for group in order:
            content = groups[group]
            if group not in drawn and rule(content) and all(left[label] > content[label] for label in content):
                drawn.add(group)
                left.subtract(content)
                unserved.difference_update(content)
                wanted_in_all -= content.total()
                for label in content:
                    wanted[label] -= content[label]
    return drawn


def _sum(contents: Iterable[Counter[str]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for content in contents:
        total.update(content)
    return total
