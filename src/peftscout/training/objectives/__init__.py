"""What each kind of task computes, behind one protocol; see `base.Objective`."""

from __future__ import annotations

from typing import Any

from peftscout.tasks import Encoded, Task
from peftscout.tasks.row_statistics import BLEU_COLUMNS, GENERATED
from peftscout.training.objectives.base import Batch, Objective, Pass
from peftscout.training.objectives.causal import ChoiceLikelihood, Completions
from peftscout.training.objectives.pooled import Classes, Numbers
from peftscout.training.objectives.seq2seq import DecoderStart, GeneratedText, LabelTexts, TextToText
from peftscout.training.objectives.spans import Spans
from peftscout.training.objectives.tagging import Tags
from peftscout.training.objectives.text_scores import ROUGE, bleu_columns, rouge_columns

__all__ = ["Batch", "Classes", "Numbers", "Objective", "Pass", "objective_for"]


def objective_for(task: Task, tokenizer: Any, config: Any, train: Encoded) -> Objective:
    """Return the objective of ``task``.

    Args:
        task: what is learnt.
        tokenizer: of the model.
        config: of the model.
        train: encoded training rows; the longest target is the most that is ever generated.
    """
    match task.kind:
        case "regression":
            return Numbers(task.metrics)
        case "causal_lm":
            return Completions(task.metrics)
        case "choice_likelihood":
            return ChoiceLikelihood(task.metrics)
        case "token_classification":
            return Tags(task.metrics, outside=task.labels.index("O") if "O" in task.labels else None)
        case "question_answering":
            unanswerable = any(feature["labels"][2:4] == [0, 0] for feature in train.features)
            return Spans(task.metrics, tokenizer=tokenizer, unanswerable=unanswerable)
        case "labels_as_text":
            return LabelTexts.of(task.metrics, task.labels, tokenizer, _start(tokenizer, config))
        case "text_to_text" if generated := [name for name in task.metrics if name in GENERATED]:
            longest = max(len(feature["labels"]) for feature in train.features)
            compare, names = (bleu_columns, BLEU_COLUMNS) if generated == ["bleu"] else (rouge_columns, ROUGE)
            return GeneratedText(
                task.metrics,
                start=_start(tokenizer, config),
                longest=longest,
                compare=compare,
                names=names,
                tokenizer=tokenizer,
            )
        case "text_to_text":
            return TextToText(task.metrics, start=_start(tokenizer, config))
        case _:
            return Classes(task.metrics)


def _start(tokenizer: Any, config: Any) -> DecoderStart:
    return DecoderStart(config.decoder_start_token_id, tokenizer.pad_token_id)
