"""A reward model behind a real server: the same scores, and what goes wrong with servers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from grpo_core.errors import ConfigError, DataError
from grpo_core.protocols import RewardProvider
from grpo_core.types import Failed, Value
from grpo_reward_model import RewardModelServer, RewardModelServerConfig

CHAT = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"})
PAIRS = [("1+1=", "2"), ("What?", "<answer>2</answer>"), ("2+2=", "<think>4</think>"), ("1", "1")]
TEXTS = [prompt + text for prompt, text in PAIRS]
PROTOCOLS = ["vllm-classify", "vllm-pooling", "tei-predict"]


Score = Callable[..., list[Any]]


@pytest.fixture
def score(ask: Callable[..., Any]) -> Score:
    def score(server: Any, protocol: str, *pairs: Any, **options: Any) -> list[Any]:
        if protocol != "tei-predict":
            options = {"model": "reward", **options}
        config = RewardModelServerConfig(
            url=server.url, protocol=protocol, request_retries=0, **options
        )
        provider = RewardModelServer(config)
        assert isinstance(provider, RewardProvider)
        return list(asyncio.run(provider.score(ask(*pairs))))

    return score


def values(outcomes: list[Any]) -> list[float]:
    assert all(isinstance(o, Value) for o in outcomes), outcomes
    return [o.value for o in outcomes]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("with_tokenizer", [False, True])
def test_scores_are_the_models(
    protocol: str,
    with_tokenizer: bool,
    serve: Callable[[str], Any],
    folders: dict[str, Path],
    expected: Callable[..., list[float]],
    score: Score,
) -> None:
    server = serve("decoder")
    options = {"tokenizer": str(folders["decoder"])} if with_tokenizer else {}
    found = values(score(server, protocol, *PAIRS, texts_per_request=3, **options))
    assert found == pytest.approx(expected("decoder", TEXTS), abs=1e-5)
    assert len(server.seen) == 2


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_conversations_need_the_tokenizer(
    protocol: str,
    serve: Callable[[str], Any],
    folders: dict[str, Path],
    expected: Callable[..., list[float]],
    score: Score,
) -> None:
    server = serve("decoder")
    found = score(server, protocol, (CHAT, "2"), tokenizer=str(folders["decoder"]))
    rendered = "<|system|>Be brief.\n<|user|>1+1?\n<|assistant|>2\n"
    assert values(found) == pytest.approx(expected("decoder", [rendered]), abs=1e-5)
    with pytest.raises(DataError, match="tokenizer"):
        score(server, protocol, (CHAT, "2"))


@pytest.mark.parametrize(
    ("protocol", "output"), list(zip(PROTOCOLS, [1, 1, "LABEL_1"], strict=True))
)
def test_several_outputs_need_a_choice(
    protocol: str,
    output: Any,
    serve: Callable[[str], Any],
    expected: Callable[..., list[float]],
    score: Score,
) -> None:
    server = serve("two")
    found = score(server, protocol, *PAIRS)
    assert {(o.kind, "2 outputs" in o.reason) for o in found} == {("invalid", True)}
    wanted = expected("two", TEXTS, output=1)
    assert values(score(server, protocol, *PAIRS, output=output)) == pytest.approx(wanted, abs=1e-5)
    absent = 5 if isinstance(output, int) else "GOOD"
    assert isinstance(score(server, protocol, *PAIRS, output=absent)[0], Failed)


MISBEHAVIOUR = [
    ((500, {"error": "out of memory"}), "error", "status 500"),
    ((413, {"error": "too long"}), "error", "status 413"),
    ((302, b""), "error", "status 302"),
    ((200, b"<html>"), "error", "not JSON"),
    ((200, {"data": []}), "invalid", "indices"),
    ((200, {"data": [{"index": 0, "probs": [1.0]}] * 2}), "invalid", "indices"),
    ((200, {"data": [{"index": 0, "probs": ["good"]}, {"index": 1, "probs": [1]}]}), "invalid", ""),
    ((200, {"data": [{"index": 0, "probs": None}, {"index": 1, "probs": [1]}]}), "invalid", ""),
    ((200, []), "invalid", "not an answer"),
]


@pytest.mark.parametrize(("answer", "kind", "reason"), MISBEHAVIOUR)
def test_a_bad_answer_is_a_failure_and_never_a_score(
    answer: tuple[int, Any], kind: str, reason: str, serve: Callable[[str], Any], score: Score
) -> None:
    server = serve("decoder")
    server.answer = lambda path, body: answer
    found = score(server, "vllm-classify", *PAIRS[:2])
    assert [type(o) for o in found] == [Failed, Failed]
    assert {o.kind for o in found} == {kind}
    assert reason in found[0].reason


def test_only_the_request_that_failed_fails(serve: Callable[[str], Any], score: Score) -> None:
    server = serve("decoder")
    real = server.respond

    def some(path: str, body: Any) -> tuple[int, Any]:
        if "What?" in body["input"][0]:
            return 503, {}
        server.answer = None
        try:
            return real(path, body)
        finally:
            server.answer = some

    server.answer = some
    found = score(server, "vllm-classify", *PAIRS, texts_per_request=1, max_requests=1)
    assert [type(o) for o in found] == [Value, Failed, Value, Value]


def test_a_server_that_hangs_is_a_timeout(serve: Callable[[str], Any], score: Score) -> None:
    server, given_up = serve("decoder"), threading.Event()

    def hang(path: str, body: Any) -> tuple[int, Any]:
        given_up.wait(600)
        return 200, {}

    server.answer = hang
    start = time.monotonic()
    (found,) = score(server, "vllm-classify", PAIRS[0], request_timeout=0.3)
    assert isinstance(found, Failed)
    assert found.kind == "timeout"
    assert time.monotonic() - start < 60
    given_up.set()


def test_no_server_is_an_error(score: Score) -> None:
    class Absent:
        url = "http://127.0.0.1:9"

    (found,) = score(Absent, "vllm-classify", PAIRS[0])
    assert isinstance(found, Failed)
    assert found.kind == "error"


def test_the_key_comes_from_the_environment(
    serve: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, score: Score
) -> None:
    server = serve("decoder")
    monkeypatch.setenv("REWARD_KEY", "s3cret")
    score(server, "vllm-classify", PAIRS[0], api_key_env="REWARD_KEY")
    assert server.seen[0][2] == "Bearer s3cret"
    assert "s3cret" not in str(server.seen[0][1])
    monkeypatch.delenv("REWARD_KEY")
    with pytest.raises(ConfigError, match="REWARD_KEY"):
        score(server, "vllm-classify", PAIRS[0], api_key_env="REWARD_KEY")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "vllm-classify"}, "needs the option model"),
        ({"protocol": "tei-predict", "output": 1}, "a label"),
        ({"protocol": "vllm-pooling", "model": "m", "output": "good"}, "an index"),
        ({"protocol": "tei-predict", "url": "ftp://x"}, "http"),
        ({"protocol": "tei-predict", "url": "http://me:word@x"}, "password"),
        ({"protocol": "tei-predict", "api_key_env": "sk-abc123"}, "environment variable"),
        ({"protocol": "tei-predict", "chat_template_kwargs": {"a": 1}}, "tokenizer"),
    ],
)
def test_options_that_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RewardModelServerConfig(**{"url": "http://localhost:1", **options})
