"""What every generator promises, by a real engine in this process: all weights, and adapters."""

from __future__ import annotations

from typing import Any

import pytest

from grpo_core.policy import Policy
from grpo_core.protocols import Generator
from grpo_core.testing import GeneratorSuite
from grpo_generator_vllm_colocate import VLLMColocateConfig, VLLMColocateGenerator

pytestmark = pytest.mark.vllm


class TestFull(GeneratorSuite):
    tolerance = 1e-4
    sync = "full"

    @pytest.fixture(autouse=True)
    def _options(self, engine_options: dict[str, Any]) -> None:
        self.options = engine_options

    def make(self, policy: Policy) -> Generator:
        return VLLMColocateGenerator(VLLMColocateConfig(sync=self.sync, **self.options))


class TestAdapter(TestFull):
    lora = True
    sync = "adapter"
