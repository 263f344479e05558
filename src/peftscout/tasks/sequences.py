"""Sequences to token ids: prompts and completions, chats, sources and targets, tagged words.

Positions that are not predicted have the label `IGNORED`. A target is never cut: what goes first is the beginning of
the prompt, and a target that does not fit by itself is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from peftscout.errors import DataError
from peftscout.tasks.encoded import Encoded, Feature
from peftscout.tasks.recipes import Kind
from peftscout.tasks.splits import LockedSplit, Split

IGNORED = -100
"""Label of what is not predicted, as in torch and transformers."""

Rows = Split | LockedSplit


def encode_completions(split: Rows, tokenizer: Any, limit: int) -> Encoded:
    """Encode prompts and completions for a decoder; only the completion and the end of the text are predicted.

    Prompt and completion are tokenised apart, so that generation begins with the very tokens that training had. A chat
    goes through the chat template of the tokenizer; its last message is the completion.

    Raises:
        DataError: when a completion alone is too long, or a tokenizer lacks what is needed.
    """
    features, cut = list[Feature](), 0
    for n, (texts, target) in enumerate(zip(split.texts, split.targets, strict=True)):
        place = f"{split.name}[{n}]"
        if isinstance(target, list):
            prompt, completion = chat_ids(place, tokenizer, target)
        else:
            prompt, completion = prompt_ids(tokenizer, texts), completion_ids(tokenizer, target)
        kept = fitted(place, prompt, completion, limit, tokenizer.bos_token_id)
        cut += len(kept) < len(prompt)
        features.append(feature_of(kept, completion))
    return Encoded(features, split.references, _lengths(features), cut)


def encode_likelihoods(split: Rows, tokenizer: Any, limit: int) -> Encoded:
    """Encode a prompt with each of its choices for a decoder: ``[choices][positions]``; only choices have labels.

    Choices begin with a blank where neither they nor the prompt bring one, as lm-evaluation-harness has it.
    """
    features, cut = list[Feature](), 0
    for n, (prompt, *choices) in enumerate(split.texts):
        ids = prompt_ids(tokenizer, (prompt,))
        own = list[Feature]()
        for choice in choices:
            blank = "" if prompt[-1:].isspace() or choice[:1].isspace() else " "
            completion = completion_ids(tokenizer, blank + choice, ends=False)
            own.append(feature_of(fitted(f"{split.name}[{n}]", ids, completion, limit, tokenizer.bos_token_id),
                                  completion))  # fmt: skip
        cut += any(len(of["input_ids"]) < len(ids) + sum(i != IGNORED for i in of["labels"]) for of in own)
        features.append({name: [choice[name] for choice in own] for name in own[0]})
    lengths = np.array([max(map(len, feature["input_ids"])) for feature in features], dtype=np.int64)
    return Encoded(features, split.references, lengths, cut)


def encode_text_to_text(split: Rows, tokenizer: Any, limit: int) -> Encoded:
    """Encode sources for the encoder, cut at ``limit``, and targets for the decoder, which must fit into ``limit``."""
    features, cut = list[Feature](), 0
    sources = tokenizer([texts[0] for texts in split.texts], padding=False, verbose=False)
    short = tokenizer([texts[0] for texts in split.texts], padding=False, truncation=True, max_length=limit)
    for n, target in enumerate(split.targets):
        labels = target_ids(tokenizer, str(target))
        if len(labels) > limit:
            raise _too_long(f"{split.name}[{n}]", "target", len(labels), limit)
        cut += len(sources["input_ids"][n]) > limit
        features.append({name: list(values[n]) for name, values in short.items()} | {"labels": labels})
    return Encoded(features, split.references, _lengths(features), cut)


def encode_tagged(split: Rows, tokenizer: Any, limit: int) -> Encoded:
    """Encode words; the first token of each has its tag, the others and special tokens none.

    Raises:
        DataError: when the tokenizer does not tell which token belongs to which word.
    """
    if not tokenizer.is_fast:
        raise DataError(f"{type(tokenizer).__name__}: does not tell words apart; token classification needs a fast one")
    batch = tokenizer([list(words) for words in split.texts], is_split_into_words=True, padding=False,
                      truncation=True, max_length=limit)  # fmt: skip
    features, cut = list[Feature](), 0
    for n, tags in enumerate(split.targets):
        words = batch.word_ids(n)
        firsts = [w is not None and w != before for before, w in zip([None, *words], words, strict=False)]
        labels = [tags[w] if first else IGNORED for first, w in zip(firsts, words, strict=True)]
        cut += max((w for w in words if w is not None), default=-1) + 1 < len(tags)
        features.append({name: list(values[n]) for name, values in batch.items()} | {"labels": labels})
    return Encoded(features, split.references, _lengths(features), cut)


ENCODERS: Mapping[Kind, Callable[[Rows, Any, int], Encoded]] = {
    "causal_lm": encode_completions,
    "choice_likelihood": encode_likelihoods,
    "text_to_text": encode_text_to_text,
    "token_classification": encode_tagged,
}
"""How the rows of a kind become token ids; all other kinds are texts or pairs of texts."""


def prompt_ids(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Return the tokens of a prompt as generation gives them: with what begins a text, without what ends it."""
    ids = list(tokenizer(texts[0])["input_ids"]) if texts else []
    if not ids and tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id]
    elif texts and ids[0] != tokenizer.bos_token_id and _begins(tokenizer):
        ids = [tokenizer.bos_token_id, *ids]
    return ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids


def _begins(tokenizer: Any) -> bool:
    """Whether the tokenizer is told to begin texts with its first token."""
    return bool(getattr(tokenizer, "add_bos_token", False)) and tokenizer.bos_token_id is not None


def completion_ids(tokenizer: Any, text: str, *, ends: bool = True) -> list[int]:
    """Return the tokens of what follows a prompt, with the end of the text where there is a token for it."""
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return [*ids, tokenizer.eos_token_id] if ends and tokenizer.eos_token_id is not None else ids


def target_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a text that a decoder writes, ending with the token that ends texts.

    Raises:
        DataError: when the tokenizer has no such token.
    """
    if tokenizer.eos_token_id is None:
        raise DataError(f"{type(tokenizer).__name__}: has no token that ends a text (eos_token), which targets need")
    ids = list(tokenizer(text_target=text)["input_ids"])
    return ids if ids[-1:] == [tokenizer.eos_token_id] else [*ids, tokenizer.eos_token_id]


def chat_ids(place: str, tokenizer: Any, messages: list[Any]) -> tuple[list[int], list[int]]:
    """Return the tokens before the last message of a chat, and those of the message.

    Raises:
        DataError: when there is no chat template, or it writes a chat differently once it goes on.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"{place}: is a chat, and the tokenizer has no chat template; use a model that was trained on chats, or "
            "columns of a prompt and a completion"
        )
    before = _rendered(tokenizer, messages[:-1], add_generation_prompt=True)
    whole = _rendered(tokenizer, messages)
    if whole[: len(before)] != before or len(whole) == len(before):
        raise DataError(
            f"{place}: the chat template writes the messages before the last one differently when that is there, so "
            "it is not known which tokens are the answer; use columns of a prompt and a completion"
        )
    return before, whole[len(before) :]


def _rendered(tokenizer: Any, messages: Sequence[Mapping[str, str]], **options: Any) -> list[int]:
    text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def fitted(place: str, prompt: list[int], completion: list[int], limit: int, first: int | None) -> list[int]:
    """Return the end of a prompt that fits before its completion; the token that begins texts stays.

    Raises:
        DataError: when the completion leaves no room for one token of the prompt, or is empty.
    """
    if not completion:
        raise DataError(f"{place}: the completion has no token with this tokenizer")
    room = limit - len(completion)
    if room < min(1, len(prompt)):
        raise _too_long(place, "completion", len(completion), limit)
    if len(prompt) <= room:
        return prompt
    begins = prompt[0] == first and room > 1
    return [prompt[0], *prompt[len(prompt) - room + 1 :]] if begins else prompt[len(prompt) - room :]


def feature_of(prompt: list[int], completion: list[int]) -> Feature:
    """Return the inputs of a decoder and the labels of the completion."""
    ids = [*prompt, *completion]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [IGNORED] * len(prompt) + completion}


def _too_long(place: str, what: str, length: int, limit: int) -> DataError:
    return DataError(
        f"{place}: its {what} has {length} tokens, with room for {limit} in all; a {what} is never cut: set "
        "data.max_length higher (within what the model takes), or leave such rows out"
    )


def _lengths(features: Sequence[Feature]) -> Any:
    return np.array([len(feature["input_ids"]) for feature in features], dtype=np.int64)
