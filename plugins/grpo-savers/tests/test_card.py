"""The model card: metadata that the Hub takes, and no text that escapes its cell."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from huggingface_hub import ModelCard

import grpo_losses.losses  # noqa: F401  (its documentation names the paper)
from grpo_core.policy import Policy
from grpo_core.types import EvalResult, SaveRequest
from grpo_savers.card import model_card
from grpo_savers.card_text import code, without_secrets

MakePolicy = Callable[..., Policy]
MakeRequest = Callable[..., SaveRequest]


@pytest.mark.parametrize("lora", [False, True])
def test_metadata(lora: bool, make_policy: MakePolicy, make_request: MakeRequest) -> None:
    policy = make_policy(lora=lora)
    card = ModelCard(str(model_card(make_request(policy))))
    assert card.data.datasets == ["openai/gsm8k"]
    assert card.data.library_name == ("peft" if lora else "transformers")
    assert card.data.pipeline_tag == "text-generation"
    assert "grpo" in card.data.tags
    # A folder is no model on the Hub.
    assert card.data.base_model is None


def test_a_base_model_on_the_hub_is_linked(
    make_policy: MakePolicy, make_request: MakeRequest
) -> None:
    policy = make_policy()
    policy.settings = policy.settings.model_copy(update={"path": "Qwen/Qwen3-0.6B"})
    card = model_card(make_request(policy))
    assert card.data.base_model == "Qwen/Qwen3-0.6B"
    assert "# `Qwen/Qwen3-0.6B`, trained with GRPO" in card.text


def test_it_says_how_the_model_was_trained(
    make_policy: MakePolicy, make_request: MakeRequest
) -> None:
    policy = make_policy()
    text = model_card(make_request(policy)).text
    assert "by 3 steps" in text
    assert "https://arxiv.org/abs/2402.03300" in text
    assert "`dapo` ([arXiv 2503.14476](https://arxiv.org/abs/2503.14476))" in text
    assert "`grpo-losses 0.1.0`" in text
    assert "`mine` | `my_rewards:mine` | `weight` `0.2`, " in text
    assert "| `train.group_size` | `8` |" in text
    assert "| `reward/mean` | 0.25 | 0.75 |" in text
    assert "time/step" not in text
    assert policy.settings.path not in text


def test_the_evaluation_is_in_the_model_index(
    make_policy: MakePolicy, make_request: MakeRequest
) -> None:
    about = {"sampling": "sampled", "prompts": 64, "samples": 8}
    found = (
        EvalResult(
            dataset="", reward="mine", measure="mean@8", value=0.5, low=0.4, high=0.6, **about
        ),
        EvalResult(
            dataset="a: b\n- <c>",
            reward="mine",
            measure="pass@8",
            value=2.0,
            low=None,
            high=None,
            **about,
        ),
    )
    written = str(model_card(make_request(make_policy(), results=found)))
    results = ModelCard(written).data.eval_results
    assert results is not None
    assert [(r.metric_type, r.metric_value) for r in results] == [("mean@8", 0.5), ("pass@8", 2.0)]
    # Text from data comes back as it was, and adds no key of its own.
    assert [r.dataset_name for r in results] == ["openai/gsm8k", "a: b\n- <c>"]
    assert "| `sampled` | `mine` | `mean@8` | 0.5 | 0.4 to 0.6 | 64 |" in written
    assert "| `a: b - <c>:sampled` | `mine` | `pass@8` | 2 |  | 64 |" in written


def test_text_from_data_stays_in_its_cell(
    make_policy: MakePolicy, make_request: MakeRequest
) -> None:
    text = model_card(make_request(make_policy())).text
    (row,) = [line for line in text.splitlines() if "my_rewards:mine" in line]
    assert row.replace("\\|", "").count("|") == 5
    assert "`` a\\|b `c` <script> ## x ``" in row
    assert "sk-very-secret-key" not in text


def test_it_survives_a_run_that_records_nothing(
    make_policy: MakePolicy, make_request: MakeRequest
) -> None:
    request = make_request(make_policy(), config={}, manifest=(), metrics={}, history=())
    text = model_card(request).text
    assert "no components" in text
    assert "## Metrics" not in text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("plain", "`plain`"),
        ("`", "`` ` ``"),
        ("a``b", "``` a``b ```"),
        ("two\nlines|cells", "`two lines\\|cells`"),
        ("\ud800", "`\\ud800`"),
        ("a\u202eb", "`a b`"),
        ("", ""),
        (0.5, "`0.5`"),
        (None, "`null`"),
        (["</s>"], '`["</s>"]`'),
    ],
)
def test_code(value: object, expected: str) -> None:
    assert code(value) == expected


def test_secrets_are_hidden() -> None:
    found = without_secrets(
        {
            "token": "x",
            "hf_token": None,
            "max_tokens": 5,
            "init_kwargs": {"API_KEY": "x", "note": "hf_abcdefgh12"},
            "url": "https://user:pass@host/x",
            "stop": ["</s>"],
            "folder": __file__,
        }
    )
    assert found == {
        "token": "(hidden)",
        "hf_token": None,
        "max_tokens": 5,
        "init_kwargs": {"API_KEY": "(hidden)", "note": "(hidden)"},
        "url": "https://(hidden)host/x",
        "stop": ["</s>"],
        "folder": "test_card.py",
    }
