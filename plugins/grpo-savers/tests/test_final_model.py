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


def test_checkpoints_are_another_savers_business(
    make_policy: MakePolicy, make_request: MakeRequest, tmp_path: Path
) -> None:
    assert SafetensorsSaver().save(make_request(make_policy(), kind="checkpoint")) is None
    assert not (tmp_path / "run").exists()
