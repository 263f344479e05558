"""The training loop of one plan: forward, backward, step; scored when due; best state kept."""

from __future__ import annotations

from collections.abc import Callable

from peftscout.tasks import Encoded
from peftscout.training.forward import Forward
from peftscout.training.objectives import Objective
from peftscout.training.scoring import evaluate
from peftscout.training.trial import RandomStream, Trial

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


def train(
    trial: Trial,
    forward: Forward,
    search_rows: Encoded,
    objective: Objective,
    *,
    training_mode: Callable[[], None],
    progress: Progress | None = None,
) -> None:
    """Take ``trial`` from where it stands to its last step, scoring it on ``search_rows`` whenever it is due.

    Args:
        trial: of the model behind ``forward``.
        forward: passes rows through the model.
        search_rows: the search split.
        objective: of the task.
        training_mode: puts the model into training mode.
        progress: is told after every step.

    Raises:
        DivergedError: when the loss or a prediction is not finite.
    """
    run, settings = trial.run, trial.settings
    training_mode()
    trial.rng.enter()
    while not trial.finished:
        before = forward.tokens, forward.real_tokens
        loss = objective.loss(*forward(trial.rows, trial.next_rows(), objective.train, for_loss=True))
        trial.require_finite(loss)
        forward.device.accelerator.backward(loss)
        trial.update(loss)
        if trial.due:
            trial.scored(evaluate(forward, search_rows, objective, settings.eval_batch_size))
            run.passes += len(search_rows) / settings.batch_size / 3
            training_mode()
        run.tokens += forward.tokens - before[0]
        run.real_tokens += forward.real_tokens - before[1]
        if progress is not None:
            progress(run.steps, trial.fidelity.steps)
    trial.rng = RandomStream.now()
