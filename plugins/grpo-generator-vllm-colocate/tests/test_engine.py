"""A real engine in this process: what it samples, what it refuses, how it recovers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from grpo_core.errors import ConfigError, DataError, SyncError
from grpo_core.testing.generator_bench import move
from grpo_core.types import WeightUpdate
from grpo_generator_vllm_colocate import VLLMColocateGenerator
from grpo_generator_vllm_colocate.errors import EngineError, RequestRefusedError

pytestmark = pytest.mark.vllm

CLOSE = 1e-4
"""Nats, in float32; measured 1e-5. An update below moves log-probs by 0.1 and more."""
LONG = tuple(5 + i % 50 for i in range(300))
"""Longer than one block of the prefix cache (128 on a CPU), whose keys would be the old ones."""


def altered(update: WeightUpdate, change: Any, *, from_call: int = 0) -> WeightUpdate:
    """The same update with other tensors, from one of the calls of ``named_tensors`` on."""
    calls = iter(range(1000))

    def named_tensors() -> Iterator[tuple[str, torch.Tensor]]:
        tensors = list(update.named_tensors())
        return iter(change(tensors) if next(calls) >= from_call else tensors)

    return dataclasses.replace(update, named_tensors=named_tensors)


def without_one(tensors: list[Any]) -> list[Any]:
    return tensors[:-1]


def of_another_shape(tensors: list[Any]) -> list[Any]:
    return [(name, t[:-1] if "norm" in name else t) for name, t in tensors]


def of_another_name(tensors: list[Any]) -> list[Any]:
    return [(name.replace("mlp", "ffn"), t) for name, t in tensors]


def test_logprobs_are_the_policys_before_and_after_updates(
    make_generator, load_policy, make_request, largest_difference
) -> None:
    policy, generator = load_policy(), make_generator()
    for temperature in (1.0, 0.7, 0.0):
        sampling = {"temperature": temperature}
        request = make_request(prompt_ids_P=(LONG, (10, 20, 30)), sampling=sampling)
        policy.prepare(
            optimizer_steps=1, temperature=temperature or 1.0, tokens_per_microbatch=4096
        )
        assert generator.sync(policy.weight_update()) == policy.version
        groups = list(generator.generate(request))
        assert {g.policy_version for g in groups} == {policy.version}
        assert largest_difference(policy, request, groups) < CLOSE
        # The embeddings are the head as well (tied): a head that stays old shows here.
        move(policy)
        assert largest_difference(policy, request, groups) > 10 * CLOSE


def test_adapters_are_merged_where_asked_for_or_where_the_rank_is_too_large(
    make_generator, load_policy, make_request, largest_difference, caplog
) -> None:
    policy = load_policy(lora_rank=4)
    move(policy)
    request = make_request()
    for options in ({"sync": "full"}, {"lora_rank": 2}):
        generator = make_generator(**options)
        generator.sync(policy.weight_update())
        assert largest_difference(policy, request, list(generator.generate(request))) < CLOSE
        generator.close()
    assert "its rank is 4, generator.lora_rank 2" in caplog.text
    with pytest.raises(ConfigError, match=r"its rank is 4, generator.lora_rank 2; set it to full"):
        make_generator(sync="adapter", lora_rank=2).sync(policy.weight_update())
    with pytest.raises(ConfigError, match=r"model.lora is not set"):
        make_generator(sync="adapter").sync(load_policy().weight_update())


def test_one_engine_serves_what_is_asked(make_generator, load_policy, make_request) -> None:
    """Seeds, stop strings, limits, batches under way together, and what is refused."""
    policy, generator = load_policy(), make_generator(max_model_len=400)
    generator.sync(policy.weight_update())

    def tokens(**changes: Any) -> dict[int, list[tuple[int, ...]]]:
        groups = generator.generate(make_request(**changes))
        return {g.index: [c.token_ids for c in g.completions_G] for g in groups}

    first = tokens(group_size=6)
    assert tokens(group_size=6) == first
    assert tokens(group_size=6, seed=8) != first
    assert tokens(group_size=6, step=1) != first
    # Alone, by its key, a prompt gets what it got among others.
    assert tokens(group_size=6, prompt_ids_P=((11, 20, 31),), prompt_keys_P=(1,))[0] == first[1]
    assert len({ids for group in first.values() for ids in group}) > 6

    (group,) = generator.generate(make_request(prompt_ids_P=((10, 20, 30),), group_size=2))
    shown = group.completions_G[0]
    second = policy.tokenizer.decode(list(shown.token_ids[:2]))
    request = make_request(prompt_ids_P=((10, 20, 30),), group_size=2, sampling={"stop": (second,)})
    (stopped,) = generator.generate(request)
    assert stopped.completions_G[0].token_ids == shown.token_ids[:2]
    assert stopped.completions_G[0].finish_reason == "stop"

    # Two batches under way: each gets its own groups, the same as alone.
    together = [iter(generator.generate(make_request(group_size=6, seed=s))) for s in (7, 8)]
    heads = [next(groups) for groups in together]
    rest = [{g.index: [c.token_ids for c in g.completions_G] for g in gs} for gs in together]
    for head, others, seed in zip(heads, rest, (7, 8), strict=True):
        found = {**others, head.index: [c.token_ids for c in head.completions_G]}
        assert found == tokens(group_size=6, seed=seed)

    with pytest.raises(RequestRefusedError, match="does not take"):
        list(generator.generate(make_request(prompt_ids_P=((10, 5000),))))
    with pytest.raises(DataError, match=r"more than generator.max_model_len 400"):
        generator.generate(make_request(prompt_ids_P=(LONG,), sampling={"max_tokens": 101}))
    with pytest.raises(DataError, match="a prompt is empty"):
        generator.generate(make_request(prompt_ids_P=((),)))
    # What is not asked for to the end is given up; nothing of it is left in the engine.
    given_up = generator.generate(make_request())
    next(given_up)
    given_up.close()
    assert tokens(group_size=6) == first


def test_structured_outputs(make_generator, load_policy, make_request) -> None:
    policy, generator = load_policy(), make_generator(structured_outputs={"regex": "[0-9]"})
    generator.sync(policy.weight_update())
    for group in generator.generate(make_request()):
        for completion in group.completions_G:
            ids = [i for i in completion.token_ids if i not in policy.eos_token_ids]
            assert policy.tokenizer.decode(ids).strip().isdigit()


def test_after_a_failed_sync_nothing_is_sampled_until_one_succeeds(
    make_generator, load_policy, make_request, largest_difference
) -> None:
    policy, generator = load_policy(), make_generator()
    request = make_request()
    generator.sync(policy.weight_update())
    engine = generator._engine
    for fault, said in (
        (without_one, "nothing was applied: .* 1 missing"),
        (of_another_shape, "nothing was applied: .* another base model"),
        (of_another_name, "nothing was applied: .* missing .* unknown"),
    ):
        move(policy)
        with pytest.raises(SyncError, match=said):
            generator.sync(altered(policy.weight_update(), fault))
        with pytest.raises(SyncError, match=r"has nothing to sample from: .* failed"):
            generator.generate(request)
    # Compared before it is touched: the same engine goes on.
    assert generator.sync(policy.weight_update()) == policy.version
    assert generator._engine is engine
    assert largest_difference(policy, request, list(generator.generate(request))) < CLOSE


@pytest.mark.parametrize("fault", [without_one, of_another_shape])
def test_an_engine_that_holds_parts_of_two_policies_is_replaced(
    fault, make_generator, load_policy, make_request, largest_difference
) -> None:
    """The tensors change between the look at their shapes and the reload."""
    policy, generator = load_policy(), make_generator()
    request = make_request()
    generator.sync(policy.weight_update())
    engine = generator._engine
    move(policy)
    with pytest.raises(SyncError, match="holds parts of two"):
        generator.sync(altered(policy.weight_update(), fault, from_call=1))
    with pytest.raises(SyncError, match="has nothing to sample from"):
        generator.generate(request)
    assert generator.sync(policy.weight_update()) == policy.version
    assert generator._engine is not engine
    assert largest_difference(policy, request, list(generator.generate(request))) < CLOSE


def test_an_engine_that_fails_is_named_and_replaced(
    make_generator, load_policy, make_request, monkeypatch
) -> None:
    policy, generator = load_policy(), make_generator()
    generator.sync(policy.weight_update())
    engine = generator._engine

    def fails() -> Any:
        raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setattr(engine._llm.llm_engine, "step", fails)
    with pytest.raises(EngineError, match=r"engine of this process failed .* illegal memory"):
        list(generator.generate(make_request()))
    generator.sync(policy.weight_update())
    assert generator._engine is not engine
    assert len(list(generator.generate(make_request()))) == 3


def test_new_weights_in_the_middle_of_a_batch_end_it(
    make_generator, load_policy, make_request, largest_difference
) -> None:
    policy, generator = load_policy(), make_generator()
    generator.sync(policy.weight_update())
    groups = generator.generate(make_request(sampling={"max_tokens": 60}))
    next(groups)
    move(policy)
    assert generator.sync(policy.weight_update()) == policy.version
    with pytest.raises(SyncError, match="synced or closed while it was sampling"):
        list(groups)
    request = make_request(prompt_ids_P=(LONG,))
    assert largest_difference(policy, request, list(generator.generate(request))) < CLOSE


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_it_sleeps_between_batches(
    lora_rank: int, make_generator, load_policy, make_request, largest_difference, caplog
) -> None:
    """On a CPU vLLM takes the calls and gives nothing up: the order of calls is what is tested."""
    policy, generator = load_policy(lora_rank=lora_rank), make_generator(sleep=True)
    request = make_request(prompt_ids_P=(LONG, (10, 20, 30)))
    for _ in range(2):
        generator.sync(policy.weight_update())
        for _ in range(2):  # a second batch after one sync finds the weights again
            groups = list(generator.generate(request))
            assert generator._engine._llm.llm_engine.is_sleeping()
            assert largest_difference(policy, request, groups) < CLOSE
        move(policy)
    assert "generator.sleep has no effect" in caplog.text


def test_a_model_that_is_not_there_is_named(make_generator, load_policy, make_request) -> None:
    policy = load_policy()
    with pytest.raises(ConfigError, match="cannot start an engine with /nowhere"):
        make_generator(model="/nowhere").sync(policy.weight_update())
    with pytest.raises(ConfigError, match="unexpected keyword argument 'max_speed'"):
        make_generator(engine={"max_speed": 9}).sync(policy.weight_update())
    # What was begun is gone: another engine can be made.
    generator: VLLMColocateGenerator = make_generator()
    generator.sync(policy.weight_update())
    assert len(list(generator.generate(make_request()))) == 3
