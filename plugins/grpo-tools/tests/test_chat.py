"""Chat templates that do, and that do not, and what is said of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from grpo_core.errors import ConfigError
from grpo_core.policy.text import PromptEncoder
from grpo_tools.chat import Chat
from grpo_tools.config import ToolsConfig
from grpo_tools.functions import make_tool
from grpo_tools.parsing import make_parser

GOOD = (Path(__file__).parent / "short.jinja").read_text()


@pytest.fixture
def chat(policy: Any, tmp_path: Path) -> Any:
    def make(template: str | None) -> Chat:
        if template is not None and "{" in template:
            path = tmp_path / "template.jinja"
            path.write_text(template)
            template = str(path)
        return Chat(PromptEncoder(policy.tokenizer, {}), policy.eos_token_ids, template)

    return make


@pytest.fixture
def schemas(kit: Any) -> Any:
    return [make_tool(tool).schema for tool in kit.tools]


def test_good_ones(chat: Any, schemas: Any) -> None:
    for template in (GOOD, "chatml"):
        chat(template).probe(schemas, answers=True)
    # Without tools the bundled one is enough.
    chat(None).probe([], answers=True)


BAD = [
    (None, "does not present the tools"),
    (
        GOOD.replace("for call in message.tool_calls or []", "for call in []"),
        "leaves out the tool calls",
    ),
    (
        GOOD.replace(
            "for message in messages", "for message in messages if message.role != 'tool'"
        ),
        "leaves out what tools return",
    ),
    (
        GOOD.replace("<|im_end|>", "<end>"),
        r"none of the end-of-sequence tokens .*'<\|im_end\|>'",
    ),
    ("{{ messages | length }}" + GOOD, "not prefix-preserving"),
    (
        "{{ raise_exception('no tools here') }}",
        r"fails on them \(TemplateError: no tools here\)",
    ),
]


@pytest.mark.parametrize(("template", "problem"), BAD)
def test_bad_ones(chat: Any, schemas: Any, template: str | None, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem + r".* Set environment.chat_template to"):
        chat(template).probe(schemas, answers=False)


def test_a_file_that_is_not_there(chat: Any) -> None:
    with pytest.raises(ConfigError, match="neither 'chatml' nor a file"):
        chat("nowhere.jinja")


def test_chatml_is_qwens_form(chat: Any, schemas: Any, policy: Any) -> None:
    """What follows two calls: one user message with both results, then the next header."""
    end = policy.tokenizer.eos_token_id
    ids = chat("chatml").after_calls(["add", "shout"], ["3", "A"], schemas, end)
    assert policy.tokenizer.decode(ids) == (
        "\n<|im_start|>user\n<tool_response>\n3\n</tool_response>\n<tool_response>\nA\n"
        "</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )
    # A turn that a stop string ended is closed first.
    assert chat("chatml").after_calls(["add", "shout"], ["3", "A"], schemas, 5) == (end, *ids)


def test_calls_as_the_pattern_and_the_tokenizer_see_them(policy: Any) -> None:
    pattern = make_parser(ToolsConfig(), policy.tokenizer)
    said = pattern(
        'a<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call><|im_end|>', ""
    )
    assert said.content == "a"
    assert [(c.name, dict(c.arguments)) for c in said.calls] == [("f", {"x": 1})]
    with pytest.raises(ConfigError, match="'response-template', but the tokenizer has none"):
        make_parser(ToolsConfig(parser="response-template"), policy.tokenizer)


def test_a_response_template(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokenizer's own description of its format, read by transformers."""
    if not hasattr(policy.tokenizer, "get_response_parser"):
        pytest.skip("this transformers reads response schemas of another form")
    function = {"name": "{content.name}", "arguments": "{content.arguments}"}
    call = {"type": "function", "function": function}
    template = {
        "start_anchor": "assistant\n",
        "defaults": {"role": "assistant"},
        "fields": {
            "content": {"close": "<|im_end|>"},
            "tool_calls": {
                "open": "[CALL]",
                "close": "[/CALL]",
                "content": "json",
                "repeats": True,
                "transform": call,
            },
        },
    }
    monkeypatch.setattr(policy.tokenizer, "response_template", template, raising=False)
    prefix = "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"
    parser = make_parser(ToolsConfig(), policy.tokenizer)
    said = parser('so [CALL]{"name": "f", "arguments": {"x": 1}}[/CALL]<|im_end|>', lambda: prefix)
    assert [(c.name, dict(c.arguments), c.problem) for c in said.calls] == [("f", {"x": 1}, None)]
    assert said.content.strip() == "so"
    (broken,) = parser("so [CALL]{[/CALL]<|im_end|>", lambda: prefix).calls
    assert broken.problem is not None
    # Asked for, the pattern comes first.
    assert not make_parser(ToolsConfig(parser="pattern"), policy.tokenizer)(
        "[CALL]", lambda: prefix
    ).calls
