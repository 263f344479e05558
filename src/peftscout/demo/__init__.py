"""`python -m peftscout.demo`: a real model, a real task and a budget, without a hub and without a GPU."""

from peftscout.demo.model import MODEL_REQUIREMENT, model_path
from peftscout.demo.task import LIBRARIES, build_task

__all__ = ["LIBRARIES", "MODEL_REQUIREMENT", "build_task", "model_path"]
