"""Training samples per CPU second of peftscout's evaluator, of Optuna + Trainer + peft, and of AutoPEFT's settings.

    OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 python benchmarks/evaluator_speed.py --shape minilm --lengths rte --tuned all
    python benchmarks/evaluator_speed.py --report

Every variant trains the same rows for one epoch and evaluates the same rows once, on one thread; the variants take
turns in random order in one process, after one call each to warm up. Time is process CPU time. A ratio is that of two
calls of the same repeat; the table has the median of the ratios, the least and the greatest. "Samples/s" and the first
ratios count training steps and evaluation, "whole call" also building, checking and taking apart. Rows are added to
benchmarks/results/evaluator_speed.csv; a run that was killed goes on with the repeats that are missing.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

import speed_rows
from speed_cases import ROWS, SHAPES, Case, known_lengths, load_tokenizer, make_data, save_model
from speed_variants import VARIANTS, make_variant, process_start

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "evaluator_speed.csv"
DATA = HERE.parent.parent / "shared" / "data"
SOURCE = HERE.parent / "src" / "peftscout"


def measure(case: Case, variants: Iterable[str], repeats: int, out: Path, data: Path = DATA) -> list[speed_rows.Row]:
    """Measure what is missing of a case, and return all its rows."""
    torch.set_num_threads(1)
    tokenizer = load_tokenizer()
    known = known_lengths(case.lengths, data, tokenizer)
    facts = {
        "code": speed_rows.code_hash(SOURCE),
        **speed_rows.machine(),
        "shape": case.shape,
        "lengths": case.lengths,
        "length_source": "quantiles" if known is None else "data",
        "tuned": case.tuned,
        "train_rows": str(case.train_rows),
        "eval_rows": str(case.eval_rows),
    }
    names = tuple(variants)
    todo = speed_rows.missing_repeats(speed_rows.of_case(speed_rows.read(out), facts), names, repeats)
    if todo:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            model = save_model(case.shape, tokenizer, folder / "model")
            rows = make_data(case, tokenizer, known)
            made = {name: make_variant(name, case, model, rows, tokenizer, folder) for name in names}
            for name, variant in made.items():
                if (first := variant.warm_up()) is not None:
                    speed_rows.append(out, facts, name, speed_rows.WARM_UP, first)
            for repeat in todo:
                for name in np.random.default_rng(repeat).permutation(names):
                    gc.collect()
                    speed_rows.append(out, facts, str(name), repeat, made[name]())
    return speed_rows.of_case(speed_rows.read(out), facts)


def title(case: speed_rows.Row) -> str:
    """Return what a table is about."""
    facts = "{shape}, {lengths} lengths ({length_source}), {tuned} layers tuned, {train_rows} + {eval_rows} rows"
    where = "{cpu} ({flags}), torch {torch}, transformers {transformers}, peft {peft}, code {code}"
    return f"{facts}; {where}".format(**case)


def report(path: Path) -> None:
    """Print the tables of every case in a file."""
    rows = speed_rows.read(path)
    for case in speed_rows.cases(rows):
        print(f"{title(case)}\n\n{speed_rows.table(speed_rows.of_case(rows, case), VARIANTS)}\n")


def start_up(shape: str, repeats: int) -> None:
    """Print what a process for every trial costs."""
    with tempfile.TemporaryDirectory() as scratch:
        model = save_model(shape, load_tokenizer(), Path(scratch))
        seconds = [process_start(model) for _ in range(repeats)]
    print(f"{shape}: {np.median(seconds):.2f} s [{min(seconds):.2f}-{max(seconds):.2f}] CPU a process, n={repeats}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=list(SHAPES), default=["minilm"])
    parser.add_argument("--lengths", nargs="+", choices=["rte", "sst2"], default=["rte", "sst2"])
    parser.add_argument("--tuned", nargs="+", choices=["all", "upper"], default=["all", "upper"])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--train-rows", type=int, help="one epoch of so many rows; by default by shape and lengths")
    parser.add_argument("--eval-rows", type=int)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with rte/train.jsonl and sst2/train.jsonl")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument(
        "--report", action="store_true", help="print the tables of the rows that are there, run nothing"
    )
    parser.add_argument("--start-up", action="store_true", help="measure what a process for every trial costs")
    args = parser.parse_args()
    if args.report:
        return report(args.out)
    for shape in args.shape:
        if args.start_up:
            start_up(shape, args.repeats)
            continue
        for lengths in args.lengths:
            for tuned in args.tuned:
                train, evaluation = ROWS[shape, lengths]
                case = Case(shape, lengths, tuned, args.train_rows or train, args.eval_rows or evaluation)
                rows = measure(case, args.variants, args.repeats, args.out, args.data)
                print(f"{title(rows[0])}\n\n{speed_rows.table(rows, VARIANTS)}\n", flush=True)
    return None


if __name__ == "__main__":
    main()
