"""The chat templates of real models, as TRL ships them, with the environments of turns."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from grpo_core.demo import checkpoint
from grpo_core.errors import ConfigError
from grpo_core.policy.text import PromptEncoder
from grpo_tools.chat import Chat
from grpo_tools.functions import make_tool

FOUND = importlib.util.find_spec("trl")
FOLDER = Path(((FOUND and FOUND.submodule_search_locations) or [""])[0]) / "chat_templates"

WITH_TOOLS = {
    "qwen2_5": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "qwen3_instruct_2507": "<|im_end|>",
    "llama3_1": "<|eot_id|>",
    "gptoss": "<|call|>",
    "glm4moe": "<|observation|>",
}
"""Template to the token with which its model ends a call."""


def search(query: str) -> str:
    """Search the web.

    Args:
        query: What for.
    """
    return query


def chat(name: str, end: str) -> Chat:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint("habit"))
    if end not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [end]})
    ids = [tokenizer.convert_tokens_to_ids(end)]
    return Chat(PromptEncoder(tokenizer, {}), ids, str(FOLDER / f"{name}.jinja"))


@pytest.mark.oracle
@pytest.mark.parametrize(("name", "end"), WITH_TOOLS.items())
def test_models_with_tools(name: str, end: str) -> None:
    made, schemas = chat(name, end), [make_tool(search).schema]
    made.probe(schemas, answers=False)
    said = made.text(made.after_calls(["search"], ["found it"], schemas, 0))
    assert said.startswith(end)
    assert said.count("found it") == 1


@pytest.mark.oracle
@pytest.mark.parametrize(("name", "end"), [("phi3", "<|end|>"), ("gemma3", "<end_of_turn>")])
def test_models_without(name: str, end: str) -> None:
    chat(name, end).probe([], answers=True)
    with pytest.raises(ConfigError, match=r"cannot be used with tools.*Set environment.chat_temp"):
        chat(name, end).probe([make_tool(search).schema], answers=False)
