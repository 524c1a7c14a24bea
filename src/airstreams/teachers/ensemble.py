"""Several teachers of label maps as one: a vote in each pixel."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from airstreams.data.label_maps import NO_LABEL
from airstreams.errors import InputError

PREFIX = "ensemble:"
BACKGROUND = "background"


class Member(Protocol):
    """A teacher of label maps."""

    name: str
    classes: tuple[str, ...]

    def __call__(self, frames_THW3: np.ndarray) -> np.ndarray:
        """Label maps, uint8 (T, H, W)."""
        ...


class Ensemble:
    """A teacher that asks several teachers and lets them vote, see `vote`.

    A class is known by its name. Teachers that do not have it vote against it.

    Args:
        members: the teachers.
        votes: how many of them must name a class.
    """

    def __init__(self, members: Sequence[Member], votes: int) -> None:
        self.members, self.votes = list(members), votes
        self.name = PREFIX + ",".join(member.name for member in members)
        self.classes = common_classes([member.classes for member in members])
        self._ids = [common_ids(member.classes, self.classes) for member in members]

    def __call__(self, frames_THW3: np.ndarray) -> np.ndarray:
        """Label maps, uint8 (T, H, W)."""
        maps = [ids[member(frames_THW3)] for member, ids in zip(self.members, self._ids, strict=True)]
        return vote(maps, self.votes)


def members_of(spec: str) -> list[str]:
    """A, B and C of `ensemble:A,B,C`. InputError: fewer than two."""
    names = [name.strip() for name in spec.removeprefix(PREFIX).split(",")]
    if len(names) < 2 or not all(names):
        raise InputError(f"--teacher {spec}: a vote needs at least two members. Give {PREFIX}A,B,C.")
    return names


def votes_needed(spec: str, votes: int | None) -> int:
    """How many members must name a class; None: more than half of them. InputError: more than there are, or none."""
    members = len(members_of(spec))
    if votes is not None and not 1 <= votes <= members:
        raise InputError(f"--votes {votes}: {spec} has {members} members. Give 1 to {members}.")
    return members // 2 + 1 if votes is None else votes


def common_classes(classes_of: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """The background, and the other classes of all members in the order in which they first appear.

    InputError: label maps cannot hold as many.
    """
    found = (BACKGROUND, *dict.fromkeys(name for classes in classes_of for name in classes[1:]))
    if len(found) > NO_LABEL:
        raise InputError(f"The members of the vote have {len(found)} classes together. Label maps hold {NO_LABEL}.")
    return found


def common_ids(classes: Sequence[str], common: Sequence[str]) -> np.ndarray:
    """For each id of a member the common one, uint8 (256,)."""
    ids = np.full(256, NO_LABEL, np.uint8)
    ids[: len(classes)] = [0, *(common.index(name) for name in classes[1:])]
    return ids


def vote(maps: Sequence[np.ndarray], votes: int) -> np.ndarray:
    """The class that most members name in each pixel, if at least `votes` of them do; else the background.

    Of classes with equally many votes, the one with the lower id wins. A pixel is 255, *no label*, where the members
    without a label there could have made a class win.

    maps: the members' label maps, each uint8 of one shape, with common ids.
    """
    most, winner = (np.zeros(maps[0].shape, np.uint8) for _ in range(2))
    for number in sorted({int(number) for ids in maps for number in np.unique(ids)} - {0, NO_LABEL}):
        count = np.sum([ids == number for ids in maps], axis=0, dtype=np.uint8)
        winner[count > most] = number
        most = np.maximum(most, count)
    silent = np.sum([ids == NO_LABEL for ids in maps], axis=0, dtype=np.uint8)
    winner[most < votes] = 0
    winner[(most < votes) & (most + silent >= votes)] = NO_LABEL
    return winner
