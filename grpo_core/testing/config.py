"""Options of the testing kit's components; no torch."""

from __future__ import annotations

from pydantic import Field

from grpo_core.settings import Settings


class ScriptedConfig(Settings):
    """What the generator `scripted` says."""

    completions: tuple[str | tuple[str, ...], ...] = Field(
        min_length=1,
        description="Texts, in turn: sample s of prompt p gets number (p * group_size + s). A list "
        "of texts is what one rollout says turn by turn, the last one again when there are more.",
    )
