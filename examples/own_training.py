"""Search with a training of your own: here `transformers.Trainer`, scored by the mean of accuracy and macro F1.

    python examples/own_training.py MODEL DATA STUDY

peftscout builds each plan into the model and hands it over; whatever trains it and returns a number will do.
"""

from __future__ import annotations

import sys
from tempfile import TemporaryDirectory

import torch
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

import peftscout
from peftscout.tasks import Encoded, compute_metrics
from peftscout.training.own_training import Candidate


def rows(encoded: Encoded) -> list[dict[str, object]]:
    """Rows as `Trainer` takes them."""
    return [{**f, "labels": int(r)} for f, r in zip(encoded.features, encoded.references, strict=True)]


def train_with_trainer(candidate: Candidate) -> dict[str, float]:
    """Train the adapted model in place; return scores by name, the one that is searched for first."""
    torch.manual_seed(candidate.seed)
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=candidate.steps,
            per_device_train_batch_size=16,
            learning_rate=2e-3 * candidate.lr_scale,
            lr_scheduler_type="cosine",
            seed=candidate.seed,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=candidate.model,
            args=arguments,
            train_dataset=rows(candidate.train),
            data_collator=DataCollatorWithPadding(candidate.tokenizer),
        )
        trainer.train()
        predicted = trainer.predict(rows(candidate.search)).predictions.argmax(-1)
    found = compute_metrics(("accuracy", "macro_f1"), predicted, candidate.search.references)
    return {"mean": (found["accuracy"] + found["macro_f1"]) / 2, **found}


def main(model: str, data: str, study: str) -> peftscout.Result:
    """Search, compare with uniform LoRA that was trained in the same way, and print the verdict."""
    result = peftscout.search(
        model, data, budget="5%", study=study, trials=3, steps=20, final={"seeds": 2}, evaluate=train_with_trainer
    )
    print(result.verdict)
    return result


if __name__ == "__main__":
    main(*sys.argv[1:4])
