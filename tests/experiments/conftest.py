"""What the tests of experiments share: fewer videos than elsewhere, a small recipe, and jobs without processes."""

from dataclasses import replace

import pytest

from airstreams.config import EvolutionConfig
from airstreams.data.sources import open_source
from airstreams.data.synthetic import render
from airstreams.experiments import reproduce
from airstreams.experiments.workers import EndedWorker


@pytest.fixture(scope="session")
def few_videos(tmp_path_factory):
    """Four classes with four training videos and one test video each, of 8 frames of 64 px, in `videos/`, `labels/`."""
    root = tmp_path_factory.mktemp("few")
    render(root, ("disc", "square"), ("left", "up"), {"train": 4, "test": 1}, frames=8, size=64, seed=0)
    return root


@pytest.fixture(scope="session")
def few(few_videos):
    """The source of these videos."""
    return open_source(str(few_videos / "videos"), few_videos / "labels")


@pytest.fixture(scope="session")
def recipe(tiny):
    """A recipe whose training takes about a second: one epoch, one view, and half of the tiny config's filters."""
    return replace(
        tiny,
        seed=5,
        model=replace(tiny.model, width=0.125),
        training=replace(tiny.training, epochs=1),
        evaluation=replace(tiny.evaluation, views=1),
        evolution=EvolutionConfig(population_size=3, tournament_size=2, held_out=0.3, fresh_seeds=2),
    )


class PoolWithoutProcesses:
    """Stands in for a `WorkerPool`: it runs each job at once, in this process."""

    def __init__(self, size):
        self._ended: list[EndedWorker] = []
        self.is_full = False

    def start(self, device, function, *arguments):
        function(*arguments)
        self._ended.append(EndedWorker(len(self._ended), 0, None))
        return len(self._ended) - 1

    def wait(self):
        ended, self._ended = self._ended, []
        return ended

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture
def without_processes(monkeypatch):
    """Lets `run_jobs` run its jobs in this process. Tests of processes leave it out."""
    monkeypatch.setattr(reproduce, "WorkerPool", PoolWithoutProcesses)
