"""Seeds where prompts are computed in parts: the engine lives, and samples what it would alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest

from grpo_generator_vllm_server.engine.grpo_vllm_seeds import spare_generators
from grpo_generator_vllm_server.launch import Launched


class Runner:
    """What of vLLM's runner of models matters here."""

    def __init__(self, discarded: list[bool]) -> None:
        self.input_batch = SimpleNamespace(num_reqs=3, generators={0: "a", 1: "b", 2: "c"})
        self.discard_request_mask = SimpleNamespace(np=np.array([*discarded, True]))
        self.seen: dict[int, str] = {}

    def sample_tokens(self, grammar: Any) -> Any:
        self.seen = dict(self.input_batch.generators)
        if grammar == "fails":
            raise ValueError(grammar)
        return grammar


def test_what_is_discarded_is_drawn_without_the_requests_generator() -> None:
    original = Runner.sample_tokens
    spare_generators(Runner)
    spare_generators(Runner)  # once is enough, and twice no harm
    try:
        runner = Runner([False, True, False])
        assert runner.sample_tokens("g") == "g"
        assert runner.seen == {0: "a", 2: "c"}
        assert runner.input_batch.generators == {0: "a", 1: "b", 2: "c"}
        with pytest.raises(ValueError, match="fails"):
            runner.sample_tokens("fails")
        assert runner.input_batch.generators == {0: "a", 1: "b", 2: "c"}
    finally:
        Runner.sample_tokens = original  # type: ignore[method-assign]


@pytest.mark.vllm
def test_more_prompt_tokens_than_fit_a_step_change_no_sample(engine: Launched) -> None:
    # Two times the engine's max_num_batched_tokens (2048 for a server on a CPU); unequal lengths,
    # so that a step's last prompt is cut wherever the budget ends.
    prompts = [[3 + (7 * i + j) % 250 for j in range(331 + i)] for i in range(12)]

    def sampled(chosen: list[int]) -> dict[int, list[list[int]]]:
        answer = httpx.post(
            f"{engine.plan.url}/v1/completions",
            headers={"authorization": f"Bearer {engine.plan.token}"},
            timeout=120,
            json={
                "model": "policy",
                "prompt": [prompts[i] for i in chosen],
                "n": 2,
                "seed": 5,
                "temperature": 1.0,
                "max_tokens": 4,
                "ignore_eos": True,
                "return_token_ids": True,
            },
        )
        assert answer.status_code == 200, answer.text
        ids = [choice["token_ids"] for choice in answer.json()["choices"]]
        return {i: ids[2 * n : 2 * n + 2] for n, i in enumerate(chosen)}

    together = sampled(list(range(12)))
    assert {i: sampled([i])[i] for i in range(12)} == together
