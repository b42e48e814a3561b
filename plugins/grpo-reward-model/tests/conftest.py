"""Real small reward models made here, what transformers alone says of each text, and servers."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
)

from grpo_core.demo.tokenizer import train_tokenizer
from grpo_core.types import Prompt, Rollout, ScoreRequest, Span

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ extra or '' }}\n{% endfor %}"
)


def rollout(content: Any, text: str, sample: int = 0) -> Rollout:
    return Rollout(
        prompt=Prompt(id=f"train/{sample}", content=content),
        prompt_ids=(1,),
        group=0,
        sample=sample,
        spans=(Span(token_ids=(2,), logprobs=(-0.5,), policy_version=0),),
        text=text,
        finish_reason="stop",
    )


@pytest.fixture(scope="session")
def ask() -> Callable[..., ScoreRequest]:
    """``ask((prompt, completion), ...)``: a request for them."""
    return lambda *pairs: ScoreRequest(
        step=0, rollouts_B=tuple(rollout(*p, i) for i, p in enumerate(pairs))
    )


def qwen(vocabulary: int, labels: int = 1) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=256,
        initializer_range=0.3,
        num_labels=labels,
    )


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """``decoder``, ``two`` (outputs), ``encoder``, and ``policy``, which is no reward model."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = train_tokenizer(["<think>1+1=2</think><answer>2</answer>"])
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    size = len(tokenizer)
    encoder = BertConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        initializer_range=0.5,
        num_labels=1,
    )
    models = {
        "decoder": Qwen3ForSequenceClassification(qwen(size)),
        "two": Qwen3ForSequenceClassification(qwen(size, labels=2)),
        "encoder": BertForSequenceClassification(encoder),
        "policy": Qwen3ForCausalLM(qwen(size)),
    }
    for name, model in models.items():
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return {name: root / name for name in models}


@pytest.fixture(scope="session")
def expected(folders: dict[str, Path]) -> Callable[..., list[float]]:
    """``expected(name, texts)``: scores by transformers alone, one text at a time, no padding."""

    def scores(name: str, texts: list[str], output: int = 0) -> list[float]:
        model = AutoModelForSequenceClassification.from_pretrained(
            folders[name], dtype=torch.float32
        ).eval()
        tokenizer = AutoTokenizer.from_pretrained(folders[name])
        found = []
        for text in texts:
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                found.append(float(model(input_ids=ids).logits[0, output]))
        return found

    return scores


class Server(ThreadingHTTPServer):
    """The three protocols around the real model, as vLLM and TEI speak them."""

    daemon_threads = True
    request_queue_size = 128  # of connections that come at the same time

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.model = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32
        ).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.seen: list[tuple[str, dict[str, Any], str | None]] = []
        self.answer: Callable[[str, Any], tuple[int, Any]] | None = None
        """In place of the real answer, for servers that misbehave."""
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def logits(self, text: str | list[int], *, special: bool = False) -> list[float]:
        if isinstance(text, str):
            ids = self.tokenizer(text, add_special_tokens=special)["input_ids"]
        else:
            ids = text
        with self.lock, torch.no_grad():
            return [float(x) for x in self.model(input_ids=torch.tensor([ids])).logits[0]]

    def classified(self, body: dict[str, Any], field: str) -> dict[str, Any]:
        data = []
        for index, text in enumerate(body["input"]):
            row = torch.tensor(self.logits(text))
            if body.get("use_activation", True):  # vLLM's default
                row = row.sigmoid() if len(row) == 1 else row.softmax(-1)
            data.append({"index": index, field: row.tolist()})
        return {"object": "list", "data": data[::-1]}

    def respond(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if self.answer is not None:
            return self.answer(path, body)
        if path == "/classify":
            return 200, self.classified(body, "probs")
        if path == "/pooling" and body["task"] == "classify":
            return 200, self.classified(body, "data")
        if path == "/predict":
            rows = []
            for (text,) in body["inputs"]:
                row = torch.tensor(self.logits(text))
                if not body["raw_scores"]:
                    row = row.sigmoid()
                entries = [{"label": f"LABEL_{i}", "score": s} for i, s in enumerate(row.tolist())]
                rows.append(sorted(entries, key=lambda e: -e["score"]))
            return 200, rows
        return 404, {"error": f"no {path}"}


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, body, self.headers.get("Authorization")))
        status, answer = self.server.respond(self.path, body)
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        with contextlib.suppress(OSError):  # the client has given up waiting
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def serve(folders: dict[str, Path]) -> Iterator[Callable[[str], Server]]:
    servers: list[Server] = []

    def start(name: str) -> Server:
        server = Server(folders[name])
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
