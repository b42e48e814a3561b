"""Who failed: ordinary exceptions of a component become errors that name it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from grpo_core.errors import GRPOError, PluginError


@contextmanager
def attributed(label: str, call: str, error: type[PluginError] = PluginError) -> Iterator[None]:
    """Turn an ordinary exception inside the block into ``error``, naming component and call.

    Args:
        label: for instance ``"loss 'dapo' (grpo-losses 0.1.0)"``.
        call: what was being called, for instance ``"sync"``.
    """
    try:
        yield
    except GRPOError:
        raise
    except Exception as cause:
        raise error(f"{label} failed in {call}: {type(cause).__name__}: {cause}") from cause


def describe(role: str, component: object, source: str | None = None) -> str:
    """A label for a component that came without a registered name."""
    name = getattr(component, "name", None) or getattr(component, "__name__", None)
    label = f"{role} {name if isinstance(name, str) else type(component).__name__!s}"
    return f"{label} ({source})" if source else label
