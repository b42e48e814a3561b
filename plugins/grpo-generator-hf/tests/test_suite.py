"""What every generator promises, on each way of decoding."""

from __future__ import annotations

from grpo_core.policy import Policy
from grpo_core.protocols import Generator
from grpo_core.testing import GeneratorSuite
from grpo_generator_hf import HFConfig, HFGenerator


class TestFused(GeneratorSuite):
    tolerance = 1e-4

    def make(self, policy: Policy) -> Generator:
        return HFGenerator()


class TestAdapter(TestFused):
    lora = True


class TestOwnForward(TestFused):
    def make(self, policy: Policy) -> Generator:
        return HFGenerator(HFConfig(fused=False, rows_at_once=3))
