"""Right names, shapes and versions over wrong numbers, by less than log-probs would show."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from grpo_core.errors import ConfigError, SyncError
from grpo_core.policy.weights import named_tensors
from grpo_core.types import WeightUpdate
from grpo_generator_vllm_server import broadcast, ipc, packing, weights
from grpo_generator_vllm_server.adapters import adapter_rank, obstacle, write_adapter
from grpo_generator_vllm_server.answer import Expected, Piece, pieces
from grpo_generator_vllm_server.drafts import GroupDraft
from grpo_generator_vllm_server.engine.grpo_vllm_adapter import MANIFEST, read_adapter
from grpo_generator_vllm_server.engine.grpo_vllm_digest import digest
from grpo_generator_vllm_server.engine.grpo_vllm_worker import GRPOWorker
from grpo_generator_vllm_server.errors import BadAnswerError
from grpo_generator_vllm_server.request import Draw
from grpo_generator_vllm_server.sampling import decoder
from grpo_generator_vllm_server.weights import Sent, sent_tensors, with_head, write_weights

Tensors = Iterator[tuple[str, torch.Tensor]]


class Worker(GRPOWorker):
    """Takes what it is given."""

    device = torch.device("cpu")

    def _grpo_expected(self) -> None:
        return None

    def reload_weights(self, *, weights_iterator: Tensors) -> None:
        self.given = dict(weights_iterator)


def by_file(update: WeightUpdate, folder: Path) -> Any:
    write_weights(folder, update, None)
    return Worker().grpo_load(str(folder), folder.name)


def by_broadcast(update: WeightUpdate, folder: Path) -> Any:
    way = broadcast.ByBroadcast(None, backend="gloo", host=None)
    way.write(folder, update)
    assert way._packed is not None
    worker = Worker()
    assert worker.grpo_expect(way._packed.manifest) == {"ready": True}
    worker._grpo_buckets = [bucket.bytes.clone() for bucket in way._packed.buckets]
    return worker.grpo_apply(folder.name)


def by_ipc(update: WeightUpdate, folder: Path) -> Any:
    with closing(ipc.ByIPC(None, memory="host")) as way:
        way.write(folder, update)
        assert way._shared is not None
        worker = Worker()
        assert worker.grpo_expect(way._shared.manifest) == {"ready": True}
        worker.grpo_open(way._shared.handles)
        return worker.grpo_apply(folder.name)


# -- the digest itself ---------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 7, 8, 1000, 2**16 * 8 + 3, 2**16 * 64 * 2 + 5])
def test_a_digest_is_of_the_bytes_and_their_order(count: int) -> None:
    torch.manual_seed(0)
    tensor = torch.randn(count)
    known = digest(tensor)
    assert digest(tensor.clone()) == known
    assert digest(torch.cat([torch.zeros(3), tensor])[3:]) == known
    seen = {known}
    for at in {0, count // 2, count - 1}:
        changed = tensor.clone()
        changed[at] = torch.nextafter(changed[at], torch.tensor(9.0))
        seen.add(digest(changed))
        changed[at] = -tensor[at]
        seen.add(digest(changed))
    if count > 7:
        seen |= {digest(tensor.roll(1)), digest(tensor.flip(0)), digest(-tensor)}
        swapped = tensor.clone()
        swapped[[1, 3]] *= -1  # two highest bits of words, whose sum is 0 modulo 2**64
        seen.add(digest(swapped))
    assert len(seen) == 1 + 2 * len({0, count // 2, count - 1}) + (4 if count > 7 else 0)


def test_a_digest_is_by_the_definition() -> None:
    """So that another device, or another row size, cannot quietly have another."""
    words = torch.arange(-3, 70_000, dtype=torch.int64) * 0x9E3779B97F4A7C1

    def sums(values: list[int]) -> list[int]:
        rows = [values[i : i + 2**16] for i in range(0, len(values), 2**16)]
        return [sum((3 * w + (w >> 32)) * (2 * i + 1) for i, w in enumerate(row)) for row in rows]

    def signed(value: int) -> int:
        return (value + 2**63) % 2**64 - 2**63

    first = [signed(x) for x in sums(words.tolist())]
    (last,) = sums(first)
    assert len(first) == 2
    assert digest(words) == f"{last % 2**64:016x}"


# -- all weights ---------------------------------------------------------------------------------


def stale_layer(tensors: Tensors, old: dict[str, torch.Tensor]) -> Tensors:
    for name, tensor in tensors:
        yield name, old[name] if ".layers.1." in name else tensor


def stale_head(tensors: Tensors, old: dict[str, torch.Tensor]) -> Tensors:
    for name, tensor in tensors:
        yield name, old[name] if name == "lm_head.weight" else tensor


def swapped_layers(tensors: Tensors, old: dict[str, torch.Tensor]) -> Tensors:
    found = dict(tensors)
    for name in found:
        other = name.replace(".layers.0.", ".layers.x.").replace(".layers.1.", ".layers.0.")
        yield name, found[other.replace(".layers.x.", ".layers.1.")]


def permuted_rows(tensors: Tensors, old: dict[str, torch.Tensor]) -> Tensors:
    for name, tensor in tensors:
        yield name, tensor.roll(1, 0) if name.endswith("0.mlp.up_proj.weight") else tensor


def all_old(tensors: Tensors, old: dict[str, torch.Tensor]) -> Tensors:
    return iter(old.items())


@pytest.mark.parametrize("travel", [by_file, by_broadcast, by_ipc])
@pytest.mark.parametrize(
    "plant", [stale_layer, stale_head, swapped_layers, permuted_rows, all_old, None]
)
def test_what_is_sent_is_compared_with_the_policy_itself(
    plant: Callable[..., Tensors] | None,
    travel: Callable[..., Any],
    load_policy,
    move,
    monkeypatch,
    tmp_path: Path,
) -> None:
    model, update = load_policy()
    old = {name: tensor.detach().clone() for name, tensor in with_head(update(0))}
    move(model, by=1e-6)  # one step at a rate of 1e-6
    if plant is not None:
        monkeypatch.setattr(weights, "with_head", lambda u: plant(with_head(u), old))
    found = travel(update(1), tmp_path / "run.v1")
    if plant is None:
        assert found == {"held": "run.v1"}
    else:
        assert found["applied"] is False
        assert "hold other numbers than the policy's" in found["error"]


def test_a_bucket_that_comes_twice_is_refused(load_policy, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(packing, "BUCKET_BYTES", 70_000)
    way = broadcast.ByBroadcast(None, backend="gloo", host=None)
    way.write(tmp_path, load_policy()[1](1))
    assert way._packed is not None
    buckets = [bucket.bytes.clone() for bucket in way._packed.buckets]
    sizes = [bucket.numel() for bucket in buckets]
    twice = next(n for n, size in enumerate(sizes) if sizes.index(size) < n)
    buckets[twice] = buckets[sizes.index(sizes[twice])]
    worker = Worker()
    worker.grpo_expect(way._packed.manifest)
    worker._grpo_buckets = buckets
    assert "hold other numbers" in worker.grpo_apply("run.v1")["error"]


def test_merged_and_rounded_weights_arrive(load_policy, move, tmp_path: Path) -> None:
    model, update = load_policy(lora_rank=4)
    move(model)
    sent = Sent()
    for name, tensor in sent_tensors(update(0), "bfloat16", sent):
        assert sent.digests[name] == digest(tensor)
    assert by_file(update(2), tmp_path / "run.v2") == {"held": "run.v2"}


# -- adapters ------------------------------------------------------------------------------------


def adapted(update_of: WeightUpdate, **changes: Any) -> WeightUpdate:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], **changes})
    model: Any = get_peft_model(update_of.model, config)
    return WeightUpdate(
        policy_version=1,
        model=model,
        tokenizer=update_of.tokenizer,
        named_tensors=lambda: named_tensors(model),
    )


@pytest.fixture
def folder(load_policy, move, tmp_path: Path) -> Path:
    model, update = load_policy(lora_rank=4)
    move(model)
    write_adapter(tmp_path / "run.v1", update(1))
    return tmp_path / "run.v1"


def rewrite(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = folder / "adapter_model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)

    return damage


def first(tensors: dict[str, torch.Tensor]) -> str:
    return next(name for name in sorted(tensors) if "lora_B" in name)


def swap(tensors: dict[str, torch.Tensor]) -> None:
    a, b = [n for n in sorted(tensors) if n.endswith("q_proj.lora_B.weight")][:2]
    tensors[a], tensors[b] = tensors[b], tensors[a]


def other_mark(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | {"mark": "run.v0"}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (rewrite(lambda t: t.pop(first(t))), "1 of the adapter's 56 tensors are missing"),
        (rewrite(lambda t: t[first(t)].neg_()), "1 of the adapter's 56 tensors hold other"),
        (rewrite(swap), "2 of the adapter's 56 tensors hold other"),
        (rewrite(lambda t: t.update({first(t): t[first(t)].half()})), "dtypes"),
        (rewrite(lambda t: t.update(x=torch.zeros(1))), "too many"),
        (other_mark, "holds the adapter run.v0, not run.v1"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "No such file"),
        (lambda f: (f / MANIFEST).unlink(), "No such file"),
    ],
)
def test_a_damaged_adapter_is_refused(folder: Path, damage: Any, said: str) -> None:
    worker = Worker()
    worker.model_runner = None
    assert worker.grpo_adapter(str(folder), "run.v1", loaded=False) == {"fits": True}
    damage(folder)
    assert said in worker.grpo_adapter(str(folder), "run.v1", loaded=False)["error"]


def test_a_manifest_is_of_the_policy_and_not_of_the_file(load_policy, move, tmp_path) -> None:
    """What PEFT wrote is compared with what is trained."""
    model, update = load_policy(lora_rank=4)
    move(model)
    save, old = model.save_pretrained, {n: p.detach().clone() for n, p in model.named_parameters()}
    move(model, by=1e-6)

    def stale(*arguments: Any, **options: Any) -> None:
        now = {n: p.detach().clone() for n, p in model.named_parameters()}
        model.load_state_dict(old, strict=False)
        save(*arguments, **options)
        model.load_state_dict(now, strict=False)

    model.save_pretrained = stale
    write_adapter(tmp_path / "run.v1", update(1))
    with pytest.raises(ValueError, match="56 of the adapter's 56 tensors hold other numbers"):
        read_adapter(tmp_path / "run.v1", "run.v1")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"use_rslora": True, "lora_alpha": 64}, None),
        ({"rank_pattern": {"q_proj": 9}, "alpha_pattern": {"v_proj": 3}}, None),
        ({"layers_to_transform": [0]}, None),
        ({"use_dora": True}, "use_dora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "lora_only"}, "biases"),
        ({"modules_to_save": ["norm"]}, "modules_to_save"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"init_lora_weights": "pissa"}, "changes the base"),
        ({"target_modules": ["embed_tokens"]}, "tied to each other"),
        ({"target_modules": ["lm_head"]}, "tied to each other"),
    ],
)
def test_what_is_more_than_loras_matrices(changes: Any, said: str | None, load_policy) -> None:
    found = obstacle(adapted(load_policy()[1](0), **changes).model)
    assert (found is None) if said is None else said in str(found)


def test_the_largest_rank_is_that_of_any_module(load_policy) -> None:
    assert adapter_rank(adapted(load_policy()[1](0), rank_pattern={"q_proj": 9})) == 9


def test_what_has_come_since_is_seen(load_policy, tmp_path: Path) -> None:
    model, update = load_policy(lora_rank=4)
    write_adapter(tmp_path / "run.v1", update(1))
    model.get_parameter("base_model.model.model.norm.weight").requires_grad_(True)
    with pytest.raises(SyncError, match=r"model\.norm\.weight is trained, too"):
        write_adapter(tmp_path / "run.v2", update(2))
    model.get_parameter("base_model.model.model.norm.weight").requires_grad_(False)
    with model.disable_adapter(), pytest.raises(SyncError, match="switched off"):
        write_adapter(tmp_path / "run.v2", update(2))


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_a_tied_head_with_an_adapter_is_refused_merged_too(load_policy, target: str) -> None:
    update = adapted(load_policy()[1](0), target_modules=[target])
    with pytest.raises(ConfigError, match="cannot hold this policy: an adapter is on its"):
        dict(with_head(update))


# -- answers -------------------------------------------------------------------------------------


def answered(
    *completions: list[int], finish: str = "stop", stops: bool = False, logprob: float = -0.5
) -> Any:
    draw = Draw(token_ids=(1, 2), count=len(completions), seed=0, max_tokens=40)
    choices = [
        {
            "index": number,
            "token_ids": ids,
            "logprobs": {"token_logprobs": [logprob] * len(ids)},
            "finish_reason": finish,
        }
        for number, ids in enumerate(completions)
    ]
    expected = Expected(
        vocabulary=99, eos_token_ids=(2,), may_be_cut=False, ends_by_token=not stops
    )
    return pieces({"choices": choices}, draw, expected, server="it")


def test_an_answer_that_ends_by_other_rules_is_refused() -> None:
    assert len(answered([5, 6, 2])) == 1
    with pytest.raises(BadAnswerError, match=r"stopped at token 6, which is none of the policy's"):
        answered([5, 6])
    assert len(answered([5, 6], stops=True)) == 1
    with pytest.raises(BadAnswerError, match="ends with its end token 2 and says that it was cut"):
        answered([*range(5, 44), 2], finish="length")


def test_a_completion_that_no_chance_draws_twice_is_refused() -> None:
    long = [*range(5, 24), 2]
    assert len(answered([5, 2], [5, 2], [5, 2])) == 3, "short ones come again"
    assert len(answered(long, long, logprob=-0.01)) == 2, "and so do sure ones"
    with pytest.raises(BadAnswerError, match=r"completions 0 and 2 .* e\^80 times: it ignores"):
        answered(long, [6, 2], long, logprob=-4.0)


def test_a_stop_string_that_is_not_there_is_refused(load_policy, make_request) -> None:
    """A server with another tokenizer looks for it in another text."""
    tokenizer = load_policy()[1](0).tokenizer
    ids = tuple(tokenizer.encode("1 +2 =3", add_special_tokens=False))
    request = make_request(
        prompt_ids_P=((10, 20),), group_size=1, sampling={"max_tokens": 40, "stop": ("=3",)}
    )
    group = GroupDraft.of_group(request, 0, decoder(tokenizer))
    other = Piece(token_ids=ids[:-1], logprobs=(-0.5,) * (len(ids) - 1), finish="stop")
    with pytest.raises(BadAnswerError, match=r"has none of the stop strings .* another tokenizer"):
        group.take([0], [other], 0)
    (again,) = group.due()
    assert again.draw.token_ids == (10, 20), "it is sampled anew"
    group.take([0], [Piece(token_ids=ids, logprobs=(-0.5,) * len(ids), finish="stop")], 0)
    assert group.finished()[0][0].token_ids == ids
