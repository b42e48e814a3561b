"""Which weights a completion comes from, and that sampling leaves everything as it was."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from grpo_core.types import Completion, GenerateRequest
from grpo_generator_hf.generator import HFGenerator
from grpo_generator_hf.sampling import tempered

PROMPTS = ((5, 9, 2, 7, 11, 30, 8, 1, 3), (4,), (17, 3, 3), (8, 1, 6, 40, 2, 33))

Sample = Callable[..., list[tuple[Completion, ...]]]
MakeModel = Callable[..., PreTrainedModel]
MakeRequest = Callable[..., GenerateRequest]


def tokens(groups: list[tuple[Completion, ...]]) -> list[list[tuple[int, ...]]]:
    return [[completion.token_ids for completion in group] for group in groups]


def test_weights_changed_in_place_are_used_at_once(
    make_model: MakeModel,
    make_request: MakeRequest,
    make_generator: Callable[..., HFGenerator],
    full_logprobs: Callable[..., torch.Tensor],
) -> None:
    model = make_model()
    generator = make_generator(model, version=4)
    request = make_request((5, 9, 2))
    before = next(generator.generate(request))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(input_ids=torch.tensor([[1, 2, 3]])).logits.square().mean().backward()
    optimizer.step()
    after = next(generator.generate(request))
    assert before.policy_version == after.policy_version == 4
    assert before.completions_G != after.completions_G
    for completion in after.completions_G:
        expected_N = full_logprobs(model, (5, 9, 2), completion)
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected_N, atol=1e-5, rtol=0)


def test_the_model_and_the_world_are_left_as_they_were(
    make_model: MakeModel, make_request: MakeRequest, make_generator: Callable[..., HFGenerator]
) -> None:
    model = make_model()
    model.train()
    model.model.layers[0].eval()
    model.model.embed_tokens.weight.requires_grad_(False)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.generation_config.repetition_penalty = 3.0
    before = copy.deepcopy(model.state_dict())
    modes = {name: module.training for name, module in model.named_modules()}
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    settings = model.generation_config.to_dict()
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()

    for _ in make_generator(model, rows_at_once=4).generate(make_request(*PROMPTS, top_p=0.9)):
        # Also between two groups, while the request is still being served.
        assert torch.is_grad_enabled()
        assert {name: module.training for name, module in model.named_modules()} == modes

    after = model.state_dict()
    assert all(after[name].equal(value) for name, value in before.items())
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.generation_config.to_dict() == settings
    assert torch.get_rng_state().equal(states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]
    # Nothing made while sampling is in the way of the next backward pass.
    model(input_ids=torch.tensor([[1, 2, 3]])).logits.sum().backward()


def test_modes_are_restored_after_an_error(
    make_model: MakeModel, make_request: MakeRequest, make_generator: Callable[..., HFGenerator]
) -> None:
    model = make_model()
    generator = make_generator(model)
    model.train()
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    with pytest.raises(
        FloatingPointError, match=r"token 0 of sample 0 of prompt 0 at step 3 are NaN or infinite"
    ):
        list(generator.generate(make_request((1, 2))))
    assert all(module.training for module in model.modules())
    assert torch.is_grad_enabled()


def test_dropout_and_gradient_checkpointing_are_off_while_sampling(
    make_model: MakeModel, make_request: MakeRequest, sample: Sample
) -> None:
    model = make_model("gpt2", torch.float64)
    expected = sample(model, make_request(*PROMPTS))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    model.config.use_cache = False
    model.train()
    assert tokens(sample(model, make_request(*PROMPTS))) == tokens(expected)


def test_adapters_are_sampled_from(
    make_model: MakeModel,
    make_request: MakeRequest,
    sample: Sample,
    full_logprobs: Callable[..., torch.Tensor],
) -> None:
    from peft import LoraConfig, get_peft_model

    base = make_model()
    without = sample(base, make_request(*PROMPTS))
    model = get_peft_model(
        base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(1))
    groups = sample(model, make_request(*PROMPTS))
    assert tokens(groups) != tokens(without)
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for completion in group:
            expected_N = full_logprobs(model, prompt, completion)
            found_N = torch.tensor(completion.logprobs)
            torch.testing.assert_close(found_N, expected_N, atol=1e-5, rtol=0)
    with model.disable_adapter():
        assert tokens(sample(model, make_request(*PROMPTS))) == tokens(without)


# -- autocast ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [True, False])
def test_autocast_of_the_caller_holds(
    make_model: MakeModel,
    make_request: MakeRequest,
    sample: Sample,
    full_logprobs: Callable[..., torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    fused: bool,
) -> None:
    dtypes, differences = set(), []

    def watching(logits: torch.Tensor, temperature: float) -> torch.Tensor:
        dtypes.add(logits.dtype)
        return tempered(logits, temperature)

    monkeypatch.setattr("grpo_generator_hf.draws.tempered", watching)
    model = make_model()
    with torch.autocast("cpu", torch.bfloat16):
        for prompt, group in zip(
            PROMPTS, sample(model, make_request(*PROMPTS), fused=fused), strict=True
        ):
            for completion in group:
                expected_N = full_logprobs(model, prompt, completion)
                differences.append((torch.tensor(completion.logprobs) - expected_N).abs())
    assert dtypes == {torch.bfloat16}
    assert torch.cat(differences).mean() < 0.02


def test_one_autocast_around_sampling_and_training(
    make_model: MakeModel, make_request: MakeRequest, make_generator: Callable[..., HFGenerator]
) -> None:
    """Autocast's copies of the weights must not outlive a request: neither would the next training
    pass reach the weights, nor the next request see what the optimizer did to them."""
    model = make_model()
    generator = make_generator(model)
    request, ids = make_request((5, 9, 2)), torch.tensor([[1, 2, 3]])

    def flip() -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.neg_()

    with torch.autocast("cpu", torch.bfloat16):
        before = list(generator.generate(request))
        flip()
        logits = model(input_ids=ids).logits
        logits.float().square().mean().backward()
        assert all(parameter.grad.norm() > 0 for parameter in model.parameters())
        flip()
        assert list(generator.generate(request)) == before
        flip()
        after = list(generator.generate(request))
    with torch.autocast("cpu", torch.bfloat16):
        assert model(input_ids=ids).logits.equal(logits)
    with torch.autocast("cpu", torch.bfloat16):
        assert list(generator.generate(request)) == after != before
