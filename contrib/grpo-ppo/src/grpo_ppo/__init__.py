"""PPO (arXiv 1707.06347) over the loop of grpo_core: an advantage and a loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_core.lazy import lazy_exports

__getattr__ = lazy_exports(
    __name__,
    {
        "Gae": "grpo_ppo.gae",
        "GaeConfig": "grpo_ppo.config",
        "Ppo": "grpo_ppo.loss",
        "PpoConfig": "grpo_ppo.config",
    },
)

__all__ = ["Gae", "GaeConfig", "Ppo", "PpoConfig"]

if TYPE_CHECKING:
    from grpo_ppo.config import GaeConfig, PpoConfig
    from grpo_ppo.gae import Gae
    from grpo_ppo.loss import Ppo
