"""How far a run is, for those who ask in its middle."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from grpo_core.types import TrainerState

if TYPE_CHECKING:
    from grpo_core.trainer.run import Run


def progress(run: Run, step: int) -> TrainerState:
    """As of the beginning of a step."""
    settings, prompts = run.settings, len(run.prompts)
    updates = settings.minibatches_per_step * settings.passes_per_step
    epochs = settings.steps * settings.prompts_per_step / prompts
    return TrainerState(
        global_step=step * updates,
        max_steps=settings.steps * updates,
        epoch=step * settings.prompts_per_step / prompts,
        num_train_epochs=math.ceil(epochs),
    )
