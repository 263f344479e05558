"""`PeftscoutModel`: puts the wrappers of a `PeftscoutConfig` into a model; peft does the rest."""

from __future__ import annotations

from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

from peftscout.errors import TunerError
from peftscout.tuner import attention_functions, host
from peftscout.tuner.backbone_state import BackboneState, remove_sublayer_inputs
from peftscout.tuner.config import HostedOp, PeftscoutConfig
from peftscout.tuner.layer import PeftscoutLayer, SublayerInput
from peftscout.tuner.registration import PREFIX, register


class PeftscoutModel(BaseTuner):  # type: ignore[misc]
    """peft's tuner for mixed ops. Every host is a leaf; what a site needs from elsewhere reaches it by a hook."""

    prefix = PREFIX
    tuner_layer_cls = PeftscoutLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - peft's way: no default targets

    backbone_state: BackboneState

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        self.backbone_state = BackboneState.of(model)

    @staticmethod
    def _check_target_module_exists(peft_config: PeftscoutConfig, key: str) -> bool:
        return key in peft_config.hosts

    def _prepare_model(self, peft_config: PeftscoutConfig, model: nn.Module) -> None:
        """Check that the model holds every site as the config knows it, before anything is changed."""
        for hosted in peft_config.ops:
            for path in (hosted.site.module, hosted.host, hosted.site.input_module):
                if path is not None:
                    _require_module(model, hosted, path)
            _require_features(model, hosted)
        prefixes = tuple(hosted for hosted in peft_config.ops if hosted.op == "prefix")
        if prefixes:
            attention_functions.switch_on(model, prefixes)

    def _create_and_replace(
        self,
        peft_config: PeftscoutConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, PeftscoutLayer):
            layer = target
        else:
            layer = PeftscoutLayer(target, adapter_name)
            layer.train(target.training)
            self._replace_module(parent, target_name, layer, target)
        ops = peft_config.hosts[current_key]
        layer.update_layer(
            adapter_name, ops, peft_config.op_settings, peft_config.seed, inference_mode=peft_config.inference_mode
        )
        if adapter_name not in self.active_adapters:
            layer.set_adapter(self.active_adapters)
        for hosted in ops:
            if hosted.op == "parallel" and layer.sublayer_input is None:
                assert hosted.site.input_module is not None
                layer.sublayer_input = SublayerInput()
                _leaf(self.model.get_submodule(hosted.site.input_module)).register_forward_pre_hook(
                    layer.sublayer_input
                )

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        setattr(parent, child_name, new_module)

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> nn.Module:
        model: nn.Module = super()._unload_and_optionally_merge(*args, **kwargs)
        remove_sublayer_inputs(model)
        self.backbone_state.restore_attention()
        return model


def _leaf(module: nn.Module) -> nn.Module:
    leaf: nn.Module = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    return leaf


def _require_module(model: nn.Module, hosted: HostedOp, path: str) -> None:
    try:
        model.get_submodule(path)
    except AttributeError:
        raise TunerError(
            f"{hosted.place}: a {type(model).__name__} has no module {path}; "
            "the adapter belongs to another model, or to another head of it"
        ) from None


def _require_features(model: nn.Module, hosted: HostedOp) -> None:
    """The projection or norm must be as wide as the site says; of a sublayer only the output width is the leaf's."""
    entering, leaving = host.features(_leaf(model.get_submodule(hosted.site.module)))
    expected = (hosted.site.in_features, hosted.site.out_features)
    if leaving != expected[1] or (hosted.site.kind != "sublayer" and entering != expected[0]):
        raise TunerError(
            f"{hosted.place}: {hosted.site.module} maps {entering} to {leaving} features, "
            f"the adapter was made for {expected[0]} to {expected[1]}"
        )


register(PeftscoutConfig, PeftscoutModel)
attention_functions.register()
