"""Seeds where a step cannot hold all prompts: the engine lives, and samples what it would alone."""

from __future__ import annotations

import httpx2 as httpx
import pytest

from grpo_generator_vllm_server.launch import Launched


@pytest.mark.vllm
def test_more_prompt_tokens_than_fit_a_step_change_no_sample(engine: Launched) -> None:
    # Two times the engine's max_num_batched_tokens (2048 for a server on a CPU); a prompt computed
    # in parts would end it (see ``Plan.arguments``).
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
