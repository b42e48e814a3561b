"""What an evaluation has found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalResult:
    """One number about one reward on one set of held-out prompts.

    Example: ``EvalResult(dataset="", sampling="sampled", reward="exact-answer", measure="pass@8",
    value=0.83, low=0.78, high=0.87, prompts=256, samples=8)``.
    """

    dataset: str
    """Which set of held-out prompts; empty where the task has only one."""
    sampling: str
    """The name of how completions were drawn: ``"greedy"``."""
    reward: str
    measure: str
    """``mean@n``: of the values of all ``n`` samples; ``pass@k``; ``majority@n``."""
    value: float
    low: float | None
    """Lower end of the 95 % interval over prompts; ``None`` for a single prompt."""
    high: float | None
    prompts: int
    """Those that had a value and are counted."""
    samples: int
    """Completions per prompt."""
    saved: bool = False
    """Whether the model was read back from its folder for this."""

    @property
    def label(self) -> str:
        """Data set and sampling as metrics name them: ``"greedy"``, ``"gsm8k:greedy"``."""
        return label_of(dataset=self.dataset, sampling=self.sampling, saved=self.saved)

    @property
    def metric(self) -> str:
        """``eval/<label>/<reward>`` for the mean, else with ``/<measure>`` behind it."""
        name = f"eval/{self.label}/{self.reward}"
        return name if self.measure.startswith("mean@") else f"{name}/{self.measure}"

    def plain(self) -> Mapping[str, Any]:
        """As JSON takes it."""
        return asdict(self)


def label_of(*, dataset: str, sampling: str, saved: bool) -> str:
    """How metrics name one kind of evaluation: ``"greedy"``, ``"saved:gsm8k:greedy"``."""
    return ":".join(part for part in ("saved" if saved else "", dataset, sampling) if part)
