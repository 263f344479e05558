"""One of several processes that train one plan; rank 0 prints what came of it. Started as a program.

Arguments: folder of the model, folder of the data, kind of the task.
"""

from __future__ import annotations

import json
import sys

from accelerate import Accelerator

from peftscout import tuner
from peftscout.backbone import load_backbone
from peftscout.outcome import Evaluate, Fidelity
from peftscout.plan import Plan
from peftscout.tasks import encode, load_task
from peftscout.training.evaluator import EncodedTask, Evaluator
from peftscout.training.settings import TrainingSettings

OPS = ("lora", "bias", "scale", "norm", "serial", "parallel", "lowrank_adapter", "prefix", "head")
PLAN = {
    ("layers.0.attention.q", "lora"): 2,
    ("layers.0.attention", "prefix"): 2,
    ("layers.1.ffn", "parallel"): 2,
    ("layers.1.attention.o", "scale"): 1,
}


def trained(model: str, data: str, kind: str) -> dict:
    """Train a plan on batches of 13 rows, which no number of processes divides evenly."""
    task = load_task(data, kind=kind)
    backbone = load_backbone(model, task)
    train, search = (encode(split, backbone.tokenizer, max_length=32) for split in (task.train, task.search))
    settings = TrainingSettings(dict.fromkeys(OPS, 1e-2), batch_size=13)
    evaluator = Evaluator(backbone, EncodedTask(task, train, search), settings)
    sums: dict[str, float] = {}

    def keep(adapted) -> None:
        state = tuner.trainable_state(adapted)
        sums.update({name: tensor.double().abs().sum().item() for name, tensor in state.items()})

    outcome = evaluator(Evaluate(Plan.of(PLAN), Fidelity(5), 0), after=keep)
    return {"state": str(outcome.state), "score": outcome.score, "curve": outcome.curve, "sums": sums}


def main() -> None:
    model, data, kind = sys.argv[1:]
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    found = trained(model, data, kind)
    if accelerator.is_main_process:
        print("FOUND" + json.dumps(found))
    accelerator.end_training()


if __name__ == "__main__":
    main()
