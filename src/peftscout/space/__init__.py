"""Which plans may be chosen: the space, how to draw from it and move in it, and its form as YAML. Pure; numpy only."""

from peftscout.space.presets import load_space, parse_space, presets
from peftscout.space.space import Choice, Space, Variable, Vectors

__all__ = ["Choice", "Space", "Variable", "Vectors", "load_space", "parse_space", "presets"]
