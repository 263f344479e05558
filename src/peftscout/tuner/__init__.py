"""Realise a plan in a model. The only folder that touches peft's internals.

Importing it makes the PEFT type ``PEFTSCOUT`` known, so that ``PeftModel.from_pretrained`` loads adapters of mixed ops.
"""

from peftscout.ops import OpSettings
from peftscout.tuner.building import build
from peftscout.tuner.checks import check_built, check_gradients
from peftscout.tuner.config import PeftscoutConfig
from peftscout.tuner.model import PeftscoutModel
from peftscout.tuner.resetting import checksum, fingerprint, reset
from peftscout.tuner.state import heads, load_trainable_state, parameters_by_op, trainable_state

__all__ = [
    "OpSettings",
    "PeftscoutConfig",
    "PeftscoutModel",
    "build",
    "check_built",
    "check_gradients",
    "checksum",
    "fingerprint",
    "heads",
    "load_trainable_state",
    "parameters_by_op",
    "reset",
    "trainable_state",
]
