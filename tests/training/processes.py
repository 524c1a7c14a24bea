"""Commands in processes that start with torch and airstreams imported: a start takes a moment instead of seconds."""

import multiprocessing
import os
import sys
from contextlib import suppress

import torch

from airstreams.cli import main

# Windows has no such context, and the tests that use it are skipped there.
CONTEXT = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else None)
CONTEXT.set_forkserver_preload(["airstreams.cli", "airstreams.training.loop"])


class Command:
    """A command that runs in a process of its own, with one thread. Its output goes to a file."""

    def __init__(self, arguments, output):
        self.output = output
        self._end, ours = CONTEXT.Pipe(duplex=False)
        self.process = CONTEXT.Process(target=_run, args=(arguments, output, ours))
        self.process.start()
        ours.close()

    def poll(self):
        return self.process.exitcode

    def kill(self):
        self.process.kill()

    def send_signal(self, number):
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait(self, timeout=120):
        """Wait until the process and its decoding processes have ended; returns the exit status."""
        with suppress(EOFError):  # comes when the last of them has ended
            assert self._end.poll(timeout), "the process or one of its decoding processes goes on"
            self._end.recv()
        self.process.join(timeout)
        return self.process.exitcode


def _run(arguments, output, alive):
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)  # sums come out the same only with as many threads
    status = main(arguments)
    alive.close()
    sys.exit(status)
