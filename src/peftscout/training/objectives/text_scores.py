"""How near written texts are to the true ones: ROUGE by ``rouge-score`` and BLEU by ``sacrebleu``, row by row."""

from __future__ import annotations

from collections.abc import Sequence

from peftscout.tasks.row_statistics import BLEU_COLUMNS

ROUGE = ("rouge1", "rouge2", "rougeL")


def rouge_columns(predicted: Sequence[str], true: Sequence[str]) -> dict[str, list[float]]:
    """Return the F-measures of ROUGE-1, -2 and -L, with stemming (Lin 2004)."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE), use_stemmer=True)
    scores = [scorer.score(reference, text) for text, reference in zip(predicted, true, strict=True)]
    return {name: [float(score[name].fmeasure) for score in scores] for name in ROUGE}


def bleu_columns(predicted: Sequence[str], true: Sequence[str]) -> dict[str, list[float]]:
    """Return the counts from which corpus BLEU is computed (Post 2018, tokeniser 13a)."""
    from sacrebleu.metrics import BLEU

    bleu = BLEU(effective_order=True)
    scores = [bleu.sentence_score(text, [reference]) for text, reference in zip(predicted, true, strict=True)]
    rows = [(score.sys_len, score.ref_len, *score.counts, *score.totals) for score in scores]
    return {name: [float(row[n]) for row in rows] for n, name in enumerate(BLEU_COLUMNS)}
