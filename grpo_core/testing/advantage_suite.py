"""What the core relies on in every advantage, as tests to inherit."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import torch

from grpo_core.errors import ConfigError
from grpo_core.types import AdvantageRequest

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_core.protocols import Advantage

GROUP = 4
REWARDS = (1.0, 0.0, 0.5, 0.25, 0.0, 0.0, 2.0, -1.0, 0.3, 0.1, 0.2, 0.7)
"""Of three groups."""
LENGTHS = (3, 1, 2, 5, 4, 4, 1, 2, 3, 2, 2, 6)
MISSING = float("nan")


class AdvantageSuite:
    """Inherit in a test module, say how the advantage is made, and pytest runs every check::

    class TestRank(AdvantageSuite):
        def make(self):
            return Rank()
    """

    compares_groups: ClassVar[bool] = True
    """Equal rewards within a group give exactly 0, whatever other groups got."""
    ignores_a_constant: ClassVar[bool] = True
    """Adding the same number to all rewards changes nothing."""

    def make(self) -> Advantage:
        raise NotImplementedError("return the advantage to be checked")

    # -- the checks ---------------------------------------------------------------------------

    def test_one_number_per_rollout_or_one_per_token(self) -> None:
        for tokens in self._of(REWARDS):
            assert tokens.dtype == torch.float64
            assert tokens.isfinite().all()

    def test_a_better_reward_is_never_worth_less(self) -> None:
        found = self._means(self._of(REWARDS))
        for start in range(0, len(REWARDS), GROUP):
            members = range(start, start + GROUP)
            ordered = sorted(members, key=lambda i: REWARDS[i])
            assert all(found[a] <= found[b] + 1e-12 for a, b in pairwise(ordered))
        assert max(found) > 0 > min(found)

    def test_the_order_of_rollouts_changes_nothing(self) -> None:
        order = [7, 2, 11, 4, 0, 9, 1, 10, 5, 3, 8, 6]
        shuffled = self._of(REWARDS, order)
        for position, tokens in zip(order, shuffled, strict=True):
            torch.testing.assert_close(tokens, self._of(REWARDS)[position], rtol=1e-9, atol=1e-12)

    def test_equal_rewards_carry_no_signal(self) -> None:
        # The mean of six 0.7 is not 0.7 in floating point.
        everyone, half = range(len(REWARDS)), len(REWARDS) // 2
        same = self._answer(self._request([0.7] * len(REWARDS), everyone, half))
        assert not any(t.any() for t in same), "rounding must not look like signal"
        if self.compares_groups:
            some = self._request([0.7] * half + list(REWARDS[half:]), everyone, half)
            assert not any(t.any() for t in self._answer(some)[:half]), "nor within one group"

    def test_a_missing_reward_takes_no_part(self) -> None:
        gaps = (1, 6)
        with_gaps = [MISSING if i in gaps else r for i, r in enumerate(REWARDS)]
        present = [i for i in range(len(REWARDS)) if i not in gaps]
        found, without = self._of(with_gaps), self._of(REWARDS, present)
        assert not any(found[i].any() for i in gaps)
        for i, tokens in zip(present, without, strict=True):
            torch.testing.assert_close(found[i], tokens, rtol=1e-9, atol=1e-12)

    def test_nothing_scored_is_no_signal(self) -> None:
        assert not any(t.any() for t in self._of([MISSING] * len(REWARDS)))

    def test_a_constant_changes_nothing(self) -> None:
        if self.ignores_a_constant:
            for a, b in zip(self._of(REWARDS), self._of([r + 3 for r in REWARDS]), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)

    def test_groups_too_small_to_compare_are_refused(self) -> None:
        least = int(getattr(self.make(), "min_group_size", 1))
        if least < 2:
            return
        refused = ""
        try:
            self._answer(self._request([1.0, 0.0], range(2), size=1))
        except ConfigError as error:
            refused = str(error)
        assert "group_size" in refused, f"min_group_size is {least}; refuse groups of one"

    # -- inside -------------------------------------------------------------------------------

    def _request(
        self, rewards: Sequence[float], order: Sequence[int], size: int = GROUP
    ) -> AdvantageRequest:
        needs = getattr(self.make(), "needs", ())
        lengths = [LENGTHS[i] for i in order]
        # No difference to the reference, so that what is checked is the rewards' own signal.
        ratios = [torch.zeros(n, dtype=torch.float64) for n in lengths]
        return AdvantageRequest(
            rewards_F_B=torch.tensor([[rewards[i] for i in order]], dtype=torch.float64),
            weights_F=torch.ones(1, dtype=torch.float64),
            group_B=torch.tensor([i // size for i in order]),
            action_count_B=torch.tensor(lengths),
            ref_log_ratios=ratios if "ref_logprobs" in needs else None,
        )

    def _of(self, rewards: Sequence[float], order: Sequence[int] | None = None) -> list[Tensor]:
        return self._answer(self._request(rewards, range(len(rewards)) if order is None else order))

    def _answer(self, request: AdvantageRequest) -> list[Tensor]:
        """Per rollout one advantage per token."""
        result = self.make()(request)
        counts = request.action_count_B.tolist()
        if result.token_advantages is not None:
            assert result.advantages_B is None, "either per rollout or per token"
            assert [len(t) for t in result.token_advantages] == counts
            return list(result.token_advantages)
        assert result.advantages_B is not None
        assert result.advantages_B.shape == (len(counts),)
        return [a.expand(n) for a, n in zip(result.advantages_B, counts, strict=True)]

    def _means(self, advantages: Sequence[Tensor]) -> list[float]:
        return [float(tokens.mean()) for tokens in advantages]
