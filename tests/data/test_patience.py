"""A loader whose processes hang, die or run out of file descriptors ends in one line, and leaves no process behind."""

import multiprocessing
import os
import signal
import sys
import time

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from airstreams.data.loader_processes import loader_options, share_memory
from airstreams.data.patience import StoppedWaitingError, patiently, reading
from airstreams.errors import VideoError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="loaders fork on Linux only")


class Items(Dataset):
    """Item 2 stops its process, as a hung disk would, while it reads its file."""

    def __init__(self, folder, stops=True, files=0):
        self.folder, self.stops, self.files = folder, stops, files

    def __len__(self):
        return 4

    def __getitem__(self, index):
        with reading(self.folder / f"video {index}.mp4"):
            if self.stops and index == 2:
                os.kill(os.getpid(), signal.SIGSTOP)
        self.opened = [open(os.devnull) for _ in range(self.files)]  # noqa: SIM115, PTH123 (they stay open)
        item = torch.zeros(3)
        share_memory([item])
        return index, item


def loader(items, persistent=False):
    return DataLoader(items, batch_size=None, persistent_workers=persistent, **loader_options(1))


@pytest.fixture(autouse=True)
def no_process_is_left():
    yield
    assert multiprocessing.active_children() == []


def test_the_file_that_hangs_is_named(tmp_path):
    seen: list[int] = []
    began = time.monotonic()
    with pytest.raises(VideoError, match=r"video 2\.mp4: .*data\.patience") as raised:
        seen.extend(index for index, _ in patiently(loader(Items(tmp_path)), patience=1.5))
    assert seen in ([], [0], [0, 1])  # a stopped process may not have passed on what it had finished
    assert raised.value.path == tmp_path / "video 2.mp4"
    assert time.monotonic() - began < 20


def test_a_request_to_stop_is_heeded_while_it_hangs(tmp_path):
    asked = iter([False, True])
    with pytest.raises(StoppedWaitingError):
        list(patiently(loader(Items(tmp_path)), patience=60, stop=lambda: next(asked)))


def test_epochs_of_a_loader_that_keeps_its_processes(tmp_path):
    kept = loader(Items(tmp_path, stops=False), persistent=True)
    for _ in range(3):
        assert [index for index, _ in patiently(kept, patience=60)] == [0, 1, 2, 3]
    (process,) = kept._iterator._workers
    epoch = patiently(kept, patience=60)
    next(epoch)
    epoch.close()  # the caller failed
    assert not process.is_alive()


def test_without_processes_it_is_the_loader_itself(tmp_path):
    plain = DataLoader(Items(tmp_path, stops=False), batch_size=None)
    assert [index for index, _ in patiently(plain, patience=0.01)] == [0, 1, 2, 3]


def test_too_many_open_files_name_the_limit(tmp_path):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        with pytest.raises(RuntimeError, match=r"too many open files.*ulimit -n"):
            list(patiently(loader(Items(tmp_path, stops=False, files=120)), patience=60))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
