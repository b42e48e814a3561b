"""What losses and advantages get from the core: whole runs, watched by the parts themselves."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo_core import Run, SamplingParams, train
from grpo_core.errors import ConfigError, GRPOError
from grpo_core.testing import ScriptedConfig, ScriptedGenerator
from grpo_core.trainer.entropy_ranks import entropy_ranks
from grpo_core.types import ActionTokens, AdvantageRequest, AdvantageResult, LossOutput
from grpo_generator_hf import HFGenerator
from grpo_losses import (
    AdaptiveEntropy,
    Dapo,
    DapoConfig,
    GroupAdvantage,
    ReinforcePlusPlusAdvantage,
    ScaledConfig,
)
from grpo_losses.advantage_options import GlobalConfig
from grpo_references import FrozenReference

MakeRun = Callable[..., Run]


class Watcher:
    """REINFORCE that remembers what it was given."""

    skips_zero_advantage = True

    def __init__(self, **attributes: Any) -> None:
        self.seen: list[ActionTokens] = []
        vars(self).update(attributes)

    def __call__(self, tokens: ActionTokens) -> LossOutput:
        self.seen.append(tokens)
        return LossOutput(loss_N=-tokens.advantages_N * tokens.logprobs_N)


class PerToken:
    """An advantage like that of a process reward: step by step, other for each rollout."""

    def __init__(self, answer: Callable[[int, int], torch.Tensor]) -> None:
        self.answer = answer

    def __call__(self, request: AdvantageRequest) -> AdvantageResult:
        counts = request.action_count_B.tolist()
        return AdvantageResult(token_advantages=[self.answer(i, n) for i, n in enumerate(counts)])


def test_advantages_per_token_reach_their_tokens(make_run: MakeRun) -> None:
    def answer(rollout: int, count: int) -> torch.Tensor:
        steps = torch.arange(count, dtype=torch.float64) + 10 * rollout
        # The second is silent but for its last token, the third altogether.
        if rollout == 1:
            return steps * (torch.arange(count) == count - 1)
        return steps * 0 if rollout == 2 else steps

    loss = Watcher()
    run = make_run(advantage=PerToken(answer), loss=loss, train={"steps": 1})
    history = train(run).history
    given = torch.cat([t.advantages_N for t in loss.seen])
    assert sum(t.rollouts for t in loss.seen) == 3, "a rollout without any signal is not computed"
    lengths = [int((t.rollout_index_N == i).sum()) for t in loss.seen for i in range(t.rollouts)]
    found = sorted(tuple(x.tolist()) for x in given.split(lengths))
    # "yes" and "no" in turn: rollouts 1 and 3 are of one length, 0 and 2 of another.
    assert found in (
        sorted(tuple(answer(i, n).tolist()) for i, n in zip((0, 1, 3), counts, strict=True))
        for counts in permutations(lengths)
    )
    assert history[0]["tokens/skipped_share"] > 0
    assert history[0]["advantage/mean"] > 0


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda i, n: torch.zeros(n + 1).double(), r"shape \(\d+,\), \(\d+,\) is due"),
        (lambda i, n: torch.full((n,), torch.nan).double(), "not finite; 0 stands for no signal"),
    ],
)
def test_advantages_that_do_not_fit_are_refused(make_run: MakeRun, answer: Any, words: str) -> None:
    with pytest.raises(GRPOError, match=words):
        train(make_run(advantage=PerToken(answer)))


def test_neither_form_or_both_is_refused(make_run: MakeRun) -> None:
    with pytest.raises(GRPOError, match=r"either advantages_B, .* or token_advantages"):
        train(make_run(advantage=lambda request: AdvantageResult()))


def test_truncated_rollouts_never_reach_a_loss_that_masks_them(
    make_run: MakeRun, tmp_path: Path
) -> None:
    def go(masks: bool) -> tuple[Watcher, Any]:
        loss = Watcher(masks_truncated=masks, skips_zero_advantage=False)
        # "yes" and its end make fewer tokens than the limit, the other text is cut off.
        generator = ScriptedGenerator(ScriptedConfig(completions=("no", "yes " * 9)))
        sampling = SamplingParams(max_tokens=8)
        run = make_run(
            loss=loss,
            generator=generator,
            sampling=sampling,
            train={"steps": 1},
            output=tmp_path / str(masks),
        )
        return loss, train(run).history[0]

    masking, metrics = go(True)
    plain, _ = go(False)
    assert 0 < metrics["length/truncated_share"] < 1
    assert sum(t.rollouts for t in masking.seen) < sum(t.rollouts for t in plain.seen)
    assert metrics["tokens/skipped_share"] > 0


def test_a_step_in_which_everything_is_masked_counts_nothing(make_run: MakeRun) -> None:
    loss = Watcher(masks_truncated=True)
    generator = ScriptedGenerator(ScriptedConfig(completions=("no " * 9, "yes " * 9)))
    run = make_run(loss=loss, generator=generator, sampling=SamplingParams(max_tokens=8))
    history = train(run).history
    assert sum(len(t.logprobs_N) for t in loss.seen) == 0
    assert history[0]["optim/grad_norm"] == 0
    assert history[0]["tokens/skipped_share"] == 1


def test_entropy_ranks_say_what_a_quantile_says() -> None:
    rng = torch.Generator().manual_seed(0)
    # Rounded, so that there are ties.
    entropies = [(torch.rand(n, generator=rng) * 8).round() / 8 for n in (4, 0, 7, 9)]
    other = [(torch.rand(11, generator=rng) * 8).round() / 8]
    everyone = torch.cat([*entropies, *other])

    def gather(mine: list[Any]) -> list[Any]:
        return [*mine, *(x.double() for x in other)]

    ranks = entropy_ranks(entropies, gather)
    assert [len(r) for r in ranks] == [4, 0, 7, 9]
    for q in (0.0, 0.2, 0.5, 0.8, 1.0):
        threshold = torch.quantile(everyone.double(), q)
        for rank, entropy in zip(ranks, entropies, strict=True):
            assert torch.equal(rank >= q - 1e-12, entropy >= threshold - 1e-12), q
    assert entropy_ranks([torch.ones(1)], lambda mine: mine)[0].tolist() == [1.0]


def test_a_top_entropy_mask_does_not_depend_on_the_microbatches(
    make_run: MakeRun, tmp_path: Path
) -> None:
    def go(budget: int, passes: int) -> list[torch.Tensor]:
        run = make_run(
            generator=HFGenerator(),
            rewards=[lambda completion_ids, **_: [float(sum(i) % 7) for i in completion_ids]],
            loss=Dapo(DapoConfig(top_entropy=0.3)),
            model={"dtype": "float64"},
            train={"steps": 2, "tokens_per_microbatch": budget, "passes_per_step": passes},
            output=tmp_path / f"{budget}-{passes}",
        )
        train(run)
        return [p.detach() for p in run.policy.model.parameters()]

    for passes in (1, 2):
        for a, b in zip(go(10**6, passes), go(1, passes), strict=True):
            # Norms round to float32; another mask would move weights by 1e-3.
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "advantage",
    [
        GroupAdvantage(ScaledConfig(kl_coef=0.5)),
        ReinforcePlusPlusAdvantage(GlobalConfig(kl_coef=0.5)),
    ],
    ids=["group", "reinforce-pp"],
)
def test_a_kl_in_the_reward_acts_once_the_policy_has_moved(
    make_run: MakeRun, advantage: Any
) -> None:
    asked: list[AdvantageRequest] = []

    def watched(request: AdvantageRequest) -> AdvantageResult:
        asked.append(request)
        result: AdvantageResult = advantage(request)
        return result

    watched.needs = advantage.needs  # type: ignore[attr-defined]
    run = make_run(
        generator=HFGenerator(),
        advantage=watched,
        reference=FrozenReference(),
        model={"dtype": "float64"},
        rewards=[lambda completion_ids, **_: [float(sum(i) % 7) for i in completion_ids]],
    )
    history = train(run).history
    first, second = (r.ref_log_ratios for r in asked)
    assert first is not None
    assert second is not None
    assert [len(x) for x in first] == asked[0].action_count_B.tolist()
    assert torch.cat(list(first)).abs().max() < 1e-9
    assert torch.cat(list(second)).abs().max() > 1e-6
    assert "kl/reference" in history[1]


def test_a_kl_in_the_reward_without_a_reference_is_refused(make_run: MakeRun) -> None:
    run = make_run(advantage=GroupAdvantage(ScaledConfig(kl_coef=0.1)))
    with pytest.raises(ConfigError, match=r"or advantage\.kl_coef to 0"):
        train(run)


def test_an_adaptive_entropy_coefficient_moves_with_every_optimizer_step(
    make_run: MakeRun,
) -> None:
    rule = AdaptiveEntropy(target=100.0, delta=0.01)
    loss = Dapo(DapoConfig(adaptive_entropy=rule))
    history = train(make_run(loss=loss, train={"steps": 2, "passes_per_step": 2})).history
    assert loss.entropy_bonus.coef == pytest.approx(0.04)
    assert [step["entropy/coef"] for step in history] == pytest.approx([0.005, 0.025])
