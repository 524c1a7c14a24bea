"""Splits: which videos a model is trained on, validated on and scored on."""

import random
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256

from airstreams.config import Config
from airstreams.data.listing import Source, Video, groups_of
from airstreams.errors import InputError


def automatic_split(
    videos: Sequence[Video], seed: int, val_fraction: float = 0.1, test_fraction: float = 0.2
) -> dict[str, str]:
    """Draw a split for each video: name -> "train", "val" or "test". The order of the videos does not matter.

    Groups stay whole. Every class comes as close to the fractions as whole groups allow and keeps at least one training
    video. A class with at least two groups has a test video. The number of val videos of a class is rounded up or down
    so that the sum over all classes is right.

    Raises:
        InputError: the fractions leave no training videos.
    """
    if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
        raise InputError(
            f"data.val_fraction, data.test_fraction: got {val_fraction} and {test_fraction}; expected both at least 0 "
            "and their sum less than 1, so that training videos are left"
        )
    members: dict[str, list[Video]] = defaultdict(list)
    group_of = groups_of(videos)
    for video in videos:
        members[group_of[video.name]].append(video)
    named = {video.group for video in videos}

    def order(group: str) -> tuple[bool, str]:  # not by path, which depends on how DATA was given
        return group not in named, group if group in named else min(video.name for video in members[group])

    groups = sorted(members, key=order)
    random.Random(seed).shuffle(groups)
    # Videos without labels count as a class of their own, named "", so that they are divided evenly, too.
    rest = {group: Counter(label for video in members[group] for label in video.labels or ("",)) for group in groups}
    class_sizes = Counter(label for content in rest.values() for label in content.elements())
    group_counts = Counter(label for content in rest.values() for label in content)
    tested = {label for label, count in group_counts.items() if count > 1 and test_fraction > 0}

    split_of_group = dict.fromkeys(groups, "train")
    for split, fraction, served in (("test", test_fraction, tested), ("val", val_fraction, set[str]())):
        for group in _draw(rest, _shares(class_sizes, fraction), served):
            split_of_group[group] = split
            del rest[group]
    return {video.name: split_of_group[group] for group in groups for video in members[group]}


def folds_of(videos: Sequence[Video], folds: int, seed: int = 0) -> dict[str, int]:
    """Divide videos into folds for cross-validation: name -> fold, from 1 to `folds`.

    Groups stay whole. The largest groups come first, those of one size in an order that depends on their names and the
    seed. Each goes to the fold in which its classes have the smallest part of their videos so far, and then to the
    smallest one. Neither the order of the videos nor the data's folder matters.

    InputError: there are fewer groups than folds.
    """
    members: dict[str, list[Video]] = defaultdict(list)
    group_of = groups_of(videos)
    for video in videos:
        members[group_of[video.name]].append(video)
    if len(members) < folds:
        raise InputError(f"folds: got {folds} for {len(members)} groups. Give at most as many folds as groups.")

    def order(group: str) -> tuple[int, str]:
        name = min(video.group or video.name for video in members[group])  # not a path, which depends on the folder
        return -len(members[group]), sha256(f"{seed} {name}".encode()).hexdigest()

    class_sizes = Counter(label for video in videos for label in video.labels)
    filled = [Counter[str]() for _ in range(folds)]
    sizes = [0] * folds
    found: dict[str, int] = {}
    for group in sorted(members, key=order):
        content = Counter(label for video in members[group] for label in video.labels)

        def load(fold: int, content: Counter[str] = content) -> tuple[float, int, int]:
            of_classes = sum(count * filled[fold][label] / class_sizes[label] for label, count in content.items())
            return round(of_classes + sum(content.values()) * sizes[fold] / len(videos), 9), sizes[fold], fold

        fold = min(range(folds), key=load)
        filled[fold] += content
        sizes[fold] += len(members[group])
        found |= {video.name: fold + 1 for video in members[group]}
    return found


def with_fold(source: Source, folds: int, fold: int) -> Source:
    """The source with the videos of one fold as test videos, and all others as training videos. See `folds_of`."""
    fold_of = folds_of(source.videos, folds)
    return with_splits(source, {name: "test" if of == fold else "train" for name, of in fold_of.items()})


def with_fewer_training_videos(source: Source, clips: int, sizes: Sequence[int], seed: int) -> Source:
    """The source with at most `clips` training videos of each class. All other splits stay as they are.

    The subset of a size contains that of each smaller size. Groups come in one random order for all classes. Whole ones
    are taken as long as they fit; where none fits, a part of one fills the rest.

    Args:
        source: with one label per video, and splits.
        clips: one of `sizes`.
        sizes: the subsets that are nested.
        seed: of the order.
    """
    train = source.split("train")
    group_of = groups_of(train)
    order = list(dict.fromkeys(group_of[video.name] for video in train))  # by name, not by path
    random.Random(seed).shuffle(order)
    place = {group: number for number, group in enumerate(order)}
    by_class: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for video in sorted(train, key=lambda video: place[group_of[video.name]]):
        by_class[video.labels[0]][group_of[video.name]].append(video.name)
    kept: set[str] = set()
    for groups in by_class.values():
        chosen: dict[str, None] = {}
        for size in sorted(size for size in sizes if size <= clips):
            _fill_up(chosen, list(groups.values()), size)
        kept |= chosen.keys()
    videos = tuple(video for video in source.videos if video.split != "train" or video.name in kept)
    return replace(source, videos=videos)


def _fill_up(chosen: dict[str, None], groups: Sequence[Sequence[str]], size: int) -> None:
    """Add names to `chosen` until it has `size` of them, or all. A group of which it has a part comes first."""
    groups = sorted(groups, key=lambda names: chosen.keys().isdisjoint(names))
    for names in groups:
        if len(chosen.keys() | names) <= size:
            chosen.update(dict.fromkeys(names))
    for name in (name for names in groups for name in names):
        if len(chosen) < size:
            chosen[name] = None


def with_splits(source: Source, assignment: Mapping[str, str]) -> Source:
    """The source with the splits of `assignment`: name -> split. Names of other videos are ignored.

    Raises:
        InputError: a video has no split in it.
    """
    lacking = [video.name for video in source.videos if video.name not in assignment]
    if lacking:
        raise InputError(
            f"no split is given for {len(lacking)} of the {len(source.videos)} videos of {source.name}, such as "
            f"{lacking[0]}; expected one for each; give the splits that were made for this data"
        )
    return replace(source, videos=tuple(replace(video, split=assignment[video.name]) for video in source.videos))


def with_drawn_splits(source: Source, config: Config) -> Source:
    """The source with its own splits, or with an automatic split by the config's seed and fractions."""
    if source.has_splits:
        return source
    data = config.data
    return with_splits(source, automatic_split(source.videos, config.seed, data.val_fraction, data.test_fraction))


def _shares(class_sizes: Mapping[str, int], fraction: float) -> dict[str, int]:
    """The fraction of each class in whole videos. Rounding errors are carried over to the next class."""
    shares, before = {}, 0
    for label in sorted(class_sizes):
        up_to_here = before + class_sizes[label]
        shares[label] = round(fraction * up_to_here) - round(fraction * before)
        before = up_to_here
    return shares


def _draw(groups: Mapping[str, Counter[str]], shares: Mapping[str, int], served: Collection[str]) -> set[str]:
    """Choose the groups that go from the training set to one split.

    1. In the given order, each group that still fits into the shares of its classes. Largest first would fill the
       shares a little better, but would choose the same long recordings for every seed.
    2. For each class in `served` without a group so far, its smallest group.
    3. From the smallest group up, each group that brings the numbers closer to the shares, per class and in total. The
       total is needed where groups are larger than any class's share.

    A group that holds all training videos of a class is never chosen.

    Args:
        groups: for each group the number of videos of each class.
        shares: the wanted number of videos of each class.
        served: classes that need at least one group.
    """
    left = Counter(label for content in groups.values() for label in content.elements())
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
