"""A small QLoRA run: it trains, is saved, and loads elsewhere with plain transformers and PEFT."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from grpo_core import load_run, train
from grpo_core.demo import checkpoint

pytest.importorskip("bitsandbytes")
IDS = [[5, 9, 31, 7, 2, 60]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of two steps with gradient checkpointing, and its policy."""
    output = tmp_path_factory.mktemp("qlora") / "run"
    run = load_run(
        {
            "model": {
                "path": str(checkpoint("habit")),
                "lora": {"r": 2},
                "quantization": {},
                "gradient_checkpointing": True,
                "threads": 1,
            },
            "task": "arithmetic",
            "rewards": ["exact-answer"],
            "loss": {"name": "dapo", "kl_coef": 0.01},
            "reference": "adapter-off",
            "train": {"steps": 2, "prompts_per_step": 2, "group_size": 4},
            "optimizer": {"learning_rate": 1e-3},
            "sampling": {"max_tokens": 8},
            "evaluation": None,
            "observers": ["jsonl"],
            "savers": [{"name": "safetensors", "adapter": "both", "dtype": "bfloat16"}],
            "output": str(output),
        }
    )
    start = {n: p.detach().clone() for n, p in run.policy.model.named_parameters()}
    train(run)
    return run, start


def test_only_the_adapters_learn(finished: Any) -> None:
    run, start = finished
    moved = {n for n, p in run.policy.model.named_parameters() if not torch.equal(p, start[n])}
    assert moved == {n for n, p in run.policy.model.named_parameters() if p.requires_grad}
    lines = (run.output / "metrics.jsonl").read_text().splitlines()
    mismatches = [json.loads(line).get("ratio/sampler_mismatch_kl") for line in lines]
    found = [m for m in mismatches if m is not None]
    assert all(m < 1e-6 for m in found)


def test_the_card_loads_it_elsewhere_on_the_same_4_bits(finished: Any) -> None:
    run, _ = finished
    final = run.output / "final"
    card = (final / "README.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    load, _, _ = block.partition("inputs =")
    # bitsandbytes' own kernel for CPUs with AVX512-BF16 computes in bfloat16 whatever was asked
    # for; with gradients it does not use it.
    code = f"import torch\n{load}\nlogits = model(torch.tensor({IDS})).logits.detach()\n"
    code += "torch.save(logits, '../found.pt')"
    guard = "import sys; sys.modules |= dict.fromkeys(('grpo_core', 'grpo_savers'))\n"
    done = subprocess.run(
        [sys.executable, "-c", guard + code], cwd=final, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = run.policy.model(torch.tensor(IDS)).logits
    found = torch.load(run.output / "found.pt")
    # The adapter was saved in bfloat16.
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.2)
    assert "qlora" in card
    assert "arxiv:2305.14314" in card


def test_the_merged_model_is_a_plain_one_and_tells_its_rounding(finished: Any) -> None:
    from transformers import AutoModelForCausalLM

    run, _ = finished
    folder = run.output / "final" / "merged"
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    merge = json.loads((folder / "merge.json").read_text())
    assert merge["dtype"] == "bfloat16"
    assert merge["lost"] > 0
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = run.policy.model(torch.tensor(IDS)).logits
        found = loaded(torch.tensor(IDS)).logits
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.2)


def test_it_resumes(finished: Any, tmp_path: Path) -> None:
    """The 4-bit weights of a new process are those of the old one."""
    from grpo_core.policy import Policy

    run, start = finished
    again = Policy(run.policy.settings, seed=0)
    for name, parameter in again.model.named_parameters():
        assert torch.equal(parameter, start[name]), name
