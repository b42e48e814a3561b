"""Which way weights take, and what is counted on it; without an engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from grpo_core.demo import checkpoint
from grpo_core.errors import ConfigError
from grpo_core.types import WeightUpdate
from grpo_generator_vllm_colocate import VLLMColocateConfig
from grpo_generator_vllm_colocate.ways import Adapter, Full, choose
from grpo_generator_vllm_colocate.worker import counted, manifest


def adapted(**changes: Any) -> WeightUpdate:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base: Any = AutoModelForCausalLM.from_pretrained(checkpoint("habit"))
    config = LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], **changes})
    return WeightUpdate(
        policy_version=0,
        model=get_peft_model(base, config),
        tokenizer=None,  # type: ignore[arg-type]
        named_tensors=lambda: iter(()),
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "lora_only"}, "trains biases"),
        ({"modules_to_save": ["norm"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "changes the base"),
        ({"r": 16}, "its rank is 16, generator.lora_rank 8"),
    ],
)
def test_what_an_adapter_alone_would_lose_is_merged_and_said(
    changes: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    update = adapted(**changes)
    assert isinstance(choose(VLLMColocateConfig(lora_rank=8), update), Full)
    assert said in caplog.text
    with pytest.raises(ConfigError, match=r"generator\.sync is 'adapter', but"):
        choose(VLLMColocateConfig(sync="adapter", lora_rank=8), update)


def test_further_trained_weights_and_other_adapters_are_seen(caplog) -> None:
    update = adapted()
    update.model.get_parameter("base_model.model.model.norm.weight").requires_grad_(True)
    assert isinstance(choose(VLLMColocateConfig(), update), Full)
    assert "model.norm.weight is trained, too" in caplog.text
    update = adapted()
    update.model.add_adapter("other", update.model.peft_config["default"])  # type: ignore[operator]
    update.model.set_adapter("other")  # type: ignore[operator]
    assert isinstance(choose(VLLMColocateConfig(), update), Full)
    assert "active adapters are ['other']" in caplog.text


def test_plain_lora_goes_alone_and_its_folder_goes_at_the_end() -> None:
    way = choose(VLLMColocateConfig(), adapted())
    assert isinstance(way, Adapter)
    assert way.lora_rank == 4
    assert way._folder.is_dir()
    way.close()
    assert not way._folder.exists()
    assert isinstance(choose(VLLMColocateConfig(sync="full"), adapted()), Full)


def test_each_tensor_is_counted() -> None:
    tensors = [("a", torch.zeros(2, 3, requires_grad=True)), ("b", torch.ones(4).half())]
    listed = manifest(iter(tensors))
    assert listed == {"a": ("float32", [2, 3]), "b": ("float16", [4])}
    sent = list(counted(iter(tensors), listed))
    assert [(n, t.shape, t.requires_grad) for n, t in sent] == [
        ("a", (2, 3), False),
        ("b", (4,), False),
    ]
    for wrong, said in (
        (tensors[:1], "1 of 2 listed tensors never came: b"),
        ([("a", torch.zeros(3, 2)), tensors[1]], "a came as float32"),
        ([("a", torch.zeros(2, 3).half()), tensors[1]], "a came as float16"),
        ([*tensors, ("c", torch.zeros(1))], "none of that name"),
        ([*tensors, tensors[0]], "a came as float32"),
    ):
        with pytest.raises(ValueError, match=said):
            list(counted(iter(wrong), listed))
