"""A tiny real Qwen3 policy, full or with LoRA, and save requests for it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from grpo_core.demo.tokenizer import train_tokenizer
from grpo_core.policy import Policy
from grpo_core.settings import LoraSettings, ModelSettings
from grpo_core.types import SaveRequest

# Tests are files, not packages: what they share is put where `import hub_server` finds it.
_spec = importlib.util.spec_from_file_location(
    "hub_server", Path(__file__).parent / "hub_server.py"
)
hub_server = importlib.util.module_from_spec(_spec)
sys.modules["hub_server"] = hub_server
_spec.loader.exec_module(hub_server)

MANIFEST = (
    {
        "role": "loss",
        "name": "dapo",
        "distribution": "grpo-losses",
        "version": "0.1.0",
        "target": "grpo_losses.losses:Dapo",
        "config": {"clip_high": 0.28},
    },
    {
        "role": "reward",
        "name": "mine",
        "distribution": None,
        "version": None,
        "target": "my_rewards:mine",
        "config": {"api_key": "sk-very-secret-key", "note": "a|b `c` <script>\n## x"},
    },
)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["<think>1+1=2</think><answer>2</answer>"])


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """The checkpoint that runs start from: bfloat16, tied, its cache switched off."""
    folder = tmp_path_factory.mktemp("models") / "tiny-qwen3"
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        tie_word_embeddings=True,
        use_cache=False,
        eos_token_id=0,
    )
    model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    model.generation_config.eos_token_id = 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train_a_little(policy: Policy) -> None:
    """Move every trainable weight, so that what is saved differs from what was loaded."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    policy.version = 3


@pytest.fixture
def make_policy(base: Path) -> Callable[..., Policy]:
    def make(*, lora: bool = False, path: Path = base, **settings: Any) -> Policy:
        adapter = LoraSettings(r=4) if lora else None
        policy = Policy(ModelSettings(path=str(path), lora=adapter, **settings))
        train_a_little(policy)
        return policy

    return make


@pytest.fixture
def make_request(tmp_path: Path) -> Callable[..., SaveRequest]:
    def make(policy: Policy, **other: Any) -> SaveRequest:
        fields: dict[str, Any] = {
            "kind": "final",
            "step": 3,
            "run_dir": tmp_path / "run",
            "policy": policy,
            "config": {
                "model": policy.settings.model_dump(mode="json"),
                "task": {"name": "dataset", "path": "openai/gsm8k"},
                "train": {"steps": 3, "group_size": 8},
                "rewards": [{"name": "mine", "weight": 0.2}],
            },
            "manifest": MANIFEST,
            "metrics": {"reward/mean": 0.75, "time/step": 1.0},
            "history": ({"reward/mean": 0.25}, {"reward/mean": 0.75}),
        }
        return SaveRequest(**(fields | other))

    return make


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A Hub on loopback; this process, and those that it starts, are logged in there."""
    from huggingface_hub import constants

    with hub_server.running_hub() as server:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        for name, value in {
            "HF_TOKEN": hub_server.TOKEN,
            "HF_ENDPOINT": server.endpoint,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HOME": str(tmp_path / "hf-home"),
        }.items():
            monkeypatch.setenv(name, value)
        yield server
