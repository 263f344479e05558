"""PEFT Design Spaces (Chen et al., ICLR 2023): progressive refinement, with statistics that can say "undecided"."""

from peftscout.strategies.design_spaces.options import DesignSpacesOptions
from peftscout.strategies.design_spaces.rule import Rule, compile_preset, preset_plan
from peftscout.strategies.design_spaces.strategy import DesignSpacesSearch, RefinementReport, design_spaces
from peftscout.strategies.design_spaces.yaml import load_design_space, parse_design_space, presets

__all__ = [
    "DesignSpacesOptions",
    "DesignSpacesSearch",
    "RefinementReport",
    "Rule",
    "compile_preset",
    "design_spaces",
    "load_design_space",
    "parse_design_space",
    "preset_plan",
    "presets",
]
