"""How much of the machine a search uses: its trials per hour against independent trainings side by side.

    python benchmarks/evolve_throughput.py videos/ --labels labels/ --config mine.yaml --workers 2 --trials 6

The reference is N processes that start at once, each with one training, without a database. Both times include the
start of the processes. It also prints the time that a trial takes beside its steps.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import optuna
from rich.console import Console

from airstreams.config import Config
from airstreams.data.listing import Source
from airstreams.data.sources import open_source
from airstreams.data.splits import with_drawn_splits
from airstreams.experiments.evolve import evolve
from airstreams.experiments.search import Search
from airstreams.experiments.trials import trial_config, trial_source
from airstreams.experiments.workers import WorkerPool
from airstreams.recipe import load_config, recipe_path
from airstreams.training.loop import train


def train_alone(source: Source, config: Config, run: Path) -> None:
    """One training, in a process of its own."""
    train(source, config, run, resume=False, console=Console(quiet=True))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="DATA")
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--config", required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--trials", type=int, default=6)
    call = parser.parse_args()
    config = load_config(recipe_path(call.config))
    config = replace(config, evolution=replace(config.evolution, fresh_seeds=1))
    source = with_drawn_splits(open_source(call.source, call.labels), config)
    weights = dict.fromkeys(config.lambdas(), 1.0)  # all losses are trained, as in a trial
    trial = trial_config(config, weights, config.seed)
    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        with WorkerPool(call.workers) as pool:
            for number in range(call.workers):
                run = Path(folder) / str(number)
                pool.start(trial.training.device, train_alone, trial_source(source, trial), trial, run)
            while pool.running:
                pool.wait()
        reference = call.workers / (time.time() - began)

        study = Path(folder) / "study"
        search = Search(source, config, study, f"sqlite:///{study / 'study.db'}", call.trials)
        began = time.time()
        evolve(search, call.workers, Console(stderr=True))
        trials = optuna.load_study(storage=search.url, study_name=search.name).get_trials()
        ended = max(done.datetime_complete.timestamp() for done in trials if done.datetime_complete)
        durations = [done.duration.total_seconds() for done in trials if done.duration]
        steps = []
        for metrics in study.glob("trials/*/metrics.jsonl"):
            entries = map(json.loads, metrics.read_text(encoding="utf-8").splitlines())
            steps.append(sum(entry["train"]["seconds"] for entry in entries if "train" in entry))
    rate = call.trials / (ended - began)
    beside = (sum(durations) - sum(steps)) / call.trials
    print(f"independent trainings: {3600 * reference:.1f} per hour, {call.workers} side by side")
    print(f"trials: {3600 * rate:.1f} per hour, {call.workers} workers; ratio {rate / reference:.2f} (aim 0.9)")
    print(f"a trial: {sum(durations) / call.trials:.1f} s, {beside:.1f} s beside its steps (scoring and more)")


if __name__ == "__main__":
    main()
