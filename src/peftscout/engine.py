"""Run a study: search, tune the contenders, compare on the report split, sum up."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from peftscout.comparison import Comparison, compare
from peftscout.config import StudyConfig
from peftscout.errors import NothingFeasibleError, StudyError
from peftscout.gates import WeightTraining
from peftscout.ledger import Record, Stage
from peftscout.outcome import Evaluate, Fidelity, Outcome
from peftscout.preparation import Prepared, encode_split, make_evaluators
from peftscout.report.progress import Reporter
from peftscout.report.summary import SupernetSpent, summarise
from peftscout.strategies import make_strategy, with_fidelity
from peftscout.strategies.base import Problem, Strategy
from peftscout.study import Study, write_json
from peftscout.tasks import Task, compute_metrics
from peftscout.training.evaluator import Evaluator, save_adapter
from peftscout.training.one_shot import SupernetInTraining, one_shot_factory
from peftscout.training.stack_evaluator import capacity, evaluate_together

FINAL_SEED = 10_000
"""Final seeds begin here plus 100 times the study's seed: never among those of the search."""


def run_study(prepared: Prepared, folder: Path, reporter: Reporter) -> dict[str, Any]:
    """Run or continue a study in ``folder`` and return its summary, which is also written there.

    Raises:
        StudyError: when the folder belongs to another study or process.
        NothingFeasibleError: when no trial ended with a score.
    """
    prepared = prepared.continuing(folder)
    with Study(folder, prepared.header(), prepared.config.storage) as study, reporter, loaded_for_good():
        for note in prepared.task.notes:
            reporter.note(note)
        if prepared.earlier is not None:
            prepared.earlier.save(folder)
            reporter.note(prepared.earlier.note)
        for name, other in prepared.others.items():
            for note in other.task.notes:
                reporter.note(f"{name}: {note}")
        runner = Runner(study, make_evaluators(prepared, folder / "cache", reporter.note), reporter)
        best, baseline = _search(prepared, runner)
        best, baseline = _tune(prepared, runner, best, baseline)
        comparison = _compare(prepared, runner, best, baseline)
        summary = summarise(
            prepared.config,
            prepared.task,
            prepared.problem,
            study.ledger.records(),
            best=best,
            baseline=baseline,
            comparison=comparison,
            total=prepared.backbone.model_map.total,
            supernet=runner.supernet,
            earlier=prepared.earlier,
        )
        write_json(folder / "summary.json", summary)
        return summary


@contextmanager
def loaded_for_good() -> Iterator[None]:
    """Keep the garbage collector from going through everything that is loaded by now, after every trial."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class Runner:
    """Evaluates requests, each at most once in the life of a study.

    Attributes:
        evaluators: by `Evaluate.task`.
        evaluator: that of the study's own task.
        capacity: requests that are worth evaluating at once.
        supernet: what the one-shot search took, once there was one.
    """

    def __init__(self, study: Study, evaluators: Mapping[str, Evaluator], reporter: Reporter) -> None:
        self.study = study
        self.evaluators = evaluators
        self.evaluator = evaluators[""]
        self.reporter = reporter
        self.capacity = min(map(capacity, evaluators.values()))
        self.supernet: SupernetSpent | None = None
        self._best: float | None = None

    def __call__(self, request: Evaluate, stage: Stage, keep: Callable[[Any, Path], None] | None = None) -> Record:
        """Return the record of ``request``: from the ledger when it finished before, else after running it.

        ``keep`` gets the model in its best state and the trial's folder, to keep more than the adapter.
        """
        if (known := self.study.ledger.recall(request)) is not None:
            return self._told(known, recalled=True)
        number, folder = self._start(request, stage)

        def after(model: Any) -> None:
            save_adapter(model, folder / "adapter")
            if keep is not None:
                keep(model, folder)

        outcome = self.evaluators[request.task](request, after=after, progress=self.reporter.step)
        self.study.finish(number, outcome)
        return self._told(Record(number, stage, request, outcome), recalled=False)

    def together(self, requests: Sequence[Evaluate], stage: Stage) -> list[Record]:
        """Return the record of each of ``requests``; those of one task that have to be run share their passes."""
        tasks = {request.task for request in requests}
        if len(tasks) > 1:
            parts = [self.together([r for r in requests if r.task == task], stage) for task in tasks]
            records = {record.request.key: record for part in parts for record in part}
            return [records[request.key] for request in requests]
        asked = [request for request in requests if self.study.ledger.recall(request) is None]
        if len(asked) < 2:
            return [self(request, stage) for request in requests]
        started = [self._start(request, stage) for request in asked]
        outcomes = evaluate_together(
            self.evaluators[asked[0].task],
            asked,
            after=lambda n, model: save_adapter(model, started[n][1] / "adapter"),
            progress=self.reporter.step,
        )
        ran = {}
        for request, (number, _), outcome in zip(asked, started, outcomes, strict=True):
            self.study.finish(number, outcome)
            ran[request.key] = self._told(Record(number, stage, request, outcome), recalled=False)
        return [ran.get(request.key) or self(request, stage) for request in requests]

    def _start(self, request: Evaluate, stage: Stage) -> tuple[int, Path]:
        number = self.study.ledger.start(request, stage)
        self.reporter.started(number, stage, request, request.plan.cost(self.evaluator.backbone.model_map.sites))
        return number, self.study.fresh_trial_folder(number, request.plan)

    def _told(self, record: Record, recalled: bool) -> Record:
        score = None if record.outcome is None else record.outcome.score
        if score is not None and record.stage != "final" and not record.request.task:
            self._best = score if self._best is None else max(score, self._best)
        self.reporter.finished(record, self._best, recalled)
        return record


def _search(prepared: Prepared, runner: Runner) -> tuple[Record, Record]:
    """Trial 0 is the baseline; the strategy has the rest. Return the best record and the baseline's."""
    config, problem = prepared.config, prepared.problem
    later = evaluations_after_search(config)
    runner.reporter.planned(config.trials + later)
    request = Evaluate(problem.baseline, problem.fidelity, problem.seed, 1.0, prepared.baseline.label)
    strategy = with_fidelity(
        prepared.multi_fidelity,
        lambda p: make_strategy(config.strategy, p, config.strategy_options),
        _with_supernet(problem, runner),
    )
    records = [runner(request, "search")]
    strategy.tell(request, _outcome(records[0]))
    noted: str | None = None
    while not (_trials_are_up(prepared, records) or _time_is_up(runner, prepared, records)):
        requests = strategy.ask(runner.capacity if config.time is None else 1)
        noted = _noted(strategy, noted, runner.reporter)
        if not requests:
            break
        for request in requests:
            _refuse_over_budget(request, prepared)
        for record in runner.together(requests, "search"):
            records.append(record)
            strategy.tell(record.request, _outcome(record))
        noted = _noted(strategy, noted, runner.reporter)
    if (earlier := _best_observed(prepared, records)) is not None:
        records += runner.together([earlier], "search")
    runner.reporter.planned(len(records) + later)
    of_own_task = [r for r in records if not r.request.task]
    return _best_of([r for r in of_own_task if prepared.may_be_chosen(r.request.plan)]), records[0]


def _best_observed(prepared: Prepared, records: list[Record]) -> Evaluate | None:
    """Return the best that another study observed within this budget, where it is better than all that is here.

    Of equal scores the cheaper plan is the better one. It is trained here once, so that the study has its adapter and
    its score by its own seed.
    """
    problem = prepared.problem
    own = [_outcome(r) for r in records if prepared.may_be_chosen(r.request.plan)]
    here = [(o.score, -o.cost) for o in own if o.score is not None]
    usable = [
        (outcome.score, -outcome.cost, request)
        for request, outcome in problem.observed
        if outcome.score is not None and outcome.cost in problem.budget and request.fidelity == problem.fidelity
        if prepared.may_be_chosen(request.plan)
    ]
    if not usable:
        return None
    score, cost, request = max(usable, key=lambda row: row[:2])
    if (score, cost) <= max(here, default=(-math.inf, 0)) or any(r.request.plan == request.plan for r in records):
        return None
    return replace(request, seed=problem.seed, label=f"{request.label}, from the other study")


def _noted(strategy: Strategy, noted: str | None, reporter: Reporter) -> str | None:
    """Tell what the strategy has to say, once; return it."""
    note: str | None = getattr(strategy, "note", None)
    if note is not None and note != noted:
        reporter.note(note)
    return note


def _trials_are_up(prepared: Prepared, records: list[Record]) -> bool:
    """Whether there were as many evaluations as asked for; with rungs the strategy keeps account, in steps."""
    return prepared.multi_fidelity is None and len(records) >= prepared.config.trials


def _with_supernet(problem: Problem, runner: Runner) -> Problem:
    """Let strategies that need one open a supernet, whose search is kept in the study's folder."""
    folder = runner.study.folder / "search"
    factory = one_shot_factory(runner.evaluator, problem.space, folder, runner.reporter.step)

    @contextmanager
    def opened(training: WeightTraining) -> Iterator[SupernetInTraining]:
        runner.reporter.searching(len(problem.space.choices), training.steps)
        with factory(training) as one_shot:
            yield one_shot
            runner.supernet = SupernetSpent(one_shot.steps, one_shot.passes, one_shot.seconds)

    return replace(problem, one_shot=opened)


def evaluations_after_search(config: StudyConfig) -> int:
    """Most evaluations that tuning and final comparison take: fewer when the baseline itself is the chosen plan."""
    final = config.final
    return 2 * (len({*final.lr_scales, 1.0}) - 1 + final.seeds) if final.seeds else 0


def _tune(prepared: Prepared, runner: Runner, best: Record, baseline: Record) -> tuple[Record, Record]:
    """Give both contenders the same learning-rate factors, on the search split; return the better record of each.

    The baseline becomes the chosen plan when it is the better one then: nobody is handed a mixture that lost. Unless it
    cannot be exported in the form that was asked for: then the report says by how much it was better.
    """
    if not prepared.config.final.seeds:
        return best, baseline

    def tuned(record: Record) -> Record:
        r = record.request
        others = [s for s in dict.fromkeys(prepared.config.final.lr_scales) if s != r.lr_scale]
        tries = runner.together([replace(r, lr_scale=s) for s in others], "tune")
        return _best_of([record, *tries]) if any(_outcome(r).done for r in (record, *tries)) else record

    best = tuned(best)
    baseline = best if best.request.plan == baseline.request.plan else tuned(baseline)
    return _best_of([best, baseline] if prepared.may_be_chosen(baseline.request.plan) else [best]), baseline


def _compare(prepared: Prepared, runner: Runner, best: Record, baseline: Record) -> Comparison | None:
    """Train both contenders with fresh seeds and compare them on the report split, which is read here and only here."""
    config, task = prepared.config, prepared.task
    if not config.final.seeds or not _outcome(baseline).done:
        return None
    rows = encode_split(prepared, task.report.unlock(), runner.study.folder / "cache")
    searched = replace(prepared.fidelity, data_fraction=1.0)
    fidelity = Fidelity(config.final.steps) if config.final.steps else searched

    def keep(model: Any, folder: Path) -> None:
        save_file({"predictions": runner.evaluator.predict(model, rows)}, folder / "predictions.safetensors")

    def predictions(contender: Record, seed: int) -> np.ndarray:
        r = contender.request
        record = runner(replace(r, fidelity=fidelity, seed=seed), "final", keep)
        if record.outcome is None or not record.outcome.done:
            state = "was interrupted" if record.outcome is None else f"{record.outcome.state}: {record.outcome.message}"
            raise StudyError(
                f"final trial {record.number} ({r.label}, seed {seed}) ended {state}: no comparison is possible"
            )
        return load_file(runner.study.trial_folder(record.number) / "predictions.safetensors")["predictions"]

    seeds = [FINAL_SEED + 100 * config.seed + i for i in range(config.final.seeds)]
    ours = [predictions(best, seed) for seed in seeds]
    theirs = ours if best.request.plan == baseline.request.plan else [predictions(baseline, seed) for seed in seeds]
    return compare(ours, theirs, rows.references, _main_metric(task), seed=config.seed)


def _main_metric(task: Task) -> Callable[[np.ndarray, np.ndarray], float]:
    name = task.metrics[0]
    return lambda predictions, references: compute_metrics((name,), predictions, references)[name]


def _best_of(records: list[Record]) -> Record:
    """Highest score of those with the most training; on a tie the cheaper plan, then the earlier trial.

    Raises:
        NothingFeasibleError: when none has a score.
    """
    done = [
        (r.request.fidelity.data_fraction * r.request.fidelity.steps, r.outcome.score, -r.outcome.cost, -r.number, r)
        for r in records
        if r.outcome is not None and r.outcome.done
    ]
    if not done:
        reasons = "; ".join(
            f"{r.number}: {r.outcome.state} {r.outcome.message}" for r in records if r.outcome is not None
        )
        reasons = reasons or "none was of the form that the export asks for"
        raise NothingFeasibleError(f"no trial ended with a score ({reasons})")
    return max(done, key=lambda row: row[:4])[4]


def _outcome(record: Record) -> Outcome:
    assert record.outcome is not None
    return record.outcome


def _refuse_over_budget(request: Evaluate, prepared: Prepared) -> None:
    cost = request.plan.cost(prepared.backbone.model_map.sites)
    if cost not in prepared.budget or not len(request.plan):
        raise StudyError(
            f"strategy {prepared.config.strategy}: asked for a plan of {cost:,} parameters, {prepared.budget}"
        )


def _time_is_up(runner: Runner, prepared: Prepared, records: list[Record]) -> bool:
    allowed = prepared.config.time
    spent = sum(r.outcome.seconds for r in records if r.outcome is not None)
    return allowed is not None and spent + (runner.supernet.seconds if runner.supernet else 0.0) >= allowed
