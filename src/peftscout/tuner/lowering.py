"""Lower an adapted model to what others load: a stock adapter of peft, our own adapter, a merged checkpoint."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping

from peft import IA3Config, LNTuningConfig, LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peftscout.errors import TunerError
from peftscout.stock import StockForm, holds
from peftscout.tuner.building import wrappers
from peftscout.tuner.host import read_affine, write_affine
from peftscout.tuner.layer import PeftscoutLayer
from peftscout.tuner.registration import PREFIX
from peftscout.tuner.state import active_adapter

Weights = dict[str, Tensor]


def to_composite(peft_model: PeftModel) -> tuple[PeftConfig, Weights]:
    """Return the config and the weights, head included, of the active adapter, as peft saves them."""
    adapter = active_adapter(peft_model)
    config = copy.deepcopy(peft_model.peft_config[adapter])
    config.inference_mode = True
    state = get_peft_model_state_dict(peft_model, adapter_name=adapter, save_embedding_layers=False)
    return config, {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def to_stock_lora(peft_model: PeftModel) -> tuple[LoraConfig, Weights]:
    """Return the same as a stock LoRA adapter, which loads without peftscout.

    ``r`` is the largest rank, as servers read it. ``alpha_pattern`` goes wherever ``rank_pattern`` goes: peft does not
    rescale alpha with the rank. Every pattern is anchored, so that ``layers.1`` is never found in ``layers.11``.

    Raises:
        TunerError: naming the first op that is not LoRA.
    """
    adapter = active_adapter(peft_model)
    held = dict(_held(peft_model, "lora"))
    ranks = {path: layer.hosted[adapter][0].size for path, layer in held.items()}
    scale = next(iter(held.values())).settings[adapter].lora_scale
    largest = max(ranks.values())
    different = {f"^{re.escape(path)}": rank for path, rank in ranks.items() if rank != largest}
    config, state = to_composite(peft_model)
    lora = LoraConfig(
        **_common(config, held),
        r=largest,
        lora_alpha=_alpha(scale, largest),
        rank_pattern=different,
        alpha_pattern={key: _alpha(scale, rank) for key, rank in different.items()},
        fan_in_fan_out=_transposed(held),
    )
    return lora, {re.sub(r"\.peftscout_lora_([AB])$", r".lora_\1.weight", name): t for name, t in state.items()}


def to_stock_ln_tuning(peft_model: PeftModel) -> tuple[LNTuningConfig, Weights]:
    """Return the same as a stock LN tuning adapter: whole copies of the norms, with weight and bias as they are now.

    peft keeps such copies in the dtype of the backbone.

    Raises:
        TunerError: naming the first op that is not a norm's.
    """
    adapter = active_adapter(peft_model)
    held = dict(_held(peft_model, "ln_tuning"))
    config, state = to_composite(peft_model)
    weights = {name: tensor for name, tensor in state.items() if f".{PREFIX}" not in name}
    for path, layer in held.items():
        norm = copy.deepcopy(layer.get_base_layer())
        write_affine(norm, layer.folded(read_affine(norm), adapter))
        own = {name: tensor.detach().cpu().contiguous() for name, tensor in norm.state_dict().items()}
        weights |= {f"base_model.model.{path}.ln_tuning_layers.{name}": tensor for name, tensor in own.items()}
    return LNTuningConfig(**_common(config, held)), weights


def to_stock_ia3(peft_model: PeftModel) -> tuple[IA3Config, Weights]:
    """Return the same as a stock IA3 adapter: factors on the outputs of projections.

    peft multiplies the input of what it calls feed-forward modules, and the output of all others, weight and bias
    alike; ours multiply outputs, so none is declared a feed-forward module.

    Raises:
        TunerError: naming the first op that is no scale.
    """
    held = dict(_held(peft_model, "ia3"))
    config, state = to_composite(peft_model)
    ia3 = IA3Config(**_common(config, held), feedforward_modules=[], fan_in_fan_out=_transposed(held))
    weights = {
        re.sub(r"\.peftscout_scale_s$", ".ia3_l", name): (1 + tensor)[:, None] if PREFIX in name else tensor
        for name, tensor in state.items()
    }
    return ia3, weights


STOCK: Mapping[StockForm, Callable[[PeftModel], tuple[PeftConfig, Weights]]] = {
    "lora": to_stock_lora,
    "ln_tuning": to_stock_ln_tuning,
    "ia3": to_stock_ia3,
}
"""How an adapter becomes a stock one."""

_WORDS: Mapping[StockForm, tuple[str, str]] = {
    "lora": ("LoRA", "LoRA"),
    "ln_tuning": ("LN tuning", "norms"),
    "ia3": ("IA3", "scales"),
}
"""For messages: the form, and what it holds."""


def _held(peft_model: PeftModel, form: StockForm) -> Iterator[tuple[str, PeftscoutLayer]]:
    """Yield the wrappers that carry the active adapter, with their paths.

    Raises:
        TunerError: naming the first op that a stock adapter of ``form`` cannot hold, or that there is none.
    """
    adapter, (name, wanted), empty = active_adapter(peft_model), _WORDS[form], True
    for path, layer in wrappers(peft_model):
        hosted_ops = layer.hosted.get(adapter, ())
        for hosted in hosted_ops:
            if not holds(form, hosted.site, hosted.op):
                raise TunerError(f"{hosted.place} cannot be written as {name}")
        if hosted_ops:
            empty = False
            yield path, layer
    if empty:
        raise TunerError(f"a plan without {wanted} cannot be written as {name}")


def _common(config: PeftConfig, held: Mapping[str, PeftscoutLayer]) -> dict[str, object]:
    """Return what every stock config says alike; the targets as one regex, for peft shortens long lists."""
    return {
        "base_model_name_or_path": config.base_model_name_or_path,
        "inference_mode": True,
        "target_modules": f"^(?:{'|'.join(re.escape(path) for path in held)})$",
        "modules_to_save": config.modules_to_save,
    }


def _transposed(held: Mapping[str, PeftscoutLayer]) -> bool:
    return any(isinstance(layer.get_base_layer(), Conv1D) for layer in held.values())


def _alpha(scale: float, rank: int) -> float:
    alpha = scale * rank
    return int(alpha) if alpha == int(alpha) else alpha


def to_merged(peft_model: PeftModel) -> PreTrainedModel:
    """Return a copy of the model with every op folded into its weights and the trained head in its place.

    Raises:
        TunerError: naming the first op and site that do not fold.
    """
    adapter = active_adapter(peft_model)
    for _, layer in wrappers(peft_model):
        layer.folded(read_affine(layer.get_base_layer()), adapter)  # before the whole model is copied
    merged: PreTrainedModel = copy.deepcopy(peft_model).merge_and_unload(adapter_names=[adapter])
    return merged
