"""Tournament selection against random search and TPE at the paper's budget: what they find in 100 trials.

    python benchmarks/tournament.py --functions quadratic noisy

Five weights from U(0, 1). Each function is to be minimised; its minimum is 0, away from the centre and the borders:

- quadratic: the squared distance to the optimum.
- noisy: the same, but the samplers see it with normal noise of 0.1, as a trial's score is noisy too. The result is the
  value without noise of the trial that looked best.
- rastrigin: the quadratic plus cosines, with a local minimum at every fifth of the range.

All samplers have the same seeds. It prints the mean and the standard error of the best values, and on how many seeds
random search was beaten.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable

import numpy as np
import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from airstreams.experiments.tournament import TournamentSampler

OPTIMUM = {"rgb": 0.9, "flow": 0.1, "semantic": 0.7, "merged": 0.2, "interm": 0.6}
NOISE = 0.1

SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "random": lambda seed: RandomSampler(seed=seed),
    "tournament, worst dies": lambda seed: TournamentSampler(seed=seed),
    "tournament, oldest dies": lambda seed: TournamentSampler(dies="oldest", seed=seed),
    "tpe": lambda seed: TPESampler(seed=seed),
}


def main() -> None:
    """Print a line for each sampler on each function."""
    parser = argparse.ArgumentParser(description="The best values of tournament selection, random search and TPE.")
    parser.add_argument("--functions", nargs="+", choices=FUNCTIONS, default=list(FUNCTIONS), help="default: all")
    parser.add_argument("--trials", type=int, default=100, help="trials per search (default: 100)")
    parser.add_argument("--seeds", type=int, default=30, help="searches per line, at least 2 (default: 30)")
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error(f"--seeds: got {arguments.seeds}, expected at least 2")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    print(f"best of {arguments.trials} trials, {arguments.seeds} seeds")
    print(f"{'function':12}{'sampler':26}{'mean +- s.e.':>18}{'beats random':>15}{'ms/trial':>11}")
    for function in arguments.functions:
        random: list[float] = []
        for name, make in SAMPLERS.items():
            started = time.perf_counter()
            best = [search(FUNCTIONS[function], make(seed), arguments.trials, seed) for seed in range(arguments.seeds)]
            ms = 1e3 * (time.perf_counter() - started) / (arguments.trials * arguments.seeds)
            random = random or best
            beaten = "" if random is best else f"{sum(map(float.__lt__, best, random))} of {len(best)}"
            error = statistics.stdev(best) / math.sqrt(len(best))
            print(
                f"{function:12}{name:26}{statistics.mean(best):9.4f} +- {error:.4f}{beaten:>15}{ms:11.1f}", flush=True
            )


def search(
    function: Callable[[dict[str, float]], tuple[float, float]], sampler: BaseSampler, trials: int, seed: int
) -> float:
    """The value without noise of the trial that looked best."""
    noise = np.random.default_rng(seed)

    def objective(trial: optuna.Trial) -> float:
        value, deviation = function({name: trial.suggest_float(name, 0, 1) for name in OPTIMUM})
        return value + deviation * noise.standard_normal()

    study = optuna.create_study(sampler=sampler)
    study.optimize(objective, n_trials=trials)
    return function(study.best_params)[0]


def quadratic(weights: dict[str, float]) -> tuple[float, float]:
    """The squared distance to the optimum, and the standard deviation of the noise."""
    return sum((weights[name] - best) ** 2 for name, best in OPTIMUM.items()), 0.0


def noisy(weights: dict[str, float]) -> tuple[float, float]:
    """The same with noise."""
    return quadratic(weights)[0], NOISE


def rastrigin(weights: dict[str, float]) -> tuple[float, float]:
    """The quadratic plus waves whose length is a fifth of the range."""
    waves = sum(1 - math.cos(10 * math.pi * (weights[name] - best)) for name, best in OPTIMUM.items())
    return quadratic(weights)[0] + 0.1 * waves, 0.0


FUNCTIONS = {"quadratic": quadratic, "noisy": noisy, "rastrigin": rastrigin}


if __name__ == "__main__":
    main()
