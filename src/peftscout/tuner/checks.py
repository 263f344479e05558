"""Proof that a plan was realised as written: every op is there, priced right, and reached by the gradient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
import transformers
from peft import PeftModel
from torch import Tensor, nn

from peftscout.cost import price
from peftscout.errors import TunerError
from peftscout.plan import Plan
from peftscout.tuner.building import wrappers
from peftscout.tuner.config import HostedOp
from peftscout.tuner.layer import PeftscoutLayer
from peftscout.tuner.state import active_adapter, parameters_by_op

PERTURBATION = 0.02
"""Standard deviation of what zero-initialised tensors get while gradients are checked."""

EXACT, ROUNDED = 1e-4, 0.05
"""Differences of outputs, as shares of the largest, that are rounding in fp32 and in bf16."""


def check_built(peft_model: PeftModel, plan: Plan) -> None:
    """Check that the model holds every placement of ``plan`` exactly once and at its price, and nothing else trains.

    An adapter that was loaded for inference is counted as if it were trained.

    Raises:
        TunerError: naming the first site where that is not so.
    """
    adapter = active_adapter(peft_model)
    frozen = peft_model.peft_config[adapter].inference_mode
    found: dict[tuple[str, str], int] = {}
    for path, layer in wrappers(peft_model):
        for hosted in layer.hosted.get(adapter, ()):
            key = (hosted.site.id, hosted.op)
            if key in found:
                raise TunerError(f"{hosted.place}: is in the model twice")
            if path != hosted.host:
                raise TunerError(f"{hosted.place}: sits at {path} instead of {hosted.host}")
            found[key] = hosted.size
            parameters = layer.parameters_of(adapter, hosted.op).values()
            numel = sum(p.numel() for p in parameters if p.requires_grad or frozen)
            if numel != (cost := price(hosted.site, hosted.op).at(hosted.size)):
                raise TunerError(f"{hosted.place} {hosted.size}: trains {numel} parameters, its price is {cost}")
    for site, op in {**plan.sizes, **found}:
        asked, built = plan.sizes.get((site, op), 0), found.get((site, op), 0)
        if asked != built:
            raise TunerError(f"{site}: {op} of size {asked} was asked for, {built} was built (0: absent)")
    ours = {id(p) for parameters in parameters_by_op(peft_model).values() for p in parameters}
    for name, parameter in peft_model.named_parameters():
        if parameter.requires_grad and id(parameter) not in ours:
            raise TunerError(f"{name}: a parameter of the backbone would be trained")


def check_gradients(peft_model: PeftModel, plan: Plan, batch: Mapping[str, Tensor]) -> None:
    """Check with one forward and backward pass over ``batch`` that the gradient reaches every tensor of ``plan``.

    Tensors that are all zero (as LoRA's B at the start, which keeps the gradient from A) get small random values for
    the check, and bottlenecks an activation that is nowhere flat. Values, gradients, modes and random state are then
    put back exactly. A bias on the keys alone is let off: softmax does not change when all scores shift alike.

    Raises:
        TunerError: naming the first site that the gradient does not reach.
    """
    adapter = active_adapter(peft_model)
    layers = [layer for _, layer in wrappers(peft_model)]
    parameters = [p for group in parameters_by_op(peft_model).values() for p in group]
    with perturbed(parameters), _smooth(layers, adapter), evaluation(peft_model), torch.enable_grad():
        torch.autograd.backward(_loss(peft_model, batch))
        for layer in layers:
            for hosted in layer.hosted.get(adapter, ()):
                if (hosted.site.id, hosted.op) in plan.sizes:
                    _require_gradients(layer, adapter, hosted)


def _require_gradients(layer: PeftscoutLayer, adapter: str, hosted: HostedOp) -> None:
    may_vanish = hosted.op == "bias" and hosted.site.role == "k"
    for name, parameter in layer.parameters_of(adapter, hosted.op).items():
        if parameter.grad is None or not (may_vanish or parameter.grad.any()):
            raise TunerError(
                f"{hosted.place}: no gradient reaches {name}, it would be trained in vain; this place is silently "
                f"inert in {hosted.host} under transformers {transformers.__version__}, leave it out of the space"
            )


def _loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the model's own loss where the batch has labels, else the mean square of its first output."""
    outputs = model(**batch)
    loss: Tensor | None = getattr(outputs, "loss", None)
    return loss if loss is not None else outputs[0].float().square().mean()


@contextmanager
def perturbed(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Give zero tensors small random values, and every tensor a clean gradient; undo both exactly."""
    zeros = [p for p in parameters if not p.any()]
    gradients = [p.grad for p in parameters]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in zeros:
            p.copy_(PERTURBATION * torch.randn(p.shape, generator=generator))
    for p in parameters:
        p.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for p in zeros:
                p.zero_()
        for p, gradient in zip(parameters, gradients, strict=True):
            p.grad = gradient


@contextmanager
def _smooth(layers: list[PeftscoutLayer], adapter: str) -> Iterator[None]:
    """A unit behind a ReLU may be off for a whole batch; that is no fault of its place."""
    before = [layer.settings.get(adapter) for layer in layers]
    for layer, settings in zip(layers, before, strict=True):
        if settings is not None:
            layer.settings[adapter] = replace(
                settings, adapter_activation="leaky_relu", lowrank_activation="leaky_relu"
            )
    try:
        yield
    finally:
        for layer, settings in zip(layers, before, strict=True):
            if settings is not None:
                layer.settings[adapter] = settings


def share_of_largest(found: Tensor, wanted: Tensor) -> float:
    """Return the largest difference, as a share of the largest value that is wanted."""
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-6))


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, with the mode of every module and the random state put back."""
    modes = [(module, module.training) for module in model.modules()]
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
