"""Which videos a model learns from and which it is scored by: shared out by chance, written down, read again."""

import random
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from airstreams.config import Config
from airstreams.data.listing import Source, Video, groups_of
from airstreams.errors import InputError


def automatic_split(
    videos: Sequence[Video], seed: int, val_fraction: float = 0.1, test_fraction: float = 0.2
) -> dict[str, str]:
    """Share the videos out by chance: name -> "train", "val" or "test", the same for the same seed in any order.

    Every class comes as close to the fractions as whole groups allow, keeps at least one training video, and gives to
    the test as soon as it has two groups; val takes what can be spared after that. A class of n videos gives val n
    times the fraction, rounded up or down so that the sum over the classes comes out right.
    """
    if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
        raise InputError(
            f"given a val fraction of {val_fraction} and a test fraction of {test_fraction}; "
            "expected both at least 0 and less than 1 together, so that videos to train with are left"
        )
    members: dict[str, list[Video]] = defaultdict(list)
    group_of = groups_of(videos)
    for video in videos:
        members[group_of[video.name]].append(video)
    named = {video.group for video in videos}

    def order(group: str) -> tuple[bool, str]:  # not by their files' paths, which depend on how DATA was given
        return group not in named, group if group in named else min(video.name for video in members[group])

    groups = sorted(members, key=order)
    random.Random(seed).shuffle(groups)
    # Videos without actions count as a class of their own, named "", so that they are shared out evenly as well.
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


def with_drawn_splits(source: Source, config: Config) -> Source:
    """The source with its own splits, or with some drawn by the config's seed and fractions."""
    if source.has_splits:
        return source
    data = config.data
    return with_splits(source, automatic_split(source.videos, config.seed, data.val_fraction, data.test_fraction))


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
