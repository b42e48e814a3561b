"""Worker extension of the engine in this process: which weights it has, and new ones.

vLLM's own reload takes what it is given: a partial stream is accepted with a warning, and a wrong
shape leaves the engine broken for good (0.32.0). So weights are compared before, and counted on
their way.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from grpo_generator_vllm_server.engine.grpo_vllm_adapter import require_adapter, require_base
from grpo_generator_vllm_server.engine.grpo_vllm_contents import (
    Shapes,
    checkpoint_files,
    checkpoint_shapes,
    require_same,
)

if TYPE_CHECKING:
    from torch import Tensor

Listed = Mapping[str, tuple[str, list[int]]]
"""Name to dtype and shape. Example: ``{"model.norm.weight": ("float32", [64])}``."""


class GRPOColocateWorker:
    """Methods that vLLM adds to its worker; called through ``collective_rpc``."""

    model_runner: Any
    vllm_config: Any
    reload_weights: Any
    """These three are the worker's own."""

    def grpo_held(self) -> str | None:
        """The mark of the weights that this worker has; ``None`` for those it started with, and
        after a reload that did not end."""
        mark: str | None = getattr(self, "_grpo_mark", None)
        return mark

    def grpo_members(self) -> list[int]:
        """Ranks of the default process group that hold this engine together, in vLLM's order."""
        state = importlib.import_module("vllm.distributed.parallel_state")
        return list(state.get_tp_group().ranks)

    def grpo_require(self, listed: Listed) -> bool:
        """Raises ``ValueError`` unless names and shapes are those of the engine's checkpoint;
        ``False`` where these are not known (no safetensors)."""
        expected = self._grpo_checkpoint()
        if expected is not None:
            shapes = {name: shape for name, (_, shape) in listed.items()}
            require_same(expected, shapes, has="the engine's model has")
        return expected is not None

    def grpo_take(self, tensors: Iterator[tuple[str, Tensor]], listed: Listed, mark: str) -> None:
        """Replace the weights; only afterwards does ``grpo_held`` say ``mark``."""
        # From here to the last line the model is neither the old nor the new one.
        self._grpo_mark: str | None = None
        self.reload_weights(weights_iterator=counted(tensors, listed))
        self._grpo_mark = mark

    def grpo_base(self, listed: Mapping[str, tuple[str, str]]) -> None:
        """Raises ``ValueError`` unless the engine's checkpoint holds what is listed."""
        model = self.vllm_config.model_config
        require_base(checkpoint_files(str(model.model), model.revision), listed)

    def grpo_adapter(self, path: str, mark: str) -> None:
        """Raises ``ValueError`` unless vLLM has the adapter of this folder, all of it."""
        require_adapter(self.model_runner, path, mark, known={}, loaded=True)

    def _grpo_checkpoint(self) -> Shapes | None:
        if not hasattr(self, "_grpo_shapes"):
            model = self.vllm_config.model_config
            self._grpo_shapes = checkpoint_shapes(str(model.model), model.revision)
        return self._grpo_shapes


def manifest(tensors: Iterator[tuple[str, Tensor]]) -> Listed:
    """What will be sent; tensors that are made on the way (merged, gathered) are not kept."""
    return {name: (_dtype(tensor), list(tensor.shape)) for name, tensor in tensors}


def counted(tensors: Iterator[tuple[str, Tensor]], listed: Listed) -> Iterator[tuple[str, Tensor]]:
    """The same tensors, without gradient.

    Raises:
        ValueError: one is another than listed, or one is missing at the end.
    """
    left = dict(listed)
    for name, tensor in tensors:
        if left.pop(name, None) != (_dtype(tensor), list(tensor.shape)):
            raise ValueError(
                f"{name} came as {_dtype(tensor)} {list(tensor.shape)}; listed was "
                f"{listed.get(name, 'none of that name')}"
            )
        yield name, tensor.detach()
    if left:
        raise ValueError(f"{len(left)} of {len(listed)} listed tensors never came: {min(left)}")


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
