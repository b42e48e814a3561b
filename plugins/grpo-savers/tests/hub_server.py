"""A Hugging Face Hub on loopback: what ``huggingface_hub`` needs to make repositories, branches and
commits and to download again, over real HTTP, with faults on demand.

Regular files come within the commit, large ones by LFS with the basic transfer, as the Hub does for
a client without Xet.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_loopbacktoken0123456789"
LARGE = (".safetensors", ".parquet", "tokenizer.json")


@dataclass
class Repo:
    """Branches, each with its files and the messages of its commits."""

    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    commits: dict[str, list[str]] = field(default_factory=lambda: {"main": []})


@dataclass
class Fault:
    """Answer ``status``, cut the connection or be slow, ``times`` times, where a path matches."""

    match: str
    status: int = 0
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    seconds: float = 0.0


class Hub(ThreadingHTTPServer):
    """The server and what it holds."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[tuple[str, str], Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.received: list[bytes] = []
        self.lock = threading.RLock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def stop(self) -> None:
        """Refuse connections from now on."""
        self.shutdown()
        self.server_close()

    def files(self, repo: str, branch: str = "main", kind: str = "model") -> dict[str, bytes]:
        return self.repos[kind, repo].branches[branch]

    def fault(self, line: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.match in line:
                    fault.times -= 1
                    return fault
        return None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def _answer(self, status: int, body: Any = None, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        line = f"{self.command} {path}"
        with self.server.lock:
            self.server.requests.append(line)
            self.server.received.append(body)
        fault = self.server.fault(line)
        if fault is not None:
            time.sleep(fault.seconds)
            if fault.cut:
                self.close_connection = True
                self.connection.close()
                return None
            if fault.status:
                return self._answer(fault.status, {"error": "injected"}, fault.headers)
        if not path.startswith("/lfs/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid credentials"})
        with self.server.lock:
            return self._route(path, body)

    do_GET = do_POST = do_PUT = do_HEAD = _handle

    def _route(self, path: str, body: bytes) -> None:
        words = path.strip("/").split("/")
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if words[0] == "lfs":
            return self._lfs_object(words[1], body)
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._lfs_batch(json.loads(body))
        if words[0] == "api":
            return self._api(words[1].removesuffix("s"), "/".join(words[2:4]), words[4:], body)
        kind = "model"
        if words[0] == "datasets":
            kind, words = "dataset", words[1:]
        return self._resolve(kind, "/".join(words[:2]), words[3], "/".join(words[4:]))

    def _create(self, asked: dict[str, Any]) -> None:
        kind = asked.get("type") or "model"
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        prefix = "datasets/" if kind == "dataset" else ""
        url = {"url": f"{self.server.endpoint}/{prefix}{name}"}
        if (kind, name) in self.server.repos:
            return self._answer(409, {"error": "exists", **url})
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.server.repos[kind, name] = Repo(private=private)
        return self._answer(200, url)

    def _api(self, kind: str, name: str, rest: list[str], body: bytes) -> None:
        repo = self.server.repos.get((kind, name))
        if repo is None:
            return self._answer(404, {"error": "no repo"}, {"X-Error-Code": "RepoNotFound"})
        if not rest or rest[0] == "revision":
            branch = rest[1] if rest else "main"
            return self._answer(200, self._info(name, repo, branch))
        verb, branch = rest[0], "/".join(rest[1:])
        branch = {sha(repo, name): name for name in repo.branches}.get(branch, branch)
        if verb == "branch":
            if branch in repo.branches:
                return self._answer(409, {"error": "exists"})
            repo.branches[branch] = dict(repo.branches["main"])
            repo.commits[branch] = list(repo.commits["main"])
            return self._answer(200)
        if branch not in repo.branches:
            return self._answer(404, {"error": "no branch"}, {"X-Error-Code": "RevisionNotFound"})
        if verb == "preupload":
            return self._preupload(repo.branches[branch], json.loads(body))
        if verb == "commit":
            return self._commit(name, repo, branch, body)
        if verb == "tree":
            return self._answer(200, [entry(p, d) for p, d in repo.branches[branch].items()])
        return self._answer(404, {"error": f"no {verb}"})

    def _info(self, name: str, repo: Repo, branch: str) -> dict[str, Any]:
        return {
            "id": name,
            "private": repo.private,
            "sha": sha(repo, branch),
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": [{"rfilename": path} for path in repo.branches[branch]],
        }

    def _preupload(self, files: dict[str, bytes], asked: dict[str, Any]) -> None:
        answer = []
        for file in asked["files"]:
            path = file["path"]
            mode = "lfs" if path.endswith(LARGE) else "regular"
            found = {"path": path, "uploadMode": mode, "shouldIgnore": False}
            if path in files:
                found["oid"] = oid(path, files[path])
            answer.append(found)
        return self._answer(200, {"files": answer})

    def _lfs_batch(self, asked: dict[str, Any]) -> None:
        objects = []
        for thing in asked["objects"]:
            known = thing["oid"] in self.server.lfs
            href = {"upload": {"href": f"{self.server.endpoint}/lfs/{thing['oid']}"}}
            objects.append({**thing, **({} if known else {"actions": href})})
        return self._answer(200, {"transfer": "basic", "objects": objects})

    def _lfs_object(self, wanted: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != wanted:
            return self._answer(400, {"error": "not what was announced"})
        self.server.lfs[wanted] = body
        return self._answer(200)

    def _commit(self, name: str, repo: Repo, branch: str, body: bytes) -> None:
        files = repo.branches[branch]
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                repo.commits[branch].append(value["summary"])
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.server.lfs[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        url = f"{self.server.endpoint}/{name}/commit/{sha(repo, branch)}"
        return self._answer(200, {"commitUrl": url, "commitOid": sha(repo, branch)})

    def _resolve(self, kind: str, name: str, branch: str, path: str) -> None:
        repo = self.server.repos.get((kind, name))
        known = {} if repo is None else {sha(repo, b): f for b, f in repo.branches.items()}
        files = None if repo is None else repo.branches.get(branch, known.get(branch))
        if repo is None or files is None or path not in files:
            return self._answer(404, {"error": "none"}, {"X-Error-Code": "EntryNotFound"})
        data = files[path]
        commit = sha(repo, branch) if branch in repo.branches else branch
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": commit}
        if self.headers.get("Range"):
            start = int(self.headers["Range"].removeprefix("bytes=").partition("-")[0])
            return self._answer(206, data[start:], headers)
        return self._answer(200, data, headers)


def sha(repo: Repo, branch: str) -> str:
    """A commit's id."""
    text = f"{branch} {len(repo.commits[branch])} {sorted(repo.branches[branch])}"
    return hashlib.sha1(text.encode()).hexdigest()


def oid(path: str, data: bytes) -> str:
    """As git names content, LFS objects by their SHA-256."""
    if path.endswith(LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def entry(path: str, data: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(data), "oid": oid(path, data)}


@contextmanager
def running_hub() -> Iterator[Hub]:
    """The server, for as long as the block lasts."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.stop()
        thread.join()
