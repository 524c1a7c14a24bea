"""How many wrong labels `airstreams audit-data` finds: some labels of real videos are swapped on purpose.

    python benchmarks/wrong_labels.py 'jhmdb:data/jhmdb?split=1' --features features.safetensors

Each seed gives 5 % of the videos a wrong label, drawn from all other classes. The audit does not know which. The table
has the precision and the recall of what it finds, and of the first 5, 10 and 20 % of all labels in the order of their
doubt. Labels that were wrong before count as right. Intervals are over seeds and groups of videos. The features of the
videos are computed once and kept in a file.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from airstreams.console import stderr
from airstreams.data.content import with_contents
from airstreams.data.grouping import with_alike
from airstreams.data.listing import Video, groups_of
from airstreams.data.sources import open_source
from airstreams.evaluation.data_audit import judge_labels, label_problems, with_recordings
from airstreams.evaluation.intervals import draws, proportion_interval
from airstreams.inference.features import features_of, load_embedder
from airstreams.machine import device_named
from airstreams.percent import with_interval

SHARES = (0.05, 0.1, 0.2)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="DATA with right labels")
    parser.add_argument("--run", default="i3d-kinetics400", help="gives the features, as in audit-data")
    parser.add_argument("--features", type=Path, required=True, help="the file that keeps them")
    parser.add_argument("--swapped", type=float, default=0.05, help="the share of labels that are swapped")
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    source = with_alike(with_contents(open_source(arguments.data), stderr), stderr)
    embedder = load_embedder(arguments.run, device_named(arguments.device), (), None)
    found = features_of(embedder, with_recordings(source), arguments.features, stderr)
    marks = [
        marks_of(found.videos, found.features_NC, source.classes, arguments.swapped, seed) for seed in arguments.seeds
    ]
    console, groups = Console(width=110), [groups_of(found.videos)[video.name] for video in found.videos]
    console.print(f"{len(found.videos)} videos, {len(set(groups))} groups, {len(source.classes)} classes")
    table = Table("to review", "labels", "precision", "recall")
    for name in marks[0]:
        if name != "swapped":
            chosen = [of_seed[name] for of_seed in marks]
            swapped = [of_seed["swapped"] for of_seed in marks]
            both = [chosen_N & swapped_N for chosen_N, swapped_N in zip(chosen, swapped, strict=True)]
            number = f"{np.mean([chosen_N.sum() for chosen_N in chosen]):.0f}"
            table.add_row(name, number, ratio(both, chosen, groups), ratio(both, swapped, groups))
    console.print(table)


def marks_of(
    videos: Sequence[Video], features_NC: np.ndarray, classes: Sequence[str], share: float, seed: int
) -> dict[str, np.ndarray]:
    """Which videos (N,) were swapped, which ones the audit finds, and which are the first in the order of doubt."""
    rng = np.random.default_rng(seed)
    swapped = set(rng.choice(len(videos), round(share * len(videos)), replace=False).tolist())
    given = []
    for number, video in enumerate(videos):
        others = [name for name in classes if name not in video.labels]
        label = str(rng.choice(others)) if number in swapped else video.labels[0]
        given.append(replace(video, labels=(label,)))
    judged = judge_labels(given, features_NC)
    assert judged is not None
    flagged = {problem.video.name for problem in label_problems(judged)}
    own = judged.probabilities_NK[np.arange(len(judged.videos)), judged.target_N]
    order = [judged.videos[n].name for n in np.argsort(own, kind="stable")]
    chosen = {"doubtful labels": flagged}
    chosen |= {f"the first {part:.0%}": set(order[: round(part * len(videos))]) for part in SHARES}
    marks = {name: np.array([video.name in names for video in videos]) for name, names in chosen.items()}
    return {"swapped": np.array([number in swapped for number in range(len(videos))]), **marks}


def ratio(part_SN: Sequence[np.ndarray], whole_SN: Sequence[np.ndarray], groups: Sequence[str]) -> str:
    """The share of one set of videos in another, averaged over seeds, with its interval."""
    part, whole = np.stack(part_SN).astype(float), np.stack(whole_SN).astype(float)
    drawn_RS = np.array([part @ counts_N / np.maximum(whole @ counts_N, 1) for counts_N in draws(groups)])
    values = part.sum(axis=1) / whole.sum(axis=1)
    return with_interval(float(values.mean()), proportion_interval(values, drawn_RS, len(set(groups))))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
