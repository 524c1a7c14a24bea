"""The videos that a run knows, and how they are found again in other data: by content, or else by name.

Two videos are compared by their contents (`data/content.py`) if both have one. Runs of earlier versions know no
contents, and files that cannot be read have none. There the names decide.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

from airstreams.data.listing import SPLITS, Video, overlapping, segment_of


@dataclass(frozen=True)
class KnownVideo:
    """A video that a run used.

    name: in the run's data.
    split: "train", "val" or "test".
    content: None where the run does not know it.
    label: its labels, joined by `;`; None where the run does not know them.
    """

    name: str
    split: str
    content: str | None = None
    label: str | None = None

    @property
    def key(self) -> str:
        """What identifies it: its content and segment, or its name."""
        return _content_key(self.name, self.content) or self.name

    def has_other_labels(self, video: Video) -> bool:
        """Whether the video, as other data lists it, has other labels than the run knows."""
        return self.label is not None and set(self.label.split(";")) - {""} != set(video.labels)


class KnownVideos:
    """A run's videos.

    Args:
        videos: each segment of a file is a video of its own.
    """

    def __init__(self, videos: Iterable[KnownVideo]) -> None:
        self._videos = list(videos)
        self._by_key: dict[str, list[KnownVideo]] = {}
        self._by_name: dict[str, list[KnownVideo]] = {}
        for video in self._videos:
            self._by_key.setdefault(video.key, []).append(video)
            self._by_name.setdefault(video.name, []).append(video)

    def __iter__(self) -> Iterator[KnownVideo]:
        return iter(self._videos)

    @property
    def have_contents(self) -> bool:
        """Whether the content of any of them is known."""
        return any(video.content for video in self._videos)

    def names(self, split: str) -> set[str]:
        """The names of the videos of a split."""
        return {video.name for video in self._videos if video.split == split}

    def overlapping(self, videos: Iterable[Video]) -> list[Video]:
        """Those of `videos` that are among the run's, or share a moment with one of its segments."""
        videos = list(videos)
        keys = {video.name: _content_key(video.name, video.content) for video in videos}
        by_content = overlapping(filter(None, keys.values()), (known.key for known in self._videos if known.content))
        # Names decide only where one of the two has no content.
        by_name = {
            *overlapping(keys, (known.name for known in self._videos if not known.content)),
            *overlapping((name for name, key in keys.items() if key is None), (known.name for known in self._videos)),
        }
        seen = set(by_content)
        return [video for video in videos if keys[video.name] in seen or video.name in by_name]

    def splits_of(self, videos: Sequence[Video]) -> dict[str, str]:
        """The run's split of each video by name. Videos that are new to the run are left out.

        A segment that the run does not have gets the split of one that it overlaps with, "train" first.
        """
        splits: dict[str, str] = {}
        for video in videos:
            same = self._same(video)
            found = {known.split for known in same if known.name == video.name} or {known.split for known in same}
            if found:
                splits[video.name] = min(found, key=SPLITS.index)
        for split in SPLITS:
            of_split = KnownVideos(known for known in self._videos if known.split == split)
            rest = [video for video in videos if video.name not in splits]
            splits |= {video.name: split for video in of_split.overlapping(rest)}
        return splits

    def are_split(self, videos: Sequence[Video], split: str) -> bool:
        """Whether `videos` are the run's own split with its labels, all of it and nothing else.

        Files that the run could not read may be missing.
        """
        own = [known for known in self._videos if known.split == split]
        given: Counter[str] = Counter()
        for video in videos:
            same = [known for known in self._same(video) if known.split == split and not known.has_other_labels(video)]
            if not same:
                return False
            given[same[0].key] += 1
        unreadable = {known.key for known in own if not known.content} if self.have_contents else set()
        listed = Counter(known.key for known in own)
        return given <= listed and (listed - given).keys() <= unreadable

    def relabelled(self, videos: Iterable[Video]) -> list[tuple[Video, str]]:
        """Videos whose labels are not those that the run knows, each with the run's."""
        found = []
        for video in videos:
            same = self._same(video)
            if same and all(known.has_other_labels(video) for known in same):
                found.append((video, same[0].label or "none"))
        return found

    def _same(self, video: Video) -> list[KnownVideo]:
        """The run's videos of the same file and segment."""
        named = self._by_name.get(video.name, [])
        if (key := _content_key(video.name, video.content)) is None:
            return named
        return self._by_key.get(key, []) or [known for known in named if not known.content]


def checksum(videos: Iterable[Video]) -> str:
    """A checksum of videos, the same in another order and, if their contents are known, under other names."""
    keys = sorted(_content_key(video.name, video.content) or video.name for video in videos)
    return sha256("\n".join(keys).encode(errors="surrogateescape")).hexdigest()[:16]


def _content_key(name: str, content: str | None) -> str | None:
    return f"{content}{segment_of(name)}" if content else None
