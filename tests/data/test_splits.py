"""Splits are drawn by whole groups, near the fractions, for any data."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from airstreams.data.listing import Source, Video, groups_of, overlapping
from airstreams.data.sources import open_source
from airstreams.data.splits import automatic_split, folds_of, with_fewer_training_videos, with_splits
from airstreams.errors import InputError


def touch(root: Path, *names: str) -> Path:
    """Create empty files: sources never open a video."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def listed(sizes: dict[str, int], group_of=lambda label, i: None) -> list[Video]:
    names = [(label, i) for label in sizes for i in range(sizes[label])]
    return [Video(Path(f"{c}/{i}.mp4"), f"{c}/{i}.mp4", (c,), group=group_of(c, i)) for c, i in names]


def counts(videos: list[Video], split: dict[str, str]) -> dict[str, tuple[int, int, int]]:
    """(train, val, test) of each class."""
    found = Counter((label, split[video.name]) for video in videos for label in video.labels)
    labels = {label for video in videos for label in video.labels}
    return {label: (found[label, "train"], found[label, "val"], found[label, "test"]) for label in sorted(labels)}


def test_an_automatic_split_has_the_fractions_in_every_class():
    videos = listed({"a": 10, "b": 20, "c": 100})
    split = automatic_split(videos, seed=0)
    assert counts(videos, split) == {"a": (7, 1, 2), "b": (14, 2, 4), "c": (70, 10, 20)}
    split = automatic_split(videos, seed=0, val_fraction=0.5, test_fraction=0)
    assert counts(videos, split) == {"a": (5, 5, 0), "b": (10, 10, 0), "c": (50, 50, 0)}


def test_a_split_depends_on_the_seed_and_not_on_the_order():
    videos = listed({"a": 20, "b": 20}, lambda label, i: f"{label}{i // 2}")
    split = automatic_split(videos, seed=3)
    mixed = videos.copy()
    random.Random(1).shuffle(mixed)
    moved = [replace(video, path=Path("/else/where", video.path)) for video in mixed]
    assert automatic_split(moved, seed=3) == split
    assert len({tuple(sorted(automatic_split(videos, seed).items())) for seed in range(10)}) == 10


def test_videos_connected_by_files_or_groups_stay_together():
    """Person a is in the files 0 and 1, person b in 1 and 2, so all three files belong together."""
    rows = [(0, "a"), (1, "a"), (1, "b"), (2, "b"), (3, None), (3, "c"), (4, None), (4, None), (5, "d")]
    videos = [
        Video(Path(f"/there/{file}.mp4"), f"{file}.mp4#t={part},", ("x",), group=group)
        for part, (file, group) in enumerate(rows)
    ]
    expected = ["a", "a", "a", "a", "c", "c", "/there/4.mp4", "/there/4.mp4", "d"]
    for order in (videos, videos[::-1]):
        found = groups_of(order)
        assert [found[video.name] for video in videos] == expected
    elsewhere = replace(videos[-3], path=Path("/other/4.mp4"))  # with the same name, as in another copy of the data
    assert groups_of([*videos, elsewhere])[elsewhere.name] == "/other/4.mp4"
    assert groups_of([*videos, elsewhere])[videos[-2].name] == "/other/4.mp4"
    for seed in range(20):
        splits = automatic_split(videos, seed)
        sides = {group: {splits[video.name] for video in videos if found[video.name] == group} for group in expected}
        assert all(len(side) == 1 for side in sides.values())


def test_every_video_can_become_a_test_video():
    videos = listed({"a": 10, "b": 10})
    tested = Counter(n for seed in range(300) for n, s in automatic_split(videos, seed).items() if s == "test")
    assert all(30 <= tested[video.name] <= 90 for video in videos)  # 60 expected, 7 standard deviation


def test_small_classes_serve_train_then_test_then_val():
    videos = listed({"one": 1, "two": 2})
    assert counts(videos, automatic_split(videos, 0)) == {"one": (1, 0, 0), "two": (1, 0, 1)}
    assert counts(videos, automatic_split(videos, 0, val_fraction=0.5)) == {"one": (1, 0, 0), "two": (1, 0, 1)}
    videos = listed({f"c{i}": 4 for i in range(10)})
    found = counts(videos, automatic_split(videos, 0)).values()
    assert sum(val for _, val, _ in found) == 4
    assert all(test == 1 and train >= 2 for train, _, test in found)


def test_segments_of_one_file_stay_together(tmp_path):
    lines = [f"{file}.mp4,{'xy'[start % 2]},{start}" for file in "abc" for start in range(10)]
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    (tmp_path / "list.csv").write_text("\n".join(["path,label,start", *lines]))
    source = open_source(str(tmp_path / "list.csv"))
    for seed in range(20):
        split = automatic_split(source.videos, seed)
        sides = {(video.path, split[video.name]) for video in source.videos}
        assert len(sides) == 3
        assert Counter(side for _, side in sides)["test"] == 1


@pytest.mark.parametrize("trial", range(30))
def test_groups_stay_whole_and_classes_keep_training_videos(trial):
    """Random data: groups of many sizes, some across classes, with one label per video, several or none."""
    chance = random.Random(trial)
    labels = [f"c{i}" for i in range(chance.randint(2, 8))]
    several = trial % 3 == 0
    videos = []
    for g in range(chance.randint(2, 60)):
        label = chance.choice(labels)
        for i in range(chance.randint(1, 6)):
            own = tuple(chance.sample(labels, chance.randint(0, 2))) if several else (label,)
            if trial % 3 == 1:
                own = (chance.choice(labels),)
            videos.append(Video(Path(f"{g}/{i}"), f"{g}/{i}", own, group=f"g{g}"))
    split = automatic_split(videos, seed=trial)
    assert split.keys() == {video.name for video in videos}
    for group in {video.group for video in videos}:
        assert len({split[video.name] for video in videos if video.group == group}) == 1
    for label, (train, _, test) in counts(videos, split).items():
        assert train >= 1
        groups = {video.group for video in videos if label in video.labels}
        if not several and trial % 3 == 2:  # each group has one class, so nothing else prevents a test video
            assert (test >= 1) == (len(groups) > 1)


def test_groups_come_close_to_the_fractions():
    """Groups of 1 to 6 videos, 15 per class: within one small group of the best possible split for every seed."""
    chance = random.Random(0)
    sizes = {label: [chance.randint(1, 6) for _ in range(15)] for label in "abcd"}
    videos = [
        Video(Path(f"{c}{g}/{i}"), f"{c}{g}/{i}", (c,), group=f"{c}{g}")
        for c in sizes
        for g, size in enumerate(sizes[c])
        for i in range(size)
    ]
    for seed in range(50):
        split = automatic_split(videos, seed)
        for label, (_, val, test) in counts(videos, split).items():
            total = sum(sizes[label])
            assert abs(test - 0.2 * total) <= 2
            assert abs(val - 0.1 * total) <= 2


def test_large_groups_still_fill_the_split_as_a_whole():
    videos = listed({f"c{i}": 12 for i in range(10)}, lambda label, i: f"{label}{i // 4}")
    split = automatic_split(videos, seed=0, val_fraction=0.1, test_fraction=0)
    assert Counter(split.values()) == {"train": 108, "val": 12}


def test_where_no_group_fits_the_smallest_is_taken():
    videos = listed({"a": 20}, lambda label, i: "of 5" if i < 5 else "of 6" if i < 11 else "of 9")
    for seed in range(6):
        tested = automatic_split(videos, seed, val_fraction=0, test_fraction=0.2)
        assert counts(videos, tested) == {"a": (15, 0, 5)}  # otherwise the class would have no test video
        validated = automatic_split(videos, seed, val_fraction=0.2, test_fraction=0)
        assert counts(videos, validated) == {"a": (15, 5, 0)}  # 5 is closer to 4 than 0 is


def test_videos_without_labels_are_divided_too():
    videos = [Video(Path(f"{i}"), f"{i}", ("x", "y") if i % 2 else ()) for i in range(40)]
    split = automatic_split(videos, seed=0)
    assert Counter(split[video.name] for video in videos if not video.labels) == {"train": 14, "val": 2, "test": 4}


@pytest.mark.parametrize(("val", "test"), [(0.5, 0.5), (-0.1, 0.2), (0.1, 1.2)])
def test_fractions_that_leave_no_training_videos_are_refused(val, test):
    with pytest.raises(InputError, match=rf"data.val_fraction, data.test_fraction: got {val} and {test}"):
        automatic_split(listed({"a": 5}), 0, val, test)


def test_a_smaller_training_set_is_part_of_a_larger_one():
    videos = listed({"a": 30, "b": 3, "c": 9}, lambda label, i: f"{label}{i // 4}")
    splits = {"a/0.mp4": "test", "a/1.mp4": "val"}
    source = Source("data", ("a", "b", "c"), tuple(replace(v, split=splits.get(v.name, "train")) for v in videos))
    for seed in range(20):
        subsets = [with_fewer_training_videos(source, clips, (2, 5, 10), seed) for clips in (2, 5, 10)]
        names = [{video.name for video in subset.videos} for subset in subsets]
        assert names[0] < names[1] < names[2]
        for subset, clips in zip(subsets, (2, 5, 10), strict=True):
            found = Counter(video.labels[0] for video in subset.split("train"))
            assert found == {"a": clips, "b": min(3, clips), "c": min(9, clips)}
            assert subset.split("test") == source.split("test")
            assert subset.split("val") == source.split("val")
            of_a = Counter(video.group for video in subset.split("train") if video.labels == ("a",))
            whole = Counter(video.group for video in source.split("train") if video.labels == ("a",))
            assert sum(count < whole[group] for group, count in of_a.items()) <= 1  # at most one group is divided
    drawn = {with_fewer_training_videos(source, 5, (5,), seed).split("train") for seed in range(20)}
    assert len(drawn) > 3


def test_whole_groups_are_taken_where_they_fit():
    videos = listed({"a": 7}, lambda label, i: f"{label}{min(i // 2, 2)}")  # groups of two, two and three
    source = Source("data", ("a",), tuple(replace(video, split="train") for video in videos))
    for seed in range(10):
        kept = with_fewer_training_videos(source, 4, (2, 4), seed).split("train")
        assert {video.group for video in kept} == {"a0", "a1"}


def test_splits_of_other_data_are_refused(tmp_path):
    source = open_source(str(touch(tmp_path, "a/1.mp4", "b/1.mp4", "b/2.mp4")))
    with pytest.raises(InputError, match=r"2 of the 3 videos of .*b/1\.mp4"):
        with_splits(source, {"a/1.mp4": "train", "elsewhere.mp4": "test"})


def test_overlapping_segments_share_a_moment():
    draw = random.Random(0)
    for _ in range(300):
        some, others = list[tuple[str, int, int]](), list[tuple[str, int, int]]()
        for parts in [some] * draw.randrange(8) + [others] * draw.randrange(8):
            start = draw.randrange(20)
            parts.append((draw.choice("ab"), start, draw.choice([25, start + 1, draw.randrange(start + 1, 25)])))
        seen = {(file, moment) for file, start, end in others for moment in range(start, end)}
        expected = [part for part in some if any((part[0], moment) in seen for moment in range(*part[1:]))]
        assert overlapping(map(part_name, some), map(part_name, others)) == list(map(part_name, expected))


def part_name(part):
    """The name of a segment; a whole file has its own name, and bounds that are the file's are left out."""
    file, start, end = part
    bounds = f"#t={float(start) if start else ''},{float(end) if end < 25 else ''}"
    return file if bounds == "#t=," else file + bounds


def test_folds_depend_on_neither_the_order_nor_the_folder():
    videos = [
        Video(Path(f"a/{label}{n}.mp4"), f"{label}{n}", (label,), group=f"{label}{n // 3}" if n < 9 else None)
        for label in ("x", "y")
        for n in range(20)
    ]
    folds = folds_of(videos, 4)
    moved = [replace(video, path=Path("b") / video.path.name) for video in reversed(videos)]
    assert folds_of(moved, 4) == folds
    assert folds_of(videos, 4, seed=1) != folds
    assert sorted(Counter(folds.values()).values()) == [10, 10, 10, 10]
    for label in ("x", "y"):
        assert max(Counter(folds[video.name] for video in videos if label in video.labels).values()) <= 6
        assert len({folds[f"{label}{n}"] for n in range(3)}) == 1
    with pytest.raises(InputError, match="folds"):
        folds_of(videos, 29)
