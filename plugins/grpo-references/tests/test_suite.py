"""Every reference of this package against the suite that all references must pass."""

from grpo_core.testing import ReferenceSuite
from grpo_references import (
    AdapterOffReference,
    EmaConfig,
    EmaReference,
    FrozenReference,
    NoReference,
    PeriodicConfig,
    PeriodicReference,
)


class TestNone(ReferenceSuite):
    exists = False

    def make(self):
        return NoReference()


class TestFrozen(ReferenceSuite):
    def make(self):
        return FrozenReference()


class TestFrozenAdapter(TestFrozen):
    lora = True


class TestAdapterOff(ReferenceSuite):
    lora = True

    def make(self):
        return AdapterOffReference()


class TestEma(ReferenceSuite):
    def make(self):
        return EmaReference(EmaConfig(alpha=0.3, every=2))

    def policy_share(self, step: int) -> float:
        return 0.3 if step % 2 else 0.0


class TestEmaOfAnAdapter(TestEma):
    lora = True


class TestPeriodic(ReferenceSuite):
    def make(self):
        return PeriodicReference(PeriodicConfig(every=2))

    def policy_share(self, step: int) -> float:
        return 1.0 if step % 2 else 0.0


class TestPeriodicAdapter(TestPeriodic):
    lora = True
