"""A `python` command for scripts of the shell: its processes start with torch and airstreams imported.

The command is a small program. It hands its words, its folder, its environment, stdout and stderr to the process of the
tests, which starts the real work as in tests/processes.py, and answers with the exit status.
"""

import json
import os
import runpy
import socket
import sys
import tempfile
import threading
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from tests.processes import CONTEXT

_FOLDER = tempfile.TemporaryDirectory()

CLIENT = """
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as tests:
    tests.connect({address!r})
    call = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)])
    socket.send_fds(tests, [call.encode()], [1, 2])
    os._exit(int(tests.recv(9)))
"""


@cache
def python_words():
    """The words that call the program."""
    program, address = Path(_FOLDER.name, "python.py"), f"{_FOLDER.name}/tests"
    program.write_text(CLIENT.format(address=address))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    threading.Thread(target=_serve, args=(listener,), daemon=True).start()
    return [sys.executable, "-I", "-S", str(program)]


def _serve(listener):
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_answer, args=(connection,), daemon=True).start()


def _answer(connection):
    with connection:
        call, files, *_ = socket.recv_fds(connection, 2**20, 2)
        out, err = [Connection(file) for file in files]  # which can be pickled
        process = CONTEXT.Process(target=_run, args=(*json.loads(call), out, err))
        process.start()
        out.close()
        err.close()
        process.join()
        connection.send(str(process.exitcode).encode())


def _run(words, folder, environment, out, err):
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    out.close()
    err.close()
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", 1, closefd=False)
    torch.set_num_threads(1)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = [*environment.get("PYTHONPATH", "").split(os.pathsep), *filter(None, sys.path)]
    sys.argv = words
    if words[0] == "-c":
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    elif words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(words[0], run_name="__main__")
