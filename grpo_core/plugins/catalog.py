"""Which first-party package offers what, so that an error can say what to install.

A test compares this table with what the packages really register.
"""

from __future__ import annotations

from grpo_core.plugins.registrar import Role

FIRST_PARTY: dict[str, dict[Role, tuple[str, ...]]] = {
    "grpo-generator-hf": {"generator": ("hf",)},
    "grpo-generator-vllm-colocate": {"generator": ("vllm-colocate",)},
    "grpo-generator-vllm-server": {"generator": ("vllm-server",)},
    "grpo-losses": {
        "loss": (
            *("bnpo", "cispo", "dapo", "dr-grpo", "gmpo", "grpo", "gspo"),
            *("gspo-token", "luspo", "reinforce", "reinforce-pp", "rloo", "sapo", "vespo"),
        ),
        "advantage": (
            *("batch", "gdpo", "group", "none"),
            *("reinforce-pp", "reinforce-pp-baseline", "rloo"),
        ),
    },
    "grpo-observers": {"observer": ("comet", "mlflow", "trackio", "wandb")},
    "grpo-references": {"reference": ("adapter-off", "ema", "frozen", "none", "periodic")},
    "grpo-reward-model": {"reward": ("reward-model", "reward-model-server")},
    "grpo-rewards": {
        "reward": (
            *("cosine-length", "exact-answer", "json-schema", "length", "llm-judge"),
            *("math-accuracy", "number-answer", "reasoning-accuracy", "reasoning-steps", "regex"),
            *("repetition-penalty", "soft-overlong", "tag-count", "think-format"),
        )
    },
    "grpo-sandbox": {"reward": ("code",)},
    "grpo-savers": {"saver": ("hub", "rollouts", "safetensors")},
    "grpo-tools": {"environment": ("multi-turn", "tools")},
}


def provider_of(role: Role, name: str) -> str | None:
    """The first-party distribution that offers ``name`` for ``role``, if any does."""
    for distribution, offers in FIRST_PARTY.items():
        if name in offers.get(role, ()):
            return distribution
    return None
