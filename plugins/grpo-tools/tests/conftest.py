"""The bundled policy in float64, requests for rollouts, and tools of every kind."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from grpo_core import ModelSettings, Policy, SamplingParams
from grpo_core.demo import checkpoint
from grpo_core.testing import ScriptedConfig, ScriptedGenerator
from grpo_core.types import GenerateRequest, Prompt, Rollout, RolloutRequest
from grpo_generator_hf import HFConfig, HFGenerator


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a + b


async def shout(text: str, times: int = 1) -> str:
    """Say it in capitals.

    Args:
        text: What to say.
        times: How often.
    """
    await asyncio.sleep(0)
    return text.upper() * times


def broken(text: str) -> str:
    """Fail.

    Args:
        text: Why.
    """
    raise LookupError(text)


def slow(seconds: float) -> str:
    """Wait.

    Args:
        seconds: How long.
    """
    time.sleep(seconds)
    return "waited"


async def slow_async(seconds: float) -> str:
    """Wait.

    Args:
        seconds: How long.
    """
    await asyncio.sleep(seconds)
    return "waited"


ALL = (add, shout, broken, slow, slow_async)


SHORT = str(Path(__file__).parent / "short.jinja")
"""A template that presents tools by their names: the bundled tokenizer makes a token of every
other character, and its model has a context of 1024."""


def call(name: str, **arguments: Any) -> str:
    """What a policy says to call a tool."""
    said = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>{said}</tool_call>"


@pytest.fixture(scope="session")
def policy() -> Policy:
    """0.8 M parameters; float64, so that batches of any composition give the same tokens."""
    torch.set_num_threads(1)
    made = Policy(ModelSettings(path=str(checkpoint("habit")), dtype="float32"))
    made.model.double()
    made.prepare(optimizer_steps=1, temperature=1.0, tokens_per_microbatch=4096)
    return made


@pytest.fixture(scope="session")
def make_request(policy: Policy) -> Callable[..., RolloutRequest]:
    def make(*prompts: Prompt | str, **options: Any) -> RolloutRequest:
        made = tuple(
            p
            if isinstance(p, Prompt)
            else Prompt(id=f"train/{i}", content=({"role": "user", "content": p},))
            for i, p in enumerate(prompts)
        )
        keys = options.pop("keys", tuple(range(len(made))))
        group_size = options.pop("group_size", 2)
        step = options.pop("step", 3)
        generate = GenerateRequest(
            step=step,
            seed=11,
            prompt_ids_P=tuple(policy.encoder.encode(p) for p in made),
            prompt_keys_P=keys,
            group_size=group_size,
            sampling=SamplingParams(**{"max_tokens": 200, **options}),
            eos_token_ids=policy.eos_token_ids,
        )
        return RolloutRequest(
            prompts_P=made,
            generate=generate,
            decode=policy.encoder.decode,
            encoder=policy.encoder,
            context_length=policy.context_length,
        )

    return make


@pytest.fixture
def scripted(policy: Policy) -> Callable[..., ScriptedGenerator]:
    def make(*completions: Any) -> ScriptedGenerator:
        generator = ScriptedGenerator(ScriptedConfig(completions=completions))
        generator.sync(policy.weight_update())
        return generator

    return make


@pytest.fixture
def sampler(policy: Policy) -> Callable[..., HFGenerator]:
    def make(**options: Any) -> HFGenerator:
        generator = HFGenerator(HFConfig(**options))
        generator.sync(policy.weight_update())
        return generator

    return make


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """The names above, for test modules, which cannot import this one."""
    return SimpleNamespace(tools=ALL, template=SHORT, call=call, flat=flat)


def flat(groups: Any) -> list[Rollout]:
    """All rollouts, in order."""
    found: Sequence[Rollout] = [rollout for group in groups for rollout in group]
    return sorted(found, key=lambda r: (r.group, r.sample))
