"""What every generator promises, as tests to inherit."""

from __future__ import annotations

from math import sqrt

import torch

from grpo_core.errors import GRPOError, SyncError
from grpo_core.testing.generator_bench import GROUP, TEXTS, move
from grpo_core.testing.turn_suite import TurnSuite


class GeneratorSuite(TurnSuite):
    """Inherit in a test module, and pytest runs every check below with a small real policy::

    class TestMine(GeneratorSuite):
        def make(self, policy):
            return MyGenerator(MyConfig())
    """

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
