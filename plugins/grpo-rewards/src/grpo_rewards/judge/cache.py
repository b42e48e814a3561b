"""Verdicts that are known already. The key is everything that decides a reply."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

from grpo_core.errors import ConfigError


def key_of(url: str, body: dict[str, Any]) -> str:
    """The address and the whole request (model, messages, temperature, limits, format)."""
    text = json.dumps([url, body], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Cache(Protocol):
    """Replies by key."""

    def get(self, key: str) -> str | None: ...

    def put(self, key: str, reply: str) -> None: ...


class MemoryCache:
    """As long as the provider lives."""

    def __init__(self) -> None:
        self._replies: dict[str, str] = {}

    def get(self, key: str) -> str | None:
        return self._replies.get(key)

    def put(self, key: str, reply: str) -> None:
        self._replies[key] = reply


class DiskCache:
    """An SQLite file, which several processes may share.

    A connection per call: one that is kept may not be used by another thread or a forked process.
    """

    def __init__(self, path: str) -> None:
        """Raises ``ConfigError`` when the file cannot be made or is something else."""
        self._path = path
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with closing(self._connect()) as connection, connection:
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL)"
                )
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"reward 'llm-judge': cache_path {path!r}: {error}") from error

    def get(self, key: str) -> str | None:
        with closing(self._connect()) as connection:
            row = connection.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def put(self, key: str, reply: str) -> None:
        with closing(self._connect()) as connection, connection:
            connection.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, reply))

    def _connect(self) -> sqlite3.Connection:
        # Seconds to wait for another process that is writing.
        return sqlite3.connect(self._path, timeout=30)
