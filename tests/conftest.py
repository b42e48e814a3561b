"""Fixtures that several test folders share: real tiny models, made here."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from grpo_core.types import Prompt, Rollout, Span


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    # Two OpenMP threads on a busy machine were measured 2.5 to 5 times slower than one.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Qwen3 of 30 k parameters and the bundled tokenizer."""
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    from grpo_core.demo import checkpoint

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint("habit"))
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        # Large enough that distributions are not flat and a wrong position shows.
        initializer_range=0.3,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Mixtral of 4 experts and the bundled tokenizer."""
    return save_mixture(
        tmp_path_factory.mktemp("mixture"), "Mixtral", num_local_experts=4, num_experts_per_tok=2
    )


def save_mixture(folder: Path, name: str, **options: object) -> Path:
    """A small random mixture of experts whose routers do prefer some of them."""
    import transformers

    from grpo_core.demo import checkpoint

    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint("habit"))
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **options,
    )
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("gate.weight"):
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_mixture() -> Callable[..., Path]:
    """``save_mixture`` for tests that need another architecture."""
    return save_mixture


@pytest.fixture(scope="session")
def exact_norms() -> Callable[[torch.nn.Module], torch.nn.Module]:
    """Replace a model's RMSNorms in place by ones that compute in the model's own dtype.

    Those of transformers round to float32, which turns differences of 1e-16 into 1e-8 and would
    hide every real difference below that.
    """

    def forward(norm: torch.nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        epsilon = getattr(norm, "variance_epsilon", None) or norm.eps
        scale = norm.weight + 1 if type(norm).__name__.startswith("Gemma") else norm.weight
        return scale * hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + epsilon)

    def replace(model: torch.nn.Module) -> torch.nn.Module:
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm"):
                module.forward = functools.partial(forward, module)
        return model

    return replace


@pytest.fixture
def make_rollout() -> Callable[..., Rollout]:
    """Make a rollout from token ids; ``inserted`` lists positions that an environment wrote."""

    def make(
        prompt_ids: tuple[int, ...],
        token_ids: tuple[int, ...],
        *,
        group: int = 0,
        sample: int = 0,
        inserted: tuple[int, ...] = (),
    ) -> Rollout:
        spans = tuple(
            Span(
                token_ids=(token,),
                logprobs=None if i in inserted else (-1.0,),
                policy_version=None if i in inserted else 0,
            )
            for i, token in enumerate(token_ids)
        )
        return Rollout(
            prompt=Prompt(id=f"test/{group}", content="p"),
            prompt_ids=prompt_ids,
            group=group,
            sample=sample,
            spans=spans,
            text="",
            finish_reason="stop",
        )

    return make
