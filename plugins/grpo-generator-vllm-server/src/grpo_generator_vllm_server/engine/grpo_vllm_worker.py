"""Worker extension for `vllm serve --worker-extension-cls`: weights from a folder, all or none.

vLLM's own reload takes what it is given: a partial stream is accepted with a warning, a wrong shape
leaves the engine broken for good, and with tied embeddings on a CPU the head stays old unless it is
sent by name (0.32.0). So everything is checked and read here before the reload begins.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
HEAD = "lm_head.weight"

Shapes = dict[str, list[int]]

if "vllm" in sys.modules:
    # In a worker, which imports this before it loads the model, with this folder on its path.
    importlib.import_module("grpo_vllm_seeds").apply()


class GRPOWorker:
    """Methods that vLLM adds to each of its workers; called through `/collective_rpc`.

    Failures come back as ``{"error": ...}``: an exception would reach the client as a bare 500.
    """

    model_runner: Any
    vllm_config: Any
    rank: int
    reload_weights: Any
    """These four are the worker's own."""

    def grpo_held(self) -> dict[str, Any]:
        """Which weights this worker has, and facts of the engine."""
        config = self.vllm_config
        lora = config.lora_config
        return {
            "rank": self.rank,
            "held": getattr(self, "_grpo_held", None),
            "broken": getattr(self, "_grpo_broken", None),
            "model": str(config.model_config.model),
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "logprobs_mode": str(config.model_config.logprobs_mode),
            "max_model_len": int(config.model_config.max_model_len),
            "vocabulary": int(config.model_config.get_vocab_size()),
            "lora_rank": int(lora.max_lora_rank) if lora else 0,
        }

    def grpo_load(self, path: str, mark: str) -> dict[str, Any]:
        """Take over the weights in ``path``; ``mark`` is what ``grpo_held`` then says."""
        self._grpo_held: str | None = getattr(self, "_grpo_held", None)
        self._grpo_broken: str | None = getattr(self, "_grpo_broken", None)
        try:
            tensors = read_complete(Path(path))
            expected = self._grpo_expected()
            if expected is not None:
                require_same(expected, {n: list(t.shape) for n, t in tensors.items()})
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}", "applied": False}
        # From here to the last line the model is neither the old nor the new one.
        self._grpo_held, self._grpo_broken = None, f"the reload to {mark} did not end"
        try:
            self.reload_weights(weights_iterator=iter(tensors.items()))
        except Exception as error:
            self._grpo_broken = f"{type(error).__name__}: {error}"
            return {"error": self._grpo_broken, "applied": True}
        self._grpo_held, self._grpo_broken = mark, None
        return {"held": mark}

    def _grpo_expected(self) -> Shapes | None:
        """Names and shapes of the checkpoint that the server was started with."""
        found: Shapes | None = getattr(self, "_grpo_names", None)
        if found is None:
            model = self.vllm_config.model_config
            found = self._grpo_names = checkpoint_shapes(str(model.model), model.revision)
        return found


def read_complete(folder: Path) -> dict[str, Any]:
    """All tensors of a folder, compared with its manifest.

    Raises:
        ValueError: a file, name, shape, dtype or the count is another than the manifest says.
    """
    from safetensors.torch import load_file

    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    tensors: dict[str, Any] = {}
    for name, size in manifest["files"].items():
        file = folder / name
        if file.stat().st_size != size:
            raise ValueError(f"{file} has {file.stat().st_size} bytes, the manifest says {size}")
        tensors.update(load_file(file))
    listed = {name: (dtype, shape) for name, (dtype, shape) in manifest["tensors"].items()}
    if len(listed) != manifest["count"]:
        raise ValueError(f"the manifest lists {len(listed)} of {manifest['count']} tensors")
    require_same(
        {name: shape for name, (_, shape) in listed.items()},
        {name: list(tensor.shape) for name, tensor in tensors.items()},
        optional=(),
        has="the manifest lists",
    )
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype != listed[name][0]:
            raise ValueError(f"{name} is {dtype}, the manifest says {listed[name][0]}")
    return tensors


def require_same(
    expected: Mapping[str, list[int]],
    found: Mapping[str, list[int]],
    *,
    optional: tuple[str, ...] = (HEAD,),
    has: str = "the server's model has",
) -> None:
    """Raises ``ValueError`` unless names and shapes are equal; a tied head may be named or not."""
    missing = sorted(expected.keys() - found.keys() - set(optional))
    unknown = sorted(found.keys() - expected.keys() - set(optional))
    if missing or unknown:
        raise ValueError(
            f"other tensors than {has}: {len(missing)} missing {missing[:3]}, "
            f"{len(unknown)} unknown {unknown[:3]}"
        )
    wrong = [n for n in expected.keys() & found.keys() if list(expected[n]) != list(found[n])]
    if wrong:
        name = min(wrong)
        raise ValueError(
            f"{len(wrong)} tensors have other shapes than {has}, such as {name}: "
            f"{found[name]}, not {expected[name]}; is it another base model?"
        )


def checkpoint_shapes(model: str, revision: str | None) -> Shapes | None:
    """From the headers of a checkpoint's safetensors files; ``None`` where there are none."""
    from safetensors import safe_open

    folder = Path(model)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            # Already there, since the server has loaded it; nothing is downloaded here.
            folder = Path(snapshot_download(model, revision=revision, local_files_only=True))
        except Exception:
            return None
    shapes: Shapes = {}
    for file in sorted(folder.glob("*.safetensors")):
        if os.path.getsize(file) and not file.name.startswith("adapter"):
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    shapes[name] = list(tensors.get_slice(name).get_shape())
    return shapes or None
