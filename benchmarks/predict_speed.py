"""Predict a folder of videos as version 0.2 did, one video at a time, and as `predict_many` does; print the ratio.

    python benchmarks/predict_speed.py runs/mine data/jhmdb/videos

The old way is kept here as it was: it decodes a file to check it, decodes it again for its views, and scores them in
one pass. Each way runs in processes of its own, in turn, on parts of the list, so that both meet the same load of the
machine. Reading the model and a first video are not timed. CPU time is what all threads of a process used.
"""

import airstreams.cli  # noqa: I001 (before torch: it sets how torch's threads wait, as for `airstreams predict`)

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import airstreams
from airstreams.data.dataset import VideoViews
from airstreams.data.listing import Video
from airstreams.data.video import check
from airstreams.evaluation.scoring import score_views
from airstreams.inference.inputs import list_videos
from airstreams.inference.recogniser import Recogniser


def one_at_a_time(recogniser: Recogniser, paths: list[str]) -> Iterator[dict[str, float]]:
    """Probabilities by class, as version 0.2 computed them for short videos."""
    (answer,) = recogniser.config.answer_heads
    for path in paths:
        video = Video(path=Path(path), name=path, labels=())
        check(video.path)
        views = VideoViews([video], recogniser.config).read(video)
        probabilities, *_ = score_views(recogniser.saved, views.clips, [answer])
        yield dict(zip(recogniser.classes, probabilities[answer].tolist(), strict=True))


def many(recogniser: Recogniser, paths: list[str], workers: int) -> Iterator[dict[str, float]]:
    """The same by `predict_many`."""
    for result in recogniser.predict_many(paths, workers):
        if isinstance(result, airstreams.VideoError):
            raise result
        yield result.probabilities


def measure(way: str, run: str, workers: int, paths: list[str]) -> None:
    """Predict the videos one way, and print seconds and probabilities as JSON."""
    recogniser = airstreams.load(run, "cpu")
    predict = one_at_a_time if way == "old" else lambda recogniser, paths: many(recogniser, paths, workers)
    list(predict(recogniser, paths[:1]))
    wall, cpu = time.perf_counter(), time.process_time()
    answers = list(predict(recogniser, paths))
    seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    print(json.dumps({"seconds": seconds, "answers": answers}))


def main() -> None:
    """Measure both ways, and compare their times and probabilities."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("folder")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--every", type=int, default=1, help="take every n-th video")
    parser.add_argument("--parts", type=int, default=2, help="parts of the list")
    parser.add_argument("--way", choices=("old", "new"), help=argparse.SUPPRESS)
    call = parser.parse_args()
    if call.way:
        measure(call.way, call.run, call.workers, json.load(sys.stdin))
        return
    paths = [video.name for video in list_videos([call.folder], sys.stdin.buffer).videos][:: call.every]
    totals = {way: {"wall": 0.0, "cpu": 0.0} for way in ("old", "new")}
    largest = 0.0
    for part in range(call.parts):
        answers = {}
        for way, total in totals.items():
            command = [sys.executable, __file__, call.run, call.folder, "--way", way, "--workers", str(call.workers)]
            words = json.dumps(paths[part :: call.parts])
            done = subprocess.run(command, input=words, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout)
            answers[way] = found["answers"]
            for kind, seconds in found["seconds"].items():
                total[kind] += seconds
        for old, new in zip(answers["old"], answers["new"], strict=True):
            largest = max(largest, *(abs(probability - new[label]) for label, probability in old.items()))
    print(f"{len(paths)} videos, {call.workers} workers; ms per video:")
    for way, total in totals.items():
        wall, cpu = (total[kind] / len(paths) for kind in ("wall", "cpu"))
        print(f"{way}: {wall * 1e3:.1f} wall ({1 / wall:.1f} videos/s), {cpu * 1e3:.1f} CPU")
    wall, cpu = (totals["old"][kind] / totals["new"][kind] for kind in ("wall", "cpu"))
    print(f"ratio: {wall:.2f} wall, {cpu:.2f} CPU; largest difference of a probability: {largest:.1e}")


if __name__ == "__main__":
    main()
