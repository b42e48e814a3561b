"""What can go wrong with a server, by what can be done about it."""

from __future__ import annotations

from grpo_core.errors import PluginError, SyncError


class ServerError(PluginError):
    """Base: a vLLM server did not do what it was asked; the message begins with its address."""


class ServerLostError(ServerError, ConnectionError):
    """No usable answer came back. Another server, or the same one later, may do better."""


class ServerDownError(ServerLostError):
    """The server cannot be reached, hangs, or is another process than the one that was synced."""


class ServerHungError(ServerDownError, TimeoutError):
    """No answer within the time limit, which a healthy-looking server can also do."""


class BadAnswerError(ServerLostError):
    """An answer came, but not one to train on."""


class RequestRefusedError(ServerError, ValueError):
    """The request itself is wrong, or forbidden; no other server would do better."""


class NoServerLeftError(ServerError):
    """Every server is out; the message says why for each."""


class PushError(SyncError):
    """A server has not taken the weights, or not all of them; it stays paused."""
