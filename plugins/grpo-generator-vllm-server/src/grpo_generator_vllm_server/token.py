"""The bearer token: from the environment or a file, never from a config."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from grpo_core.errors import ConfigError

LEAST_LENGTH = 16


def read_token(variable: str, file: str | None) -> str | None:
    """The token, ``None`` where there is none.

    Raises:
        ConfigError: the file cannot be read, or holds no token.
    """
    if file is None:
        return checked(os.environ.get(variable, ""), f"environment variable {variable}") or None
    try:
        text = Path(file).read_text("utf-8").strip()
    except OSError as error:
        raise ConfigError(f"generator.token_file {file!r} cannot be read: {error}") from error
    if not text:
        raise ConfigError(f"generator.token_file {file!r} is empty")
    return checked(text, f"generator.token_file {file!r}")


def new_token() -> str:
    """256 random bits."""
    return secrets.token_urlsafe(32)


def checked(token: str, where: str) -> str:
    """Raises ``ConfigError`` if it is nothing that a header can hold."""
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        raise ConfigError(f"{where} holds no token: it has spaces or other odd characters")
    return token
