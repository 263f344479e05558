"""What a study takes from another one: `Earlier`. Read once, then kept in the study's own folder.

Evaluations of the same model on the same rows under the same training are observations: as good as if they had been
made here. Those of the same model on another task, split or training say which plans are worth trying first: a prior.
Which of the two they are is found by comparing the headers of both studies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from peftscout.errors import PlanError, StudyError
from peftscout.header import Header, what_changes_scores
from peftscout.outcome import Evaluate, Outcome
from peftscout.strategies.base import Evaluated, Problem
from peftscout.study import read_header, read_json, read_records, write_sealed

FILE = "from_study.json"
"""In the folder of the study that takes something."""

SCHEMA = 1


@dataclass(frozen=True)
class Earlier:
    """What was taken from another study.

    Attributes:
        study: its folder, as given.
        differences: what keeps its scores from being observations here, ``key: there -> here``; none: they are.
        evaluated: its requests and outcomes, in order.
    """

    study: str
    differences: tuple[str, ...]
    evaluated: tuple[Evaluated, ...]

    @property
    def observed(self) -> tuple[Evaluated, ...]:
        """The evaluations, where they are as good as this study's own."""
        return () if self.differences else self.evaluated

    @property
    def related(self) -> tuple[Evaluated, ...]:
        """The evaluations, where they are a prior."""
        return self.evaluated if self.differences else ()

    @property
    def note(self) -> str:
        """What was taken, for people."""
        n = len(self.evaluated)
        if not self.differences:
            return f"{n} evaluations of {self.study} are known from the start"
        what = "; ".join(self.differences)
        return f"{n} evaluations of {self.study} are a prior: its scores are not those of this study ({what})"

    def summary(self) -> dict[str, Any]:
        """Return the entry of ``summary.json``."""
        used_as = "prior" if self.differences else "observations"
        evaluations = len(self.evaluated)
        return {
            "study": self.study,
            "used_as": used_as,
            "evaluations": evaluations,
            "differences": list(self.differences),
        }

    def save(self, folder: Path) -> None:
        """Keep this in ``folder``, once: the other study may go on or go away, this one then begins with the same."""
        path = folder / FILE
        if not path.exists():
            evaluated = [[request.to_json(), outcome.to_json()] for request, outcome in self.evaluated]
            facts = {"schema": SCHEMA, "study": self.study, "differences": list(self.differences)}
            write_sealed(path, facts | {"evaluated": evaluated})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the inverse of `save`.

        Raises:
            StudyError: when the file is damaged or of an unknown schema.
        """
        path = folder / FILE
        data = read_json(path, f"{path}: is missing")
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise StudyError(f"{path}: not what was taken from another study, of schema {SCHEMA}")
        try:
            evaluated = tuple((Evaluate.from_json(r), Outcome.from_json(o)) for r, o in data["evaluated"])
            return cls(data["study"], tuple(data["differences"]), evaluated)
        except (KeyError, TypeError, ValueError, AttributeError, PlanError) as error:
            raise StudyError(f"{path}: cannot be read: {error!r}") from None


def earlier_for(folder: Path, source: Path, header: Header, problem: Problem) -> Earlier:
    """Return what the study in ``folder`` took from ``source`` when it began, or takes now.

    Args:
        folder: of the study; it need not be there yet.
        source: folder of the other study.
        header: of the study that takes.
        problem: of the study that takes.

    Raises:
        StudyError: when ``source`` is no study, is this study, is of another model, or has nothing to learn from.
    """
    if (folder / FILE).exists():
        return Earlier.load(folder)
    if folder.resolve() == source.resolve():
        raise StudyError(f"--from-study {source}: is the study itself; running it again continues it")
    other = read_header(source)
    records = read_records(source, other.config.get("storage"))
    evaluated = tuple(
        (r.request, r.outcome) for r in records if r.outcome is not None and r.stage in ("search", "tune")
    )
    _require_same_model(source, other, header, evaluated, problem)
    if not any(outcome.done and problem.space.contains(request.plan) for request, outcome in evaluated):
        raise StudyError(
            f"--from-study {source}: none of its {len(evaluated)} evaluations has a score of a plan in space "
            f"{problem.space.name!r}; give the --space that it searched ({other.config['space']!r})"
        )
    differences = what_changes_scores(other, header)
    if not differences and not any(o.done and r.fidelity == problem.fidelity for r, o in evaluated):
        there = sorted({str(r.fidelity.to_json()) for r, _ in evaluated})
        differences = (f"fidelity: {', '.join(there)} -> {problem.fidelity.to_json()}",)
    return Earlier(str(source), differences, evaluated)


def _require_same_model(
    source: Path, other: Header, header: Header, evaluated: Sequence[Evaluated], problem: Problem
) -> None:
    """Raise a StudyError unless every plan sits in this model, at the same price."""
    there, here = (h.model["reference"]["name_or_path"] for h in (other, header))
    for request, outcome in evaluated:
        try:
            request.plan.check(problem.sites)
            fits = not outcome.cost or request.plan.cost(problem.sites) == outcome.cost
        except PlanError:
            fits = False
        if not fits:
            raise StudyError(
                f"--from-study {source}: its plans do not fit this model ({there} there, {here} here): {request.plan}; "
                "give a study of a model with the same layers and widths"
            )
