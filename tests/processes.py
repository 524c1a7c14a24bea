"""Processes that start with torch and airstreams imported: a start takes a moment instead of seconds."""

import multiprocessing
import os
import sys
from contextlib import suppress

import pytest
import torch

from airstreams.experiments import evolve, reproduce
from airstreams.experiments.workers import WorkerPool

# Windows has no such context, and the tests that use it are skipped there.
CONTEXT = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else None)
CONTEXT.set_forkserver_preload(
    [
        *("tests.processes", "airstreams.cli", "airstreams.training.loop"),
        *("torch._dynamo", "tensorboard.summary", "imagehash"),  # which the first training would import
    ]
)


class Call:
    """A call of a function in a process of its own, with one thread. Its output goes to a file.

    The process forks the workers of its `WorkerPool`s. Otherwise each of them would import torch again. How a pool
    starts its processes elsewhere is tested in tests/experiments/test_workers.py.
    """

    def __init__(self, function, *arguments, output, new_group=False):
        """Start it.

        Args:
            function: a function of a module, which the new process imports. It may return an exit status.
            arguments: they are pickled.
            output: the file for stdout and stderr.
            new_group: begin a process group, whose id is `pid`.
        """
        self.output = output
        self._end, ours = CONTEXT.Pipe(duplex=False)
        self.process = CONTEXT.Process(target=_run, args=(function, arguments, output, new_group, ours))
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid
        ours.close()

    def poll(self):
        return self.process.exitcode

    def kill(self):
        self.process.kill()

    def send_signal(self, number):
        os.kill(self.pid, number)

    def wait(self, timeout=300):
        """Wait until the process and its own processes have ended; returns the exit status."""
        with suppress(EOFError):  # comes when the last of them has ended
            assert self._end.poll(timeout), "the process or one of its own processes goes on"
            self._end.recv()
        self.process.join(timeout)
        return self.process.exitcode

    def finish(self, timeout=300):
        """Wait for a call that succeeds; returns its output."""
        status = self.wait(timeout)
        printed = self.output.read_text()
        assert status == 0, printed
        return printed


def _forking_pool(size):
    pool = WorkerPool(size)
    pytest.MonkeyPatch().setattr(pool, "_context", multiprocessing.get_context("fork"))
    return pool


def _run(function, arguments, output, new_group, alive):
    if new_group:
        os.setsid()
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)  # sums come out the same only with as many threads
    for module in (evolve, reproduce):
        pytest.MonkeyPatch().setattr(module, "WorkerPool", _forking_pool)
    status = function(*arguments)
    alive.close()
    sys.exit(status)
