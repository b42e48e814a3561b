"""What every generator promises about turns, by itself or through ``grpo_core.turns``."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from grpo_core.errors import SyncError
from grpo_core.policy import Policy
from grpo_core.protocols import Generator, TurnGenerator
from grpo_core.testing.generator_bench import GROUP, KEYS, GeneratorBench, move
from grpo_core.turns import sample_turns
from grpo_core.types import (
    GenerateRequest,
    Prompt,
    Rollout,
    SampledTurn,
    Span,
    Turn,
    TurnRequest,
)

TURNS = 3


class TurnSuite(GeneratorBench):
    """A part of ``GeneratorSuite``."""

    def test_turns_are_whole_whenever_tools_answer(self) -> None:
        """All at once, or one by one in an order of chance: each turn once, the same tokens."""
        with self._started() as (generator, policy):
            heat = 1.0 if self.repeats else 0.0
            together = self._dialogues(generator, policy, temperature=heat)
            assert len(together) == GROUP * len(KEYS)
            for seed in range(2 if self.draws else 0):
                chance = random.Random(seed)
                late = self._dialogues(generator, policy, chance=chance, temperature=heat)
                # Log-probs may differ by rounding, as other rows stand beside them.
                assert [r.token_ids for r in late] == [r.token_ids for r in together]

    def test_logprobs_of_turns_are_the_policys_own_before_and_after_an_update(self) -> None:
        with self._started() as (generator, policy):
            before = self._dialogues(generator, policy)
            assert self._distance(before, policy) < self.tolerance
            move(policy)
            assert generator.sync(policy.weight_update()) == policy.version
            after = self._dialogues(generator, policy)
            assert self._distance(after, policy) < self.tolerance
            versions = {span.policy_version for r in after for span in r.spans if span.sampled}
            assert versions == {policy.version}

    def test_a_first_turn_is_what_its_sample_says_in_a_whole_group(self) -> None:
        with self._started() as (generator, policy):
            if not (isinstance(generator, TurnGenerator) and self.repeats):
                return
            expected = self._tokens(generator, self._request(policy, max_tokens=8))
            found = {(r.group, r.sample): r for r in self._dialogues(generator, policy)}
            for place, key in enumerate(KEYS):
                first = tuple(found[key, sample].spans[0].token_ids for sample in range(GROUP))
                assert first == expected[place]

    def test_a_turn_begins_and_ends_while_another_is_sampled(self) -> None:
        with self._started() as (generator, policy):
            if not (isinstance(generator, TurnGenerator) and self.draws):
                return
            prompt = self._request(policy).prompt_ids_P[0]

            def turn(key: int, number: int, length: int) -> Turn:
                return Turn(prompt_ids=prompt, key=key, sample=0, number=number, max_tokens=length)

            ready = [turn(0, 0, 300), turn(1, 0, 2)]

            def take(wait: bool) -> Sequence[Turn]:
                handed, ready[:] = list(ready), []
                return handed

            request = _turns(self._request(policy), take, rollouts=2, longest=400, eos_token_ids=())
            order = []
            for sampled in sample_turns(generator, request):
                asked = sampled.turn
                assert len(sampled.completion.token_ids) == asked.max_tokens
                order.append((asked.key, asked.number))
                if asked.key == 1 and asked.number < 2:
                    ready.append(turn(1, asked.number + 1, 2))
            assert order == [(1, 0), (1, 1), (1, 2), (0, 0)]

    def test_turns_that_nobody_waits_for_leave_a_sound_generator(self) -> None:
        with self._started() as (generator, policy):
            request = self._request(policy)
            abandoned = iter(sample_turns(generator, Dialogues(request, (5,)).request()))
            next(abandoned)
            del abandoned
            move(policy)
            assert generator.sync(policy.weight_update()) == policy.version
            rollouts = self._dialogues(generator, policy)
            assert self._distance(rollouts, policy) < self.tolerance

    def test_no_turns_no_answers(self) -> None:
        with self._started() as (generator, policy):
            request = _turns(self._request(policy), lambda wait: ())
            assert list(sample_turns(generator, request)) == []

    def test_no_turn_before_the_first_sync(self) -> None:
        policy = self._policy()
        generator = self.make(policy)
        dialogues = Dialogues(self._request(policy), (5,))
        try:
            refused = not list(sample_turns(generator, dialogues.request()))
        except SyncError:
            refused = True
        finally:
            generator.close()
        assert refused, "it sampled from weights that nobody gave to it"

    # -- inside ---------------------------------------------------------------------------------

    def _dialogues(
        self,
        generator: Generator,
        policy: Policy,
        *,
        chance: random.Random | None = None,
        **sampling: Any,
    ) -> list[Rollout]:
        request = self._request(policy, max_tokens=8, **sampling)
        said = policy.encoder.encode(Prompt(id="tool", content="4 +3 mod 10=?"))
        dialogues = Dialogues(request, said, chance)
        for sampled in sample_turns(generator, dialogues.request()):
            assert sampled.policy_version == policy.version
            self._is_sound(sampled.completion, policy, most=8)
            dialogues.heard(sampled)
        return dialogues.rollouts()


class Dialogues:
    """An environment: ``TURNS`` turns of each rollout, with the same words between any two.

    Args:
        chance: tools answer one at a time, in an order and at times that it chooses; ``None``: at
            once.
    """

    def __init__(
        self,
        request: GenerateRequest,
        said: tuple[int, ...],
        chance: random.Random | None = None,
    ) -> None:
        self._request, self._said, self._chance = request, said, chance
        self._prompts = dict(zip(request.prompt_keys_P, request.prompt_ids_P, strict=True))
        places = [(key, sample) for key in self._prompts for sample in range(request.group_size)]
        self._spans: dict[tuple[int, int], list[Span]] = {place: [] for place in places}
        self._asked: set[tuple[int, int, int]] = set()
        self._ready = [self._turn(place, 0) for place in places]

    def request(self) -> TurnRequest:
        each = self._request.sampling.max_tokens + len(self._said)
        longest = max(map(len, self._prompts.values())) + TURNS * each
        return _turns(self._request, self._take, rollouts=len(self._spans), longest=longest)

    def heard(self, sampled: SampledTurn) -> None:
        turn = sampled.turn
        self._asked.remove((turn.key, turn.sample, turn.number))
        spans = self._spans[turn.key, turn.sample]
        spans += sampled.completion.spans(sampled.policy_version)
        if turn.number + 1 < TURNS:
            spans.append(Span(token_ids=self._said, logprobs=None, policy_version=None))
            self._ready.append(self._turn((turn.key, turn.sample), turn.number + 1))

    def rollouts(self) -> list[Rollout]:
        assert not self._asked, "turns have not come back"
        assert not self._ready, "it ended although there were turns to take"
        return [
            Rollout(
                prompt=Prompt(id=str(key), content=""),
                prompt_ids=self._prompts[key],
                group=key,
                sample=sample,
                spans=tuple(spans),
                text="",
                finish_reason="stop",
            )
            for (key, sample), spans in self._spans.items()
        ]

    def _turn(self, place: tuple[int, int], number: int) -> Turn:
        before = [i for span in self._spans[place] for i in span.token_ids]
        key, sample = place
        return Turn(
            prompt_ids=(*self._prompts[key], *before),
            key=key,
            sample=sample,
            number=number,
            max_tokens=self._request.sampling.max_tokens,
        )

    def _take(self, wait: bool) -> list[Turn]:
        if self._chance is None:
            handed, self._ready = self._ready, []
        elif self._ready and (wait or self._chance.random() < 0.5):
            handed = [self._ready.pop(self._chance.randrange(len(self._ready)))]
        else:
            handed = []
        self._asked.update((turn.key, turn.sample, turn.number) for turn in handed)
        return handed


def _turns(request: GenerateRequest, take: Any, **changes: Any) -> TurnRequest:
    return TurnRequest(
        **{
            "step": request.step,
            "seed": request.seed,
            "group_size": request.group_size,
            "rollouts": len(request.prompt_ids_P) * request.group_size,
            "longest": 400,
            "sampling": request.sampling,
            "eos_token_ids": request.eos_token_ids,
            "take": take,
            **changes,
        }
    )
