"""A provider can be sent to another process, and says the same there."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from grpo_core.types import ScoreRequest
from grpo_rewards import (
    CosineLength,
    CosineLengthConfig,
    ExactAnswer,
    JsonSchema,
    JsonSchemaConfig,
    Length,
    MathAccuracy,
    NumberAnswer,
    ReasoningAccuracy,
    ReasoningSteps,
    RegexConfig,
    RegexMatch,
    RepetitionPenalty,
    SoftOverlong,
    SoftOverlongConfig,
    TagCount,
    ThinkFormat,
)

PROVIDERS = [
    CosineLength(CosineLengthConfig(max_tokens=9)),
    ExactAnswer(),
    JsonSchema(JsonSchemaConfig(schema_value={"type": "object"})),
    Length(),
    MathAccuracy(),
    NumberAnswer(),
    ReasoningAccuracy(),
    ReasoningSteps(),
    RegexMatch(RegexConfig(pattern="2")),
    RepetitionPenalty(),
    SoftOverlong(SoftOverlongConfig(max_tokens=4, soft_tokens=2)),
    TagCount(),
    ThinkFormat(),
]
TEXTS = [
    "<think>\n1. x\n</think>\n<answer>\n2\n</answer>",
    r"<think>x</think><answer>2</answer> \boxed{2}",
    "{}",
    r"\boxed{3}",
]


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.name)
def test_a_copy_says_the_same_and_no_row_depends_on_another_groups(
    provider: Any, rollout: Callable[..., Any]
) -> None:
    groups = [
        [
            rollout(text, {"answer": "2"}, tokens=[7] * (i + group + 1), group=group, sample=i)
            for i, text in enumerate(TEXTS)
        ]
        for group in range(2)
    ]
    everything = ScoreRequest(step=0, rollouts_B=tuple(r for g in groups for r in g))
    whole = list(provider.score(everything))
    assert len({str(outcome) for outcome in whole}) > 1, "equal outcomes would compare nothing"
    copy = pickle.loads(pickle.dumps(provider))
    assert list(copy.score(everything)) == whole
    parts = [provider.score(ScoreRequest(step=0, rollouts_B=tuple(group))) for group in groups]
    assert [outcome for part in parts for outcome in part] == whole


COPY = """
import pickle, sys
from grpo_core.types import Prompt, Rollout, ScoreRequest, Span
provider = pickle.load(sys.stdin.buffer)
prompt = Prompt(id="0", content="", columns={"answer": "4"})
span = Span(token_ids=(1,), logprobs=(0.0,), policy_version=0)
rollout = Rollout(prompt=prompt, prompt_ids=(1,), group=0, sample=0, spans=(span,),
                  text=r"</think>\\boxed{4}", finish_reason="stop")
print(provider.score(ScoreRequest(step=0, rollouts_B=(rollout,))))
"""


@pytest.mark.parametrize("provider", [MathAccuracy(), ReasoningAccuracy()])
def test_a_worker_process_is_not_told_to_care_for_timeouts(provider: Any) -> None:
    """math-verify warns in every process of which nobody says that it will be killed."""
    done = subprocess.run(
        [sys.executable, "-c", COPY], input=pickle.dumps(provider), capture_output=True, check=True
    )
    assert done.stdout == b"[Value(value=1.0)]\n"
    assert done.stderr == b""
