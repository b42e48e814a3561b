"""What every plugin promises."""

from grpo_core.testing import PluginSuite


class TestPlugin(PluginSuite):
    distribution = "grpo-rewards"
    package = "grpo_rewards"
    options = {
        "cosine-length": {"max_tokens": 100},
        "json-schema": {"schema_value": {"type": "object"}},
        "llm-judge": {"url": "http://localhost:8000/v1", "model": "judge"},
        "regex": {"pattern": "yes"},
        "soft-overlong": {"max_tokens": 100, "soft_tokens": 20},
    }
