"""How long a training takes in all, on a clock that the test moves."""

from datetime import datetime, timedelta

import pytest

from airstreams.training.display import FIRST_SECONDS, FIRST_STEPS, TrainingTime
from tests.test_estimate import Clock

NOON = datetime(2026, 1, 2, 12, 0)


def take(time, clock, steps, seconds):
    """Take steps of this length; returns what was said."""
    said = []
    for _ in range(steps):
        clock.now += seconds
        time.step()
        said.append(time.news())
    return [line for line in said if line]


def training_time(clock, **options):
    given = {"steps": 400, "done": 0, "validations": 0, "steps_per_validation": 0.0, "began": 0.0} | options
    return TrainingTime(**given, clock=clock, now=lambda: NOON + timedelta(seconds=clock.now))


def validate(time, clock, seconds):
    with time.validation():
        clock.now += seconds


def test_the_total_is_said_once_after_the_first_steps_and_counts_the_start_up():
    clock = Clock()
    clock.now = 60.0
    time = training_time(clock)
    assert time.left() is None
    assert take(time, clock, FIRST_STEPS, 2.0) == []
    assert take(time, clock, 1, 2.0) == ["about 14 min in all, until 12:14"]  # 1 min, and 400 steps of 2 s
    assert time.left() == 396 * 2
    assert take(time, clock, 396, 2.0) == []
    assert time.left() == 0


def test_fast_steps_are_timed_for_some_seconds_first():
    clock = Clock()
    time = training_time(clock, steps=100_000)
    while clock.now < FIRST_SECONDS:
        assert take(time, clock, 1, 0.02) == []
    assert len(take(time, clock, 10, 0.02)) == 1


def test_a_short_training_is_estimated_too():
    clock = Clock()
    assert len(take(training_time(clock, steps=4), clock, 4, 0.1)) == 1


def test_an_estimate_that_moves_by_a_third_is_corrected():
    clock = Clock()
    time = training_time(clock)
    assert take(time, clock, 10, 1.0) == ["about 7 min in all, until 12:07"]
    said = take(time, clock, 60, 4.0)
    assert said
    assert all(line.startswith("now about") for line in said)
    assert len(said) <= 3


def test_validations_count_before_and_after_the_first_one():
    clock = Clock()
    time = training_time(clock, steps=100, validations=4, steps_per_validation=30.0)
    take(time, clock, 25, 1.0)
    assert time.left() == pytest.approx(75 + 4 * 10)  # a validation costs the forward passes of 30 steps
    validate(time, clock, 20.0)
    assert time.left() == pytest.approx(75 + 3 * 20)
    take(time, clock, 25, 1.0)
    assert time.left() == pytest.approx(50 + 3 * 20)
    with time.validation():
        clock.now += 5.0
        assert time.left() == pytest.approx(50 + 3 * 20 - 5)
        clock.now += 15.0


def test_the_estimate_of_a_whole_training_is_within_a_tenth_from_the_first_epoch_on():
    clock, left = Clock(), []
    time = training_time(clock, steps=300, validations=3, steps_per_validation=50.0)
    for _ in range(3):
        for number in range(100):
            clock.now += 1.0 + 0.5 * (number % 3)
            time.step()
            left.append((clock.now, time.left()))
        validate(time, clock, 25.0)
    total = clock.now
    assert all(abs(now + seconds - total) < 0.1 * total for now, seconds in left[30:])


def test_a_resumed_training_estimates_the_steps_of_this_call():
    clock = Clock()
    time = training_time(clock, done=300)
    take(time, clock, 20, 1.0)
    assert time.left() == 80
