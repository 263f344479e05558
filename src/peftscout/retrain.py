"""Train one given plan on a task, without a search, and export it."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from peftscout.errors import StudyError
from peftscout.export import Format, refuse_existing
from peftscout.handover import export_trained
from peftscout.outcome import Evaluate
from peftscout.plan import Plan
from peftscout.preparation import Prepared, encode_split, make_evaluator
from peftscout.report.plan_words import describe
from peftscout.report.progress import Reporter
from peftscout.tasks import compute_metrics
from peftscout.training.evaluator import save_adapter


def apply_plan(prepared: Prepared, plan: Plan, out: Path, format: Format, reporter: Reporter) -> dict[str, Any]:
    """Train ``plan`` without a search, score it on search and report split, and export it to ``out``.

    Returns:
        ``{"cost", "score", "metrics", "report"}``: trainable parameters, main metric and all metrics on the search
        split, all metrics on the report split.

    Raises:
        PlanError: when the model has no such sites.
        StudyError: when training ends without a score.
        ExportError: as `peftscout.export.export_adapter` does.
    """
    backbone, config, task = prepared.backbone, prepared.config, prepared.task
    sites = backbone.model_map.sites
    plan.check(sites)
    refuse_existing(out)
    request = Evaluate(plan, prepared.fidelity, config.seed, label=describe(plan, sites))
    report: dict[str, float] = {}
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        evaluator = make_evaluator(prepared, folder)
        rows = encode_split(prepared, task.report.unlock(), folder)

        def after(model: Any) -> None:
            report.update(compute_metrics(task.metrics, evaluator.predict(model, rows), rows.references))
            save_adapter(model, folder / "adapter")

        with reporter:
            reporter.planned(1)
            reporter.started(0, "final", request, plan.cost(sites))
            outcome = evaluator(request, after=after, progress=reporter.step)
        if not outcome.done:
            raise StudyError(f"training the plan ended {outcome.state}: {outcome.message}")
        export_trained(
            folder / "adapter",
            plan,
            backbone.reference,
            out,
            format=format,
            card=f"{request.label}. Report split: {', '.join(f'{k} {v:.4f}' for k, v in report.items())}.",
            seed=config.seed,
            roles=config.roles,
            trust_remote_code=config.trust_remote_code,
            device_map=config.device_map,
        )
    return {"cost": outcome.cost, "score": outcome.score, "metrics": dict(outcome.metrics), "report": report}
