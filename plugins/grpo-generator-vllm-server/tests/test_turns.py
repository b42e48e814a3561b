"""Turns on several servers: nobody waits for the tool of another, and nothing hangs on chance."""

from __future__ import annotations

import random
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from grpo_core import SamplingParams
from grpo_core.errors import ConfigError, DataError, SyncError
from grpo_core.protocols import BuildContext, TurnGenerator
from grpo_core.testing.turn_suite import TURNS, Dialogues
from grpo_core.types import GenerateRequest, Rollout, SampledTurn, Turn, TurnRequest
from grpo_generator_vllm_server import VLLMServerConfig, VLLMServerGenerator
from grpo_generator_vllm_server import request as requests
from grpo_generator_vllm_server.client import Server
from grpo_generator_vllm_server.drafts import Call, GroupDraft
from grpo_generator_vllm_server.errors import NoServerLeftError
from grpo_generator_vllm_server.fleet import Fleet, Member
from grpo_generator_vllm_server.work import LOADED_CALLS, Work

SAID = (40, 41, 42)
PROMPTS, GROUP = 4, 4


@pytest.fixture
def make_generator(load_policy, tmp_path: Path) -> Iterator[Callable[..., VLLMServerGenerator]]:
    """On these servers, with weights."""
    made = []
    _, update = load_policy()

    def make(*servers: Any, **options: Any) -> VLLMServerGenerator:
        quick = {"recover_seconds": 0, "connect_seconds": 2, "request_seconds": 60}
        config = VLLMServerConfig(urls=tuple(s.url for s in servers), **(quick | options))
        context = BuildContext(role="generator", name="vllm-server", seed=0, run_dir=tmp_path)
        made.append(VLLMServerGenerator(config, context))
        made[-1].sync(update(0))
        return made[-1]

    yield make
    for generator in made:
        generator.close()


@pytest.fixture
def request_of_groups() -> GenerateRequest:
    return GenerateRequest(
        step=2,
        seed=7,
        prompt_ids_P=tuple((10 + i, 20) for i in range(PROMPTS)),
        prompt_keys_P=tuple(range(PROMPTS)),
        group_size=GROUP,
        sampling=SamplingParams(max_tokens=8),
        eos_token_ids=(2,),
    )


def sampled(generator: TurnGenerator, dialogues: Dialogues) -> list[Rollout]:
    for found in generator.sample_turns(dialogues.request()):
        dialogues.heard(found)
    return dialogues.rollouts()


def bodies(*servers: Any) -> list[Any]:
    return [b for s in servers for path, b in s.calls if path == "/v1/completions"]


def turns_of(
    take: Callable[[bool], Sequence[Turn]], *, group: int = 1, **changes: Any
) -> TurnRequest:
    sampling = SamplingParams(max_tokens=8, **changes.pop("sampling", {}))
    fields = {"rollouts": 9, "longest": 90, "eos_token_ids": (2,), **changes}
    return TurnRequest(step=1, seed=5, group_size=group, sampling=sampling, take=take, **fields)


class Table:
    """Turns that are ready; hands out all of them, and the next of a rollout when it has spoken."""

    def __init__(self, rollouts: Sequence[int], turns: int) -> None:
        self.ready = [self.turn(key, 0) for key in rollouts]
        self.turns = turns

    @staticmethod
    def turn(key: int, number: int) -> Turn:
        prompt = (10 + key, *SAID * number)
        return Turn(prompt_ids=prompt, key=key, sample=0, number=number, max_tokens=8)

    def take(self, wait: bool) -> list[Turn]:
        handed, self.ready = self.ready, []
        return handed

    def heard(self, found: SampledTurn) -> None:
        if found.turn.number + 1 < self.turns:
            self.ready.append(self.turn(found.turn.key, found.turn.number + 1))


def test_rollouts_are_the_same_whatever_tools_and_servers_do(
    fake_servers, make_generator, request_of_groups
) -> None:
    (alone,) = fake_servers(1)
    expected = sampled(make_generator(alone), Dialogues(request_of_groups, SAID))
    first = {r.spans[0].token_ids for r in expected}
    assert len(first) > 12, "members draw numbers of their own"
    assert len({b["seed"] for b in bodies(alone)}) == PROMPTS * GROUP * TURNS, "and so do turns"
    delays = random.Random(3)
    for seed in range(3):
        servers = fake_servers(3)
        for server in servers:
            server.complete = lambda body: threading.Event().wait(0.02 * delays.random()) or None
        generator = make_generator(*servers, requests_at_once=1 + seed)
        late = Dialogues(request_of_groups, SAID, random.Random(seed))
        assert sampled(generator, late) == expected
        assert len(bodies(*servers)) == PROMPTS * GROUP * TURNS


def test_a_first_turn_has_the_seed_of_its_place_in_the_group(
    fake_servers, make_generator, request_of_groups
) -> None:
    (server,) = fake_servers(1)
    generator = make_generator(server)
    groups = {g.index: g.completions_G for g in generator.generate(request_of_groups)}
    for rollout in sampled(generator, Dialogues(request_of_groups, SAID)):
        assert rollout.spans[0].token_ids == groups[rollout.group][rollout.sample].token_ids


def test_a_slow_turn_holds_nobody(fake_servers, make_generator) -> None:
    """It ends only when the other rollout has had all of its turns, which no wave would allow."""
    (server,) = fake_servers(1)
    other_is_done = threading.Event()

    def complete(body: Any) -> None:
        if body["prompt"][0] == 10:
            assert other_is_done.wait(60)

    server.complete = complete
    table, order = Table((0, 1), turns=3), []
    for found in make_generator(server).sample_turns(turns_of(table.take)):
        order.append((found.turn.key, found.turn.number))
        if found.turn.key == 1:
            table.heard(found)
        if order[-1] == (1, 2):
            other_is_done.set()
    assert order == [(1, 0), (1, 1), (1, 2), (0, 0)]


def test_a_slow_tool_holds_nobody(fake_servers, make_generator) -> None:
    """That of rollout 0 answers when the other is done; nobody blocks in ``take`` meanwhile."""
    (server,) = fake_servers(1)
    table, order, held = Table((0, 1), turns=3), [], []

    def take(wait: bool) -> list[Turn]:
        assert table.ready or not (wait and held), "it waits for a tool, and could sample"
        return table.take(wait)

    for found in make_generator(server).sample_turns(turns_of(take)):
        order.append((found.turn.key, found.turn.number))
        if order[-1] == (0, 0):
            held.append(found)
        else:
            table.heard(found)
        if order[-1] == (1, 2):
            table.heard(held.pop())
    assert sorted(order) == [(key, number) for key in (0, 1) for number in range(3)]
    assert [number for key, number in order if key == 0] == [0, 1, 2]


def test_a_server_that_dies_within_a_turn(fake_servers, make_generator, request_of_groups) -> None:
    """Turns that it had are asked again elsewhere; what was sampled before stays as it was."""
    (alone,) = fake_servers(1)
    expected = sampled(make_generator(alone), Dialogues(request_of_groups, SAID))
    servers = fake_servers(2)
    first = {tuple(ids) for ids in request_of_groups.prompt_ids_P}

    def die(body: Any) -> None:
        servers[0].dead = tuple(body["prompt"]) not in first

    servers[0].complete = die
    found = sampled(make_generator(*servers), Dialogues(request_of_groups, SAID))
    assert found == expected
    asked = Counter((tuple(b["prompt"]), b["seed"]) for b in bodies(*servers))
    assert {n for (prompt, _), n in asked.items() if prompt in first} == {1}
    assert 1 <= sum(n - 1 for n in asked.values()) <= 3 * GROUP, "only those that it had"
    assert any(b for b in bodies(servers[0]) if tuple(b["prompt"]) in first)


def test_rollouts_of_a_prompt_stay_where_their_beginning_is(
    fake_servers, make_generator, request_of_groups
) -> None:
    servers = fake_servers(3)
    for server in servers:
        server.slow = 0.01
    sampled(make_generator(*servers), Dialogues(request_of_groups, SAID, random.Random(0)))
    homes = defaultdict(set)
    for server in servers:
        for body in bodies(server):
            homes[body["prompt"][0]].add(server.url)
    assert {len(urls) for urls in homes.values()} == {1}
    assert len({url for urls in homes.values() for url in urls}) == 3, "all have something to do"


@pytest.fixture
def work() -> Iterator[Work]:
    members = [Member(Server(f"http://127.0.0.1:{port}", None)) for port in (1, 2)]
    made = Work(
        Fleet(members=members, at_once=64, attempts=1), lambda member, call: ((), 0), group=8
    )
    yield made
    made.close()


@pytest.fixture
def second_turn() -> Call:
    request = turns_of(lambda wait: (), group=8)
    turn = Turn(prompt_ids=(1, 2, 3), key=4, sample=1, number=1, max_tokens=8)
    (call,) = GroupDraft.of_turn(request, turn, str).due()
    assert call.share == Fraction(1, 8)
    return call


@pytest.mark.parametrize("place", [(4, 1), (4,)])
def test_a_prefix_is_left_for_a_server_that_has_much_less_to_do(work, second_turn, place) -> None:
    home, other = work._fleet.members
    work._homes[place] = home
    home.busy = second_turn.share * LOADED_CALLS
    assert work._choose(second_turn) is home
    home.busy += second_turn.share
    assert work._choose(second_turn) is other
    other.busy = home.busy * Fraction(2, 3)
    home.busy += 5
    other.busy += 5
    assert work._choose(second_turn) is home, "less than half as much again"
    home.busy = Fraction(64)
    assert work._choose(second_turn) is other, "it has no room"
    home.busy = Fraction(0)
    home.out = "gone"
    assert work._choose(second_turn) is other
    other.out = "gone too"
    assert work._choose(second_turn) is None


def test_a_server_has_no_more_turns_than_groups_at_a_time(
    fake_servers, make_generator, request_of_groups
) -> None:
    servers = fake_servers(2)
    lock, most = threading.Lock(), Counter[str]()
    now = Counter[str]()

    def counted(server: Any) -> Callable[[Any], None]:
        def complete(body: Any) -> None:
            with lock:
                now[server.url] += 1
                most[server.url] = max(most[server.url], now[server.url])
            threading.Event().wait(0.02)
            with lock:
                now[server.url] -= 1

        return complete

    for server in servers:
        server.complete = counted(server)
    generator = make_generator(*servers, requests_at_once=1)
    sampled(generator, Dialogues(request_of_groups, SAID))
    assert min(most.values()) > 1
    assert max(most.values()) <= GROUP
    assert [m.busy for m in generator._fleet.members] == [0, 0]


def test_a_sync_between_turns_and_within_one(fake_servers, make_generator, load_policy) -> None:
    """The turn that it interrupts goes on under the new weights, the one before stays."""
    (server,) = fake_servers(1)
    generator = make_generator(server)
    _, update = load_policy()
    begun, paused, parts = threading.Event(), threading.Event(), []
    answer = server._answer

    def watched(path: str, body: Any) -> Any:
        if path == "/pause":
            paused.set()
        return answer(path, body)

    def interrupted(body: Any) -> Any:
        if len(body["prompt"]) == 1 or parts:
            return None
        begun.set()
        assert paused.wait(60)
        parts.append(body)
        choice = {
            "index": 0,
            "token_ids": [99],
            "logprobs": {"token_logprobs": [-0.7]},
            "finish_reason": "abort",
        }
        return 200, {"choices": [choice]}

    server._answer, server.complete = watched, interrupted
    table, found = Table((0,), turns=3), []

    def consume() -> None:
        for one in generator.sample_turns(turns_of(table.take)):
            found.append(one)
            table.heard(one)

    thread = threading.Thread(target=consume, daemon=True)
    thread.start()
    assert begun.wait(60)
    paused.clear()
    assert generator.sync(update(1)) == 1
    thread.join(60)
    assert [one.policy_version for one in found] == [0, 0, 1]
    assert [one.completion.policy_versions for one in found] == [None, (0, 1, 1, 1), None]
    assert found[1].completion.token_ids[0] == 99
    first, again = bodies(server)[1:3]
    assert again["prompt"] == [*first["prompt"], 99]
    assert again["max_tokens"] == first["max_tokens"] - 1
    assert again["seed"] == requests.seed_after(first["seed"], 1)


@pytest.mark.parametrize("where", ["server", "tool"])
def test_closing_ends_turns_of_other_threads(fake_servers, make_generator, where: str) -> None:
    (server,) = fake_servers(1)
    generator = make_generator(server)
    table, waits, go_on = Table((0,), turns=2), threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def wait_here(*_: Any) -> None:
        waits.set()
        assert go_on.wait(60)

    if where == "server":
        server.complete = wait_here

    def take(wait: bool) -> list[Turn]:
        if where == "tool" and table.ready and table.ready[0].number == 1:
            wait_here()
        return table.take(wait)

    def consume() -> None:
        try:
            for one in generator.sample_turns(turns_of(take)):
                table.heard(one)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=consume, daemon=True)
    thread.start()
    assert waits.wait(60)
    generator.close()
    if where == "tool":
        go_on.set()
    thread.join(60)
    go_on.set()
    (error,) = errors
    assert isinstance(error, NoServerLeftError)
    assert "has been closed" in str(error)


def test_turns_that_no_server_could_serve(fake_servers, make_generator) -> None:
    (server,) = fake_servers(1)
    generator = make_generator(server)
    take = Table((0,), turns=1).take
    with pytest.raises(DataError, match=r"1025 tokens, but there is room for 1024"):
        generator.sample_turns(turns_of(take, longest=1025))
    with pytest.raises(ConfigError, match="empty string"):
        generator.sample_turns(turns_of(take, sampling={"stop": ("",)}))
    generator.close()
    with pytest.raises(SyncError, match="before it had any weights"):
        generator.sample_turns(turns_of(take))
    assert bodies(server) == []
