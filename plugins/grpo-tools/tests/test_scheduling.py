"""Rollouts in flight: who waits for whom, and what that may change."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from dataclasses import replace
from typing import Any

import pytest

from grpo_core.errors import PluginError
from grpo_core.testing import ScriptedGenerator
from grpo_core.types import GeneratedGroup, GenerateRequest, Rollout
from grpo_generator_hf import HFGenerator
from grpo_tools import MultiTurn, MultiTurnConfig, Tools, ToolsConfig

PROMPTS = ("2 +3 mod 10=?", "7 *6 -1 mod 10=?", "1 +1 mod 10=?")


class Again:
    """Asks twice more, whatever is said, after a random time."""

    delays = random.Random(0)
    most = 0.0

    def reset(self) -> None:
        self.asked = 0

    def step(self, text: str) -> str | None:
        time.sleep(self.delays.random() * self.most)
        self.asked += 1
        return None if self.asked > 2 else f"{self.asked} +3 mod 10=?"


class Delayed(Again):
    most = 0.05


def plain(rollouts: list[Rollout]) -> list[Rollout]:
    """Without what is measured in seconds."""
    return [
        replace(r, metrics={k: v for k, v in r.metrics.items() if not k.startswith("time/")})
        for r in rollouts
    ]


class Waves:
    """A generator that knows nothing of turns."""

    def __init__(self, inner: HFGenerator) -> None:
        self.inner = inner
        self.requests: list[GenerateRequest] = []

    def sync(self, update: Any) -> int:
        return self.inner.sync(update)

    def generate(self, request: GenerateRequest) -> Iterator[GeneratedGroup]:
        self.requests.append(request)
        return self.inner.generate(request)

    def close(self) -> None:
        self.inner.close()


@pytest.fixture
def rollouts(make_request: Any, kit: Any) -> Any:
    def run(factory: Any, generator: Any, **options: Any) -> list[Rollout]:
        environment = MultiTurn(
            MultiTurnConfig(chat_template=kit.template), environment_factory=factory
        )
        prompts = options.pop("prompts", PROMPTS)
        request = make_request(*prompts, **{"max_tokens": 160, "group_size": 3, **options})
        return kit.flat(environment.rollouts(request, generator))

    return run


@pytest.fixture
def reference(rollouts: Any, sampler: Any) -> list[Rollout]:
    found: list[Rollout] = rollouts(Again, sampler())
    assert sum(len(r.spans) > 1 for r in found) > 3, "turns, and not only one"
    return found


def test_rollouts_do_not_depend_on_latency(reference: Any, rollouts: Any, sampler: Any) -> None:
    for _ in range(2):
        assert plain(rollouts(Delayed, sampler())) == plain(reference)


def test_nor_on_the_batch_or_the_ranks(reference: Any, rollouts: Any, sampler: Any) -> None:
    """Two rows at a time; and each prompt alone, as if on a rank of its own."""
    assert plain(rollouts(Delayed, sampler(rows_at_once=2))) == plain(reference)
    ranks = []
    for key, text in enumerate(PROMPTS):
        ranks += rollouts(Again, sampler(), prompts=(text,), keys=(key,))
    prompts = [replace(r.prompt, id="") for r in reference]
    assert [replace(r, prompt=p) for r, p in zip(plain(ranks), prompts, strict=True)] == [
        replace(r, prompt=p) for r, p in zip(plain(reference), prompts, strict=True)
    ]


def test_turns_draw_new_numbers_and_samples_differ(reference: Any) -> None:
    first = {r.spans[0].token_ids for r in reference if r.group == 0}
    assert len(first) == 3
    # The second question is the same for all members: with the first turn's numbers again, or
    # one member's for all, they would answer alike.
    second = [r.spans[2].token_ids for r in reference if len(r.spans) > 2]
    assert len(set(second)) > len(second) // 2


def test_a_first_turn_is_what_a_single_turn_would_be(
    reference: Any, make_request: Any, sampler: Any
) -> None:
    request = make_request(*PROMPTS, group_size=3, max_tokens=160)
    groups = sorted(sampler().generate(request.generate), key=lambda group: group.index)
    expected = [completion.token_ids for group in groups for completion in group.completions_G]
    assert [r.spans[0].token_ids for r in reference] == expected


def test_generators_without_turns_serve_in_waves(rollouts: Any, sampler: Any, policy: Any) -> None:
    generator = Waves(sampler())
    found = rollouts(Again, generator)
    assert plain(rollouts(Delayed, Waves(sampler()))) == plain(found)
    assert max(r.metrics["tools/turns"] for r in found) == 3
    keys = [key for request in generator.requests for key in request.prompt_keys_P]
    assert set(keys[:9]) == set(range(9)), "every rollout has numbers of its own"


def test_one_slow_tool_does_not_hold_the_others(make_request: Any, scripted: Any, kit: Any) -> None:
    """Its neighbour has said everything, through two calls, before the slow tool returns."""
    neighbour_is_done = threading.Event()

    def wait(long: bool) -> str:
        """Wait.

        Args:
            long: Until the other rollout is there.
        """
        return str(not long or neighbour_is_done.wait(60))

    at_once = kit.call("wait", long=False)
    script = [(kit.call("wait", long=slow), at_once, "end") for slow in (False, True)]
    environment = Tools(ToolsConfig(chat_template=kit.template), tools=[wait])
    generator = scripted(*script)
    groups = environment.rollouts(make_request("a", "b", group_size=1, max_tokens=300), generator)
    order = []
    for (rollout,) in groups:
        order.append(rollout.group)
        neighbour_is_done.set()
        assert [m["content"] for m in rollout.messages if m["role"] == "tool"] == ["True"] * 2
    assert order == [0, 1]


def test_a_rollout_rejoins_while_others_are_being_decoded(
    make_request: Any, sampler: Any, kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its third turn is taken up in the middle of the second turn of others, not after it."""
    generator, rows = sampler(), []
    environment = MultiTurn(MultiTurnConfig(chat_template=kit.template), environment_factory=Again)
    request = make_request(*PROMPTS, max_tokens=160, group_size=4)
    from grpo_generator_hf.decoder import Decoder
    from grpo_tools.workbench import Workbench

    start, advance = Workbench.start, Decoder.advance
    jobs: list[Future[Any]] = []

    def started(self: Workbench, job: Any) -> Future[Any]:
        jobs.append(start(self, job))
        return jobs[-1]

    def watched(self: Decoder) -> Any:
        # Tools answer in a thread, which on a busy machine may not get a turn in one token's time.
        wait(jobs, timeout=60)
        ended = advance(self)
        rows.append([len(r.row.prompt_ids) for r in self._draws._lines] or [0])
        return ended

    monkeypatch.setattr(Workbench, "start", started)
    monkeypatch.setattr(Decoder, "advance", watched)
    kit.flat(environment.rollouts(request, generator))
    # A question is 17 tokens: so far apart are only different turns.
    assert any(max(lengths) - min(lengths) > 15 for lengths in rows)


def test_a_tool_that_blocks_the_event_loop_is_named(
    make_request: Any, scripted: Any, kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from grpo_tools import crew, workbench

    monkeypatch.setattr(crew, "_PATIENCE", 0.1)
    monkeypatch.setattr(workbench, "_GRACE", 0.2)

    async def rude(seconds: float) -> str:
        """Block.

        Args:
            seconds: How long.
        """
        time.sleep(seconds)
        return ""

    environment = Tools(ToolsConfig(chat_template=kit.template), tools=[rude])
    generator: ScriptedGenerator = scripted((kit.call("rude", seconds=600), "x"))
    groups = environment.rollouts(make_request("a", group_size=1), generator)
    with pytest.raises(PluginError, match="an async tool or method blocks it"):
        next(iter(groups))


def test_threads_that_never_return_end_the_run(
    make_request: Any, scripted: Any, kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from grpo_tools import crew, workbench

    monkeypatch.setattr(crew, "_PATIENCE", 0.05)
    monkeypatch.setattr(workbench, "_MAX_LOST", 2)
    environment = Tools(ToolsConfig(chat_template=kit.template, call_timeout=0.2), tools=kit.tools)
    script = (*[kit.call("slow", seconds=600)] * 4, "x")
    groups = environment.rollouts(make_request("a", group_size=1, max_tokens=700), scripted(script))
    with pytest.raises(PluginError, match=r"calls of tools never returned .*after 0.2 s"):
        next(iter(groups))
