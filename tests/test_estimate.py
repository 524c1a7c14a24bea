"""Estimates of the time left, on a clock that the test moves: known work, known speed, known end."""

import random
from datetime import datetime

import pytest

from airstreams.estimate import OVERDUE, Estimate, clock_time, in_words, total_in_words


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def errors(durations, works=None, done_before=0.0):
    """How wrong the estimate is after each unit, as a share of what is left."""
    works = works or [1.0] * len(durations)
    clock, left, found = Clock(), sum(durations), []
    estimate = Estimate(sum(works) + done_before, done_before, clock)
    for duration, work in zip(durations, works, strict=True):
        clock.now += duration
        left -= duration
        estimate.advance(work)
        if left > 1e-6:
            found.append(abs(estimate.left() - left) / left)
    return found


def test_equal_units_are_estimated_exactly():
    assert max(errors([0.5] * 1000)) < 1e-6


def test_finished_work_before_the_start_has_no_influence():
    assert max(errors([2.0] * 100, done_before=10_000)) < 1e-6


def test_units_of_random_length_are_estimated_from_a_tenth_on():
    draw = random.Random(0)
    found = errors([draw.uniform(0.1, 2.0) for _ in range(1000)])
    assert max(found[100:900]) < 0.2
    assert sum(found[100:900]) / 800 < 0.06


def test_work_in_frames_is_right_where_a_count_of_files_is_wrong():
    """Short files first, long ones last: by files, a fraction of the true time is left."""
    frames = [40.0] * 80 + [400.0] * 20
    seconds = [0.03 * count for count in frames]
    assert max(errors(seconds, frames)) < 0.01
    by_file = errors(seconds)
    assert by_file[79] > 0.8


def test_a_fast_beginning_is_forgotten():
    """The first 100 of 1000 units cost nearly nothing, because a cache has them."""
    found = errors([0.01] * 100 + [1.0] * 900)
    assert max(found[400:]) < 0.05


def test_a_slower_second_half_is_noticed_within_the_window():
    found = errors([0.1] * 1000 + [0.4] * 1000)
    assert found[1500] < 0.35
    assert max(found[1750:]) < 0.1


def test_waiting_counts_down_and_ends_in_no_estimate():
    clock = Clock()
    estimate = Estimate(2, clock=clock)
    assert estimate.left() is None
    clock.now = 10.0
    estimate.advance()
    assert estimate.left() == 10
    clock.now = 14.0
    assert estimate.left() == 6
    clock.now = 20.0 + OVERDUE / 2
    assert estimate.left() == 0
    clock.now = 20.0 + OVERDUE
    assert estimate.left() is None
    estimate.advance()
    assert estimate.left() == 0


@pytest.mark.parametrize(
    ("seconds", "shown", "words"),
    [
        (7, "0:07", "10 s"),
        (38, "0:38", "40 s"),
        (58, "0:58", "1 min"),
        (754, "12:34", "13 min"),
        (3599.6, "1:00:00", "1 h"),
        (5400, "1:30:00", "1 h 30 min"),
        (12_000, "3:20:00", "3 h 20 min"),
        (86_400, "24:00:00", "1 day"),
        (187_200, "52:00:00", "2 days 4 h"),
    ],
)
def test_durations_are_written_for_displays_and_for_sentences(seconds, shown, words):
    assert clock_time(seconds) == shown
    assert in_words(seconds) == words


def test_the_end_has_its_day_where_that_is_not_today():
    friday = datetime(2026, 1, 2, 17, 31)
    assert total_in_words(720, 720, friday) == "about 12 min in all, until 17:43"
    assert total_in_words(9 * 3600, 8 * 3600, friday) == "about 9 h in all, until Saturday 01:31"
    assert total_in_words(10 * 86_400, 10 * 86_400, friday).endswith("until 12 January 17:31")
