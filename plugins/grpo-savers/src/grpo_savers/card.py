"""The model card of a trained model: what it is, where it comes from, how to load it."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelCardData

from grpo_savers.card_text import code, is_hub_id, local_name, table, without_secrets

if TYPE_CHECKING:
    from grpo_core.types import SaveRequest

GRPO_PAPER = "2402.03300"
ARXIV = re.compile(r"arXiv (\d{4}\.\d{4,5})")
PACKAGES = ("grpo-core", "torch", "transformers", "peft")
SHOWN = ("eval/", "reward/", "length/", "loss/", "kl/", "entropy/")
"""Groups of metrics that say something about the model rather than about the machine."""

LOAD_MODEL = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

path = "."  # this folder, or its id on the Hub
model = AutoModelForCausalLM.from_pretrained(path)
tokenizer = AutoTokenizer.from_pretrained(path)
"""
LOAD_ADAPTER = """\
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

path = "."  # this folder, or its id on the Hub
# Loads the base model, too, in the numbers that the adapter was trained with.
model = AutoPeftModelForCausalLM.from_pretrained(path, dtype="{dtype}")
tokenizer = AutoTokenizer.from_pretrained(path)
"""
ASK_CHAT = """\
inputs = tokenizer.apply_chat_template(
    [{"role": "user", "content": "..."}],
    add_generation_prompt=True,
    return_dict=True,
    return_tensors="pt",
)
"""
ASK_TEXT = """\
inputs = tokenizer("...", return_tensors="pt")
"""
ANSWER = """\
output = model.generate(**inputs, max_new_tokens=256)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
"""


def model_card(request: SaveRequest) -> ModelCard:
    """The card as Hugging Face's own object; ``card.save(path)`` writes it."""
    body = "\n\n".join(part for part in _parts(request) if part)
    return ModelCard(f"---\n{_data(request).to_yaml()}\n---\n\n{body}\n")


def _data(request: SaveRequest) -> ModelCardData:
    base = request.policy.settings.path
    dataset = request.config.get("task", {}).get("path")
    return ModelCardData(
        # The Hub refuses cards whose base model or data set is not an id.
        base_model=base if is_hub_id(base) else None,
        datasets=[dataset] if isinstance(dataset, str) and is_hub_id(dataset) else None,
        library_name="peft" if request.policy.has_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["grpo", "grpo-core", "reinforcement-learning"],
    )


def _parts(request: SaveRequest) -> Iterator[str]:
    base = code(local_name(request.policy.settings.path))
    kind = "LoRA adapter for" if request.policy.has_adapter else "Fine-tuned from"
    yield f"# {base}, trained with GRPO"
    yield (
        f"{kind} {base} by {request.step} steps of Group Relative Policy Optimization "
        f"({_link(GRPO_PAPER)}) with grpo_core {_version('grpo-core')}."
    )
    yield f"## Use\n\n```python\n{_load(request)}```"
    yield "## How it was trained\n\n" + _components(request)
    yield "## Settings\n\n" + _settings(request.config)
    yield _metrics(request)
    yield "## Versions\n\n" + table(
        ("package", "version"),
        ([name, code(_version(name))] for name in PACKAGES if _version(name)),
    )


def _load(request: SaveRequest) -> str:
    dtype = str(next(request.policy.model.parameters()).dtype).removeprefix("torch.")
    load = LOAD_ADAPTER.format(dtype=dtype) if request.policy.has_adapter else LOAD_MODEL
    ask = ASK_CHAT if request.policy.tokenizer.chat_template else ASK_TEXT
    return f"{load}{ask}{ANSWER}"


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
    return list(dict.fromkeys(ARXIV.findall(inspect.getdoc(component) or "")))


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
