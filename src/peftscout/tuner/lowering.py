"""Lower an adapted model to what others load: a stock LoRA adapter, our own adapter, a merged checkpoint."""

from __future__ import annotations

import copy
import re
from collections import Counter

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peftscout.errors import TunerError
from peftscout.tuner.building import wrappers
from peftscout.tuner.host import read_affine
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

    ``alpha_pattern`` goes wherever ``rank_pattern`` goes: peft does not rescale alpha with the rank. Targets are one
    regex, which peft keeps verbatim (it shortens long lists), and every pattern is anchored, so that ``layers.1`` is
    never found in ``layers.11``.

    Raises:
        TunerError: naming the first op that is not LoRA.
    """
    adapter = active_adapter(peft_model)
    ranks: dict[str, int] = {}
    scale, fan_in_fan_out = 1.0, False
    for path, layer in wrappers(peft_model):
        for hosted in layer.hosted.get(adapter, ()):
            if hosted.op != "lora":
                raise TunerError(f"{hosted.place} cannot be written as LoRA")
            ranks[path] = hosted.size
            scale = layer.settings[adapter].lora_scale
            fan_in_fan_out |= isinstance(layer.get_base_layer(), Conv1D)
    if not ranks:
        raise TunerError("a plan without LoRA cannot be written as LoRA")
    common = Counter(ranks.values()).most_common(1)[0][0]
    different = {f"^{re.escape(path)}": rank for path, rank in ranks.items() if rank != common}
    config, state = to_composite(peft_model)
    lora = LoraConfig(
        base_model_name_or_path=config.base_model_name_or_path,
        inference_mode=True,
        r=common,
        lora_alpha=_alpha(scale, common),
        rank_pattern=different,
        alpha_pattern={key: _alpha(scale, rank) for key, rank in different.items()},
        target_modules=f"^(?:{'|'.join(re.escape(path) for path in ranks)})$",
        fan_in_fan_out=fan_in_fan_out,
        modules_to_save=config.modules_to_save,
    )
    return lora, {re.sub(r"\.peftscout_lora_([AB])$", r".lora_\1.weight", name): t for name, t in state.items()}


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
