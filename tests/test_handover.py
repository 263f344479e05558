import pytest
import torch

from peftscout.errors import StudyError
from peftscout.handover import _trained_trial, export_study, probe_batch
from peftscout.study import write_json
from tiny_models import tiny_model

PLAN, OTHER = {"schema": 1, "placements": [["a", "lora", 1]]}, {"schema": 1, "placements": [["a", "lora", 2]]}


def trial(number, stage, plan, score, state="done"):
    return {"number": number, "stage": stage, "plan": plan, "score": score, "state": state}


def test_of_the_final_trainings_the_best_on_the_search_split_is_handed_over():
    trials = [
        trial(1, "search", PLAN, 0.99),
        trial(5, "final", PLAN, 0.7),
        trial(6, "final", PLAN, 0.8),
        trial(7, "final", OTHER, 0.9),
        trial(8, "final", PLAN, None, "diverged"),
    ]
    assert _trained_trial({"best": {"plan": PLAN, "trial": 1}, "trials": trials}) == 6


def test_without_a_final_training_the_chosen_trial_is_handed_over():
    assert _trained_trial({"best": {"plan": PLAN, "trial": 1}, "trials": [trial(1, "search", PLAN, 0.9)]}) == 1


@pytest.mark.parametrize(("choices", "shape"), [(0, (3, 12)), (2, (3, 2, 12))])
def test_the_probe_has_tokens_of_the_vocabulary_and_some_padding(choices, shape):
    model = tiny_model("llama", head="sequence")
    probe = probe_batch(model, choices)
    assert probe["input_ids"].shape == probe["attention_mask"].shape == shape
    assert probe["input_ids"].max() < model.config.vocab_size
    assert 0 < probe["attention_mask"].float().mean() < 1
    assert (probe["input_ids"][probe["attention_mask"] == 0] == model.config.pad_token_id).all()
    assert all(torch.equal(probe[k], v) for k, v in probe_batch(model, choices).items())


def test_a_study_without_its_adapter_says_what_is_missing(tmp_path):
    config = {"model": "m", "budget": "5%", "data": {"source": "rte"}}
    header = {"schema": 1, "config": config, "data": {}, "model": {"reference": {}}, "versions": {}}
    write_json(tmp_path / "study.json", header)
    best = {"plan": PLAN, "trial": 3}
    write_json(tmp_path / "summary.json", {"schema": 1, "best": best, "trials": [trial(3, "search", PLAN, 0.5)]})
    with pytest.raises(StudyError, match=r"trials/003/adapter/adapter_config.json: the trained adapter is missing"):
        export_study(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
