"""Tables of the command line, made from plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from peftscout.header import Change
from peftscout.report.plan_table import plan_lines

if TYPE_CHECKING:
    from peftscout.api import Result
    from peftscout.doctor import Finding


def dry_run(plan: Mapping[str, Any]) -> RenderableType:
    """Return what a search would do."""
    table = _facts("What this search would do")
    budget, space = plan["budget"], plan["space"]
    total = plan["parameters"]
    table.add_row("model", f"{plan['model']}, {total:,} parameters, {plan['sites']} sites")
    table.add_row(
        "task", f"{plan['task']}: {plan['rows']['train']:,} training rows, {plan['rows']['search']:,} search rows"
    )
    table.add_row("budget", f"{budget['text']} = {budget['parameters']:,} trainable parameters, head apart")
    table.add_row("space", f"{space['name']}: {space['choices']} choices, {_big(space['plans'])} plans")
    table.add_row("cheapest plan", f"{plan['cheapest']['cost']:,} parameters")
    table.add_row("dearest plan", f"{plan['dearest']['cost']:,} parameters")
    table.add_row("baseline", f"{plan['baseline']['label']}, {plan['baseline']['cost']:,} parameters")
    table.add_row("strategy", f"{plan['strategy']}, at most {plan['evaluations']} evaluations of {plan['steps']} steps")
    if (supernet := plan["supernet"]) is not None:
        table.add_row("supernet", f"at most {supernet['steps']:,} steps, about {_duration(supernet['seconds'])}")
    if plan["from_study"] is not None:
        table.add_row("other study", plan["from_study"])
    table.add_row(
        "time", f"about {_duration(plan['seconds'])}, from a probe of {plan['seconds_per_step']:.3f} s a step"
    )
    return table


def result(summary: Mapping[str, Any], folder: Path) -> RenderableType:
    """Return the end of a search: comparison, verdict, and what to type next."""
    parts: list[RenderableType] = [comparison(summary), Text(), Text(summary["verdict"], style="bold")]
    parts.append(Text(f"\npeftscout report {folder}\npeftscout export {folder} OUT", style="dim"))
    return Group(*parts)


def comparison(summary: Mapping[str, Any]) -> RenderableType:
    """Return chosen plan and baseline side by side."""
    metric, final = summary["metric"], summary["final"]
    table = Table(title=f"{summary['task']}, budget {summary['budget']['text']}", title_justify="left")
    for heading in ("", "parameters", f"{metric}, search", f"{metric}, report"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, key in (("chosen plan", "best"), ("uniform LoRA", "baseline")):
        row = summary[key]
        searched = "-" if row["score"] is None else f"{row['score']:.4f}"
        table.add_row(name, f"{row['cost']:,}", searched, "-" if final is None else _spread(final[key]))
    if final is not None:
        interval = final["interval"]
        between = "" if interval is None else f" ({interval[0]:+.4f} to {interval[1]:+.4f})"
        table.add_row("difference", "", "", f"{final['difference']:+.4f}{between}")
    return table


def status(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Return one line per evaluation."""
    table = Table()
    for heading in ("trial", "stage", "state", "parameters", "score", "seconds", "plan"):
        table.add_column(heading, justify="right" if heading in {"trial", "parameters", "score", "seconds"} else "left")
    for r in rows:
        cost = "" if r["cost"] is None else f"{r['cost']:,}"
        score = "" if r["score"] is None else f"{r['score']:.4f}"
        seconds = "" if r["seconds"] is None else f"{r['seconds']:.1f}"
        table.add_row(str(r["number"]), r["stage"], r["state"], cost, score, seconds, Text(r["label"]))
    return table


def report(study: Result) -> RenderableType:
    """Return verdict, comparison, front and chosen plan of a finished study."""
    front = Table(title="Front: no plan of the search is cheaper and better", title_justify="left")
    for heading in ("trial", "parameters", "score", "plan"):
        front.add_column(heading, justify="left" if heading == "plan" else "right")
    for row in study.front.itertuples():
        front.add_row(str(row.number), f"{row.cost:,}", f"{row.score:.4f}", Text(str(row.label)))
    spent = study.summary["spent"]
    cost = f"Spent {_duration(spent['seconds'])} and {spent['forward_backward_passes']:,.0f} forward-backward passes."
    if spent.get("tokens_per_real_token"):
        cost += f" Computed {spent['tokens_per_real_token']:.2f} positions for each token."
    cost += _about_rungs(study.summary.get("rungs") or []) + _about_earlier(study.summary.get("from_study"))
    cost += "".join(f"\nChanged: {Change.from_json(change)}." for change in study.summary.get("changes", ()))
    chosen = Text("\n".join(["Chosen plan:", *plan_lines(study.best.plan)]))
    return Group(Text(study.verdict, style="bold"), Text(), comparison(study.summary), front, chosen, Text(cost))


def _about_rungs(rungs: Sequence[Mapping[str, Any]]) -> str:
    """Say how well early ranks agreed with those at the end, where runs were scored at rungs."""
    seen = [
        f"{r['rank_correlation']:.2f} after {r['steps']} steps ({r['plans']} plans)"
        for r in rungs
        if r["rank_correlation"] is not None
    ]
    return f"\nRank correlation with the end of training: {', '.join(seen)}." if seen else ""


def _about_earlier(earlier: Mapping[str, Any] | None) -> str:
    if earlier is None:
        return ""
    known = "known from the start" if earlier["used_as"] == "observations" else "a prior"
    return f"\n{earlier['evaluations']} evaluations of {earlier['study']} were {known}; they are not among the trials."


def findings(found: Sequence[Finding]) -> RenderableType:
    """Return what a doctor found, a line each; what is wrong stands out, also without colours."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for finding in found:
        table.add_row(
            "ok" if finding.fine else "WRONG", finding.name, Text(finding.text), style="" if finding.fine else "red"
        )
    return table


def _facts(title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    return table


def _spread(scores: Mapping[str, Any]) -> str:
    spread = "" if scores["std"] is None else f" +- {scores['std']:.4f}"
    return f"{scores['mean']:.4f}{spread} (n={len(scores['scores'])})"


def _big(number: int) -> str:
    """Thousands with commas; beyond a trillion as a power of ten (a space may have 10^300 plans, more than a float)."""
    return f"{number:,}" if number < 10**12 else f"about 10^{len(str(number)) - 1}"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
