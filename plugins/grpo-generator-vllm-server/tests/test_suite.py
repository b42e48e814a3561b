"""What every generator promises, by a real engine: all weights by file, and adapters."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo_core.policy import Policy
from grpo_core.protocols import BuildContext, Generator
from grpo_core.testing import GeneratorSuite
from grpo_generator_vllm_server import VLLMServerConfig, VLLMServerGenerator
from grpo_generator_vllm_server.launch import Launched

pytestmark = pytest.mark.vllm


class TestByFile(GeneratorSuite):
    tolerance = 1e-4
    sync = "file"

    @pytest.fixture(autouse=True)
    def _server(
        self,
        request: pytest.FixtureRequest,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        name = "adapter_engine" if self.sync == "adapter" else "engine"
        launched: Launched = request.getfixturevalue(name)
        monkeypatch.setenv("GRPO_VLLM_TOKEN", launched.plan.token)
        self.url, self.folder = launched.plan.url, tmp_path

    def make(self, policy: Policy) -> Generator:
        config = VLLMServerConfig(urls=(self.url,), sync=self.sync, recover_seconds=0)
        context = BuildContext(role="generator", name="vllm-server", seed=0, run_dir=self.folder)
        return VLLMServerGenerator(config, context)


class TestByAdapter(TestByFile):
    lora = True
    sync = "adapter"
