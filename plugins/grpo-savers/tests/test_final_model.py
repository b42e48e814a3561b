"""What is saved loads elsewhere, in a process that knows nothing of this package."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo_core.errors import ConfigError
from grpo_core.policy import Policy
from grpo_core.types import SaveRequest
from grpo_savers.config import SafetensorsConfig
from grpo_savers.final_model import SafetensorsSaver

MakePolicy = Callable[..., Policy]
MakeRequest = Callable[..., SaveRequest]
IDS = [[5, 9, 31, 7, 2, 60]]


def logits(policy: Policy) -> torch.Tensor:
    with torch.no_grad():
        return policy.model(input_ids=torch.tensor(IDS)).logits


def elsewhere(code: str, cwd: Path) -> str:
    """Run in another process and folder, where grpo packages cannot be imported."""
    guard = "import sys; sys.modules |= dict.fromkeys(('grpo_core', 'grpo_savers'))\n"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", guard + textwrap.dedent(code)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_files_are_as_readable_as_the_umask_allows(
    make_policy: MakePolicy, make_request: MakeRequest, tmp_path: Path
) -> None:
    folder = SafetensorsSaver().save(make_request(make_policy()))
    assert folder is not None
    plain = tmp_path / "plain"
    plain.touch()
    assert {p.stat().st_mode for p in folder.iterdir()} == {plain.stat().st_mode}


@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_it_loads_and_answers_in_a_process_without_this_package(
    kind: str, make_policy: MakePolicy, make_request: MakeRequest, tmp_path: Path
) -> None:
    """The loading code is that of the model card."""
    policy = make_policy(lora=kind == "adapter")
    final = SafetensorsSaver().save(make_request(policy))
    assert final == tmp_path / "run" / "final"
    (block,) = re.findall(r"```python\n(.*?)```", (final / "README.md").read_text(), re.DOTALL)
    block = block.replace("max_new_tokens=256", "max_new_tokens=4")
    save = f"import torch\ntorch.save(model(torch.tensor({IDS})).logits, '../found.pt')"
    elsewhere(f"{block}\n{save}", final)
    found = torch.load(tmp_path / "run" / "found.pt")
    torch.testing.assert_close(found, logits(policy), rtol=1e-5, atol=1e-5)


def test_the_adapter_loads_on_the_base_model(
    make_policy: MakePolicy, make_request: MakeRequest, base: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    policy = make_policy(lora=True)
    final = SafetensorsSaver().save(make_request(policy))
    assert final is not None
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, final)
    torch.testing.assert_close(model(torch.tensor(IDS)).logits, logits(policy))
    assert not list(final.glob("model*"))
    assert all("lora_" in name for name in load_file(final / "adapter_model.safetensors"))


def test_the_adapter_finds_its_base_from_anywhere(
    make_policy: MakePolicy,
    make_request: MakeRequest,
    base: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(base.parent)
    policy = make_policy(lora=True, path=Path(base.name), revision="main")
    final = SafetensorsSaver().save(make_request(policy))
    assert final is not None
    config = json.loads((final / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    assert config["revision"] == "main"


def test_configs_are_fit_for_use(make_policy: MakePolicy, make_request: MakeRequest) -> None:
    policy = make_policy()
    policy.model.config.use_cache = False  # type: ignore[union-attr]
    generation = policy.model.generation_config
    final = SafetensorsSaver().save(make_request(policy))
    assert final is not None
    loaded = AutoModelForCausalLM.from_pretrained(final)
    assert loaded.config.use_cache is True
    assert tuple(loaded.generation_config.eos_token_id) == policy.eos_token_ids == (0, 2)
    tokenizer = AutoTokenizer.from_pretrained(final)
    assert tokenizer.chat_template == policy.tokenizer.chat_template
    assert tokenizer.encode("1+1 <think>") == policy.tokenizer.encode("1+1 <think>")
    # Saving must not touch the model that may go on training.
    assert policy.model.config.use_cache is False  # type: ignore[union-attr]
    assert policy.model.generation_config is generation


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_dtype_of_the_saved_weights(
    dtype: str, lora: bool, make_policy: MakePolicy, make_request: MakeRequest
) -> None:
    policy = make_policy(lora=lora)
    saver = SafetensorsSaver(SafetensorsConfig(dtype=dtype))  # type: ignore[arg-type]
    final = saver.save(make_request(policy))
    assert final is not None
    expected = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    (file,) = final.glob("*.safetensors")
    saved = load_file(file)
    assert {t.dtype for t in saved.values()} == {expected}
    trained = {n: p for n, p in policy.model.named_parameters() if p.requires_grad}
    assert len(saved) == len(trained)
    assert {p.dtype for p in trained.values()} == {torch.float32}
    if not lora:
        loaded = AutoModelForCausalLM.from_pretrained(final)
        assert loaded.dtype == expected
        for name, parameter in loaded.named_parameters():
            assert torch.equal(parameter, trained[name].to(expected))


def test_large_models_are_sharded(make_policy: MakePolicy, make_request: MakeRequest) -> None:
    policy = make_policy()
    saver = SafetensorsSaver(SafetensorsConfig(max_shard_size="40KB"))
    final = saver.save(make_request(policy))
    assert final is not None
    assert len(list(final.glob("model-*.safetensors"))) > 1
    loaded = AutoModelForCausalLM.from_pretrained(final)
    with torch.no_grad():
        torch.testing.assert_close(loaded(torch.tensor(IDS)).logits, logits(policy))


def test_a_checkpoint_with_an_odd_generation_config_is_still_saved(
    make_policy: MakePolicy, make_request: MakeRequest
) -> None:
    """transformers refuses to write a temperature without do_sample."""
    policy = make_policy()
    generation: Any = policy.model.generation_config
    generation.do_sample, generation.temperature = False, 0.6
    final = SafetensorsSaver().save(make_request(policy))
    assert final is not None
    assert json.loads((final / "generation_config.json").read_text())["temperature"] == 0.6


def test_a_write_error_leaves_nothing_and_what_was_there(
    make_policy: MakePolicy, make_request: MakeRequest, tmp_path: Path
) -> None:
    policy = make_policy()
    saver = SafetensorsSaver()
    policy.tokenizer.chat_template = "{{ '\ud800' }}"  # cannot be written as UTF-8
    with pytest.raises(UnicodeEncodeError):
        saver.save(make_request(policy))
    assert list((tmp_path / "run").iterdir()) == []

    policy.tokenizer.chat_template = "first"
    final = saver.save(make_request(policy))
    assert final is not None
    policy.tokenizer.chat_template = "{{ '\ud800' }}"
    with pytest.raises(UnicodeEncodeError):
        saver.save(make_request(policy))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["final"]
    assert (final / "chat_template.jinja").read_text() == "first"


def test_saving_again_replaces(
    make_policy: MakePolicy, make_request: MakeRequest, tmp_path: Path
) -> None:
    policy = make_policy()
    SafetensorsSaver().save(make_request(policy))
    train_again = next(policy.model.parameters())
    with torch.no_grad():
        train_again.zero_()
    final = SafetensorsSaver().save(make_request(policy))
    assert final is not None
    assert (load_file(final / "model.safetensors")["model.embed_tokens.weight"] == 0).all()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["final"]


def test_at_checkpoints_the_card_is_written_and_the_model_if_asked(
    make_policy: MakePolicy, make_request: MakeRequest, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    policy = make_policy()
    (run / "checkpoints" / "step-000003").mkdir(parents=True)
    assert SafetensorsSaver().save(make_request(policy, kind="checkpoint")) is None
    assert sorted(p.name for p in run.iterdir()) == ["README.md", "checkpoints", "curves.svg"]
    saver = SafetensorsSaver(SafetensorsConfig(at_checkpoints=True))
    path = saver.save(make_request(policy, kind="checkpoint"))
    assert path == run / "models" / "step-000003"
    torch.testing.assert_close(
        AutoModelForCausalLM.from_pretrained(path)(torch.tensor(IDS)).logits, logits(policy)
    )
    # The checkpoint of step 3 is no longer kept, so neither is its model.
    (run / "checkpoints" / "step-000003").rename(run / "checkpoints" / "step-000004")
    saver.save(make_request(policy, kind="checkpoint", step=4))
    assert [p.name for p in (run / "models").iterdir()] == ["step-000004"]


@pytest.mark.parametrize("adapter", ["merged", "both"])
def test_the_merged_model_is_the_policy(
    adapter: str, make_policy: MakePolicy, make_request: MakeRequest, tmp_path: Path
) -> None:
    policy = make_policy(lora=True)
    expected = logits(policy)
    saver = SafetensorsSaver(SafetensorsConfig(adapter=adapter))  # type: ignore[arg-type]
    final = saver.save(make_request(policy))
    assert final is not None
    folder = final if adapter == "merged" else final / "merged"
    assert (final / "adapter_config.json").exists() == (adapter == "both")
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(loaded(torch.tensor(IDS)).logits, expected, rtol=1e-4, atol=1e-4)
    assert AutoTokenizer.from_pretrained(folder).chat_template == policy.tokenizer.chat_template
    assert tuple(loaded.generation_config.eos_token_id) == policy.eos_token_ids
    # In float32 the sum is rounded, but next to nothing of the adapter is lost.
    merge = json.loads((folder / "merge.json").read_text())
    assert merge["dtype"] == "float32"
    assert 0 < merge["lost"] < 1e-5
    assert torch.equal(logits(policy), expected)


def test_a_merge_in_16_bits_says_what_it_cost(
    make_policy: MakePolicy, make_request: MakeRequest
) -> None:
    policy = make_policy(lora=True)
    config = SafetensorsConfig(adapter="merged", dtype="bfloat16")
    final = SafetensorsSaver(config).save(make_request(policy))
    assert final is not None
    assert {t.dtype for t in load_file(final / "model.safetensors").values()} == {torch.bfloat16}
    assert 1e-3 < json.loads((final / "merge.json").read_text())["lost"] < 1


class WithCritic(torch.nn.Module):
    """A policy with a value model beside it, as PPO has it."""

    def __init__(self, policy: Any, value: Any) -> None:
        super().__init__()
        self.policy, self.value_model = policy, value
        self.head = torch.nn.Linear(32, 1)


class SaysItself(WithCritic):
    def export_modules(self) -> dict[str, Any]:
        return {".": self.policy}


@pytest.mark.parametrize("kind", [WithCritic, SaysItself])
def test_a_policy_leaves_without_its_critic(
    kind: Any, make_policy: MakePolicy, make_request: MakeRequest, base: Path
) -> None:
    policy = make_policy()
    expected = logits(policy)
    policy.model = kind(policy.model, AutoModelForCausalLM.from_pretrained(base))
    named = {".": "policy", "critic": "value_model"} if kind is WithCritic else {}
    final = SafetensorsSaver(SafetensorsConfig(submodules=named)).save(make_request(policy))
    assert final is not None
    loaded = AutoModelForCausalLM.from_pretrained(final)
    torch.testing.assert_close(loaded(torch.tensor(IDS)).logits, expected)
    assert not any("value" in n or "head" in n for n in load_file(final / "model.safetensors"))
    assert (final / "critic" / "model.safetensors").exists() == (kind is WithCritic)


def test_a_value_head_inside_the_model_is_left_out(
    make_policy: MakePolicy, make_request: MakeRequest
) -> None:
    policy = make_policy()
    policy.model.value_head = torch.nn.Linear(32, 1)  # type: ignore[assignment]
    saver = SafetensorsSaver(SafetensorsConfig(leave_out=("value_head",)))
    final = saver.save(make_request(policy))
    assert final is not None
    assert not any("value" in name for name in load_file(final / "model.safetensors"))


def test_parts_that_cannot_be_written_are_named(
    make_policy: MakePolicy, make_request: MakeRequest, tmp_path: Path
) -> None:
    policy = make_policy()
    policy.model = WithCritic(policy.model, torch.nn.Linear(2, 2))
    with pytest.raises(ConfigError, match=r"WithCritic.*inside are policy"):
        SafetensorsSaver().save(make_request(policy))
    with pytest.raises(ConfigError, match=r"'policies'.*no such part.*policy"):
        SafetensorsSaver(SafetensorsConfig(submodules={".": "policies"})).save(make_request(policy))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="no plain folder name"):
        SafetensorsConfig(submodules={"../x": "policy"})


@pytest.mark.parametrize("lora", [False, True])
def test_a_failed_write_leaves_the_policy_as_it_was(
    lora: bool, make_policy: MakePolicy, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy(lora=lora)
    model: Any = policy.model
    config, generation = model.config.to_dict(), model.generation_config

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    for module in ("transformers.modeling_utils", "peft.peft_model"):
        monkeypatch.setattr(f"{module}.safe_save_file", full)
    expected = logits(policy)
    with pytest.raises(OSError, match="No space"):
        SafetensorsSaver().save(make_request(policy))
    assert model.generation_config is generation
    assert model.config.to_dict() == config
    assert torch.equal(logits(policy), expected)
