"""CPU time of one ask after 50, 100 and 200 observations: peftscout (scan, local search), GPSampler, BoTorch.

OMP_NUM_THREADS=1 python benchmarks/bo_speed.py --methods scan scan-saas local local-60 gpsampler
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bo_functions import Function, functions
from peftscout.outcome import Evaluate, Fidelity, Outcome, State
from peftscout.plan import Budget
from peftscout.strategies.autopeft import AutoPeftOptions, autopeft
from peftscout.strategies.base import Problem
from peftscout.strategies.uniform import lora_on_query_value

RESULTS = Path(__file__).parent / "results" / "bo_speed.csv"

Ask = Callable[[], object]


def observed(f: Function, n: int) -> list[tuple[np.ndarray, float]]:
    """Return ``n`` distinct plans with their scores: the initial design goes on, as in a long search."""
    rng = np.random.default_rng(0)
    drawn = (f.space.encode(f.space.decode(v)) for v in f.space.sample_vectors(2 * n, rng))
    distinct = {v.tobytes(): v for v in drawn if v.any()}
    return [(v, f.observe(f.space.decode(v), rng)) for v in list(distinct.values())[:n]]


def ours(name: str, share_of_dearest: float = 1.0, **options: object) -> Callable[[dict[str, Function], int], Ask]:
    """Return what prepares our strategy after n observations; the first scan's enumeration is paid before."""

    def prepare(problems: dict[str, Function], n: int) -> Ask:
        f = problems[name]
        parameters = round(share_of_dearest * f.space.dearest().cost(f.space.sites))
        budget = Budget(parameters, str(parameters))
        plan = lora_on_query_value(f.space.sites, budget).plan
        problem = Problem(f.space.sites, f.space, budget, plan, Fidelity(1), None, 0)
        strategy = autopeft(problem, AutoPeftOptions(initial=20, **options))  # type: ignore[arg-type]
        for vector, score in observed(f, n):
            request = Evaluate(f.space.decode(vector), problem.fidelity, 0)
            strategy.tell(request, Outcome(State.DONE, request.plan.cost(f.space.sites), score))
        if options.get("scan_limit") != 0:
            _ = strategy._candidates.indices
        return lambda: strategy.ask(1)

    return prepare


def gp_sampler(problems: dict[str, Function], n: int) -> Ask:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    f = problems["sweet_spot-15"]
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=optuna.samplers.GPSampler(seed=0))
    grid = {f"v{k}": optuna.distributions.IntDistribution(0, int(m) - 1) for k, m in enumerate(f.space.levels)}
    for vector, score in observed(f, n):
        params = {f"v{k}": int(level) for k, level in enumerate(vector)}
        cost = float(np.log10(f.space.costs(vector[None])[0]))
        study.add_trial(optuna.trial.create_trial(params=params, distributions=grid, values=[score, cost]))
    return lambda: study.ask(grid)


def botorch(problems: dict[str, Function], n: int) -> Ask:
    from botorch_search import propose
    from peftscout.surrogate.features import Encoder

    f = problems["sweet_spot-15"]
    vectors, scores = zip(*observed(f, n), strict=True)
    points = np.column_stack([np.stack(vectors), np.zeros(n, dtype=np.int64)])
    return lambda: propose(Encoder(f.space), points, np.array(scores), 0)


METHODS: dict[str, Callable[[dict[str, Function], int], Ask]] = {
    "scan": ours("sweet_spot-15"),
    "scan-saas": ours("sweet_spot-15", surrogate="saas"),
    "scan-at-1%-of-dearest": ours("sweet_spot-15", 0.01),
    "local": ours("sweet_spot-15", scan_limit=0),
    "local-60": ours("sparse_layer-60", scan_limit=0),
    "gpsampler": gp_sampler,
    "botorch": botorch,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="*", default=list(METHODS)[:6], choices=list(METHODS))
    parser.add_argument("--observations", nargs="*", type=int, default=[50, 100, 200])
    args = parser.parse_args()
    problems = functions()
    RESULTS.parent.mkdir(exist_ok=True)
    for method in args.methods:
        for n in args.observations:
            ask = METHODS[method](problems, n)
            start = time.process_time()
            ask()
            row = (method, n, f"{time.process_time() - start:.2f}")
            is_new = not RESULTS.exists()
            with RESULTS.open("a", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                if is_new:
                    writer.writerow(("method", "observations", "cpu_seconds"))
                writer.writerow(row)
            print(*row, flush=True)


if __name__ == "__main__":
    main()
