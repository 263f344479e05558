"""The public functions: search a model, open a study, apply a plan, inspect a model."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftscout.backbone import load_config, quiet_loading
from peftscout.config import StudyConfig
from peftscout.engine import evaluations_after_search, run_study
from peftscout.errors import BudgetError, ConfigError, StudyError, nearest
from peftscout.estimate import dry_run
from peftscout.export import ExportReport, Format
from peftscout.front import front_of
from peftscout.handover import export_study
from peftscout.plan import Plan
from peftscout.preparation import prepare
from peftscout.report.progress import Reporter, Silent, reporter_for
from peftscout.report.side_by_side import SideBySide, read_entry, side_by_side
from peftscout.report.standing import Standing, phase_of, standing
from peftscout.retrain import apply_plan
from peftscout.strategies.design_spaces import preset_plan
from peftscout.study import read_config, read_header, read_json, read_records, read_summary
from peftscout.tracking import Tracked, check_trackers

if TYPE_CHECKING:
    import pandas as pd

    from peftscout.architecture import ModelMap
    from peftscout.report.page import Written
    from peftscout.training.own_training import OwnTraining

PUBLISHED = ("s4-model", "s4-3b-model")
"""Plans of the literature that compile on any backbone and budget (PEFT Design Spaces, Chen et al. 2023)."""


@dataclass(frozen=True)
class Best:
    """The chosen plan: its placements, its trainable parameters and its score on the search split."""

    plan: Plan
    cost: int
    score: float


@dataclass(frozen=True)
class Result:
    """A finished study.

    Attributes:
        folder: of the study.
        summary: as in ``summary.json``.
    """

    folder: Path
    summary: Mapping[str, Any]

    @property
    def best(self) -> Best:
        """The chosen plan."""
        b = self.summary["best"]
        return Best(Plan.from_json(b["plan"]), b["cost"], b["score"])

    @property
    def verdict(self) -> str:
        """The result in words, with its numbers."""
        return str(self.summary["verdict"])

    @property
    def trials(self) -> pd.DataFrame:
        """One row per evaluation: number, stage, label, state, cost, score, seconds, steps, full, seed, plan, ..."""
        import pandas as pd

        rows = [{"full": True, **t, "plan": Plan.from_json(t["plan"])} for t in self.summary["trials"]]
        return pd.DataFrame(rows)

    @property
    def front(self) -> pd.DataFrame:
        """The fully trained plans that no other plan of the search beats on both cost and score, cheapest first."""
        trials = self.trials
        searched = (trials["stage"] != "final") & (trials["state"] == "done") & trials["full"]
        rows = trials[searched].reset_index(drop=True)
        return rows.iloc[front_of(list(rows["cost"]), list(rows["score"]))].reset_index(drop=True)

    def export(self, out: str | Path, format: Format = "auto", *, trust_remote_code: bool = False) -> ExportReport:
        """Write the trained adapter of the chosen plan to ``out``; see `peftscout.handover.export_study`."""
        return export_study(self.folder, Path(out), format, trust_remote_code=trust_remote_code)

    def report(self, out: str | Path | None = None, reference: str | Path | None = None) -> Written:
        """Write ``report.html``, ``report.md`` and ``trials.csv``; see `peftscout.report.page.write_report`."""
        from peftscout.report.page import write_report  # with matplotlib, which nothing else here needs

        return write_report(self.folder, _path(out), _path(reference))

    def __str__(self) -> str:
        return self.verdict


def search(
    model: str | Path,
    data: str | Path | Mapping[str, Any] | None = None,
    *,
    budget: str | int,
    study: str | Path | None = None,
    progress: bool = True,
    evaluate: OwnTraining | None = None,
    report_to: str | Sequence[str] = (),
    accept_change: bool = False,
    **options: Any,
) -> Result:
    """Find, within ``budget`` trainable parameters, the PEFT configuration that serves ``model`` on ``data`` best.

    The same call again continues an interrupted study, or returns the finished one without training.

    Args:
        model: hub id or folder of a pretrained model.
        data: hub id, recipe name or folder; or a mapping of fields of `peftscout.config.DataConfig`; or a
            ``datasets.DatasetDict`` with ``train`` and ``validation``.
        budget: ``200_000``, ``"0.5%"``, ``"1.39‱"``, ``"2MB"``.
        study: folder of the study; by default ``studies/<model>-<task>-<hash of the configuration>``.
        progress: show progress on the terminal (standard error).
        evaluate: trains a plan your way and returns its score, see `peftscout.training.own_training.Candidate` and
            ``examples/own_training.py``. The final comparison is by the metric of the task, on models that it trained.
        report_to: trackers that are told of every evaluation: ``"tensorboard"``, ``"trackio"``, ``"wandb"`` or another
            of accelerate's; one, or several. See `peftscout.tracking.Tracked`.
        accept_change: go on with a study that was made with another configuration or other versions, and have the
            difference recorded. Data, model and what else decides scores may not change: begin another study then, with
            ``from_study``.
        **options: any other field of `peftscout.config.StudyConfig`, such as ``trials=20`` or ``training={...}``.

    Returns:
        The finished study.

    Raises:
        PeftscoutError: before any training, for whatever cannot work.
    """
    in_memory = data if _is_dataset_dict(data) else None
    if in_memory is not None:
        fields: Mapping[str, Any] = {"source": "in memory"}
    elif data is None or isinstance(data, Mapping):
        fields = dict(data or {})
    else:
        fields = {"source": str(data)}
    config = StudyConfig.from_mapping({"model": str(model), "budget": budget, "data": fields, **options})
    trackers = [report_to] if isinstance(report_to, str) else report_to
    reporter = terminal_reporter() if progress else Silent()
    return search_config(config, study, reporter, in_memory, evaluate, trackers, accept_change=accept_change)


def search_config(
    config: StudyConfig,
    study: str | Path | None,
    reporter: Reporter,
    in_memory: Any = None,
    own_training: OwnTraining | None = None,
    report_to: Sequence[str] = (),
    *,
    accept_change: bool = False,
) -> Result:
    """Run or continue the study of ``config``; what `search` and the command line share."""
    folder = Path(study) if study is not None else default_folder(config)
    if trackers := check_trackers(report_to):
        reporter = Tracked(reporter, trackers, folder, config.deciding())
    prepared = prepare(config, in_memory, own_training)
    return Result(folder, run_study(prepared, folder, reporter, accept_change=accept_change))


def dry_run_config(config: StudyConfig) -> dict[str, Any]:
    """Return what the study of ``config`` would do and how long it would take; see `peftscout.estimate.dry_run`."""
    return dry_run(prepare(config))


def default_folder(config: StudyConfig) -> Path:
    """Return ``studies/<model>-<task>-<hash>``: equal configurations meet in one folder, different ones never do."""
    text = json.dumps(config.deciding(), sort_keys=True)
    task = config.data.source or config.data.train or "data"
    names = (re.sub(r"[^\w.-]+", "-", Path(str(part)).name).strip(".-") for part in (config.model, task))
    return Path("studies") / "-".join([*names, hashlib.sha256(text.encode()).hexdigest()[:8]])


def open_study(folder: str | Path) -> Result:
    """Open a finished study.

    Raises:
        StudyError: when the folder is no study, or the study has not finished.
    """
    return Result(Path(folder), read_summary(Path(folder)))


def study_status(folder: Path) -> list[dict[str, Any]]:
    """Return one row per evaluation of a running or finished study; one that nobody works on is ``interrupted``."""
    open_state = "running" if phase_of(folder) == "running" else "interrupted"
    return [
        {
            "number": r.number,
            "stage": r.stage,
            "label": r.request.label,
            "state": open_state if r.outcome is None else str(r.outcome.state),
            "cost": None if r.outcome is None else r.outcome.cost,
            "score": None if r.outcome is None else r.outcome.score,
            "seconds": None if r.outcome is None else r.outcome.seconds,
        }
        for r in read_records(folder, read_header(folder).config.get("storage"))
    ]


def study_standing(folder: Path) -> Standing:
    """Return how a running or finished study stands: best in budget, size of the front, time left."""
    config = read_config(folder)
    most = config.trials + evaluations_after_search(config)
    return standing(read_records(folder, config.storage), phase_of(folder), most)


def compare(places: Sequence[str | Path]) -> SideBySide:
    """Put studies (folders) and plans (files) side by side.

    Raises:
        StudyError: when there are fewer than two, one is missing, or a study has not finished.
        PlanError: when a file holds no plan.
    """
    return side_by_side([read_entry(Path(place)) for place in places])


def apply(
    plan: Plan | str | Path,
    model: str | Path,
    data: str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    budget: str | int | None = None,
    format: Format = "auto",
    progress: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Train a found plan on other data, without a search, and export the adapter to ``out``.

    Args:
        plan: a plan; a file that holds one (``plan.json`` of a trial, or ``summary.json`` of a study); or the name of a
            published one (``s4-model``, ``s4-3b-model``), which is compiled to ``budget``.
        model: hub id or folder of a pretrained model.
        data: as in `search`.
        out: folder of the exported adapter.
        budget: bound on the plan's cost; needed for a published plan.
        format: rung of the export ladder.
        progress: show progress on the terminal.
        **options: any field of `peftscout.config.StudyConfig` that says how to train.

    Returns:
        The scores: ``{"cost", "score", "metrics", "report"}``.
    """
    fields = dict(data) if isinstance(data, Mapping) else {"source": str(data)}
    rest = {"model": str(model), "data": fields, **options}
    return apply_options(plan, rest, budget, Path(out), format, terminal_reporter() if progress else Silent())


def apply_options(
    plan: Plan | str | Path,
    options: Mapping[str, Any],
    budget: str | int | None,
    out: Path,
    format: Format,
    reporter: Reporter,
) -> dict[str, Any]:
    """Train ``plan`` as ``options`` (fields of the configuration) say and export it; what `apply` and the CLI share.

    Raises:
        ConfigError: when a published plan is named without a budget.
    """
    published = isinstance(plan, str) and plan in PUBLISHED
    if published and budget is None:
        raise ConfigError(f"{plan}: a published plan is compiled to a budget; give one, such as --budget 0.5%")
    if not published and not isinstance(plan, Plan):
        plan = read_plan(Path(plan))
    prepared = prepare(StudyConfig.from_mapping({**options, "budget": "100%" if budget is None else budget}))
    sites = prepared.backbone.model_map.sites
    plan = plan if isinstance(plan, Plan) else preset_plan(plan, sites, prepared.budget)
    if (cost := plan.cost(sites)) not in prepared.budget:
        raise BudgetError(f"the plan costs {cost:,} parameters, above the budget {prepared.budget}")
    return apply_plan(prepared, plan, out, format, reporter)


def read_plan(path: Path) -> Plan:
    """Read a plan from ``plan.json``, or the chosen one from ``summary.json``.

    Raises:
        StudyError: when there is no such file or it is not JSON.
        PlanError: when it holds no plan.
    """
    if not path.exists():
        names = ", ".join(PUBLISHED)
        raise StudyError(
            f"{path}: no such file, nor a published plan{nearest(str(path), PUBLISHED)}; there are {names}"
        )
    data = read_json(path, f"{path}: no such file")
    if isinstance(data, dict) and isinstance(data.get("best"), dict):
        data = data["best"].get("plan")
    return Plan.from_json(data)


def map_model(
    model: str | Path,
    *,
    roles: Mapping[str, str] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> ModelMap:
    """Return the structure of a model from its configuration alone: no weights are loaded.

    ``roles`` helps where the structure is not recognised, see `ModelMap.from_model`.

    Raises:
        ArchitectureError: when there is no such model, or it has no attention blocks.
    """
    import torch
    from transformers import AutoModel

    from peftscout.architecture import ModelMap

    config = load_config(str(model), revision=revision, trust_remote_code=trust_remote_code)
    with quiet_loading(), torch.device("meta"):
        return ModelMap.from_model(AutoModel.from_config(config, trust_remote_code=trust_remote_code), roles)


def terminal_reporter() -> Reporter:
    """Return the progress display for this terminal."""
    from rich.console import Console

    return reporter_for(Console(stderr=True))


def _is_dataset_dict(data: object) -> bool:
    return isinstance(data, Mapping) and bool(data) and all(hasattr(split, "column_names") for split in data.values())


def _path(place: str | Path | None) -> Path | None:
    return None if place is None else Path(place)
