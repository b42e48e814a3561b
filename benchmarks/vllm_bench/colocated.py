"""One side of the comparison inside the trainer's process: a batch per line in, figures out.

``python colocated.py SIDE MODEL SEQUENCES`` with SIDE ``trl`` or ``ours``. For TRL it stands alone:
nothing of this repository is installed in its environment.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

Sample = Callable[[dict[str, Any]], int]
"""Samples what is asked for; the number of tokens, each with its log-prob."""


def trl(model: str, sequences: int, first: dict[str, Any]) -> Sample:
    """TRL's `VLLMGeneration`, which its trainer calls with every prompt `group_size` times."""
    from accelerate import Accelerator
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.generation.vllm_generation import (  # type: ignore[import-not-found, unused-ignore]
        VLLMGeneration,
    )

    generation = VLLMGeneration(
        AutoModelForCausalLM.from_pretrained(model),
        Accelerator(cpu=True),
        AutoTokenizer.from_pretrained(model),
        mode="colocate",
        max_model_length=first["max_model_len"],
        max_num_seqs=sequences,
        max_completion_length=first["max_tokens"],
        generation_kwargs={"ignore_eos": True},
    )

    def sample(asked: dict[str, Any]) -> int:
        prompts = [ids for ids in asked["prompts"] for _ in range(asked["group_size"])]
        _, found, logprobs, _ = generation.generate(prompts, None, asked["group_size"])
        assert list(map(len, found)) == list(map(len, logprobs))
        return sum(map(len, found))

    return sample


def ours(model: str, sequences: int, first: dict[str, Any]) -> Sample:
    """The generator `vllm-colocate`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from grpo_core import SamplingParams
    from grpo_core.policy.weights import named_tensors
    from grpo_core.types import GenerateRequest, WeightUpdate
    from grpo_generator_vllm_colocate import VLLMColocateConfig, VLLMColocateGenerator

    policy: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    # TRL leaves the precision to vLLM, which takes the checkpoint's.
    config = {
        "max_num_seqs": sequences,
        "max_model_len": first["max_model_len"],
        "dtype": "bfloat16",
    }
    generator = VLLMColocateGenerator(VLLMColocateConfig.model_validate(config))
    generator.sync(
        WeightUpdate(
            policy_version=0,
            model=policy,
            tokenizer=AutoTokenizer.from_pretrained(model),
            named_tensors=lambda: named_tensors(policy),
        )
    )

    def sample(asked: dict[str, Any]) -> int:
        request = GenerateRequest(
            step=asked["number"],
            seed=0,
            prompt_ids_P=tuple(map(tuple, asked["prompts"])),
            prompt_keys_P=tuple(range(len(asked["prompts"]))),
            group_size=asked["group_size"],
            sampling=SamplingParams(max_tokens=asked["max_tokens"]),
            eos_token_ids=(),
        )
        groups = generator.generate(request)
        return sum(len(c.token_ids) for group in groups for c in group.completions_G)

    return sample


def main(side: str, model: str, sequences: str) -> None:
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    make = {"trl": trl, "ours": ours}[side]
    sample: Sample | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        # The engine is as long as the batches are.
        sample = sample or make(model, int(sequences), asked)
        cpu, wall = time.process_time(), time.perf_counter()
        tokens = sample(asked)
        spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        answers.write(json.dumps({**spent, "tokens": tokens}) + "\n")
        answers.flush()
    os._exit(0)  # neither engine is asked to end in order


if __name__ == "__main__":
    main(*sys.argv[1:])
