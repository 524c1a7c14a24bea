"""What the tests of experiments share: fewer videos than elsewhere, a small recipe, and jobs without processes."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
from rich.console import Console

from airstreams.config import EvolutionConfig
from airstreams.data.sources import open_source
from airstreams.data.synthetic import render
from airstreams.experiments import evolve, reproduce
from airstreams.experiments.search import Search
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
        self.running: list[int] = []
        self.steps: dict[int, tuple[int, int]] = {}

    def start(self, device, function, *arguments):
        function(*arguments)
        self._ended.append(EndedWorker(len(self._ended), 0, None))
        return len(self._ended) - 1

    def wait(self, seconds=None):
        ended, self._ended = self._ended, []
        return ended

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@contextmanager
def no_processes():
    """Let `run_jobs` and `evolve` work in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (evolve, reproduce):
            patch.setattr(module, "WorkerPool", PoolWithoutProcesses)
        yield


@pytest.fixture
def without_processes():
    """Lets `run_jobs` and `evolve` work in this process. Tests of processes leave it out."""
    with no_processes():
        yield


@pytest.fixture(scope="session")
def study(few, recipe, tmp_path_factory):
    """A finished search of six trials. Not to be written to."""
    folder = tmp_path_factory.mktemp("studies") / "six"
    search = Search(few, recipe, folder, f"sqlite:///{folder / 'study.db'}", trials=6)
    with no_processes():
        evolve.evolve(search, workers=1, console=Console(quiet=True))
    return folder
