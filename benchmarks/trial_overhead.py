"""What a trial of a search costs besides its training steps and evaluations, and where that goes.

    OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 python benchmarks/trial_overhead.py --trials 5

A study in a temporary folder evaluates random plans as `peftscout search` does: ask, ledger, build, checks, training,
adapter on disk, reset, ledger, tell. MiniLM's shape with random weights, rows of SST-2's lengths; process CPU time, one
thread. First whole trials are timed; then the parts of trials of two steps, which have the same costs around their
training; last, with --profiled-trials, such trials run under a profiler that is off while they train.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import pstats
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import peftscout
from evaluator_speed import DATA
from peftscout import tuner
from peftscout.config import StudyConfig
from peftscout.executors import LocalExecutor, Retrying, Workplace, work
from peftscout.executors.work import loaded_for_good
from peftscout.ledger import Ledger
from peftscout.outcome import Fidelity
from peftscout.preparation import prepare
from peftscout.report.progress import Silent
from peftscout.runner import Runner
from peftscout.strategies import make_strategy
from peftscout.study import Study
from peftscout.training import evaluator as evaluator_module
from peftscout.training import shortcuts
from peftscout.training.activation_cache import ActivationCache
from speed_cases import MAX_LENGTH, ROWS, SHAPES, Case, known_lengths, load_tokenizer, make_data, save_model
from speed_variants import timed

PROFILED_STEPS = 2

MANY = 1000
"""Trials that the study allows: more than are asked for."""

PACKAGE = str(Path(peftscout.__file__).parent)


PARTS: Mapping[str, tuple[Any, str]] = {
    "ledger: start": (Ledger, "start"),
    "trial folder": (Study, "fresh_trial_folder"),
    "build": (tuner, "build"),
    "check what was built": (tuner, "check_built"),
    "check gradients": (tuner, "check_gradients"),
    "test whether one row is enough": (shortcuts, "find_one_row"),
    "test where to enter": (shortcuts, "find_entrance"),
    "digest of the rows": (shortcuts, "rows_digest"),
    "store activations": (ActivationCache, "build"),
    "load the best state": (tuner, "load_trainable_state"),
    "save the adapter": (work, "save_adapter"),
    "reset": (tuner, "reset"),
    "collect garbage": (gc, "collect"),
    "checksum of the backbone": (tuner, "checksum"),
    "outcome and ledger: finish": (Study, "finish"),
}
"""What is timed by itself; none of them runs inside another."""


@dataclass(frozen=True)
class Trial:
    """CPU seconds of one trial, and of its training steps and evaluations alone."""

    seconds: float
    loop_seconds: float

    @property
    def outside(self) -> float:
        """Share of the trial that is neither training nor evaluation."""
        return (self.seconds - self.loop_seconds) / self.seconds


class Search:
    """A running search that takes one trial at a time."""

    def __init__(self, shape: str, steps: int, folder: Path, data: Path) -> None:
        tokenizer = load_tokenizer()
        case = Case(shape, "sst2", "all", *ROWS[shape, "sst2"])
        rows = make_data(case, tokenizer, known_lengths(case.lengths, data, tokenizer))
        config = StudyConfig.from_mapping(
            {
                "model": str(save_model(shape, tokenizer, folder / "model")),
                "budget": "0.5%",
                "data": {"source": "memory", "max_length": MAX_LENGTH},
                "steps": steps,
                "trials": MANY,
                "training": {"threads": 1},
            }
        )
        self._prepared = prepare(config, rows)
        self._folder = folder / "study"

    @contextmanager
    def running(self) -> Iterator[None]:
        """Hold the study open."""
        with Study(self._folder, self._prepared.header()) as study, loaded_for_good():
            sites = self._prepared.backbone.model_map.sites
            executor = LocalExecutor(Workplace(self._prepared, self._folder / "cache"))
            self._runner = Runner(study, Retrying(executor, sites), sites, Silent())
            self.strategy = make_strategy("random", self._prepared.problem, {})
            yield

    def trial(self, steps: int | None = None) -> Trial:
        """Ask, evaluate, tell; ``steps`` other than the study's are for the profile."""
        started = time.process_time()
        with timed(evaluator_module, "train") as loop:
            (request,) = self.strategy.ask(1)
            run = request if steps is None else replace(request, fidelity=Fidelity(steps))
            (record,) = self._runner.run([run], "search")
            if record.outcome is None or not record.outcome.done:
                raise RuntimeError(f"trial {record.number} has no score: {record.outcome}")
            self.strategy.tell(request, record.outcome)
        return Trial(time.process_time() - started, loop.seconds)


def parts(search: Search, trials: int) -> dict[str, float]:
    """Return the milliseconds a trial that asking and each of `PARTS` takes, and what is left, the largest first."""
    with ExitStack() as stack:
        places = {"ask": (type(search.strategy), "ask"), **PARTS}
        watches = {name: stack.enter_context(timed(*place)) for name, place in places.items()}
        done = [search.trial(PROFILED_STEPS) for _ in range(trials)]
    found = {name: watch.seconds for name, watch in watches.items()}
    found["everything else"] = sum(trial.seconds - trial.loop_seconds for trial in done) - sum(found.values())
    return {name: 1000 * found[name] / trials for name in sorted(found, key=found.__getitem__, reverse=True)}


def profiled(search: Search, trials: int) -> pstats.Stats:
    """Run trials under a profiler of CPU time that is off while they train."""
    profiler, train = cProfile.Profile(time.process_time), evaluator_module.train

    def unseen(*args: Any, **kwargs: Any) -> Any:
        profiler.disable()
        try:
            return train(*args, **kwargs)
        finally:
            profiler.enable()

    with patch.object(evaluator_module, "train", unseen):
        profiler.enable()
        for _ in range(trials):
            search.trial(PROFILED_STEPS)
        profiler.disable()
    return pstats.Stats(profiler)


def largest(stats: pstats.Stats, trials: int, count: int, *, ours: bool) -> list[tuple[float, float, str]]:
    """Return (milliseconds a trial, calls a trial, function), the largest first.

    With ``ours`` peftscout's functions and all that they call; else every function without what it calls.
    """
    found = []
    for (file, _, name), (_, calls, own, cumulative, _) in stats.stats.items():  # type: ignore[attr-defined]
        if not ours or file.startswith(PACKAGE):
            where = file.removeprefix(PACKAGE + "/").rpartition("site-packages/")[2]
            seconds = cumulative if ours else own
            found.append((1000 * seconds / trials, calls / trials, f"{where}: {name}"))
    return sorted(found, reverse=True)[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="minilm")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--profiled-trials", type=int, default=0)
    parser.add_argument("--lines", type=int, default=25, help="of each list")
    parser.add_argument("--data", type=Path, default=DATA)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        search = Search(args.shape, args.steps, Path(scratch), args.data)
        with search.running():
            search.trial()
            trials = [search.trial() for _ in range(args.trials)]
            shares = [100 * trial.outside for trial in trials]
            outside = statistics.median(1000 * (trial.seconds - trial.loop_seconds) for trial in trials)
            whole = statistics.median(trial.seconds for trial in trials)
            share = f"{statistics.median(shares):.2f} % [{min(shares):.2f}-{max(shares):.2f}], n={args.trials}"
            facts = f"{args.shape}, {args.steps} steps: {whole:.2f} s a trial"
            print(f"{facts}, {outside:.0f} ms of it outside of steps and evaluations: {share}")
            for name, milliseconds in parts(search, args.trials).items():
                print(f"{milliseconds:8.1f} ms  {name}")
            stats = profiled(search, args.profiled_trials) if args.profiled_trials else None
    for ours, heading in ((True, "peftscout's functions, with all that they call"), (False, "functions by themselves")):
        if stats is not None:
            print(f"\n{heading}: ms a trial under the profiler, calls a trial")
            for milliseconds, calls, name in largest(stats, args.profiled_trials, args.lines, ours=ours):
                print(f"{milliseconds:8.1f} {calls:8.1f}  {name}")


if __name__ == "__main__":
    main()
