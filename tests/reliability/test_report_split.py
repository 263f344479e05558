"""R18: the labels of the report split decide nothing before the end."""

from __future__ import annotations

import json
from dataclasses import replace

from small_studies import TRAINING

from peftscout.api import search_config
from peftscout.config import StudyConfig
from peftscout.report.progress import Silent
from peftscout.study import read_records

SETTINGS = {
    "budget": "8%",
    "strategy": "random",
    "trials": 4,
    "steps": 6,
    "final": {"seeds": 1, "lr_scales": [0.5, 1.0]},
    "training": TRAINING,
}


def test_permuted_labels_of_the_report_split_do_not_change_what_is_chosen(model, data, tmp_path):
    other = tmp_path / "permuted"
    other.mkdir()
    (other / "train.jsonl").write_bytes((data / "train.jsonl").read_bytes())
    rows = [json.loads(line) for line in (data / "validation.jsonl").read_text().splitlines()]
    swapped = {"good": "bad", "bad": "good"}
    lines = [json.dumps({**row, "label": swapped[row["label"]]}) for row in rows]
    (other / "validation.jsonl").write_text("\n".join(lines) + "\n")

    def run(source, name):
        config = StudyConfig.from_mapping({"model": str(model), "data": {"source": str(source)}, **SETTINGS})
        return search_config(config, tmp_path / name, Silent())

    ours, theirs = run(data, "ours"), run(other, "theirs")
    assert ours.summary["best"] == theirs.summary["best"]
    assert ours.summary["baseline"] == theirs.summary["baseline"]

    def outcomes(result):
        return [
            (r.number, r.stage, r.request, replace(r.outcome, seconds=0.0, peak_memory=0))
            for r in read_records(result.folder)
        ]

    assert outcomes(ours) == outcomes(theirs)
    assert ours.summary["final"] != theirs.summary["final"]  # which is read from it, and from it alone
