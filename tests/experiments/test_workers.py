"""Workers share a machine's cards and threads, and tell their errors to the one that started them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import airstreams
from airstreams.errors import InputError
from airstreams.experiments.workers import portable_error, take_card

CORES = os.cpu_count() or 1


@pytest.mark.parametrize(
    ("limit", "workers", "threads"),
    [({"OMP_NUM_THREADS": "1"}, 1, 1), ({"OMP_NUM_THREADS": "2"}, 1, min(2, CORES)), ({}, CORES, 1)],
    ids=str,
)
def test_a_worker_has_its_share_of_the_threads_and_no_more_than_it_may(limit, workers, threads):
    begin = f"from airstreams.experiments.workers import begin_work; begin_work(0, {workers}, 'cpu')"
    said = f"{begin}; import torch; print(torch.get_num_threads())"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | limit
    environment["PYTHONPATH"] = str(Path(airstreams.__file__).parents[1])
    assert int(subprocess.check_output([sys.executable, "-c", said], env=environment)) == threads


@pytest.mark.parametrize(("workers", "cards"), [(1, 1), (3, 1), (5, 2), (2, 4)])
def test_workers_are_shared_out_over_the_cards_whose_memory_suffices_for_all(monkeypatch, workers, cards):
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
    assert max(shares.values()) < 1  # CUDA itself takes some for each process
    assert max(shares.values()) > 0.9


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")
def test_a_worker_gets_its_share_of_a_card_and_no_more():
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


def test_errors_are_told_in_words_that_help():
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
from airstreams.experiments.workers import begin_work, start

def live(pipe):
    os.kill(os.getpid(), signal.SIGINT)  # as a terminal may while the process still imports
    pipe.send("deaf")
    try:
        begin_work(0, 1, "cpu")
    except KeyboardInterrupt:
        os.kill(os.getpid(), signal.SIGTERM)  # the parent's own request
        pipe.send("heard")

if __name__ == "__main__":
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=live, args=(there,))
    start(process)
    there.close()
    print(here.recv(), here.recv())
    process.join()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="this system has no masks of signals")
def test_a_worker_hears_a_request_to_stop_once_it_can_act_on_it(tmp_path):
    (tmp_path / "begin.py").write_text(START)
    environment = {**os.environ, "PYTHONPATH": str(Path(airstreams.__file__).parents[1])}
    command = [sys.executable, str(tmp_path / "begin.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert (done.stdout.split(), done.stderr) == (["deaf", "heard"], "")
