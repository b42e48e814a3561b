"""Everything that both sides are given: a model folder, prompts, lengths, rewards."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    from grpo_core.types import Message
    from step_bench.workloads import ModelShape, Workload

Kind = Literal["warm-up", "signal", "half"]
"""``half``: every second group has equal rewards, hence no advantage."""

Row = dict[str, Any]
"""A prompt: ``prompt`` (text or messages), and per sample ``rewards_G`` and ``lengths_G``."""

END, PAD = "<end>", "<pad>"


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """What lies in a folder that ``make`` has filled."""

    folder: Path
    steps: list[list[Row]]
    """The prompts of every step, in the order in which both sides take them."""

    @property
    def model(self) -> Path:
        return self.folder / "model"


def load(folder: Path) -> Material:
    """What ``make`` wrote."""
    return Material(folder=folder, steps=json.loads((folder / "steps.json").read_text("utf-8")))


def make(folder: Path, workload: Workload, kinds: list[Kind], seed: int) -> Material:
    """Write model, tokenizer and the rows of every step.

    The lengths and prompts of a step do not depend on its kind, and the steps of one kind differ
    from each other: nothing can be remembered from one to the next.
    """
    if workload.model.bundled is None:
        _random_model(folder / "model", workload, seed)
        contents = _word_prompts(workload, len(kinds), seed)
    else:
        _bundled_model(folder / "model", workload.model.bundled)
        contents = _arithmetic_prompts(workload, len(kinds), seed)
    steps = []
    for step, (kind, prompts) in enumerate(zip(kinds, contents, strict=True)):
        draw = random.Random(f"{seed} {step}")
        steps.append(
            [
                {
                    "id": f"{step}/{index}",
                    "prompt": prompt,
                    "lengths_G": [
                        draw.randint(*workload.completion_tokens)
                        for _ in range(workload.group_size)
                    ],
                    "rewards_G": _rewards(draw, workload, silent=kind == "half" and index % 2 == 1),
                }
                for index, prompt in enumerate(prompts)
            ]
        )
    (folder / "steps.json").write_text(json.dumps(steps), "utf-8")
    return Material(folder=folder, steps=steps)


def _rewards(draw: random.Random, workload: Workload, *, silent: bool) -> list[float]:
    rewards = [draw.random() for _ in range(workload.group_size)]
    # 0.5: a mean of equal halves is exact, so TRL's advantage is 0 there too.
    return [0.5] * len(rewards) if silent else rewards


def _arithmetic_prompts(workload: Workload, steps: int, seed: int) -> list[list[Any]]:
    from grpo_core.demo.arithmetic import Arithmetic
    from grpo_core.demo.config import ArithmeticConfig

    wanted = steps * workload.prompts
    drawn = Arithmetic(ArithmeticConfig(seed=seed, train_size=max(wanted, 1000))).train_prompts()
    messages = [[dict(cast("Message", m)) for m in drawn[i].content] for i in range(wanted)]
    return [messages[i : i + workload.prompts] for i in range(0, wanted, workload.prompts)]


def _word_prompts(workload: Workload, steps: int, seed: int) -> list[list[Any]]:
    draw = random.Random(f"{seed} prompts")
    words = range(2, workload.model.vocabulary)
    return [
        [
            " ".join(f"t{draw.choice(words)}" for _ in range(draw.randint(*workload.prompt_tokens)))
            for _ in range(workload.prompts)
        ]
        for _ in range(steps)
    ]


def _bundled_model(folder: Path, name: str) -> None:
    import shutil

    from grpo_core.demo import checkpoint

    shutil.copytree(checkpoint(name), folder)


def _random_model(folder: Path, workload: Workload, seed: int) -> None:
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(Qwen3Config(**_config(workload.model, workload)))
    # Without this, generation settings of the library's own defaults would be saved.
    model.generation_config.eos_token_id = 0
    model.generation_config.pad_token_id = 1
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=_word_tokenizer(workload.model.vocabulary), eos_token=END, pad_token=PAD
    ).save_pretrained(folder)


def _config(shape: ModelShape, workload: Workload) -> dict[str, Any]:
    return {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.intermediate,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": True,
        "max_position_embeddings": workload.prompt_tokens[1] + workload.completion_tokens[1],
        "eos_token_id": 0,
        "pad_token_id": 1,
        "bos_token_id": None,
    }


def _word_tokenizer(vocabulary: int) -> Any:
    """One word, one token: a prompt's length is known without a tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {END: 0, PAD: 1} | {f"t{i}": i for i in range(2, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer
