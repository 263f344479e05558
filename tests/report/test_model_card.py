"""The model card of an export."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from study_data import HEADER, HOSTILE, MIXED, SITES, summary

from peftscout import export_card
from peftscout.header import Header
from peftscout.report.model_card import study_card

STUDY = Header.from_json(HEADER, Path("study.json"))


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_it_tells_what_was_found_how_and_compared_with_what():
    text = study_card(summary(), STUDY)
    for part in (
        "11.0 points above uniform LoRA.",
        "- model: some/model",
        "- rows: train 12 rows, sha256 abcdef012345",
        "- budget: 0.8% = 800 trainable parameters, 0.8 % of 100,000",
        "- search: random over the space all, 7 evaluations in all",
        "- search cost: 0:00:10 h, 99 forward-backward passes",
        "- seeds: search 0; final 10000",
        "- versions: peftscout 0.1.0, torch 2.13.0",
        "- labels: 0 = no, 1 = yes",
        "| difference | - | - | 0.1100 | 95 % interval +0.0200 to +0.2000 | - |",
    ):
        assert part in text


def test_a_supernet_is_part_of_the_search_cost():
    spent = summary()["spent"] | {"supernet": {"steps": 5, "passes": 40.00000000000002, "seconds": 61.0}}
    assert "of them the supernet's 0:01:01 h and 40 passes" in study_card(summary(spent=spent), STUDY)


def test_without_a_final_comparison_and_without_labels_neither_is_claimed():
    text = study_card(summary(final=None, labels=[]), STUDY)
    assert "difference" not in text
    assert "labels" not in text


def test_folders_of_this_machine_are_not_told():
    text = study_card(summary(model="/home/someone/secret/bert-tiny"), STUDY)
    assert "- model: bert-tiny" in text
    assert "someone" not in text


def test_hostile_names_stay_text():
    text = study_card(summary(task=HOSTILE, labels=[HOSTILE], verdict=HOSTILE), STUDY)
    assert "<script" not in text
    assert "\u202e" not in text
    assert not re.search(r"(?<!\\)`", text)


def test_the_plan_is_a_table_of_layers_and_sites_and_every_placement_is_listed():
    card = export_card.card("composite", "code()\n", "org/model", MIXED, MIXED.cost(SITES), "What it is.", SITES)
    assert "layers  q       ffn       ffn_norm" in card
    assert "0       lora 1  -         -" in card
    assert card.count("\nlayers.") == len(MIXED)
    assert "What it is." in card
    assert f"{MIXED.cost(SITES):,} trained parameters besides the head" in card


def test_the_licence_is_left_to_the_user():
    card = export_card.card("lora", "code()\n", "org/model", MIXED, 1, None)
    assert "license" not in front_matter(card)
    assert card.splitlines()[1].startswith("# license: name one here")


@pytest.mark.parametrize("name", ["org/model", "model-1.5_b", 'x"\nlicense: mit', "a: b", "- x"])
def test_the_name_of_the_base_cannot_add_fields(name):
    found = front_matter(export_card.card("lora", "code()\n", name, MIXED, 1, None))
    assert found == {"library_name": "peft", "base_model": name, "tags": ["peftscout"]}
