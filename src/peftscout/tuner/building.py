"""`build`: the one way from a plan to an adapted model; `add`: the same for a further plan beside it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from peftscout.errors import TunerError, nearest
from peftscout.ops import OpSettings, generator_for
from peftscout.plan import Plan
from peftscout.tuner.backbone_state import BackboneState
from peftscout.tuner.config import PeftscoutConfig
from peftscout.tuner.layer import PeftscoutLayer
from peftscout.tuner.model import PeftscoutModel  # noqa: F401 - registers the type

if TYPE_CHECKING:
    from peftscout.architecture import ModelMap


def build(
    model: PreTrainedModel,
    plan: Plan,
    model_map: ModelMap,
    *,
    settings: OpSettings | None = None,
    seed: int = 0,
    head: tuple[str, ...] | None = None,
    adapter_name: str = "default",
) -> PeftModel:
    """Put ``plan`` into ``model``, in place, freshly initialised; `reset` takes it out again.

    The backbone is frozen. The head is trained as a copy, initialised anew by the model's own rule, while the original
    stays as it is. Ops and head depend on ``seed`` alone, not on the global random state, the device, or each other.

    Args:
        model: a model without adapters.
        plan: checked against the sites before the model is touched. An empty plan trains the head alone.
        model_map: of this model.
        settings: scales and activations of the ops.
        seed: of the initialisation.
        head: modules to train whole besides the plan; by default ``model_map.head``.
        adapter_name: as peft calls the adapter.

    Raises:
        PlanError: when the plan does not fit the model.
        TunerError: when the model already has adapters, or a part of plan or head cannot be put into it. The model is
            then as it was.
    """
    plan.check(model_map.sites)
    if hasattr(model, "peft_config"):
        raise TunerError(f"this {type(model).__name__} already carries adapters; reset it, or load the model again")
    modules_to_save = model_map.head if head is None else head
    _require_exact_heads(model, modules_to_save)
    config = PeftscoutConfig.for_plan(plan, model_map.sites, settings or OpSettings(), seed, modules_to_save)
    before = BackboneState.of(model)
    try:
        with _quiet():
            peft_model: PeftModel = get_peft_model(model, config, adapter_name=adapter_name)
        _initialise_heads(model, config, adapter_name)
    except Exception:
        before.restore(model)
        raise
    return peft_model


def add(
    peft_model: PeftModel,
    plan: Plan,
    model_map: ModelMap,
    *,
    settings: OpSettings | None = None,
    seed: int = 0,
    adapter_name: str,
) -> None:
    """Put ``plan`` beside the plans that ``peft_model`` holds, initialised as `build` initialises it, and not active.

    Args:
        peft_model: made by `build`.
        plan: checked against the sites before the model is touched.
        model_map: of the bare model; its head is trained too.
        settings: scales and activations of the ops.
        seed: of the initialisation.
        adapter_name: a new one.

    Raises:
        PlanError: when the plan does not fit the model.
        TunerError: when a part of the plan cannot be put into it. The other adapters are then as they were.
    """
    plan.check(model_map.sites)
    if adapter_name in peft_model.peft_config:
        raise TunerError(f"there already is an adapter {adapter_name!r}; take another name, or remove it first")
    config = PeftscoutConfig.for_plan(plan, model_map.sites, settings or OpSettings(), seed, model_map.head)
    try:
        with _quiet():
            peft_model.add_adapter(adapter_name, config)
        _initialise_heads(peft_model.get_base_model(), config, adapter_name)
    except Exception:
        peft_model.peft_config.setdefault(adapter_name, config)
        peft_model.delete_adapter(adapter_name)
        raise
    peft_model.set_requires_grad(adapter_name, True)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # peft asks transformers by a name that is on its way out.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        yield


def _require_exact_heads(model: PreTrainedModel, heads: tuple[str, ...]) -> None:
    """peft trains every module whose name ends like a head's; make sure that these are the heads and no others."""
    matched = {name for name, _ in model.named_modules() if name.endswith(heads)} if heads else set()
    if missing := sorted(set(heads) - matched):
        names = [name for name, _ in model.named_modules() if name]
        raise TunerError(f"head: a {type(model).__name__} has no module {missing[0]!r}{nearest(missing[0], names)}")
    if beyond := sorted(matched - set(heads)):
        raise TunerError(
            f"head: {beyond[0]!r} ends like one of {', '.join(heads)}, so peft would train it too; "
            "name it as a head, or name the head by its full path"
        )


def _initialise_heads(model: PreTrainedModel, config: PeftscoutConfig, adapter_name: str) -> None:
    for name in config.modules_to_save or ():
        head = model.get_submodule(f"{name}.modules_to_save.{adapter_name}")
        if any(p.dtype in (torch.bfloat16, torch.float16) for p in head.parameters()):
            # What is trained is float32, as the ops are: a step is often smaller than half a digit of bfloat16.
            head.float().register_forward_pre_hook(_in_float32, with_kwargs=True)
        _initialise(model, head, config.seed, name)


def _in_float32(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Hand a head of float32 what a backbone of half precision gives it."""
    return tuple(map(_float32, args)), {name: _float32(value) for name, value in kwargs.items()}


def _float32(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _initialise(model: PreTrainedModel, head: nn.Module, seed: int, name: str) -> None:
    """Initialise ``head`` by the rule of ``model``, on the CPU so that the device does not matter.

    Only the bias of a single output keeps its value: there a regression starts, see `load_backbone`.
    """
    fresh = copy.deepcopy(head).cpu()
    kept = [(bias, bias.detach().clone()) for m in fresh.modules() if (bias := single_output_bias(m)) is not None]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(generator_for(seed, name, "head").initial_seed())
        for module in fresh.modules():
            for parameter in module.parameters(recurse=False):
                vars(parameter).pop("_is_hf_initialized", None)  # transformers' mark on what was loaded
            model._init_weights(module)
        for bias, value in kept:
            bias.copy_(value)
    head.load_state_dict(fresh.state_dict())


def single_output_bias(module: nn.Module) -> nn.Parameter | None:
    """Return the bias of a linear layer of one output; ``None`` where ``module`` is another one, or has no bias."""
    return module.bias if isinstance(module, nn.Linear) and module.out_features == 1 else None


def wrappers(model: nn.Module) -> Iterator[tuple[str, PeftscoutLayer]]:
    """Yield the wrappers in a model with the paths at which they sit, as the bare model would call them."""
    yield from (
        (name.removeprefix("base_model.model."), module)
        for name, module in model.named_modules()
        if isinstance(module, PeftscoutLayer)
    )
