"""Predictions of many videos: threads decode ahead, and clips of several videos share a pass through the model.

Threads are enough, since FFmpeg and torch release Python's lock. On a CPU several threads score, each with one thread
of torch: several threads of torch on one small pass mostly wait for each other. All queues are bounded, so memory does
not grow with the number of videos.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from airstreams.data.dataset import ClipFrames
from airstreams.data.listing import Video
from airstreams.data.video import forget_files
from airstreams.errors import VideoError
from airstreams.evaluation.scoring import CLIPS_AT_ONCE
from airstreams.inference.parts import Parts, Prediction, read_parts
from airstreams.inference.scorer import Scorer
from airstreams.runs.saved_model import SavedModel

AHEAD = 64  # videos that may be begun before the first of them is finished
DECODED = 6  # parts of videos that wait for each scoring thread
PIXELS_AT_ONCE = 2**20  # of all frames that a scoring thread on a CPU takes at once; limits memory
GIVE_UP_AFTER = 60.0  # s for threads to end; a part is decoded and scored in far less
REMEMBERED = 100  # files whose times of frames are remembered


def predictions(
    saved: SavedModel, scorer: Scorer, videos: Iterable[Video], workers: int, window: float | None = None
) -> Generator[Prediction | VideoError]:
    """Predict videos, in their order. A video that cannot be read gives its error instead.

    Args:
        saved: the model.
        scorer: of this model.
        videos: they may be endless; only a few are taken ahead.
        workers: how many threads decode.
        window: the length of a window, s; None: `evaluation.window`.

    Raises:
        FloatingPointError: a probability is NaN or infinite.
        VideoError: nothing was decoded for `data.patience` seconds.
    """
    with _threads(saved, scorer, workers, window) as threads:
        waiting: deque[_Job] = deque()
        for video in videos:
            job = _Job(video, saved.classes)
            threads.todo.put(job)
            waiting.append(job)
            while waiting and (waiting[0].result.done() or len(waiting) > AHEAD):
                yield threads.result_of(waiting.popleft())
        while waiting:
            yield threads.result_of(waiting.popleft())


class _Job:
    """A video on its way through the threads."""

    def __init__(self, video: Video, classes: Sequence[str]) -> None:
        self.video = video
        self.classes = classes
        self.result: Future[Prediction | VideoError] = Future()
        self._scores: dict[int, Tensor] = {}
        self._parts: Parts | None = None  # None: not all of them are decoded
        self._lock = threading.Lock()

    def scored(self, number: int, probabilities_K: Tensor) -> None:
        """Take the probabilities of a part."""
        with self._lock:
            self._scores[number] = probabilities_K
            self._finish()

    def decoded(self, parts: Parts) -> None:
        """The whole file was decoded, and it is good."""
        with self._lock:
            self._parts = parts
            self._finish()

    def failed(self, error: BaseException) -> None:
        """A bad file is a result; any other error ends the job."""
        with self._lock:
            if self.result.done():
                return
            if isinstance(error, VideoError):
                self.result.set_result(error)
            else:
                self.result.set_exception(error)

    def _finish(self) -> None:
        parts = self._parts
        if parts is not None and len(self._scores) == max(len(parts.windows), 1) and not self.result.done():
            in_order = [self._scores[number] for number in sorted(self._scores)]
            self.result.set_result(parts.prediction(in_order, self.classes))


Part = tuple[_Job, int, ClipFrames]
"""A job, the number of one of its parts, and the views of that part."""


class _Threads:
    """The threads' queue of videos, and when one of them last did something."""

    def __init__(self, patience: float) -> None:
        self.todo: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self.patience = patience
        self.worked, self.cpu = time.monotonic(), time.process_time()
        self.hang = False

    def work(self) -> None:
        """Note that a thread has done something."""
        self.worked = time.monotonic()

    def result_of(self, job: _Job) -> Prediction | VideoError:
        """Wait for a job. VideoError: no thread did anything for some time."""
        while True:
            try:
                return job.result.result(timeout=1.0)
            except TimeoutError:
                if job.result.done():  # meanwhile, or the error is the job's own
                    return job.result.result()
            if time.process_time() - self.cpu > 1.0:  # something computes, such as a count of frames
                self.cpu = time.process_time()
                self.work()
            if time.monotonic() - self.worked > self.patience:
                self.hang = True
                fix = "Check the disk that it is on"
                raise VideoError(f"nothing could be read for {self.patience:g} s. {fix}", job.video.path)


@contextmanager
def _threads(saved: SavedModel, scorer: Scorer, workers: int, window: float | None) -> Iterator[_Threads]:
    """Run the threads. They are daemons, so that one that waits for a disk does not keep the program from ending."""
    on_cpu = next(saved.model.parameters()).device.type == "cpu"
    threads_of_torch = torch.get_num_threads()
    scorers = threads_of_torch if on_cpu else 1
    threads = _Threads(saved.config.data.patience)
    decoded: queue.Queue[Part | None] = queue.Queue(DECODED * scorers)
    stopped = threading.Event()
    decoding = [
        threading.Thread(target=_decode, args=(saved, window, threads, decoded, stopped), daemon=True)
        for _ in range(workers)
    ]
    scoring = [
        threading.Thread(target=_score, args=(saved, scorer, threads, decoded, on_cpu), daemon=True)
        for _ in range(scorers)
    ]
    for thread in (*decoding, *scoring):
        thread.start()
    try:
        yield threads
    finally:
        stopped.set()
        for _ in decoding:
            threads.todo.put(None)
        threads.work()
        while any(thread.is_alive() for thread in decoding) and not threads.hang:
            with suppress(queue.Empty):  # a decoding thread may wait for room
                decoded.get(timeout=0.02)
            threads.hang = time.monotonic() - threads.worked > GIVE_UP_AFTER
        for _ in scoring:
            decoded.put(None)
        for thread in scoring:
            thread.join(GIVE_UP_AFTER)
        torch.set_num_threads(threads_of_torch)


def _decode(
    saved: SavedModel,
    window: float | None,
    threads: _Threads,
    decoded: "queue.Queue[Part | None]",
    stopped: threading.Event,
) -> None:
    done = 0
    while (job := threads.todo.get()) is not None:
        threads.work()
        try:
            parts, views_of_parts = read_parts(job.video, saved.config, window)
            for number, views in enumerate(views_of_parts):
                threads.work()
                if stopped.is_set():
                    return
                decoded.put((job, number, views))
            job.decoded(parts)
        except Exception as error:
            job.failed(error)
        done += 1
        if done % REMEMBERED == 0:
            forget_files()


def _score(
    saved: SavedModel, scorer: Scorer, threads: _Threads, decoded: "queue.Queue[Part | None]", on_cpu: bool
) -> None:
    at_once = CLIPS_AT_ONCE
    if on_cpu:
        torch.set_num_threads(1)
        clip = saved.config.clip
        at_once = max(1, PIXELS_AT_ONCE // (clip.frames * clip.size**2))
    while (first := decoded.get()) is not None:
        batch, clips, ended = [first], len(first[2].places_VT), False
        with suppress(queue.Empty):
            while clips + len(first[2].places_VT) <= at_once:
                following = decoded.get_nowait()
                if following is None:
                    ended = True
                    break
                batch.append(following)
                clips += len(following[2].places_VT)
        try:
            scores = scorer.score([views for _, _, views in batch], at_once)
            for (job, number, _), probabilities_K in zip(batch, scores, strict=True):
                job.scored(number, probabilities_K)
            threads.work()
        except Exception as error:
            for job, _, _ in batch:
                job.failed(error)
        if ended:
            return
