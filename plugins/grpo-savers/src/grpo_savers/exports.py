"""Which modules leave: the policy, or parts of a model that is more than a policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from grpo_core.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn


def exported(model: nn.Module, submodules: Mapping[str, str]) -> dict[str, Any]:
    """The modules to write, by folder; ``"."`` is the folder itself.

    They are those that the config names. Without any, a model that is more than a policy (one with
    a critic beside it, say) may name them itself: ``export_modules() -> {".": self.policy}``. All
    others are written as they are.

    Raises:
        ConfigError: one does not exist, or is none that transformers or PEFT can write.
    """
    if submodules:
        found = {folder: _submodule(model, path) for folder, path in submodules.items()}
    else:
        own: Any = getattr(model, "export_modules", None)
        found = {".": model} if own is None else dict(own())
    for folder, module in found.items():
        if not hasattr(module, "save_pretrained"):
            raise ConfigError(
                f"the part of the model for folder {folder!r} is a {type(module).__name__}, which "
                f"cannot be written as a model; inside are {_inside(model)}: name one in the "
                "saver's option submodules"
            )
    return found


def _submodule(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise ConfigError(
            f"the saver's option submodules names {path!r}, but {type(model).__name__} has no such "
            f"part; it has {_inside(model)}"
        ) from error


def _inside(model: nn.Module) -> str:
    names = [n for n, part in model.named_modules() if n and hasattr(part, "save_pretrained")]
    return ", ".join(names[:8]) or "no models"
