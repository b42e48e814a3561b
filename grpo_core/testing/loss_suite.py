"""What the core relies on in every loss, as tests to inherit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, get_args

import torch

from grpo_core.batching import plan_weights
from grpo_core.testing.tokens import LENGTHS, MAX_TOKENS, cast, only, random_tokens, rows
from grpo_core.types import ActionTokens, Aggregation, Need

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_core.protocols import Loss
    from grpo_core.types import LossOutput


class LossSuite:
    """Inherit in a test module, say how the loss is made, and pytest runs every check below::

    class TestClosest(LossSuite):
        def make(self):
            return Closest()
    """

    reinforce_at_ratio_one: ClassVar[bool] = True
    """Before the policy has moved, the gradient is that of ``-advantage * logprob``."""

    def make(self) -> Loss:
        raise NotImplementedError("return the loss to be checked")

    # -- the checks ---------------------------------------------------------------------------

    def test_it_declares_what_exists(self) -> None:
        loss = self.make()
        assert self._needs(loss) <= set(get_args(Need))
        assert self._aggregation(loss) in get_args(Aggregation)

    def test_one_loss_per_token_and_metrics_without_gradient(self) -> None:
        loss, tokens = self.make(), random_tokens()
        out = loss(self._with_gradient(loss, tokens))
        assert out.loss_N.shape == tokens.logprobs_N.shape, "the core averages, not the loss"
        assert out.token_mean_N is None or out.token_mean_N.shape == tokens.logprobs_N.shape
        for name, metric in out.metrics.items():
            assert metric.shape == tokens.logprobs_N.shape, name
            assert not metric.requires_grad, name
            assert "/" in name, f"metrics are named group/name, unlike {name!r}"

    def test_a_microbatch_without_tokens(self) -> None:
        loss = self.make()
        empty, _ = rows(random_tokens(), [1])
        assert loss(self._with_gradient(loss, empty)).loss_N.shape == (0,)

    def test_no_advantage_no_gradient_if_promised(self) -> None:
        loss, tokens = self.make(), random_tokens(spread=5.0)
        if not getattr(loss, "skips_zero_advantage", False):
            return
        silent = replace(tokens, advantages_N=torch.zeros_like(tokens.advantages_N))
        assert (self._gradient(loss, silent) == 0).all(), "remove skips_zero_advantage"

    def test_at_ratio_one_it_is_the_policy_gradient(self) -> None:
        if not self.reinforce_at_ratio_one:
            return
        loss = self.make()
        tokens = random_tokens(log_ratio=0.0)
        tokens = replace(tokens, entropy_rank_N=torch.ones_like(tokens.logprobs_N))
        weights_N = self._weights(loss, [range(len(LENGTHS))])[0]
        expected = -tokens.advantages_N * weights_N
        torch.testing.assert_close(self._gradient(loss, tokens)[0], expected, rtol=1e-9, atol=1e-12)

    def test_neither_microbatches_nor_their_order_change_the_gradient(self) -> None:
        loss, tokens = self.make(), random_tokens(1)
        whole = self._gradient(loss, tokens)
        for split in ([[5, 4, 3, 2, 1, 0]], [[2], [0, 1], [5, 3, 4]], [[r] for r in range(6)]):
            torch.testing.assert_close(
                self._gradient(loss, tokens, split), whole, rtol=1e-9, atol=1e-12
            )

    def test_two_ranks_follow_the_gradient_of_one(self) -> None:
        loss, tokens = self.make(), random_tokens(2)
        ranks: list[Sequence[int]] = [[0, 1, 2], [3, 4, 5]]
        torch.testing.assert_close(
            self._gradient(loss, tokens, ranks, self._weights(loss, ranks)) / len(ranks),
            self._gradient(loss, tokens),
            rtol=1e-9,
            atol=1e-12,
        )

    def test_it_stays_finite_however_far_the_policy_moves(self) -> None:
        loss = self.make()
        for dtype in (torch.float32, torch.float64):
            for log_ratio in (1e4, 89.0, 30.0, -30.0, -89.0, -1e4):
                tokens = random_tokens(log_ratio=log_ratio, dtype=dtype)
                out = loss(self._with_gradient(loss, tokens))
                assert out.loss_N.isfinite().all(), f"log-ratio {log_ratio} in {dtype}"
                gradient = self._gradient(loss, tokens)
                assert gradient.isfinite().all(), f"gradient at log-ratio {log_ratio} in {dtype}"

    def test_it_reads_nothing_that_it_does_not_declare(self) -> None:
        loss, tokens = self.make(), random_tokens(3)
        given = self._gradient(loss, tokens)
        least = self._gradient(loss, only(tokens, self._needs(loss)))
        assert torch.equal(given, least), f"it needs more than {sorted(self._needs(loss))}"

    def test_bf16_is_close_to_float64(self) -> None:
        """Values where the policy has moved, gradients where it has not: those of a clip jump."""
        loss = self.make()
        for log_ratio in (None, 0.0):
            half = random_tokens(4, log_ratio=log_ratio, spread=0.1, dtype=torch.bfloat16)
            exact = cast(half, torch.float64)
            self._close(self._out(loss, half).loss_N, self._out(loss, exact).loss_N)
        self._close(self._gradient(loss, half), self._gradient(loss, exact))

    # -- inside -------------------------------------------------------------------------------

    def _needs(self, loss: Loss) -> frozenset[Need]:
        return frozenset(getattr(loss, "needs", ()))

    def _aggregation(self, loss: Loss) -> Aggregation:
        return getattr(loss, "aggregation", "token-mean")

    def _close(self, found: Tensor, exact: Tensor) -> None:
        # bf16 keeps 8 bits; a sum over a rollout loses a few more.
        error = (found.double() - exact.double()).abs().max()
        assert error <= 0.05 * exact.abs().max() + 1e-6, f"off by {error:.3g} in bf16"

    def _out(self, loss: Loss, tokens: ActionTokens) -> LossOutput:
        return loss(self._with_gradient(loss, tokens))

    def _with_gradient(self, loss: Loss, tokens: ActionTokens) -> ActionTokens:
        return replace(
            tokens,
            logprobs_N=tokens.logprobs_N.detach().clone().requires_grad_(),
            entropy_N=tokens.entropy_N.detach()
            .clone()
            .requires_grad_("entropy" in self._needs(loss)),
        )

    def _weights(self, loss: Loss, ranks: Sequence[Sequence[int]]) -> list[Tensor]:
        """The core's weight of every token of the batch, and those of a plain mean, when each
        entry of ``ranks`` is what one rank trains on."""
        everyone = [LENGTHS[row] for rank in ranks for row in rank]
        loss_N, mean_N = (torch.zeros(sum(LENGTHS)).double() for _ in range(2))
        index_N = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS))
        for rank in ranks:
            (weights,) = plan_weights(
                [tuple(rank)],
                LENGTHS,
                self._aggregation(loss),
                max_tokens=MAX_TOKENS,
                ranks=len(ranks),
                sum_over_ranks=lambda local: [sum(everyone), len(everyone)],
            )
            for i, row in enumerate(rank):
                loss_N[index_N == row] = weights.loss_B[i]
                mean_N[index_N == row] = weights.mean_B[i]
        return [loss_N, mean_N]

    def _gradient(
        self,
        loss: Loss,
        tokens: ActionTokens,
        split: Sequence[Sequence[int]] | None = None,
        weights: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """With respect to log-probs and entropies, ``(2, N)``, over all microbatches."""
        weights_N, mean_N = weights or self._weights(loss, [range(len(LENGTHS))])
        found = torch.zeros(2, len(tokens.logprobs_N), dtype=tokens.logprobs_N.dtype)
        for chosen in split or [range(tokens.rollouts)]:
            micro, at_N = rows(tokens, chosen)
            micro = self._with_gradient(loss, micro)
            out = loss(micro)
            total = (out.loss_N * weights_N[at_N]).sum()
            if out.token_mean_N is not None:
                total = total + (out.token_mean_N * mean_N[at_N]).sum()
            leaves = [x for x in (micro.logprobs_N, micro.entropy_N) if x.requires_grad]
            if total.requires_grad:
                gradients = torch.autograd.grad(
                    total, leaves, allow_unused=True, materialize_grads=True
                )
                for i, gradient in enumerate(gradients):
                    found[i, at_N] = gradient
        return found
