"""TRL's own reward functions, called by TRL's trainer and by ours."""

from __future__ import annotations

import asyncio
import functools
import math
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import PartialState
from trl import GRPOTrainer
from trl.rewards import (
    get_repetition_penalty_reward,
    get_soft_overlong_punishment,
    think_format_reward,
)

from grpo_core.rewards import Reward
from grpo_core.scoring import Scorer
from grpo_core.settings import RewardExecution
from grpo_core.types import Prompt, Rollout, ScoredRollouts, Span, TrainerState

pytestmark = pytest.mark.oracle

TEXTS = (
    "<think>a b c a b c</think>5",
    "no tags at all",
    "<think></think>",
    "",
    "word " * 30,
    "\N{SNOWMAN}\N{SNOWMAN}\N{SNOWMAN}\N{SNOWMAN}",
)
STATE = TrainerState(global_step=3, max_steps=12, epoch=0.25, num_train_epochs=1)


def rollouts(*, chat: bool) -> list[Rollout]:
    made = []
    for row, text in enumerate(TEXTS):
        content: Any = ({"role": "user", "content": f"q{row // 2}"},) if chat else f"q{row // 2}"
        ids = tuple(text.encode()) or (0,)
        made.append(
            Rollout(
                prompt=Prompt(id=f"p/{row // 2}", content=content, columns={"answer": row // 2}),
                prompt_ids=(1,),
                group=row // 2,
                sample=row % 2,
                spans=(Span(token_ids=ids, logprobs=(-1.0,) * len(ids), policy_version=0),),
                text=text,
                finish_reason="stop",
            )
        )
    return made


class Theirs:
    """``GRPOTrainer._calculate_rewards`` with what it reads of its trainer."""

    def __init__(self, function: Any) -> None:
        self.columns: dict[str, list[Any]] = {}
        self.metrics: dict[str, list[float]] = {}
        # Their logger asks for it.
        PartialState(cpu=True)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.trainer = SimpleNamespace(
            accelerator=SimpleNamespace(device=torch.device("cpu"), is_main_process=True),
            reward_funcs=[function],
            reward_processing_classes=[None],
            reward_func_names=["function"],
            state=STATE,
            environments=None,
            async_loop=self._loop,
            args=SimpleNamespace(report_to=[]),
            _log_completion_extra=lambda name, values: self.columns.update({name: list(values)}),
            _log_metric=lambda name, value: self.metrics.setdefault(name, []).append(value),
        )

    def score(self, rows: list[Rollout]) -> list[float]:
        inputs = [{"prompt": r.prompt.content, **r.prompt.columns} for r in rows]
        prompts: list[Any] = [
            c if isinstance(c, str) else [dict(m) for m in c]
            for c in (r.prompt.content for r in rows)
        ]
        calculate = GRPOTrainer._calculate_rewards
        calculate = getattr(calculate, "__wrapped__", calculate)
        found = calculate(
            self.trainer, inputs, prompts, [r.completion for r in rows],
            [list(r.token_ids) for r in rows],
        )  # fmt: skip
        return [float(x) for x in found[:, 0]]

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def theirs() -> Iterator[Callable[[Any], Theirs]]:
    made: list[Theirs] = []

    def make(function: Any) -> Theirs:
        made.append(Theirs(function))
        return made[-1]

    yield make
    for trainer in made:
        trainer.close()


def ours(function: Any, rows: list[Rollout], **execution: Any) -> tuple[ScoredRollouts, Any]:
    reward = Reward(provider=function, label="mine", execution=RewardExecution(**execution))
    scorer = Scorer([reward], progress=lambda _: STATE)
    try:
        scored = scorer.score(0, rows)
    finally:
        scorer.close()
    return scored, scorer.work[0].metrics()


def all_of_it(
    prompts: Any, completions: Any, completion_ids: Any, answer: Any, **kwargs: Any
) -> list[float | None]:
    """Everything that TRL hands over."""
    state = kwargs["trainer_state"]
    first = prompts[0] if isinstance(prompts[0], str) else prompts[0][-1]["content"]
    assert first == "q0"
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    kwargs["log_extra"]("upper", [t.upper() for t in texts])
    kwargs["log_metric"]("done", state.global_step / state.max_steps)
    kwargs["log_metric"]("done", state.epoch)
    return [
        None if not t else len(t) + sum(ids) + a + state.global_step
        for t, ids, a in zip(texts, completion_ids, answer, strict=True)
    ]


async def all_of_it_later(**kwargs: Any) -> list[float | None]:
    await asyncio.sleep(0)
    return all_of_it(**kwargs)


class Lengths:
    def __call__(self, completions: Any, **kwargs: Any) -> list[float]:
        return [float(len(c)) for c in completions]


def scaled(completions: Any, scale: float, **kwargs: Any) -> list[float]:
    return [scale * len(c) for c in completions]


FUNCTIONS: dict[str, tuple[Any, bool]] = {
    "all of it": (all_of_it, False),
    "all of it, chat": (all_of_it, True),
    "async": (all_of_it_later, False),
    "callable object": (Lengths(), False),
    "partial": (functools.partial(scaled, scale=0.5), False),
    "think format": (think_format_reward, True),
    "overlong": (get_soft_overlong_punishment(max_completion_len=40, soft_punish_cache=20), False),
    "repetition": (get_repetition_penalty_reward(ngram_size=3, max_penalty=-1.0), False),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_same_function_gets_and_gives_the_same(name: str, theirs: Any) -> None:
    function, chat = FUNCTIONS[name]
    rows = rollouts(chat=chat)
    trainer = theirs(function)
    expected = trainer.score(rows)
    scored, metrics = ours(function, rows)
    for mine, other in zip(scored.values_F_B()[0], expected, strict=True):
        # Theirs are float32.
        assert mine == pytest.approx(other, rel=1e-6, nan_ok=True)
    assert any(not math.isnan(x) for x in expected)
    assert metrics == trainer.metrics
    columns = {name: [row[f"mine/{name}"] for row in scored.logged_B] for name in trainer.columns}
    assert columns == trainer.columns


@pytest.mark.parametrize("name", ["think format", "overlong", "repetition"])
def test_trls_rewards_run_in_worker_processes(name: str) -> None:
    function, chat = FUNCTIONS[name]
    rows = rollouts(chat=chat)
    here, _ = ours(function, rows)
    there, _ = ours(function, rows, isolation="process")
    assert there.outcomes_F_B == here.outcomes_F_B
