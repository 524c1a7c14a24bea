"""Jobs with made-up evaluations, for tests of tables without a training."""

import csv
import json
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from airstreams.config import Config
from airstreams.data.listing import Source, Video
from airstreams.evaluation.results import EvaluationMetrics, ScoringProtocol, write_metrics
from airstreams.experiments.reproduce import Job
from airstreams.experiments.table_markdown import markdown_of
from airstreams.experiments.table_results import results_of
from airstreams.experiments.tables import Cell, Table

QUIET = Console(quiet=True)


def markdown_and_results(name, table, jobs, command=""):
    results = results_of(name, table, jobs, command)
    return markdown_of(table, results, jobs), results


def metrics_of_a_split(left_out=0, trained_on=0):
    """Metrics as `evaluate` writes them. Only what a table reads of them matters."""
    return EvaluationMetrics(
        data="data",
        split="test",
        trained_on=trained_on,
        videos=1,
        left_out=left_out,
        classes=1,
        log_loss=0.0,
        unlabelled=0,
        map_unlabelled_as_negatives=None,
        streams={},
        segmentation=None,
        protocol=ScoringProtocol(views=1, crops=1, comparison=None),
        groups=1,
        intervals={},
        per_class={},
    )


def made_up(folder, scores, labels=None, multi_label=False, groups=None, names=None):
    """Jobs with the given evaluations.

    scores: run name to, for each seed, which videos are right, or each video's scores.
    labels: of the videos; all "a" by default, and a wrong video has the scores of "b".
    groups, names: of the videos; by default each is a group of its own.
    """
    jobs = []
    for name, seeds in scores.items():
        for seed, right in enumerate(seeds):
            called = names or [f"v{number}" for number in range(len(right))]
            in_groups = zip(called, groups or called, strict=True)
            videos = tuple(Video(Path(name), name, ("a",), split="test", group=group) for name, group in in_groups)
            source = Source("data", ("a", "b"), videos, multi_label)
            job = Job(name, source, replace(Config(), seed=seed), folder / f"{name}-{seed}")
            job.metrics_file.parent.mkdir(parents=True)
            with (job.metrics_file.parent / "scores.csv").open("w", newline="") as file:
                rows = csv.writer(file)
                rows.writerow(["name", "label", "predicted", "a", "b"])
                for number, is_right in enumerate(right):
                    label = labels[number] if labels else "a"
                    row = (0.9, 0.1) if is_right == (label == "a") else (0.2, 0.8)
                    row = is_right if isinstance(is_right, tuple) else row
                    rows.writerow([called[number], label, "", *row])
                rows.writerow(["broken", "a", "left out: empty file"])
            write_metrics(job.metrics_file, metrics_of_a_split(left_out=1))
            record = {"epoch": 1, "step": 1, "train": {"seconds": 1.0}}
            (job.folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")
            jobs.append(job)
    return jobs


def versus_x(*others):
    rows = {run: (Cell(run, hmdb51=50.0),) for run in ("x", *others)}
    return Table("Made up", rows, reference="x", pairs=tuple((other, "x") for other in others))
