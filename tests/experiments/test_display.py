"""How far many trainings are, and how long they take, on a clock that the test moves."""

import io
from datetime import datetime, timedelta

import pytest
from rich.console import Console

from airstreams.console import Progress
from airstreams.estimate import TotalTime
from airstreams.experiments.display import TrainingsDisplay
from tests.test_estimate import Clock

NOON = datetime(2026, 1, 2, 12, 0)


def display_on(clock, total, average=1.0):
    progress = Progress(Console(file=io.StringIO(), width=200), clock)
    total_time = TotalTime(clock=clock, now=lambda: NOON + timedelta(seconds=clock.now))
    return TrainingsDisplay(progress, "searching", "trials", total, total_time, average)


def run(display, clock, trials, workers=2, done=0, steps=100):
    """Let workers do trainings of as many seconds as steps; yields after each second."""
    clock.now += 20.0  # the processes start
    display.update(done, [(0, 0, 1.0)] * workers)
    while done < trials:
        for step in range(1, steps + 1):
            clock.now += 1.0
            display.update(done, [(step, steps, 1.0)] * workers)
            yield done
        done = min(done + workers, trials)
        display.update(done, [(0, 0, 1.0)] * workers)


def test_the_time_left_of_trials_follows_their_steps():
    clock = Clock()
    display = display_on(clock, 10)
    began = clock.now + 20
    for _ in run(display, clock, 10):
        if clock.now > began + 2:
            assert display.task.time_left() == pytest.approx(500 - (clock.now - began), abs=2)
    assert display.task.finished
    assert display.seconds_for(6) == pytest.approx(300, rel=0.01)


def test_trials_of_an_earlier_call_are_counted_and_not_timed():
    clock = Clock()
    display = display_on(clock, 10)
    for _ in run(display, clock, 10, done=6):
        pass
    assert display.task.seconds == pytest.approx(200, abs=2)
    assert "searching: 6 of 10 trials, 2:40 left" in display.progress.console.file.getvalue()


def test_a_row_counts_the_steps_of_all_running_trainings():
    clock = Clock()
    display = display_on(clock, 4)
    rows = set()
    for _ in run(display, clock, 4):
        rows |= {(task.done, task.total) for task in display.progress.tasks if task.unit == "steps"}
    assert {(2, 200), (100, 200)} <= rows
    assert [task.unit for task in display.progress.tasks] == ["trials"]


def test_other_trainings_are_guessed_from_these_until_their_own_steps_are_timed():
    clock = Clock()
    display, later = display_on(clock, 4), display_on(clock, 6)
    later.guess = lambda: display.seconds_for(6)
    for _ in run(display, clock, 4):
        pass
    for _ in range(5):  # processes end and start
        clock.now += 10.0
        display.update(4, [])
        later.update(0, [(0, 0, 1.0)])
        assert later.task.time_left() == pytest.approx(300, rel=0.02)
    for _ in zip(range(10), run(later, clock, 6), strict=False):
        pass
    assert later.task.time_left() == pytest.approx(290, rel=0.02)


def test_the_total_is_said_once_a_tenth_of_a_training_is_done():
    clock = Clock()
    display = display_on(clock, 10)
    for _ in run(display, clock, 10):
        display.say_total("evolve", later=100.0)
    lines = [line for line in display.progress.console.file.getvalue().splitlines() if "in all" in line]
    assert lines == ["evolve: about 10 min in all, until 12:10"]


def test_trainings_with_more_work_take_more_of_the_time():
    clock = Clock()
    display = display_on(clock, 2, average=2.0)
    display.update(0, [(0, 10, 1.0)])
    for step in range(1, 11):
        clock.now += 1.0
        display.update(0, [(step, 10, 1.0)])
    assert display.task.time_left() == pytest.approx(30, abs=0.1)
    display.update(1, [], 1.0)
    assert display.task.time_left() == pytest.approx(30, abs=0.1)
