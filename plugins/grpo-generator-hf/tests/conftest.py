"""Tiny random models of several architectures, a byte-level tokenizer, and requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from grpo_core.settings import SamplingParams
from grpo_core.types import Completion, GenerateRequest, WeightUpdate
from grpo_generator_hf.config import HFConfig
from grpo_generator_hf.generator import HFGenerator

VOCABULARY = 61
CONTEXT = 256
WINDOW = 4

_LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_SLIDING = {
    **_LLAMA,
    "head_dim": 8,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"],
}
_GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": CONTEXT,
    "bos_token_id": None,
    "eos_token_id": None,
}
_BLOOM = {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4}
_MAMBA = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
_LFM2 = {**_LLAMA, "layer_types": ["conv", "full_attention"]}

ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**_LLAMA, "head_dim": 8}),
    "tied": (
        "Qwen3ForCausalLM",
        "Qwen3Config",
        {**_LLAMA, "head_dim": 8, "tie_word_embeddings": True},
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", _LLAMA),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _LLAMA),
    "phi": ("PhiForCausalLM", "PhiConfig", _LLAMA),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", _LLAMA),
    "cohere": ("CohereForCausalLM", "CohereConfig", {**_LLAMA, "logit_scale": 0.5}),
    "qwen3-moe": (
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        {
            **_LLAMA,
            "head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
        },
    ),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", _GPT2),
    "mistral": ("MistralForCausalLM", "MistralConfig", {**_LLAMA, "sliding_window": WINDOW}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", _SLIDING),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", _SLIDING),
    "bloom": ("BloomForCausalLM", "BloomConfig", _BLOOM),
    "mamba": ("MambaForCausalLM", "MambaConfig", _MAMBA),
    "lfm2": ("Lfm2ForCausalLM", "Lfm2Config", _LFM2),
}
"""Rotary, tied, absolute and ALiBi positions; windows; caps; experts; parallel layers; a
state-space model; a hybrid."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads over matrices as small as these mostly wait for each other: measured 20 times
    slower when other processes want the same cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_model() -> Callable[..., PreTrainedModel]:
    def make(
        architecture: str = "qwen3", dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> PreTrainedModel:
        model_name, config_name, arguments = ARCHITECTURES[architecture]
        config = getattr(transformers, config_name)(**arguments)
        model = getattr(transformers, model_name)(config).to(dtype).eval()
        # Weights larger than usual, so that positions, masks and neighbours change the logits
        # by much more than rounding does; not too large for Gemma, whose scaled and tied
        # embedding would only echo the last token.
        spread = 0.1 if architecture.startswith("gemma") else 0.3
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data.normal_(0.0, spread, generator=generator)
        return model

    return make


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE whose merges join punctuation, so that stop strings cross token borders."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(
        ["so</answer>. <answer>12</answer>\n\nthen</think>é", "naïve 東京 café 🙂🙂 ]]>\n"] * 20,
        trainer,
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>")


@pytest.fixture(scope="session")
def make_request() -> Callable[..., GenerateRequest]:
    def make(*prompts: tuple[int, ...], **options: Any) -> GenerateRequest:
        fields = {
            "step": 3,
            "seed": 11,
            "prompt_ids_P": prompts,
            "prompt_keys_P": tuple(range(len(prompts))),
            "group_size": 4,
            "eos_token_ids": (),
        }
        fields |= {name: options.pop(name) for name in list(options) if name in fields}
        return GenerateRequest(sampling=SamplingParams(**{"max_tokens": 12, **options}), **fields)

    return make


@pytest.fixture(scope="session")
def make_generator(tokenizer: PreTrainedTokenizerFast) -> Callable[..., HFGenerator]:
    def make(model: torch.nn.Module, version: int = 0, **options: Any) -> HFGenerator:
        generator = HFGenerator(HFConfig(**options))
        generator.sync(
            WeightUpdate(
                policy_version=version,
                model=model,
                tokenizer=tokenizer,
                named_tensors=lambda: iter(model.named_parameters()),
            )
        )
        return generator

    return make


@pytest.fixture(scope="session")
def sample(
    make_generator: Callable[..., HFGenerator],
) -> Callable[..., list[tuple[Completion, ...]]]:
    """Completions of each prompt, in the order of the request."""

    def run(
        model: torch.nn.Module, request: GenerateRequest, **options: Any
    ) -> list[tuple[Completion, ...]]:
        groups = list(make_generator(model, **options).generate(request))
        assert sorted(group.index for group in groups) == list(range(len(request.prompt_ids_P)))
        assert all(len(group.completions_G) == request.group_size for group in groups)
        return [group.completions_G for group in sorted(groups, key=lambda group: group.index)]

    return run


@pytest.fixture(scope="session")
def full_logprobs() -> Callable[..., torch.Tensor]:
    """Log-probs of a completion from one pass over the whole sequence, alone, without a cache."""

    @torch.no_grad()
    def compute(
        model: torch.nn.Module,
        prompt: tuple[int, ...],
        completion: Completion,
        temperature: float = 1.0,
    ) -> torch.Tensor:
        ids = torch.tensor([[*prompt, *completion.token_ids]])
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        logps = (logits / temperature).log_softmax(-1)
        return logps.gather(1, ids[0, len(prompt) :, None]).squeeze(1)

    return compute


@pytest.fixture(scope="session")
def chi_square_p() -> Callable[[torch.Tensor, torch.Tensor], float]:
    """Probability of counts at least this far from their expectation, by Pearson's test."""

    def p_value(observed_K: torch.Tensor, expected_K: torch.Tensor) -> float:
        # The approximation wants some 5 expected counts per cell: rare ones are put together.
        rare = expected_K < 5
        if rare.any():
            observed_K = torch.cat([observed_K[~rare], observed_K[rare].sum()[None]])
            expected_K = torch.cat([expected_K[~rare], expected_K[rare].sum()[None]])
        kept = expected_K > 0
        assert (observed_K[~kept] == 0).all()
        observed_K, expected_K = observed_K[kept].double(), expected_K[kept].double()
        statistic = ((observed_K - expected_K) ** 2 / expected_K).sum()
        freedom = torch.tensor((len(expected_K) - 1) / 2, dtype=torch.float64)
        return float(torch.special.gammaincc(freedom, statistic / 2))

    return p_value
