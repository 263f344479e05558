"""How anybody loads the model that an adapter belongs to. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class BaseReference:
    """How anybody loads the backbone that an adapter belongs to.

    Attributes:
        name_or_path: on the hub, or a folder.
        auto_class: of transformers, such as ``AutoModelForSequenceClassification``.
        kwargs: JSON-able keyword arguments of its ``from_pretrained``, such as ``{"num_labels": 3}``.
    """

    name_or_path: str
    auto_class: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
