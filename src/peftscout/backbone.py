"""Load a pretrained model with the head that a task needs, once for a whole study."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer

from peftscout.architecture import ModelMap
from peftscout.errors import ArchitectureError, nearest
from peftscout.reference import BaseReference
from peftscout.tasks import Task
from peftscout.tuner.building import single_output_bias

AUTO_CLASSES: Mapping[str, str] = {
    "classification": "AutoModelForSequenceClassification",
    "regression": "AutoModelForSequenceClassification",
    "multiple_choice": "AutoModelForMultipleChoice",
    "labels_as_text": "AutoModelForSeq2SeqLM",
    "text_to_text": "AutoModelForSeq2SeqLM",
    "causal_lm": "AutoModelForCausalLM",
    "choice_likelihood": "AutoModelForCausalLM",
    "token_classification": "AutoModelForTokenClassification",
    "question_answering": "AutoModelForQuestionAnswering",
}
"""Task kind -> the transformers class that loads a model with its head."""

KEYWORDS = ("revision", "dtype", "quantization_config", "num_labels", "problem_type", "pad_token_id")
"""What a reference may say besides name and class."""

_SKIPPED_MODULES = {"bitsandbytes": "llm_int8_skip_modules", "torchao": "modules_to_not_convert"}
"""Libraries that quantise while loading, and what they call the modules that they leave alone."""

_REPACKS = "support_avx512bf16_for_cpu"
"""Attribute of bitsandbytes' Linear4bit: on some CPUs the first pass in evaluation mode repacks its weights, through
which no gradient flows any more."""

CAUSAL_KINDS = ("causal_lm", "choice_likelihood")
"""Kinds for decoders."""


@dataclass(frozen=True)
class Backbone:
    """A loaded model, its tokenizer, its structure, and how anybody else loads the same.

    Attributes:
        model: the frozen model with a fresh task head.
        tokenizer: with a padding token.
        model_map: sites and sizes.
        reference: name, class and arguments that load the same model elsewhere.
        max_length: most positions that the model takes.
        place: where it has to stay, when it was loaded by a device map or quantised: where its inputs go.
    """

    model: Any
    tokenizer: Any
    model_map: ModelMap
    reference: BaseReference
    max_length: int
    place: torch.device | None = None


@dataclass(frozen=True)
class Loading:
    """How a large model is loaded, in the words of ``from_pretrained`` of transformers.

    Attributes:
        dtype: of the frozen weights; ``None``: that of the checkpoint. What is trained is float32 in any case.
        device_map: which modules go where, such as ``"auto"``; ``None``: all to one device.
        quantization_config: of bitsandbytes or torchao, as plain data.
    """

    dtype: str | None = None
    device_map: str | Mapping[str, str | int] | None = None
    quantization_config: Mapping[str, Any] | None = None

    @property
    def kwargs(self) -> dict[str, Any]:
        """What everybody else who loads the same base has to know, too; where it lies is no part of that."""
        named = {"dtype": self.dtype, "quantization_config": self.quantization_config}
        return {name: value for name, value in named.items() if value is not None}


AS_IT_IS = Loading()
"""As the checkpoint has it, on one device."""


def load_config(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """Load a model's configuration from a folder or the hub.

    Raises:
        ArchitectureError: when there is none, or when it needs code that came with it and ``trust_remote_code`` is off.
    """
    path = Path(name).expanduser()
    if not path.is_dir() and (path.is_absolute() or name.startswith((".", "~"))):
        raise ArchitectureError(f"model {name}: no such folder")
    try:
        return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except ValueError as error:
        if "trust_remote_code" in str(error):
            raise ArchitectureError(
                f"model {name}: comes with code of its own, which is not run unless you ask for it: "
                "read that code, then add --trust-remote-code"
            ) from None
        raise ArchitectureError(f"model {name}: {error}") from None
    except OSError as error:
        raise ArchitectureError(
            f"model {name}: neither a folder with a config.json nor found on the hub: {error}"
        ) from None


def load_backbone(
    name: str,
    task: Task,
    *,
    seed: int = 0,
    roles: Mapping[str, str] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    loading: Loading = AS_IT_IS,
) -> Backbone:
    """Load model and tokenizer for ``task``; the fresh head is initialised by ``seed``; everything is frozen.

    The output of a regression starts at the mean of the training targets. From 0 the first steps of a short training
    do little else than learn that constant, with every module.

    ``roles`` helps where the structure is not recognised, see `ModelMap.from_model`.

    Raises:
        ArchitectureError: when the model cannot be loaded, has no head for the task, or has no usable sites.
    """
    config = load_config(name, revision=revision, trust_remote_code=trust_remote_code)
    _require_vocabulary(name, config)
    arguments: dict[str, Any] = {} if revision is None else {"revision": revision}
    arguments |= loading.kwargs
    if loading.quantization_config is not None:
        arguments["quantization_config"] = sparing_heads(
            loading.quantization_config, AUTO_CLASSES[task.kind], config, trust_remote_code=trust_remote_code
        )
    if task.kind == "regression":
        arguments |= {"num_labels": 1, "problem_type": "regression"}
    elif task.kind == "token_classification":
        arguments |= {"num_labels": len(task.labels)}
    elif task.kind == "classification":
        arguments |= {"num_labels": len(task.labels), "problem_type": "single_label_classification"}
    where = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **where)
    except (OSError, ValueError) as error:
        raise ArchitectureError(f"model {name}: its tokenizer cannot be loaded: {error}") from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if getattr(config, "pad_token_id", None) is None:
        arguments["pad_token_id"] = tokenizer.pad_token_id
    reference = BaseReference(name, AUTO_CLASSES[task.kind], arguments)
    _require_decoder(name, task, config)
    model = load_model(reference, seed=seed, trust_remote_code=trust_remote_code, device_map=loading.device_map)
    if task.kind in CAUSAL_KINDS:
        _require_causal(name, model)
    model_map, longest = ModelMap.from_model(model, roles), _positions(config, tokenizer)
    if task.kind == "regression":
        _start_at(float(task.train.references.mean(dtype=np.float64)), model, model_map.head)
    stays = loading.device_map is not None or getattr(model, "is_quantized", False)
    return Backbone(model, tokenizer, model_map, reference, longest, model.device if stays else None)


def sparing_heads(
    quantization_config: Mapping[str, Any], auto_class: str, config: Any, *, trust_remote_code: bool = False
) -> dict[str, Any]:
    """Return a quantisation that leaves the task head alone, which is trained; unless it names what to leave, itself.

    Raises:
        ArchitectureError: when it is of a library that is not supported.
    """
    asked = dict(quantization_config)
    method = str(asked.get("quant_method", "bitsandbytes"))
    if method not in _SKIPPED_MODULES:
        raise ArchitectureError(
            f"quantization_config: quant_method {method!r} is not supported{nearest(method, _SKIPPED_MODULES)}; "
            f"there are {', '.join(_SKIPPED_MODULES)}"
        )
    with quiet_loading(), torch.device("meta"):
        empty = getattr(transformers, auto_class).from_config(config, trust_remote_code=trust_remote_code)
    head = list(ModelMap.from_model(empty).head)
    return {_SKIPPED_MODULES[method]: head, **asked} if head else asked


def _require_vocabulary(name: str, config: Any) -> None:
    """Raise an ArchitectureError when the model does not read texts, which is what all tasks are made of."""
    if getattr(config.get_text_config(), "vocab_size", None) is None:
        raise ArchitectureError(
            f"model {name}: is a {config.model_type} and reads no texts (its config has no vocab_size), and tasks are "
            "of texts; what peftscout inspect finds in it can be adapted with peftscout.tuner.build"
        )


def _start_at(value: float, model: Any, head: tuple[str, ...]) -> None:
    """Set the bias of the one output; heads without one (decoders') stay as they are."""
    for name in head:
        for module in model.get_submodule(name).modules():
            if (bias := single_output_bias(module)) is not None:
                with torch.no_grad():
                    bias.fill_(value)


def _require_decoder(name: str, task: Task, config: Any) -> None:
    """Raise an ArchitectureError when the model is of the wrong make for a kind that writes texts."""
    if task.kind in CAUSAL_KINDS and config.is_encoder_decoder:
        raise ArchitectureError(
            f"model {name}: is an encoder-decoder, {task.kind} is for decoders; use kind=text_to_text or labels_as_text"
        )
    writes = AUTO_CLASSES[task.kind] == "AutoModelForSeq2SeqLM"
    if writes and config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        raise ArchitectureError(
            f"model {name}: its config names no decoder_start_token_id, with which the decoder begins (models that "
            "begin with the language to write are not supported)"
        )


@torch.inference_mode()
def _require_causal(name: str, model: Any) -> None:
    """Raise an ArchitectureError when earlier positions see later ones: likelihoods of next tokens would be a lie."""
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 9]], device=model.device)
    one, other = model.eval()(input_ids=ids).logits[:, :3].float()
    if (one - other).abs().max() > 1e-3 * one.abs().max():
        raise ArchitectureError(
            f"model {name}: its earlier positions see later ones, so it is no decoder; use kind=classification"
        )


def load_model(
    reference: BaseReference,
    *,
    seed: int,
    trust_remote_code: bool = False,
    device_map: str | Mapping[str, str | int] | None = None,
) -> Any:
    """Load the frozen model behind a reference; what its checkpoint lacks (the task head) is initialised by ``seed``.

    Weights are read from safetensors only: pickled checkpoints can run code.

    Raises:
        ArchitectureError: when its weights cannot be loaded, or do not all fit where the device map puts them, or
            transformers has no such head for it, or the library that it is quantised with is missing.
    """
    name, auto_class = reference.name_or_path, reference.auto_class
    _refuse_other_shards(Path(name))
    placed = {} if device_map is None else {"device_map": device_map}
    transformers.set_seed(seed)
    with quiet_loading():
        try:
            model = getattr(transformers, auto_class).from_pretrained(
                name, **reference.kwargs, **placed, use_safetensors=True, trust_remote_code=trust_remote_code
            )
        except ImportError as error:
            raise ArchitectureError(f"model {name}: a library is missing: {error}") from None
        except ValueError as error:
            if "Unrecognized configuration class" not in str(error):
                raise ArchitectureError(f"model {name}: {error}") from None
            raise ArchitectureError(
                f"model {name}: transformers has no {auto_class} for it; use another model, or another kind of task"
            ) from None
        except (OSError, SafetensorError) as error:
            raise ArchitectureError(f"model {name}: its weights cannot be loaded: {error}") from None
    if (offloaded := next((n for n, p in model.named_parameters() if p.is_meta), None)) is not None:
        raise ArchitectureError(
            f"model {name}: the device map leaves {offloaded} on disk, and backbones are kept in memory; "
            "map it to a device, or load the model with dtype=bfloat16 or quantised"
        )
    _settle(model)
    model.requires_grad_(False)
    return model


def _refuse_other_shards(folder: Path) -> None:
    """Raise an ArchitectureError when an index sends transformers to files that are no safetensors of this folder."""
    path = folder / "model.safetensors.index.json"
    if not path.is_file():
        return
    try:
        shards = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArchitectureError(f"{path}: is no index of weights: {error!r}") from None
    if other := sorted(str(s) for s in shards if not re.fullmatch(r"[^/\\]+\.safetensors", str(s))):
        raise ArchitectureError(
            f"{path}: names {other[0]!r}; weights are read from safetensors files of the folder itself only"
        )


@torch.no_grad()
def _settle(model: Any) -> None:
    """Let quantised projections do now what bitsandbytes leaves to their first pass: dtypes of biases change in it."""
    for module in model.modules():
        if hasattr(module, _REPACKS):
            setattr(module, _REPACKS, False)
        if isinstance(module, torch.nn.Linear) and not module.weight.is_floating_point():
            module(torch.zeros(1, module.in_features, dtype=model.dtype, device=module.weight.device))


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence transformers' progress bars, deprecations, and notes about a fresh head, which is meant to be fresh."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for names that are being renamed
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _positions(config: Any, tokenizer: Any) -> int:
    """Most tokens of one row: what the position table holds (RoBERTa reserves two), bounded by the tokenizer's word."""
    text = config.get_text_config()
    table = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None) or 2**31
    if "roberta" in config.model_type:
        table -= 2
    return int(min(table, tokenizer.model_max_length))
