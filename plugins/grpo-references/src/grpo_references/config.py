"""Options of references that move. Nothing here imports torch."""

from __future__ import annotations

from pydantic import Field

from grpo_core.settings import Settings


class PeriodicConfig(Settings):
    """How often the reference becomes the policy (TR-DPO's hard update, arXiv 2404.09656)."""

    every: int = Field(
        512,
        ge=1,
        description="Steps (rollout batches) between two moves (TRL's ref_model_sync_steps).",
    )


class EmaConfig(PeriodicConfig):
    """How often and how far the reference follows (TR-DPO's soft update, arXiv 2404.09656)."""

    alpha: float = Field(
        0.6,
        gt=0,
        lt=1,
        description="The policy's share at each move; the reference keeps 1 - alpha (TRL's "
        "ref_model_mixup_alpha). For 1 take 'periodic', for 0 'frozen'.",
    )
