"""What every plugin promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo_core.testing import PluginSuite


class TestPlugin(PluginSuite):
    distribution = "grpo-reward-model"
    package = "grpo_reward_model"

    @pytest.fixture(autouse=True)
    def _real_options(self, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
        options = {
            "reward-model": {"path": str(folders["decoder"])},
            "reward-model-server": {"url": "http://localhost:8000", "protocol": "tei-predict"},
        }
        monkeypatch.setattr(type(self), "options", options)
