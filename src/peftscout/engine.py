"""Run a study: search, tune the contenders, compare on the report split, sum up."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from peftscout.comparison import Comparison, compare
from peftscout.config import StudyConfig
from peftscout.disk import disk_trouble_named, require_space
from peftscout.errors import NothingFeasibleError, StudyError
from peftscout.executors import Retrying, Workplace, open_executor
from peftscout.executors.work import loaded_for_good
from peftscout.gates import WeightTraining
from peftscout.ledger import Record
from peftscout.outcome import Evaluate, Fidelity, Outcome
from peftscout.preparation import Prepared
from peftscout.report.progress import Reporter
from peftscout.report.summary import SupernetSpent, summarise
from peftscout.runner import Runner
from peftscout.strategies import make_strategy, with_fidelity
from peftscout.strategies.base import Strategy
from peftscout.study import Study
from peftscout.tasks import Task, compute_metrics
from peftscout.training.one_shot import SupernetInTraining, one_shot_factory

FINAL_SEED = 10_000
"""Final seeds begin here plus 100 times the study's seed: never among those of the search."""


def run_study(prepared: Prepared, folder: Path, reporter: Reporter, *, accept_change: bool = False) -> dict[str, Any]:
    """Run or continue a study in ``folder`` and return its summary, which is also written there.

    With ``accept_change`` one that was made with something else goes on, and has it recorded; see `Study`.

    Raises:
        ConfigError: when the executor cannot do this study.
        ExecutorError: when its workers cannot be started.
        StudyError: when the folder belongs to another study or process.
        DiskError: when there is no room, or none is left: the same call goes on later.
        NothingFeasibleError: when no trial ended with a score.
    """
    needed = prepared.bytes_of_a_trial * (prepared.config.trials + evaluations_after_search(prepared.config))
    with disk_trouble_named(folder, needed):
        return _run(prepared.continuing(folder), folder, reporter, needed, accept_change)


def _run(prepared: Prepared, folder: Path, reporter: Reporter, needed: int, accept_change: bool) -> dict[str, Any]:
    require_space(folder, needed - prepared.bytes_of_a_trial * len(list(folder.glob("trials/*/adapter"))))
    header = prepared.header()
    here = Workplace(prepared, folder / "cache", stacks=prepared.config.time is None, note=reporter.note)
    with (
        closing(open_executor(prepared, header, folder, here, reporter)) as executor,
        Study(folder, header, prepared.config.storage, accept_change=accept_change) as study,
        reporter,
        loaded_for_good(),
    ):
        for note in (*prepared.task.notes, *map(str, study.changes)):
            reporter.note(note)
        if prepared.earlier is not None:
            prepared.earlier.save(folder)
            reporter.note(prepared.earlier.note)
        for name, other in prepared.others.items():
            for note in other.task.notes:
                reporter.note(f"{name}: {note}")
        runner = Runner(study, executor, prepared.backbone.model_map.sites, reporter)
        supernet = SupernetHere(here, folder / "search", reporter, executor)
        best, baseline = _search(prepared, runner, supernet)
        best, baseline = _tune(prepared, runner, best, baseline)
        comparison = _compare(prepared, runner, here, best, baseline)
        summary = summarise(
            prepared.config,
            prepared.task,
            prepared.problem,
            study.ledger.records(),
            best=best,
            baseline=baseline,
            comparison=comparison,
            total=prepared.backbone.model_map.total,
            supernet=supernet.spent,
            earlier=prepared.earlier,
            changes=study.changes,
        )
        study.write_summary(summary)
        return summary


class SupernetHere:
    """The supernet that a one-shot search trains: always in this process, whoever evaluates its results.

    A GPU need not hold the model twice: workers rest while the supernet is trained, and find it gone afterwards.

    Attributes:
        spent: what it took, once there was one.
    """

    def __init__(self, here: Workplace, folder: Path, reporter: Reporter, executor: Retrying) -> None:
        self._here, self._folder, self._reporter, self._executor = here, folder, reporter, executor
        self.spent: SupernetSpent | None = None

    @contextmanager
    def __call__(self, training: WeightTraining) -> Iterator[SupernetInTraining]:
        """Open it; its search is kept in the study's folder."""
        space, reporter = self._here.prepared.space, self._reporter
        reporter.searching(len(space.choices), training.steps)
        with (
            self._gpu_to_itself(),
            one_shot_factory(self._here.evaluator, space, self._folder, reporter.step, reporter.note)(
                training
            ) as one_shot,
        ):
            yield one_shot
            self.spent = SupernetSpent(one_shot.steps, one_shot.passes, one_shot.seconds)

    @contextmanager
    def _gpu_to_itself(self) -> Iterator[None]:
        apart = self._executor.elsewhere and self._here.on_gpu
        if apart:
            self._executor.rest()
        try:
            yield
        finally:
            if apart:
                self._here.vacate()


def _search(prepared: Prepared, runner: Runner, supernet: SupernetHere) -> tuple[Record, Record]:
    """Trial 0 is the baseline; the strategy has the rest. Return the best record and the baseline's."""
    config, problem = prepared.config, replace(prepared.problem, one_shot=supernet)
    later = evaluations_after_search(config)
    runner.reporter.planned(config.trials + later)
    request = Evaluate(problem.baseline, problem.fidelity, problem.seed, 1.0, prepared.baseline.label)
    strategy = with_fidelity(
        prepared.multi_fidelity, lambda p: make_strategy(config.strategy, p, config.strategy_options), problem
    )
    records = runner.run([request], "search")
    strategy.tell(request, _outcome(records[0]))
    noted: str | None = None
    while True:
        if runner.room and not (_trials_are_up(prepared, records) or _time_is_up(prepared, runner, supernet, records)):
            requests = strategy.ask(runner.room)
            noted = _noted(strategy, noted, runner.reporter)
            for request in requests:
                _refuse_over_budget(request, prepared)
            runner.submit(requests)
            if requests and runner.room:
                continue
        if not runner.awaited:
            break
        for record in runner.wait():
            records.append(record)
            strategy.tell(record.request, _outcome(record))
        noted = _noted(strategy, noted, runner.reporter)
    if (earlier := _best_observed(prepared, records)) is not None:
        records += runner.run([earlier], "search")
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
        tries = runner.run([replace(r, lr_scale=s) for s in others], "tune")
        return _best_of([record, *tries]) if any(_outcome(r).done for r in (record, *tries)) else record

    best = tuned(best)
    baseline = best if best.request.plan == baseline.request.plan else tuned(baseline)
    return _best_of([best, baseline] if prepared.may_be_chosen(baseline.request.plan) else [best]), baseline


def _compare(prepared: Prepared, runner: Runner, here: Workplace, best: Record, baseline: Record) -> Comparison | None:
    """Train both contenders with fresh seeds and compare them on the report split, which is read here and only here."""
    config, task = prepared.config, prepared.task
    if not config.final.seeds or not _outcome(baseline).done:
        return None
    searched = replace(prepared.fidelity, data_fraction=1.0)
    fidelity = Fidelity(config.final.steps) if config.final.steps else searched
    seeds = [FINAL_SEED + 100 * config.seed + i for i in range(config.final.seeds)]
    contenders = [best] if best.request.plan == baseline.request.plan else [best, baseline]
    requests = [replace(c.request, fidelity=fidelity, seed=seed) for c in contenders for seed in seeds]
    records = runner.run(requests, "final", predict=True)
    predictions = [_predictions(runner.study, record) for record in records]
    ours, theirs = predictions[: len(seeds)], predictions[-len(seeds) :]
    return compare(ours, theirs, here.report_rows.references, _main_metric(task), seed=config.seed)


def _predictions(study: Study, record: Record) -> np.ndarray:
    """Return what a final trial predicts on the report split.

    Raises:
        StudyError: when it did not come to its end.
    """
    outcome = _outcome(record)
    if not outcome.done:
        raise StudyError(
            f"final trial {record.number} ({record.request.label}, seed {record.request.seed}) ended {outcome.state}: "
            f"{outcome.message}: no comparison is possible"
        )
    return load_file(study.finished_folder(record.number) / "predictions.safetensors")["predictions"]


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


def _time_is_up(prepared: Prepared, runner: Runner, supernet: SupernetHere, records: list[Record]) -> bool:
    """Whether the time was spent, by the ledger: workers side by side spend theirs at once."""
    if (allowed := prepared.config.time) is None:
        return False
    spent = sum(r.outcome.seconds for r in records if r.outcome is not None) / runner.workers
    return spent + (supernet.spent.seconds if supernet.spent else 0.0) >= allowed
