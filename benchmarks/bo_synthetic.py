"""Search strategies on synthetic AutoPEFT-like problems with known fronts (`bo_functions`).

Every method gets 100 noisy evaluations and sees two objectives: the score, and log10 of the cost (peftscout computes
it, the others are told). Nothing is out of budget, so that no method needs constraints. Reported is the noise-free
hypervolume over the log-cost axis of everything evaluated, as a share of the exact front's, after 25, 50 and 100
evaluations. One row a run is appended to the CSV, so that a run can be stopped and continued; rows that are there are
not run again.

    OMP_NUM_THREADS=1 python benchmarks/bo_synthetic.py --methods autopeft random tpe --seeds 10
    python benchmarks/bo_synthetic.py --table
"""

from __future__ import annotations

import argparse
import csv
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.stats import ttest_rel, wilcoxon

from bo_functions import FLOOR, Function, Levels, functions
from peftscout.outcome import Fidelity, Outcome, State
from peftscout.plan import Budget
from peftscout.strategies.autopeft import AutoPeftOptions, autopeft
from peftscout.strategies.base import Problem
from peftscout.strategies.uniform import lora_on_query_value

RESULTS = Path(__file__).parent / "results" / "bo_synthetic.csv"
COLUMNS = ("function", "method", "seed", "evaluations", "share_25", "share_50", "share_100", "cpu_seconds")

Method = Callable[[Function, int, int], Levels]
"""(function, seed, evaluations) -> the vectors evaluated, in order."""


# -- peftscout --------------------------------------------------------------------------------------------------------


def autopeft_method(options: AutoPeftOptions) -> Method:
    """Return our strategy with ``options``; it is told no baseline, so all evaluations are its own."""

    def run(f: Function, seed: int, evaluations: int) -> Levels:
        dearest = f.space.dearest().cost(f.space.sites)
        budget = Budget(dearest, str(dearest))
        baseline = lora_on_query_value(f.space.sites, budget).plan
        problem = Problem(f.space.sites, f.space, budget, baseline, Fidelity(1), evaluations + 1, seed)
        strategy, noise, vectors = autopeft(problem, options), np.random.default_rng([seed, 9]), []
        while batch := strategy.ask(1):
            plan = batch[0].plan
            strategy.tell(batch[0], Outcome(State.DONE, plan.cost(f.space.sites), f.observe(plan, noise)))
            vectors.append(f.space.encode(plan))
        return np.stack(vectors)

    return run


def random_method(f: Function, seed: int, evaluations: int) -> Levels:
    """Draw every variable uniformly, as the initial design of the AutoPEFT release does."""
    return f.space.sample_vectors(evaluations, np.random.default_rng(seed))


# -- Optuna -----------------------------------------------------------------------------------------------------------


def optuna_method(make_sampler: Callable[[int], object]) -> Method:
    """Return an Optuna sampler on (score up, log10 cost down); integer variables, one a variable of the space."""

    def run(f: Function, seed: int, evaluations: int) -> Levels:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=make_sampler(seed))  # type: ignore[arg-type]
        noise, vectors = np.random.default_rng([seed, 9]), []
        for _ in range(evaluations):
            trial = study.ask()
            vector = np.array([trial.suggest_int(f"v{k}", 0, int(n) - 1) for k, n in enumerate(f.space.levels)])
            cost = int(f.space.costs(vector[None])[0])
            score = f.observe(f.space.decode(vector), noise) if cost else FLOOR
            study.tell(trial, (score, float(np.log10(cost)) if cost else f.reference.cost))
            vectors.append(vector)
        return np.stack(vectors)

    return run


def tpe(seed: int) -> object:
    import optuna

    return optuna.samplers.TPESampler(seed=seed, multivariate=True)


def nsga2(seed: int) -> object:
    import optuna

    return optuna.samplers.NSGAIISampler(seed=seed, population_size=20)


def gp_sampler(seed: int) -> object:
    import optuna

    return optuna.samplers.GPSampler(seed=seed)


# -- BoTorch ----------------------------------------------------------------------------------------------------------


def botorch_method(f: Function, seed: int, evaluations: int) -> Levels:
    """qLogNEHVI with a GP of the score and the exact cost as a second, known objective; discrete local search."""
    from botorch_search import botorch_search

    return botorch_search(f, seed, evaluations)


def botorch_saas_method(f: Function, seed: int, evaluations: int) -> Levels:
    """The same with the paper's kind of surrogate: sparse axes, by MAP."""
    from botorch_search import botorch_search, saas

    return botorch_search(f, seed, evaluations, saas)


METHODS: dict[str, Method] = {
    "autopeft": autopeft_method(AutoPeftOptions(scan_limit=0)),
    "autopeft-scan": autopeft_method(AutoPeftOptions()),
    "autopeft-saas": autopeft_method(AutoPeftOptions(scan_limit=0, surrogate="saas")),
    "autopeft-no-summaries": autopeft_method(AutoPeftOptions(scan_limit=0, summaries=False)),
    "autopeft-design-only": autopeft_method(AutoPeftOptions(initial=1000)),
    "random": random_method,
    "nsga2": optuna_method(nsga2),
    "tpe": optuna_method(tpe),
    "gpsampler": optuna_method(gp_sampler),
    "botorch": botorch_method,
    "botorch-saas": botorch_saas_method,
}


# -- running and reporting --------------------------------------------------------------------------------------------


def read_rows() -> list[dict[str, str]]:
    if not RESULTS.exists():
        return []
    with RESULTS.open(newline="") as file:
        return list(csv.DictReader(file))


def run(names: list[str], methods: list[str], seeds: range, evaluations: int) -> None:
    known = {(r["function"], r["method"], int(r["seed"])) for r in read_rows()}
    problems = functions()
    RESULTS.parent.mkdir(exist_ok=True)
    for seed in seeds:
        for name in names or list(problems):
            for method in methods:
                if (name, method, seed) in known:
                    continue
                f, start = problems[name], time.process_time()
                vectors = METHODS[method](f, seed, evaluations)
                seconds = time.process_time() - start
                shares = [f.share_of_best(vectors[: round(evaluations * part)]) for part in (0.25, 0.5, 1.0)]
                row = (name, method, seed, evaluations, *(f"{s:.5f}" for s in shares), f"{seconds:.1f}")
                is_new = not RESULTS.exists()
                with RESULTS.open("a", newline="") as file:
                    writer = csv.writer(file, lineterminator="\n")
                    if is_new:
                        writer.writerow(COLUMNS)
                    writer.writerow(row)
                print(*row, flush=True)


def table(ours: str = "autopeft") -> None:
    """Print the mean share after all evaluations, and the paired tests of ``ours`` against each method."""
    shares: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    cpu: dict[str, list[float]] = defaultdict(list)
    for r in read_rows():
        shares[r["function"], r["method"]][int(r["seed"])] = float(r["share_100"])
        cpu[r["method"]].append(float(r["cpu_seconds"]) / float(r["evaluations"]))
    methods = [m for m in METHODS if any(method == m for _, method in shares)]
    print("| function | " + " | ".join(methods) + " |\n|---" * 1 + "|---" * len(methods) + "|")
    for name in dict.fromkeys(function for function, _ in shares):
        cells = []
        for method in methods:
            runs = shares.get((name, method), {})
            values = list(runs.values())
            spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
            cell = f"{np.mean(values):.3f}{spread} ({len(values)})" if values else "-"
            cells.append(f"**{cell}**" if method == ours else cell)
        print(f"| {name} | " + " | ".join(cells) + " |")
    print("| CPU s an evaluation | " + " | ".join(f"{np.mean(cpu[m]):.2f}" for m in methods) + " |")
    print(f"\nPaired over seeds, {ours} minus the other: mean difference, p of the t-test, p of the Wilcoxon test\n")
    for method in methods:
        for name in dict.fromkeys(function for function, _ in shares):
            a, b = shares.get((name, ours), {}), shares.get((name, method), {})
            both = sorted(set(a) & set(b))
            if method == ours or len(both) < 3:
                continue
            x, y = np.array([a[s] for s in both]), np.array([b[s] for s in both])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                p_t, p_w = ttest_rel(x, y).pvalue, wilcoxon(x, y).pvalue
            print(f"{method:24s} {name:22s} n={len(both):2d} {np.mean(x - y):+.4f}  p_t={p_t:.1e}  p_w={p_w:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--functions", nargs="*", default=[], help="names (default: all six)")
    parser.add_argument("--methods", nargs="*", default=["autopeft", "random", "nsga2", "tpe"], choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--evaluations", type=int, default=100)
    parser.add_argument("--table", action="store_true", help="print the table of what was run, run nothing")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="optuna")
    if not args.table:
        run(args.functions, args.methods, range(args.first_seed, args.first_seed + args.seeds), args.evaluations)
    table()


if __name__ == "__main__":
    main()
