"""What can go wrong with the engine, by what can be done about it."""

from __future__ import annotations

from grpo_core.errors import PluginError


class EngineError(PluginError):
    """The vLLM engine of this process failed; the next sync makes a new one."""


class RequestRefusedError(PluginError, ValueError):
    """The engine does not take a request: it is wrong itself, and the engine is well."""


class PeerError(PluginError):
    """Another rank, without which this one cannot go on, has failed or does not come."""
