"""Workers share the cards and threads of a machine, and report their errors."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import airstreams
from airstreams.errors import InputError
from airstreams.experiments.workers import EndedWorker, WorkerPool, portable_error, take_card

CORES = os.cpu_count() or 1


@pytest.mark.parametrize(
    ("limit", "workers", "threads"),
    [({"OMP_NUM_THREADS": "1"}, 1, 1), ({"OMP_NUM_THREADS": "2"}, 1, min(2, CORES)), ({}, CORES, 1)],
    ids=str,
)
def test_a_worker_gets_its_share_of_the_threads(limit, workers, threads):
    code = f"from airstreams.experiments.workers import begin_work; begin_work(0, {workers}, 'cpu')"
    code += "; import torch; print(torch.get_num_threads())"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | limit
    environment["PYTHONPATH"] = str(Path(airstreams.__file__).parents[1])
    assert int(subprocess.check_output([sys.executable, "-c", code], env=environment)) == threads


@pytest.mark.parametrize(("workers", "cards"), [(1, 1), (3, 1), (5, 2), (2, 4)])
def test_workers_take_the_cards_in_turn_and_fit_into_their_memory(monkeypatch, workers, cards):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    taken: list[int] = []
    shares = dict.fromkeys(range(cards), 0.0)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)

    def bound(share):
        shares[taken[-1]] += share

    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", bound)
    for number in range(workers):
        take_card(number, workers)
    assert len(set(taken)) == min(workers, cards)
    assert max(shares.values()) < 1  # CUDA itself takes some memory per process
    assert max(shares.values()) > 0.9


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")
def test_a_worker_gets_its_share_of_a_card_alone():
    fill = (
        "import torch; from airstreams.experiments.workers import begin_work; begin_work(1, 2, 'cuda')\n"
        "total = torch.cuda.get_device_properties(0).total_memory\n"
        "for share in 0.4, 0.5:\n"
        "    try:\n"
        "        kept = torch.empty(int(share * total), dtype=torch.uint8, device='cuda')\n"
        "        print(share, 'fits')\n"
        "    except torch.OutOfMemoryError:\n"
        "        print(share, 'is too much')\n"
        "    kept = None\n"
        "    torch.cuda.empty_cache()\n"
    )
    said = subprocess.check_output([sys.executable, "-c", fill], text=True)
    assert said.splitlines() == ["0.4 fits", "0.5 is too much"]


def test_errors_are_portable_with_their_messages():
    assert str(portable_error(InputError("--lr: got x, expected y"))) == "--lr: got x, expected y"
    assert str(portable_error(ZeroDivisionError())) == "ZeroDivisionError"
    full = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.50 GiB is "
        "free. Including non-PyTorch memory, this process has 26.05 GiB memory in use. See documentation for more."
    )
    assert str(portable_error(full)) == (
        "CUDA out of memory. Tried to allocate 2.00 GiB. Use less memory: --training.cuda_graph false, "
        "--training.accumulate 2, fewer --workers, annotate's --batch-size"
    )


START = """
import multiprocessing, os, signal, sys, time
from airstreams.experiments.workers import begin_work, start_without_signals

def live(pipe):
    os.kill(os.getpid(), signal.SIGINT)  # as a terminal may do while the process still imports
    pipe.send("waits")
    try:
        begin_work(0, 1, "cpu")
    except KeyboardInterrupt:
        os.kill(os.getpid(), signal.SIGTERM)  # the request of the parent, which follows
        pipe.send("stopped")

if __name__ == "__main__":
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=live, args=(there,))
    start_without_signals(process)
    there.close()
    print(here.recv(), here.recv())
    process.join()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="this system has no signal masks")
def test_a_request_to_stop_waits_until_a_worker_has_begun(tmp_path):
    (tmp_path / "begin.py").write_text(START)
    environment = {**os.environ, "PYTHONPATH": str(Path(airstreams.__file__).parents[1])}
    command = [sys.executable, str(tmp_path / "begin.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert (done.stdout.split(), done.stderr) == (["waits", "stopped"], "")


def end_as_told(how):
    """The work of the processes below. It lies in this module, because they import it."""
    if how == "fails":
        raise InputError("--lr: got x, expected y")
    if how == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    while how == "waits":
        time.sleep(0.05)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill a process outright")
def test_a_pool_reports_how_its_processes_end():
    with WorkerPool(3) as pool:
        assert [pool.start("cpu", end_as_told, how) for how in ("ends", "fails", "is killed")] == [0, 1, 2]
        assert pool.is_full
        ended: list[EndedWorker] = []
        while pool.running:
            ended += pool.wait()
        assert pool.start("cpu", end_as_told, "waits") == 0  # its number is free again; it is stopped at the end
        assert pool.wait(0) == []
    assert not multiprocessing.active_children()
    by_number = {worker.number: worker for worker in ended}
    assert by_number[0] == EndedWorker(0, 0, None)
    assert by_number[1].exit_code == 1
    assert isinstance(by_number[1].error, InputError)
    assert "--lr" in str(by_number[1].error)
    assert by_number[2] == EndedWorker(2, -signal.SIGKILL, None)
