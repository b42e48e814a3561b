"""Weights that change while completions are being sampled, on real engines."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo_core.types import Completion, GeneratedGroup, GenerateRequest, Turn, TurnRequest
from grpo_generator_vllm_server import VLLMServerGenerator
from grpo_generator_vllm_server.errors import NoServerLeftError

pytestmark = pytest.mark.vllm

CLOSE = 1e-3
"""Nats between two implementations in float32, at most over thousands of tokens; measured
7e-5."""


class Sampled(threading.Thread):
    """Consumes one request in a thread of its own."""

    def __init__(self, generator: VLLMServerGenerator, request: GenerateRequest) -> None:
        super().__init__(daemon=True)
        self.generator, self.request = generator, request
        self.found: list[GeneratedGroup] = []
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            for group in self.generator.generate(self.request):
                self.found.append(group)
        except BaseException as error:
            self.error = error

    def groups(self, seconds: float = 120) -> list[GeneratedGroup]:
        self.join(seconds)
        assert not self.is_alive(), "it hangs"
        if self.error is not None:
            raise self.error
        assert sorted(g.index for g in self.found) == list(range(len(self.request.prompt_ids_P)))
        return sorted(self.found, key=lambda group: group.index)


@pytest.fixture
def long_request(make_request) -> Callable[..., GenerateRequest]:
    """Some seconds of sampling: nothing but the length ends a completion."""

    def make(**changes: Any) -> GenerateRequest:
        sampling = {"max_tokens": 800, "temperature": 0.8, **changes.pop("sampling", {})}
        return make_request(**{"eos_token_ids": (), "sampling": sampling, **changes})

    return make


@torch.no_grad()
def own_logprobs(
    model: torch.nn.Module, prompt: Sequence[int], completion: Completion, temperature: float
) -> torch.Tensor:
    row = torch.tensor([[*prompt, *completion.token_ids]])
    logits = model(input_ids=row, use_cache=False).logits[0, len(prompt) - 1 : -1]
    logp = (logits.double() / temperature).log_softmax(-1)
    return logp.gather(1, row[0, len(prompt) :, None]).squeeze(1)


def versions_of(group: GeneratedGroup, completion: Completion) -> list[int]:
    return list(completion.policy_versions or [group.policy_version] * len(completion.token_ids))


def require_exact(
    models: dict[int, torch.nn.Module], request: GenerateRequest, groups: list[GeneratedGroup]
) -> set[tuple[int, ...]]:
    """Each token's log-prob is that of the version it names; which versions occur together."""
    seen = set()
    for group in groups:
        assert len(group.completions_G) == request.group_size
        for completion in group.completions_G:
            versions = versions_of(group, completion)
            assert versions == sorted(versions)
            seen.add(tuple(sorted(set(versions))))
            said = torch.tensor(completion.logprobs, dtype=torch.float64)
            for version in set(versions):
                own = own_logprobs(
                    models[version],
                    request.prompt_ids_P[group.index],
                    completion,
                    request.sampling.temperature,
                )
                at = torch.tensor([v == version for v in versions])
                off = (own - said).abs()
                assert float(off[at].max()) < CLOSE, version
                if (~at).sum() > 20:
                    # Adapters that have hardly moved differ by less than CLOSE.
                    assert float(off[~at].mean()) > 10 * float(off[at].mean())
    return seen


def until_mixed(attempt: Callable[[], set[tuple[int, ...]]]) -> None:
    """Tries again while syncs found nothing, or nothing that had tokens already, as may happen on
    a machine that stops for seconds when others need it."""
    found = any(any(len(versions) > 1 for versions in attempt()) for _ in range(5))
    assert found, "no completion has tokens of several versions"


@pytest.mark.parametrize("way", ["file", "broadcast", "ipc", "adapter"])
def test_completions_go_on_under_new_weights_and_say_which_token_is_whose(
    make_generator,
    load_policy,
    long_request,
    move,
    until_sampling,
    engine,
    adapter_engine,
    way: str,
) -> None:
    server = adapter_engine if way == "adapter" else engine
    lora = {"lora_rank": 8, "folder": Path(server.plan.model)} if way == "adapter" else {}
    model, update = load_policy(**lora)
    models = {0: deepcopy(model)}
    generator = make_generator(server, sync=way)
    assert generator.samples_apart
    assert generator.syncs_in_flight
    assert generator.sync(update(0)) == 0

    def attempt() -> set[tuple[int, ...]]:
        interrupted = 0.0
        # Two threads, as training and evaluation may be.
        requests = [long_request(), long_request(step=1, seed=8, group_size=3)]
        threads = [Sampled(generator, request) for request in requests]
        for _ in range(2):
            if any(thread.is_alive() for thread in threads):
                until_sampling(generator)
                move(model, "lora_" if lora else "")
                version = len(models)
                models[version] = deepcopy(model)
                assert generator.sync(update(version)) == version
                interrupted += generator.metrics()["sync/interrupted"]
        seen = set()
        for thread, request in zip(threads, requests, strict=True):
            seen |= require_exact(models, request, thread.groups())
            for group in thread.found:
                for completion in group.completions_G:
                    assert len(completion.token_ids) == 800
                    assert completion.finish_reason == "length"
        assert interrupted or all(len(versions) == 1 for versions in seen)
        return seen

    until_mixed(attempt)
    # Afterwards everything is the newest, and says so once.
    (group,) = generator.generate(long_request(prompt_ids_P=((9, 8),), sampling={"max_tokens": 8}))
    assert group.policy_version == max(models)
    assert {c.policy_versions for c in group.completions_G} == {None}


def test_turns_go_on_under_new_weights_and_later_ones_begin_under_them(
    make_generator, load_policy, long_request, move
) -> None:
    model, update = load_policy()
    generator = make_generator(sync="file")
    generator.sync(update(0))
    models = {0: deepcopy(model)}

    def turn(prompt: tuple[int, ...], key: int, number: int) -> Turn:
        return Turn(prompt_ids=prompt, key=key, sample=0, number=number, max_tokens=300)

    def attempt() -> set[tuple[int, ...]]:
        first = max(models)
        ready, found = [turn((10 + key, 20, 30), key, 0) for key in range(4)], []

        def take(wait: bool) -> list[Turn]:
            handed, ready[:] = list(ready), []
            return handed

        request = TurnRequest(
            step=0,
            seed=7,
            group_size=1,
            rollouts=4,
            longest=1000,
            sampling=long_request().sampling,
            eos_token_ids=(),
            take=take,
        )

        def consume() -> None:
            for one in generator.sample_turns(request):
                found.append(one)
                if one.turn.number < 2:
                    said = (*one.turn.prompt_ids, *one.completion.token_ids, 40, 41)
                    ready.append(turn(said, one.turn.key, one.turn.number + 1))

        thread = threading.Thread(target=consume, daemon=True)
        thread.start()
        for _ in range(8):
            thread.join(0.2)
            if thread.is_alive():
                move(model)
                version = len(models)
                models[version] = deepcopy(model)
                assert generator.sync(update(version)) == version
        thread.join(300)
        assert sorted((one.turn.key, one.turn.number) for one in found) == [
            (key, number) for key in range(4) for number in range(3)
        ]
        asked = long_request(
            prompt_ids_P=tuple(one.turn.prompt_ids for one in found),
            group_size=1,
            sampling={"max_tokens": 400},
        )
        groups = [
            GeneratedGroup(
                index=index, completions_G=(one.completion,), policy_version=one.policy_version
            )
            for index, one in enumerate(found)
        ]
        seen = require_exact(models, asked, groups)
        if any(len(versions) > 1 for versions in seen):
            later = (g for g in groups if found[g.index].turn.number)
            assert max(max(versions_of(g, g.completions_G[0])) for g in later) > first
        return seen

    until_mixed(attempt)


def test_closing_ends_what_other_threads_sample(
    make_generator, load_policy, long_request, until, sampled_tokens, engine
) -> None:
    generator = make_generator()
    generator.sync(load_policy()[1](0))
    before = sampled_tokens(engine)
    # 72,000 tokens: the better part of a minute.
    request = long_request(
        group_size=24,
        prompt_ids_P=((10, 20, 30), (11, 20, 31), (12, 20, 32)),
        sampling={"max_tokens": 1000},
    )
    thread = Sampled(generator, request)
    assert until(lambda: generator._fleet.members[0].gate.inside)
    generator.close()
    with pytest.raises(NoServerLeftError, match="has been closed"):
        thread.groups()
    # The server does not go on for nobody: it has time for another, who is done long before.
    other = make_generator()
    other.sync(load_policy()[1](0))
    list(other.generate(long_request(sampling={"max_tokens": 4})))
    assert sampled_tokens(engine) - before < 60_000


def test_a_grammar_is_not_interrupted(
    make_generator, load_policy, long_request, move, until_sampling
) -> None:
    model, update = load_policy()
    generator = make_generator(structured_outputs={"regex": "[0-9]{60}"})
    assert not generator.syncs_in_flight
    generator.sync(update(0))
    thread = Sampled(generator, long_request(sampling={"max_tokens": 60}))
    until_sampling(generator, 0.1)
    move(model)
    assert generator.sync(update(1)) == 1
    decode = update(0).tokenizer.decode
    for group in thread.groups():
        assert group.policy_version in (0, 1)
        for completion in group.completions_G:
            assert completion.policy_versions is None
            assert decode(list(completion.token_ids)).replace(" ", "").isdigit()


def test_stop_strings_end_where_they_would_have(make_generator, load_policy, long_request) -> None:
    """The same weights under two versions: what is interrupted must stop as what is not."""
    _, update = load_policy()
    generator = make_generator()
    generator.sync(update(0))
    decode = update(0).tokenizer.decode
    shown = [
        decode(list(c.token_ids))
        for g in generator.generate(long_request())
        for c in g.completions_G
    ]
    # Of several tokens each; vLLM takes four at most.
    stops = tuple(dict.fromkeys(text[160:164] for text in shown))[:4]
    request = long_request(sampling={"stop": stops})
    thread = Sampled(generator, request)
    for version in range(1, 6):
        # Wherever it is then: some are finished, others have not begun.
        time.sleep(0.15)
        generator.sync(update(version))
        if not thread.is_alive():
            break
    for group in thread.groups():
        for completion in group.completions_G:
            text = decode(list(completion.token_ids))
            before = decode(list(completion.token_ids[:-1]))
            assert not any(stop in before for stop in stops)
            stopped = any(stop in text for stop in stops)
            assert completion.finish_reason == ("stop" if stopped else "length")
