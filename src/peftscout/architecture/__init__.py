"""Model -> `ModelMap`: stacks, blocks, roles and dims of a transformers model, and from them its sites."""

from peftscout.architecture.model_map import ModelMap

__all__ = ["ModelMap"]
