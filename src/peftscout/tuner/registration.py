"""Make ``PEFTSCOUT`` a type that peft knows, so that its ordinary loaders find it.

peft has no plugin mechanism: its enum of types is closed, and `register_peft_method` insists on a member. The enum is
extended here, in this one file, and nowhere else is a private part of the enum touched.
"""

from __future__ import annotations

import peft
from peft import PeftConfig, PeftType
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import register_peft_method

from peftscout.errors import TunerError

PEFT_TYPE = "PEFTSCOUT"

PREFIX = "peftscout_"
"""Of every trained tensor's container; peft and transformers both derive it as the type in lower case and ``_``."""


def peft_type() -> PeftType:
    """Return the member of peft's enum of types, adding it at the first call.

    Raises:
        TunerError: when this version of peft cannot be extended.
    """
    if PEFT_TYPE in PeftType.__members__:
        return PeftType[PEFT_TYPE]
    try:
        member = str.__new__(PeftType, PEFT_TYPE)
        member._name_ = member._value_ = PEFT_TYPE
        member._sort_order_ = len(PeftType)
        type.__setattr__(PeftType, PEFT_TYPE, member)
        PeftType._member_map_[PEFT_TYPE] = member
        PeftType._value2member_map_[PEFT_TYPE] = member
        PeftType._member_names_.append(PEFT_TYPE)
        found = (PeftType[PEFT_TYPE], PeftType(PEFT_TYPE), getattr(PeftType, PEFT_TYPE))
    except Exception as error:
        raise _unsupported(str(error)) from error
    if any(each is not member for each in found):
        raise _unsupported("the new member is not found again")
    return member


def register(config: type[PeftConfig], model: type[BaseTuner]) -> None:
    """Tell peft which config and tuner realise the type; more than once is harmless.

    Raises:
        TunerError: when this version of peft does not take the registration.
    """
    known = peft_type()
    if peft.PEFT_TYPE_TO_CONFIG_MAPPING.get(known) is config:
        return
    try:
        register_peft_method(name=PEFT_TYPE.lower(), config_cls=config, model_cls=model, prefix=PREFIX)
    except Exception as error:
        raise _unsupported(str(error)) from error


def _unsupported(reason: str) -> TunerError:
    return TunerError(f"peft {peft.__version__}: cannot add the type {PEFT_TYPE} ({reason}); install peft >=0.21,<0.23")
