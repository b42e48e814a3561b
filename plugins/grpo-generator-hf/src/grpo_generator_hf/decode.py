"""The decode loop: each prompt once, then one token for all rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from grpo_generator_hf.kv_cache import CachedBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from grpo_core.types import GenerateRequest
    from grpo_generator_hf.draws import Draws
    from grpo_generator_hf.rows import Row

_COMPACT_AT = 7 / 8
"""Share of unfinished lines at which the finished ones leave the batch. Anything from 1/2 to 0.95
measured alike on a CPU: compacting costs about what the cache copies in one step anyway."""


def decode(
    base: PreTrainedModel, request: GenerateRequest, rows: Sequence[Row], draws: Draws
) -> None:
    """Sample one batch of rows into ``draws``.

    A prompt is computed once, whatever the number of its rows: their first tokens are drawn from
    the same logits, and its cache is multiplied afterwards, for the rows that go on.
    """
    prompts = sorted({row.prompt for row in rows})
    place = {prompt: i for i, prompt in enumerate(prompts)}
    batch = CachedBatch(base)
    logits_PV = batch.prefill([request.prompt_ids_P[prompt] for prompt in prompts])
    # Which row of the cache each line continues; None once they are the same.
    source_B: Tensor | None = torch.tensor(
        [place[row.prompt] for row in rows], device=logits_PV.device
    )
    logits_BV = logits_PV[source_B]
    while True:
        token_B = draws.draw(logits_BV)
        lines = draws.unfinished()
        if not lines:
            return
        if source_B is not None or len(lines) <= _COMPACT_AT * len(token_B):
            going_on = torch.tensor(lines, device=token_B.device)
            batch.select(going_on if source_B is None else source_B[going_on])
            draws.keep(lines)
            token_B, source_B = token_B[going_on], None
        logits_BV = batch.step(token_B)
