"""Predictions of many videos: threads decode ahead, and clips of several videos share a pass through the model.

Threads are enough, since FFmpeg and torch release Python's lock. On a CPU several threads score, each with one thread
of torch: several threads of torch on one small pass mostly wait for each other. All queues are bounded, so memory does
not grow with the number of videos.
"""

import queue
import threading
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
    """
    with _threads(saved, scorer, workers, window) as todo:
        waiting: deque[Future[Prediction | VideoError]] = deque()
        for video in videos:
            job = _Job(video, saved.classes)
            todo.put(job)
            waiting.append(job.result)
            while waiting and (waiting[0].done() or len(waiting) > AHEAD):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


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


@contextmanager
def _threads(
    saved: SavedModel, scorer: Scorer, workers: int, window: float | None
) -> "Iterator[queue.SimpleQueue[_Job | None]]":
    """Run the threads; yields the queue of videos to predict."""
    on_cpu = next(saved.model.parameters()).device.type == "cpu"
    threads_of_torch = torch.get_num_threads()
    scorers = threads_of_torch if on_cpu else 1
    todo: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
    decoded: queue.Queue[Part | None] = queue.Queue(DECODED * scorers)
    stopped = threading.Event()
    decoding = [threading.Thread(target=_decode, args=(saved, window, todo, decoded, stopped)) for _ in range(workers)]
    scoring = [threading.Thread(target=_score, args=(saved, scorer, decoded, on_cpu)) for _ in range(scorers)]
    for thread in (*decoding, *scoring):
        thread.start()
    try:
        yield todo
    finally:
        stopped.set()
        for _ in decoding:
            todo.put(None)
        while any(thread.is_alive() for thread in decoding):
            with suppress(queue.Empty):  # a decoding thread may wait for room
                decoded.get(timeout=0.02)
        for _ in scoring:
            decoded.put(None)
        for thread in scoring:
            thread.join()
        torch.set_num_threads(threads_of_torch)


def _decode(
    saved: SavedModel,
    window: float | None,
    todo: "queue.SimpleQueue[_Job | None]",
    decoded: "queue.Queue[Part | None]",
    stopped: threading.Event,
) -> None:
    done = 0
    while (job := todo.get()) is not None:
        try:
            parts, views_of_parts = read_parts(job.video, saved.config, window)
            for number, views in enumerate(views_of_parts):
                if stopped.is_set():
                    return
                decoded.put((job, number, views))
            job.decoded(parts)
        except Exception as error:
            job.failed(error)
        done += 1
        if done % REMEMBERED == 0:
            forget_files()


def _score(saved: SavedModel, scorer: Scorer, decoded: "queue.Queue[Part | None]", on_cpu: bool) -> None:
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
        except Exception as error:
            for job, _, _ in batch:
                job.failed(error)
        if ended:
            return
