"""Seeded requests on a CPU: vLLM 0.32.0 dies of the first one whose prompt is computed in parts.

A batch with more prompt tokens than `max_num_batched_tokens` computes the last prompt of a step in
part, draws a token for it nevertheless, and throws that away. For a request with a seed it then
winds the generator back by setting its offset, which CPU generators do not have ("CPU Generator
does not use offset"): the engine ends, and with it the server.
"""

from __future__ import annotations

from typing import Any


def apply() -> bool:
    """Cure this engine if it runs on a CPU; whether it does. Called before a model is loaded."""
    from vllm.platforms import current_platform  # type: ignore[import-not-found, unused-ignore]

    if not current_platform.is_cpu():
        return False
    from vllm.v1.worker import (  # type: ignore[import-not-found, unused-ignore]
        cpu_model_runner,
    )

    spare_generators(cpu_model_runner.CPUModelRunner)
    return True


def spare_generators(runner: Any) -> None:
    """Have a class of model runners draw what it will discard without the request's generator.

    Which thus stands where it stood, as after vLLM's own winding back on a GPU: what a request
    samples does not depend on what it was computed together with.
    """
    original = runner.sample_tokens
    if getattr(original, "spares_generators", False):
        return

    def sample_tokens(self: Any, *arguments: Any, **options: Any) -> Any:
        batch = self.input_batch
        (rows,) = self.discard_request_mask.np[: batch.num_reqs].nonzero()
        aside = {
            row: batch.generators.pop(row) for row in map(int, rows) if row in batch.generators
        }
        try:
            return original(self, *arguments, **options)
        finally:
            batch.generators.update(aside)

    sample_tokens.spares_generators = True  # type: ignore[attr-defined]
    runner.sample_tokens = sample_tokens
