"""Data to tasks: sources, columns, labels, splits, metrics, and token ids."""

from peftscout.tasks.cache import encode_cached
from peftscout.tasks.encoded import Encoded
from peftscout.tasks.encoding import encode
from peftscout.tasks.load import load_task
from peftscout.tasks.metrics import compute_metrics
from peftscout.tasks.recipes import KINDS, RECIPES, Kind, Recipe, find_recipe
from peftscout.tasks.splits import LockedSplit, Split
from peftscout.tasks.task import Task

__all__ = [
    "KINDS",
    "RECIPES",
    "Encoded",
    "Kind",
    "LockedSplit",
    "Recipe",
    "Split",
    "Task",
    "compute_metrics",
    "encode",
    "encode_cached",
    "find_recipe",
    "load_task",
]
