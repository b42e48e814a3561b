"""What differs between the run that wrote a checkpoint and the one that would go on from it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import torch
import transformers

if TYPE_CHECKING:
    from torch import nn

    from grpo_core.trainer.run import Run
    from grpo_core.types import Prompt

WATCHING = ("output", "savers", "observers", "evaluation", "checkpoints")
"""Parts of a config that do not change what is learned."""

SAMPLED = 1000
"""So many prompts, and numbers of a tensor, are compared; enough to notice other data or another
model within a second, not every single edit."""


def identity(run: Run) -> dict[str, Any]:
    """What makes a run this one; written into every checkpoint, as plain JSON."""
    return {
        "config": _plain(run.config),
        "components": _plain(run.manifest),
        "counts": {
            "processes": run.policy.ranks,
            "training prompts": len(run.task.train_prompts()),
            f"digest of {SAMPLED:,} training prompts": _digest_of_data(run.task.train_prompts()),
            "digest of the weights that are not trained": _digest_of_frozen(run.policy.model),
        },
        "machine": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "device": str(run.policy.device.type),
            "precision": run.policy.precision,
            "layout": run.policy.layout.partition(",")[0],
        },
    }


def _digest_of_data(prompts: Sequence[Prompt]) -> str:
    """Of prompts from all over the data set, with their columns, which the rewards see."""
    digest = blake2b(digest_size=8)
    stride = max(1, -(-len(prompts) // SAMPLED))
    for index in range(0, len(prompts), stride):
        prompt = prompts[index]
        # An object without a JSON form may show its address, which differs in every process.
        known = [prompt.id, prompt.content, dict(prompt.columns)]
        text = json.dumps(known, default=lambda value: type(value).__name__, sort_keys=True)
        digest.update(text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _digest_of_frozen(model: nn.Module) -> str:
    """Of some numbers of every frozen tensor: an adapter that goes on over another base model
    would be neither the one nor the other."""
    digest = blake2b(digest_size=8)
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            stride = max(1, weight.numel() // SAMPLED)
            # Viewed as bytes: quantised and 16-bit weights have no numpy form.
            some = weight.detach().reshape(-1)[::stride].contiguous().cpu().view(torch.uint8)
            digest.update(name.encode() + some.numpy().tobytes())
    return digest.hexdigest()


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Whatever makes it another run: settings, data, and versions of plugins."""
    return [
        f"{key}: {_shown(before, key)} then, {_shown(after, key)} now"
        for before, after in (
            (_settings(then), _settings(now)),
            (_versions(then["components"]), _versions(now["components"])),
            (then["counts"], now["counts"]),
        )
        for key in _differing(before, after)
    ]


def rounding(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What leaves the run the same but can round otherwise."""
    before, after = then["machine"], now["machine"]
    return [
        f"{key}: {_shown(before, key)} then, {_shown(after, key)} now"
        for key in _differing(before, after)
    ]


def _settings(identity: Mapping[str, Any]) -> dict[str, Any]:
    config = identity["config"]
    return dict(_leaves({key: value for key, value in config.items() if key not in WATCHING}))


def _versions(components: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    return {
        f"{c['role']} {c['name']!r}": f"{c['distribution']} {c['version']}"
        for c in components
        if f"{c['role']}s" not in WATCHING
    }


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    pairs: Sequence[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        pairs = list(value.items())
    elif isinstance(value, list):
        pairs = list(enumerate(value))
    if not pairs:
        yield path, value
    for key, item in pairs:
        yield from _leaves(item, f"{path}.{key}" if path else str(key))


def _differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    keys = [*before, *(key for key in after if key not in before)]
    return [
        key for key in keys if key not in before or key not in after or before[key] != after[key]
    ]


def _shown(values: Mapping[str, Any], key: str) -> str:
    return str(values[key]) if key in values else "absent"


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))
