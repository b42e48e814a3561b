"""The model card of a trained model: what it is, where it comes from, how to load it."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelCardData

from grpo_core.curves import curves_svg
from grpo_core.staging import staged_file
from grpo_savers.card_results import eval_results, results_table
from grpo_savers.card_text import code, is_hub_id, local_name, table, without_secrets
from grpo_savers.card_use import usage
from grpo_savers.citations import bibtex

if TYPE_CHECKING:
    from grpo_core.types import SaveRequest

GRPO_PAPER, LORA_PAPER, QLORA_PAPER = "2402.03300", "2106.09685", "2305.14314"
MOST_LINES = 4
ARXIV = re.compile(r"arXiv (\d{4}\.\d{4,5})")
PACKAGES = ("grpo-core", "torch", "transformers", "peft", "bitsandbytes")
SHOWN = ("eval/", "reward/", "length/", "loss/", "kl/", "entropy/")
"""Groups of metrics that say something about the model rather than about the machine."""

CURVES_FILE = "curves.svg"
CURVES = (
    ("Reward", r"reward/(.+/)?mean"),
    ("Length of completions, tokens", r"length/mean"),
    ("Loss", r"loss/total"),
    ("KL to the reference, nats per token", r"kl/ref(erence)?(/mean)?"),
    ("Entropy, nats per token", r"entropy/mean"),
)
"""Title, and the metrics of the step that it shows."""


def write_card(request: SaveRequest, folder: Path, *, merged: bool = False) -> None:
    """Write ``README.md``, and ``curves.svg`` beside it once there are steps to show."""
    picture = curves_svg(_curves(request))
    if picture is not None:
        with staged_file(folder / CURVES_FILE) as path:
            path.write_text(picture, encoding="utf-8")
    with staged_file(folder / "README.md") as path:
        card = model_card(request, merged=merged, curves=picture is not None)
        path.write_text(str(card), encoding="utf-8")


def model_card(request: SaveRequest, *, merged: bool = False, curves: bool = False) -> ModelCard:
    """The card as Hugging Face's own object.

    Args:
        merged: the adapter is part of the weights that the card stands beside.
        curves: ``curves.svg`` stands beside it, too.
    """
    adapter = request.policy.has_adapter and not merged
    body = "\n\n".join(part for part in _parts(request, adapter=adapter, curves=curves) if part)
    return ModelCard(f"---\n{_data(request, adapter=adapter).to_yaml()}\n---\n\n{body}\n")


def _data(request: SaveRequest, *, adapter: bool) -> ModelCardData:
    base = request.policy.settings.path
    dataset = request.config.get("task", {}).get("path")
    return ModelCardData(
        # The Hub refuses cards whose base model or data set is not an id.
        base_model=base if is_hub_id(base) else None,
        datasets=[dataset] if isinstance(dataset, str) and is_hub_id(dataset) else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=_tags(request),
        eval_results=eval_results(request) or None,
        model_name=request.run_dir.resolve().name if request.results else None,
    )


def _tags(request: SaveRequest) -> list[str]:
    tags = ["grpo", "grpo-core", "reinforcement-learning"]
    # Names of a single word alone: an import path says nothing to others.
    tags += [
        entry["name"]
        for entry in request.manifest
        if entry.get("role") == "loss" and re.fullmatch(r"[a-z0-9-]+", str(entry.get("name")))
    ]
    if request.policy.has_adapter:
        tags.append("lora" if request.policy.settings.quantization is None else "qlora")
    return list(dict.fromkeys(tags))


def _parts(request: SaveRequest, *, adapter: bool, curves: bool) -> Iterator[str]:
    base = code(local_name(request.policy.settings.path))
    kind = "LoRA adapter for" if adapter else "Fine-tuned from"
    yield f"# {base}, trained with GRPO"
    yield (
        f"{kind} {base} by {request.step} steps of Group Relative Policy Optimization "
        f"({_link(GRPO_PAPER)}) with grpo_core {_version('grpo-core')}."
    )
    yield f"## Use\n\n```python\n{usage(request, merged=not adapter)}```"
    yield "## How it was trained\n\n" + _components(request)
    yield "## Settings\n\n" + _settings(request.config)
    yield results_table(request.results)
    yield _metrics(request)
    if curves:
        yield f"![Training curves]({CURVES_FILE})"
    yield "## Versions\n\n" + table(
        ("package", "version"),
        ([name, code(_version(name))] for name in PACKAGES if _version(name)),
    )
    yield f"## Citation\n\n```bibtex\n{bibtex(_cited(request))}\n```"


def _cited(request: SaveRequest) -> Iterator[str]:
    """The algorithm, what the components' own documentation names, and the adapters."""
    yield GRPO_PAPER
    for entry in request.manifest:
        yield from _papers(str(entry.get("target")))
    if request.policy.has_adapter:
        yield LORA_PAPER
        if request.policy.settings.quantization is not None:
            yield QLORA_PAPER


def _curves(request: SaveRequest) -> list[tuple[str, dict[str, list[tuple[int, float]]]]]:
    held_out: dict[str, list[tuple[int, float]]] = {}
    for event in request.evaluations:
        for name, value in event.items():
            if name != "step":
                held_out.setdefault(name, []).append((int(event["step"]), value))
    charts = [("Held-out reward", held_out)]
    for title, pattern in CURVES:
        names = sorted({n for step in request.history for n in step if re.fullmatch(pattern, n)})
        lines = {
            name: [(i + 1, step[name]) for i, step in enumerate(request.history) if name in step]
            for name in names[:MOST_LINES]
        }
        charts.append((title, lines))
    return charts


def _components(request: SaveRequest) -> str:
    if not request.manifest:
        return "Put together in Python; the run recorded no components."
    rows = []
    # A reward's weight belongs to the run, not to the component: the manifest does not have it.
    weights = iter([block.get("weight") for block in request.config.get("rewards") or ()])
    for entry in request.manifest:
        name, distribution = entry.get("name"), entry.get("distribution")
        source = f"{distribution} {entry.get('version')}" if distribution else entry.get("target")
        papers = ", ".join(_link(paper) for paper in _papers(str(entry.get("target"))))
        options = without_secrets(entry.get("config") or {})
        weight = next(weights, None) if entry.get("role") == "reward" else None
        if weight is not None:
            options = {"weight": weight, **options}
        rows.append(
            [
                code(entry.get("role")),
                code(name) + (f" ({papers})" if papers else ""),
                code(without_secrets(source)),
                ", ".join(f"{code(k)} {code(v)}" for k, v in options.items()),
            ]
        )
    return table(("role", "component", "from", "options"), rows)


def _papers(target: str) -> list[str]:
    """The papers that a component's own documentation names, if it is loaded."""
    module, _, name = target.partition(":")
    component = getattr(sys.modules.get(module), name, None)
    own = getattr(getattr(component, "Config", None), "paper", None)
    found = ARXIV.findall(f"arXiv {own}, {inspect.getdoc(component) or ''}")
    return list(dict.fromkeys(found))


def _settings(config: Mapping[str, Any]) -> str:
    rows = []
    for section in ("model", "train", "sampling", "optimizer"):
        for key, value in without_secrets(config.get(section) or {}).items():
            rows.append([code(f"{section}.{key}"), code(value)])
    return table(("setting", "value"), rows)


def _metrics(request: SaveRequest) -> str:
    if not request.metrics:
        return ""
    first = request.history[0] if request.history else {}
    names = [name for name in request.metrics if name.startswith(SHOWN)]
    rows = ([code(n), _number(first.get(n)), _number(request.metrics[n])] for n in names)
    return "## Metrics\n\n" + table(("metric", "first step", "last step"), rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _link(arxiv_id: str) -> str:
    return f"[arXiv {arxiv_id}](https://arxiv.org/abs/{arxiv_id})"


def _version(distribution: str) -> str:
    """Empty when it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""
