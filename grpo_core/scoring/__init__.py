"""All reward providers of a run behind one call; a failure is never turned into a number."""

from typing import TYPE_CHECKING

from grpo_core.lazy import lazy_exports

__getattr__ = lazy_exports(__name__, {"Scorer": "grpo_core.scoring.scorer"})

__all__ = ["Scorer"]

if TYPE_CHECKING:
    from grpo_core.scoring.scorer import Scorer
