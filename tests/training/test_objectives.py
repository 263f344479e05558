"""What each kind of task computes, against what transformers, generation and scikit-learn say of the same rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from peftscout.errors import DataError
from peftscout.tasks import compute_metrics
from peftscout.tasks.row_statistics import COLUMNS, column, statistics
from peftscout.tasks.sequences import IGNORED
from peftscout.training.objectives.causal import ChoiceLikelihood, Completions
from peftscout.training.objectives.likelihood import scored, shift_right, sums
from peftscout.training.objectives.pooled import Classes, Numbers
from peftscout.training.objectives.seq2seq import DecoderStart, GeneratedText, LabelTexts, TextToText
from peftscout.training.objectives.tagging import Tags
from peftscout.training.trial import DivergedError
from tiny_models import EOS, PAD, VOCABULARY, tiny_model
from tiny_task import tiny_tokenizer

START = DecoderStart(PAD, PAD)


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def given(rows: int = 4, length: int = 7, padding: int = 2) -> dict[str, torch.Tensor]:
    ids, mask = tokens(rows, length), torch.ones(rows, length, dtype=torch.int64)
    ids[-1, length - padding :], mask[-1, length - padding :] = PAD, 0
    return {"input_ids": ids, "attention_mask": mask}


def completions(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Labels with a prompt of another length in each row."""
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
    for n, row in enumerate(labels):
        row[: 1 + n % 3] = IGNORED
    return labels


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3"])
def test_the_loss_of_completions_is_that_of_transformers(name):
    model, batch = tiny_model(name, head="lm"), given()
    batch["labels"] = completions(batch)
    objective = Completions(("neg_loss",))
    expected = model(**batch).loss
    outputs, targets = objective.train(model, batch)
    assert objective.loss(outputs, targets).item() == pytest.approx(expected.item(), rel=1e-5)
    total, weight = objective.total(*objective.score(model, batch))
    assert total / weight == pytest.approx(expected.item(), rel=1e-5)
    assert weight == (batch["labels"][:, 1:] != IGNORED).sum()


@pytest.mark.parametrize("name", ["t5", "t5_gated", "bart"])
def test_the_loss_of_a_target_is_that_of_transformers(name):
    model = tiny_model(name, head="lm")
    start = DecoderStart(model.config.decoder_start_token_id, PAD)
    labels = tokens(4, 5, seed=1)
    labels[0, 3:] = IGNORED
    batch = {**given(), "labels": labels}
    objective = TextToText(("exact_match",), start=start)
    expected = model(**batch).loss
    assert objective.loss(*objective.train(model, batch)).item() == pytest.approx(expected.item(), rel=1e-5)
    assert model(**objective.inputs(batch)).loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_a_row_is_exact_if_and_only_if_greedy_generation_writes_its_target(name):
    model = tiny_model(name, head="lm")
    start = DecoderStart(model.config.decoder_start_token_id, PAD)
    batch = given(rows=6)
    model.generation_config.eos_token_id = None
    written = model.generate(**batch, max_new_tokens=5, do_sample=False)[:, 1:]
    wrong = written.clone()
    wrong[1, 0] += 1
    wrong[2, 4] = (wrong[2, 4] + 1) % VOCABULARY
    for labels, expected in ((written, [1, 1, 1, 1, 1, 1]), (wrong, [1, 0, 0, 1, 1, 1])):
        objective = TextToText(("exact_match",), start=start)
        with torch.no_grad():
            found = objective.predictions(*objective.score(model, {**batch, "labels": labels}))
        assert column(found, "exact").tolist() == expected
    assert compute_metrics(("exact_match",), found, np.zeros(6))["exact_match"] == pytest.approx(4 / 6)


def test_a_generated_text_is_compared_with_the_target_and_keeps_its_likelihood():
    model, batch = tiny_model("t5", head="lm"), given()
    tokenizer = tiny_tokenizer(writes=True)
    written = model.generate(**batch, max_new_tokens=4, do_sample=False)[:, 1:]
    labels = torch.nn.functional.pad(written, (0, 5 - written.shape[1]), value=EOS)
    seen = []

    def compare(predicted, true):
        seen.append((predicted, true))
        return {"rouge1": [float(a == b) for a, b in zip(predicted, true, strict=True)]}

    objective = GeneratedText(
        ("rouge1", "exact_match"), start=START, longest=4, compare=compare, names=("rouge1",), tokenizer=tokenizer
    )
    with torch.no_grad():
        found = objective.predictions(*objective.score(model, {**batch, "labels": labels}))
        plain = TextToText((), start=START).score(model, {**batch, "labels": labels})[0]
    assert seen[0][0] == tokenizer.batch_decode(written, skip_special_tokens=True)
    assert column(found, "rouge1").tolist() == [1.0] * 4
    assert column(found, "nll") == pytest.approx(plain[:, 0].numpy(), rel=1e-6)
    assert objective.no_shortcuts
    assert objective.no_stacks


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_label_texts_score_each_label_as_the_model_does_and_train_on_the_right_one(name):
    model, batch = tiny_model(name, head="lm"), given()
    start = DecoderStart(model.config.decoder_start_token_id, PAD)
    objective = LabelTexts.of(("accuracy",), ("good", "bad word1", "poor"), tiny_tokenizer(writes=True), start)
    assert objective.texts.shape == (3, 3)
    classes = torch.tensor([0, 1, 2, 1])
    with torch.no_grad():
        scores, targets = objective.score(model, {**batch, "labels": classes})
        for label, text in enumerate(objective.texts):
            for row in range(4):
                one = {k: t[row : row + 1] for k, t in batch.items()}
                own = text[text != IGNORED][None]
                assert scores[row, label].item() == pytest.approx(
                    -model(**one, labels=own).loss.item() * own.shape[1], rel=1e-4
                )
        expected = model(**batch, labels=objective.texts[classes]).loss.item()
    assert torch.equal(targets, classes)
    assert objective.predictions(scores, targets).tolist() == scores.argmax(1).tolist()
    assert objective.loss(*objective.train(model, {**batch, "labels": classes})).item() == pytest.approx(
        expected, rel=1e-5
    )
    total, weight = objective.total(scores, targets)
    assert total / weight == pytest.approx(expected, rel=1e-5)


def test_labels_with_the_same_tokens_are_refused_by_name():
    with pytest.raises(DataError, match="labels 'strange' and 'unheard'"):
        LabelTexts.of(("accuracy",), ("good", "strange", "unheard"), tiny_tokenizer(writes=True), START)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_choices_are_scored_by_the_likelihood_of_their_own_tokens(name):
    model = tiny_model(name, head="lm")
    ids = tokens(3, 2, 6)
    labels = ids.clone()
    labels[:, :, :3] = IGNORED
    labels[:, 1, 5:] = IGNORED
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": labels,
        "reference": torch.tensor([0, 1, 1]),
    }
    objective = ChoiceLikelihood(("accuracy",))
    outputs, targets = objective.train(model, batch)
    for row in range(3):
        for choice in range(2):
            own = labels[row, choice][None]
            loss = model(input_ids=ids[row, choice][None], labels=own).loss.item()
            assert outputs[row, choice].item() == pytest.approx(-loss * int((own != IGNORED).sum()), rel=1e-4)
    assert targets.tolist() == [0, 1, 1]
    assert objective.loss(outputs, targets).item() == pytest.approx(
        torch.nn.functional.cross_entropy(outputs, targets).item()
    )
    assert objective.inputs(batch)["input_ids"].shape == (6, 6)
    assert "reference" not in objective.inputs(batch)


def test_tags_count_what_scikit_learn_counts_without_the_outside_tag():
    labels = torch.tensor([[0, 1, 2, IGNORED], [2, 0, 1, 1]])
    logits = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(3))

    class Model:
        def __call__(self, **inputs):
            return type("Out", (), {"logits": logits})

    objective = Tags(("token_f1", "token_accuracy"), outside=0)
    found = objective.predictions(*objective.score(Model(), {"input_ids": labels, "labels": labels}))
    true, predicted = labels[labels != IGNORED].numpy(), logits.argmax(-1)[labels != IGNORED].numpy()
    metrics = compute_metrics(objective.metrics, found, np.zeros(2))
    assert metrics["token_f1"] == pytest.approx(f1_score(true, predicted, labels=[1, 2], average="micro"))
    assert metrics["token_accuracy"] == pytest.approx((true == predicted).mean())


def test_outputs_that_are_not_finite_have_diverged():
    outputs = torch.tensor([[float("nan"), 1.0, 0.0, 0.0]])
    with pytest.raises(DivergedError):
        Completions(("neg_loss",)).predictions(outputs, outputs)


def test_the_decoder_begins_with_its_start_token_and_sees_all_but_the_last():
    labels = torch.tensor([[5, 6, EOS], [7, EOS, IGNORED]])
    assert shift_right(labels, 2, PAD).tolist() == [[2, 5, 6], [2, 7, EOS]]
    assert labels[1, 2] == IGNORED


def test_padding_adds_nothing_to_the_sums_of_a_row():
    logits, labels = torch.randn(2, 3, 9), torch.tensor([[1, 2, IGNORED], [IGNORED, 4, 5]])
    wide = torch.nn.functional.pad(logits, (0, 0, 0, 4)), torch.nn.functional.pad(labels, (0, 4), value=IGNORED)
    assert torch.equal(sums(logits, labels), sums(*wide))
    assert torch.equal(scored(logits, labels), scored(*wide))


def test_metrics_of_statistics_are_sums_over_the_rows_at_hand():
    of = statistics(3, nll=[2.0, 4.0, 6.0], tokens=[1, 2, 1], right=[1, 0, 1], exact=[1, 0, 1])
    assert of.shape == (3, len(COLUMNS))
    names = ("neg_loss", "neg_perplexity", "token_accuracy", "exact_match", "token_f1")
    whole = compute_metrics(names, of, np.zeros(3))
    assert whole == pytest.approx(
        {"neg_loss": -3.0, "neg_perplexity": -np.exp(3.0), "token_accuracy": 0.5, "exact_match": 2 / 3, "token_f1": 0.0}
    )
    assert compute_metrics(("neg_loss",), of[[0, 0, 2]], np.zeros(3))["neg_loss"] == pytest.approx(-10 / 3)


def test_perplexity_of_a_hopeless_model_is_a_finite_number():
    of = statistics(1, nll=[1e6], tokens=[1])
    assert np.isfinite(compute_metrics(("neg_perplexity",), of, np.zeros(1))["neg_perplexity"])


@pytest.mark.parametrize("cut", [1, 3, 7])
def test_the_losses_of_parts_weighted_make_the_loss_of_the_whole(cut):
    """What micro-batches and several processes rest on: rows for classes, tokens for texts."""
    torch.manual_seed(0)
    logits, classes = torch.randn(8, 3), torch.randint(3, (8,))
    numbers, values = torch.randn(8, 1), torch.randn(8)
    summed = torch.stack([torch.rand(8) * 9, torch.randint(1, 9, (8,)).float()], 1)
    for objective, outputs, targets in [
        (Classes(("accuracy",)), logits, classes),
        (Numbers(("pearson",)), numbers, values),
        (Completions(("perplexity",)), summed, summed),
    ]:
        whole = objective.loss(outputs, targets) * objective.weight(outputs, targets)
        parts = [(outputs[:cut], targets[:cut]), (outputs[cut:], targets[cut:])]
        assert torch.allclose(sum(objective.loss(*p) * objective.weight(*p) for p in parts), whole)
        assert sum(objective.weight(*p) for p in parts) == objective.weight(outputs, targets)
