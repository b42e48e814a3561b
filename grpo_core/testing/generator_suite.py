"""What every generator promises, as tests to inherit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import sqrt
from typing import Any, ClassVar

import torch

from grpo_core.demo import checkpoint
from grpo_core.errors import GRPOError, SyncError
from grpo_core.policy import Policy
from grpo_core.protocols import Generator
from grpo_core.settings import LoraSettings, ModelSettings, SamplingParams
from grpo_core.types import Completion, GeneratedGroup, GenerateRequest, Prompt, Rollout, Span

TEXTS = ("2 +1 -5 mod 10=?", "7 *3 mod 10=?", "1 *0 -6 -1 +2 mod 10=?")
KEYS = (4, 0, 9)
GROUP = 4


class GeneratorSuite:
    """Inherit in a test module, and pytest runs every check below with a small real policy::

    class TestMine(GeneratorSuite):
        def make(self, policy):
            return MyGenerator(MyConfig())
    """

    lora: ClassVar[bool] = False
    """Whether the policy trains an adapter."""
    draws: ClassVar[bool] = True
    """False for one that does not sample from the policy (a script)."""
    repeats: ClassVar[bool] = True
    """Whether one request twice gives the same tokens."""
    tolerance: ClassVar[float] = 1e-3
    """Nats between its log-probs and the policy's own of the same token; the update below moves
    them by 0.1 and more."""

    def make(self, policy: Policy) -> Generator:
        """A new generator that can serve this policy; ``sync`` has not been called."""
        raise NotImplementedError

    # -- the checks -----------------------------------------------------------------------------

    def test_every_group_comes_once_and_whole(self) -> None:
        with self._started() as (generator, policy):
            groups = list(generator.generate(self._request(policy)))
            assert sorted(group.index for group in groups) == [0, 1, 2]
            for group in groups:
                assert group.policy_version == policy.version
                assert len(group.completions_G) == GROUP
                for completion in group.completions_G:
                    self._is_sound(completion, policy, most=20)

    def test_no_prompts_no_groups(self) -> None:
        with self._started() as (generator, policy):
            assert list(generator.generate(self._request(policy, texts=()))) == []

    def test_nothing_before_the_first_sync(self) -> None:
        policy = self._policy()
        generator = self.make(policy)
        try:
            refused = not list(generator.generate(self._request(policy)))
        except SyncError:
            refused = True
        finally:
            generator.close()
        assert refused, "it sampled from weights that nobody gave to it"

    def test_logprobs_are_the_policys_own_before_and_after_an_update(self) -> None:
        with self._started() as (generator, policy):
            before = self._rollouts(generator, policy, temperature=0.7)
            assert self._distance(before, policy) < self.tolerance
            move(policy)
            assert self._distance(before, policy) > 10 * self.tolerance, "the update is too small"
            assert generator.sync(policy.weight_update()) == policy.version
            after = self._rollouts(generator, policy, temperature=0.7)
            assert self._distance(after, policy) < self.tolerance
            assert {r.policy_version for r in after} == {policy.version}

    def test_truncation_and_penalty_change_no_logprob(self) -> None:
        """What is reported is softmax(logits / T) of all tokens, unless it says otherwise."""
        with self._started() as (generator, policy):
            if not getattr(generator, "processed_logprobs", False):
                how = {"top_p": 0.8, "top_k": 5, "min_p": 0.05, "repetition_penalty": 1.2}
                found = self._rollouts(generator, policy, temperature=0.9, **how)
                assert self._distance(found, policy) < self.tolerance

    def test_greedy_is_one_answer_whatever_stands_beside_it(self) -> None:
        with self._started() as (generator, policy):
            if not self.draws:
                return
            together = self._tokens(generator, self._request(policy, temperature=0.0))
            for place, text in enumerate(TEXTS):
                assert len(set(together[place])) == 1
                alone = self._request(policy, texts=(text,), keys=(77,), seed=5, temperature=0.0)
                assert self._tokens(generator, alone)[0] == together[place]

    def test_one_request_twice_is_the_same_and_another_seed_is_not(self) -> None:
        with self._started() as (generator, policy):
            if not (self.draws and self.repeats):
                return
            first = self._tokens(generator, self._request(policy))
            assert self._tokens(generator, self._request(policy)) == first
            assert self._tokens(generator, self._request(policy, seed=1)) != first
            assert self._tokens(generator, self._request(policy, step=8)) != first
            assert len({tokens for group in first for tokens in group}) > len(TEXTS)

    def test_tokens_come_as_often_as_their_probability_says(self) -> None:
        """The first token of 600 completions of one prompt against the policy, by chi-square."""
        with self._started() as (generator, policy):
            if not self.draws:
                return
            request = self._request(policy, texts=TEXTS[:1], keys=(0,), group=600, max_tokens=1)
            (group,) = generator.generate(request)
            counts = torch.bincount(
                torch.tensor([c.token_ids[0] for c in group.completions_G]),
                minlength=len(policy.tokenizer),
            )
            ids = torch.tensor([request.prompt_ids_P[0]], device=policy.device)
            with torch.no_grad():
                expected = 600 * policy.model(ids).logits[0, -1].softmax(-1).double().cpu()
        likely = expected >= 5
        seen = torch.cat([counts[likely], counts[~likely].sum()[None]]).double()
        due = torch.cat([expected[likely], expected[~likely].sum()[None]]).clamp(min=1e-9)
        statistic = float(((seen - due).square() / due)[due > 1e-6].sum())
        freedom = int(likely.sum())
        # Six standard deviations above the mean of the distribution: by chance once in 10^5 runs.
        assert statistic < freedom + 6 * sqrt(2 * max(freedom, 1)) + 10

    def test_a_stop_string_ends_a_completion(self) -> None:
        with self._started() as (generator, policy):
            if not self.draws:
                return
            rollouts = self._rollouts(generator, policy, stop=("=", ">"), max_tokens=30)
            stopped = [r for r in rollouts if r.finish_reason == "stop"]
            assert stopped
            for rollout in stopped:
                ids = list(rollout.token_ids)
                text = policy.tokenizer.decode(ids, skip_special_tokens=False)
                before = policy.tokenizer.decode(ids[:-1], skip_special_tokens=False)
                ended = ids[-1] in policy.eos_token_ids
                assert ended or any(stop in text for stop in ("=", ">"))
                assert not any(stop in before for stop in ("=", ">"))

    def test_max_tokens_is_a_bound(self) -> None:
        with self._started() as (generator, policy):
            for group in generator.generate(self._request(policy, max_tokens=2)):
                for completion in group.completions_G:
                    self._is_sound(completion, policy, most=2)

    def test_what_does_not_fit_the_model_is_an_error(self) -> None:
        with self._started() as (generator, policy):
            if not self.draws:
                return
            request = self._request(policy, max_tokens=1_000_000)
            try:
                list(generator.generate(request))
            except (GRPOError, ValueError):
                return
            raise AssertionError("it sampled beyond the model's context without a word")

    def test_the_run_is_left_as_it_was(self) -> None:
        """A generator in the same process shares the model, the modes and torch's generator."""
        with self._started() as (generator, policy):
            weights = {n: p.detach().clone() for n, p in policy.model.named_parameters()}
            modes = {name: module.training for name, module in policy.model.named_modules()}
            state, enabled = torch.get_rng_state(), torch.is_grad_enabled()
            list(generator.generate(self._request(policy)))
            assert torch.equal(torch.get_rng_state(), state)
            assert torch.is_grad_enabled() == enabled
            assert {name: m.training for name, m in policy.model.named_modules()} == modes
            for name, parameter in policy.model.named_parameters():
                assert torch.equal(parameter, weights[name]), name

    def test_closing_twice_is_closing_once(self) -> None:
        policy = self._policy()
        generator = self.make(policy)
        generator.sync(policy.weight_update())
        generator.close()
        generator.close()

    # -- inside ---------------------------------------------------------------------------------

    def _policy(self) -> Policy:
        lora = LoraSettings(r=4) if self.lora else None
        settings = ModelSettings(path=str(checkpoint("plain")), threads=1, lora=lora)
        policy = Policy(settings)
        policy.prepare(optimizer_steps=1, temperature=1.0, tokens_per_microbatch=4096)
        return policy

    @contextmanager
    def _started(self) -> Iterator[tuple[Generator, Policy]]:
        policy = self._policy()
        generator = self.make(policy)
        try:
            assert generator.sync(policy.weight_update()) == policy.version
            yield generator, policy
        finally:
            generator.close()

    def _request(
        self,
        policy: Policy,
        *,
        texts: Sequence[str] = TEXTS,
        keys: Sequence[int] = KEYS,
        seed: int = 0,
        step: int = 3,
        group: int = GROUP,
        max_tokens: int = 20,
        **sampling: Any,
    ) -> GenerateRequest:
        prompts = [Prompt(id=text, content=text) for text in texts]
        return GenerateRequest(
            step=step,
            seed=seed,
            prompt_ids_P=tuple(policy.encoder.encode(prompt) for prompt in prompts),
            prompt_keys_P=tuple(keys[: len(texts)]),
            group_size=group,
            sampling=SamplingParams(max_tokens=max_tokens, **sampling),
            eos_token_ids=policy.eos_token_ids,
        )

    def _tokens(
        self, generator: Generator, request: GenerateRequest
    ) -> list[tuple[tuple[int, ...], ...]]:
        groups = sorted(generator.generate(request), key=lambda group: group.index)
        return [tuple(c.token_ids for c in group.completions_G) for group in groups]

    def _rollouts(self, generator: Generator, policy: Policy, **sampling: Any) -> list[Rollout]:
        request = self._request(policy, **sampling)
        # The policy scores at the temperature that it was prepared for.
        policy.prepare(
            optimizer_steps=1,
            temperature=request.sampling.temperature,
            tokens_per_microbatch=4096,
        )
        return [
            _rollout(request, group, sample, completion)
            for group in generator.generate(request)
            for sample, completion in enumerate(group.completions_G)
        ]

    def _distance(self, rollouts: Sequence[Rollout], policy: Policy) -> float:
        """The largest difference between reported and own log-probs, in nats."""
        own = torch.cat([x.cpu().double() for x in policy.logprobs(rollouts)])
        said = torch.tensor([x for r in rollouts for x in r.sampling_logprobs]).double()
        return float((own - said).abs().max())

    def _is_sound(self, completion: Completion, policy: Policy, *, most: int) -> None:
        ids = completion.token_ids
        assert 1 <= len(ids) <= most
        assert all(0 <= i < len(policy.tokenizer) for i in ids)
        assert len(completion.logprobs) == len(ids)
        assert all(x <= 0 for x in completion.logprobs)
        assert completion.finish_reason in ("stop", "length")
        assert not any(i in policy.eos_token_ids for i in ids[:-1]), "it went on after its end"
        if completion.finish_reason == "length":
            assert len(ids) == most
        else:
            assert ids[-1] in policy.eos_token_ids


@torch.no_grad()
def move(policy: Policy) -> None:
    """An update: every trained weight moves, and the version with them."""
    rng = torch.Generator().manual_seed(1)
    for parameter in policy.model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=rng, dtype=torch.float32)
            parameter.add_(0.05 * noise.to(parameter))
    policy.version += 1


def _rollout(
    request: GenerateRequest, group: GeneratedGroup, sample: int, completion: Completion
) -> Rollout:
    return Rollout(
        prompt=Prompt(id=str(group.index), content=""),
        prompt_ids=request.prompt_ids_P[group.index],
        group=request.prompt_keys_P[group.index],
        sample=sample,
        spans=(
            Span(
                token_ids=completion.token_ids,
                logprobs=completion.logprobs,
                policy_version=group.policy_version,
            ),
        ),
        text="",
        finish_reason=completion.finish_reason,
    )
