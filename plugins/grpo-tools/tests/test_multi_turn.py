"""Environments of the user: reset, methods, answers, rewards."""

from __future__ import annotations

from typing import Any

import pytest

from grpo_core.errors import ConfigError, DataError, PluginError
from grpo_core.types import Abstained, Failed, Prompt, Rollout, ScoreRequest, Value
from grpo_tools import MultiTurn, MultiTurnConfig


class Counter:
    """Counts to a target."""

    made: list[Counter] = []

    def reset(self, target: int, **row: Any) -> str:
        self.value, self.target, self.closed = 0, int(target), False
        self.row = row
        Counter.made.append(self)
        return f" Reach {target}."

    async def increment(self, by: int) -> str:
        """Raise the counter.

        Args:
            by: How much.
        """
        self.value += by
        return f"now {self.value}"

    @property
    def done(self) -> bool:
        return self.value == self.target

    async def reward(self) -> float:
        return float(self.value == self.target)

    def close(self) -> None:
        self.closed = True


class Echo:
    """TRL's way: no step, get_reward."""

    def reset(self, **row: Any) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> str:
        """Say something.

        Args:
            text: What.
        """
        self.said.append(text)
        return text

    def get_reward(self) -> float | None:
        if "explode" in self.said:
            raise LookupError("boom")
        if "lie" in self.said:
            return "much"  # type: ignore[return-value]
        return len(self.said) if self.said else None


def prompt(number: int, **columns: Any) -> Prompt:
    content = ({"role": "user", "content": f"{number}?"},)
    return Prompt(id=str(number), content=content, columns=columns)


@pytest.fixture
def play(make_request: Any, scripted: Any, kit: Any) -> Any:
    def run(
        factory: Any, prompts: Any, *scripts: Any, group_size: int = 1, **options: Any
    ) -> tuple[MultiTurn, list[Rollout]]:
        environment = MultiTurn(
            MultiTurnConfig(chat_template=kit.template, **options), environment_factory=factory
        )
        request = make_request(*prompts, group_size=group_size, max_tokens=400)
        return environment, kit.flat(environment.rollouts(request, scripted(*scripts)))

    return run


def test_an_instance_per_rollout(play: Any, kit: Any, policy: Any) -> None:
    Counter.made.clear()
    up = kit.call("increment", by=2)
    environment, rollouts = play(
        Counter, [prompt(0, target=4)], (up, up, "never"), (up, "enough"), group_size=2
    )
    # One for the schema, and one for each rollout.
    assert [c.value for c in Counter.made] == [4, 2]
    assert all(c.closed for c in Counter.made)
    assert len({c.row["rollout_seed"] for c in Counter.made}) == 2
    assert policy.tokenizer.decode(rollouts[0].prompt_ids).count("0? Reach 4.") == 1
    # `done` ended the first before its third turn.
    assert [m["content"] for m in rollouts[0].messages if m["role"] == "tool"] == ["now 2", "now 4"]
    assert rollouts[0].metrics["tools/turns"] == 2
    assert rollouts[1].messages[-1]["content"] == "enough"
    (reward,) = environment.rewards()
    assert (reward.label, reward.weight) == ("Counter", 1.0)
    scored = reward.provider.score(ScoreRequest(step=0, rollouts_B=tuple(rollouts)))
    assert scored == [Value(value=1.0), Value(value=0.0)]


def test_calls_of_a_turn_keep_their_order(play: Any, kit: Any) -> None:
    said = "".join(kit.call("say", text=str(i)) for i in range(5))
    _, (rollout,) = play(Echo, [prompt(0)], (said, "ok"))
    assert [m["content"] for m in rollout.messages[1:6]] == list("01234")


def test_several_in_one_dataset(play: Any, kit: Any) -> None:
    up, say = kit.call("increment", by=4), kit.call("say", text="hi")
    environment, rollouts = play(
        {"count": Counter, "echo": Echo},
        [prompt(0, kind="echo"), prompt(1, kind="count", target=4), prompt(2, kind="echo")],
        (say, "ok"),
        (up, "ok"),
        (up, "ok"),
        column="kind",
        reward_weight=0.5,
    )
    # Each sees its own tools only.
    assert "there is no tool 'increment'; there are: say" in rollouts[2].messages[1]["content"]
    counter, echo = environment.rewards()
    assert (counter.label, echo.label, echo.weight) == ("Counter", "Echo", 0.5)
    request = ScoreRequest(step=0, rollouts_B=tuple(rollouts))
    other = Abstained(reason="a rollout of another environment")
    assert counter.provider.score(request) == [other, Value(value=1.0), other]
    assert echo.provider.score(request) == [Value(value=1.0), other, Abstained()]
    with pytest.raises(DataError, match=r"'maze' in its column 'kind'; there are: count, echo"):
        play({"count": Counter, "echo": Echo}, [prompt(0, kind="maze")], "x", column="kind")


def test_rewards_that_fail_are_no_numbers(play: Any, kit: Any) -> None:
    scripts = [(kit.call("say", text=text), "ok") for text in ("explode", "lie")]
    environment, rollouts = play(Echo, [prompt(0), prompt(1)], *scripts)
    (reward,) = environment.rewards()
    assert reward.provider.score(ScoreRequest(step=0, rollouts_B=tuple(rollouts))) == [
        Failed(kind="error", reason="raised LookupError: boom"),
        Failed(kind="invalid", reason="returned 'much' (str); expected a number or None"),
    ]


def test_answers_in_text(play: Any) -> None:
    class Guess:
        def reset(self, answer: str) -> None:
            self.answer = answer

        def step(self, text: str) -> str | None:
            return None if text == self.answer else f"not {text}"

    _, (rollout,) = play(Guess, [prompt(0, answer="7", unused=1)], ("5", "6", "7", "8"))
    said = [(m["role"], m["content"]) for m in rollout.messages]
    assert said == [
        *(("assistant", "5"), ("user", "not 5"), ("assistant", "6"), ("user", "not 6")),
        ("assistant", "7"),
    ]
    assert rollout.text == "5\n6\n7"


def test_a_failing_environment_fails_its_rollout(play: Any) -> None:
    class Fragile:
        def reset(self, index: int) -> None:
            if index:
                raise OSError("no board")

        def step(self, text: str) -> int:
            return 1

    prompts = [prompt(0, index=0), prompt(1, index=1)]
    _, rollouts = play(Fragile, prompts, "x")
    assert [r.finish_reason for r in rollouts] == ["error", "error"]
    assert rollouts[0].error == "environment 'environment': step() returned a int, not text or None"
    assert rollouts[1].error == "environment 'environment': reset raised OSError: no board"
    with pytest.raises(PluginError, match=r"no rollout could begin: .*no board"):
        play(Fragile, [prompt(1, index=1)], "x")


def test_classes_that_cannot_be() -> None:
    class NoReset:
        def step(self, text: str) -> None: ...

    class Mute:
        def reset(self) -> None: ...

    class Undescribed(Mute):
        def act(self, x): ...  # type: ignore[no-untyped-def]

    class Unmade(Mute):
        def __init__(self, size: int) -> None: ...

    for factory, message in (
        (NoReset, r"has no reset\(\*\*row\)"),
        (Mute, "neither public methods to be tools nor"),
        (Undescribed, "'act' cannot be described"),
        (Unmade, "cannot be made: TypeError"),
        (None, "has no environment_factory"),
    ):
        with pytest.raises(ConfigError, match=message):
            MultiTurn(environment_factory=factory)
