"""TRL's client in its own environment: a request per line in, a line of figures out.

Stands alone: nothing of this repository is installed there.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def main(url: str) -> None:
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    from importlib.metadata import version

    from trl.generation.vllm_client import (  # type: ignore[import-not-found, unused-ignore]
        VLLMClient,
    )

    client = VLLMClient(url, connection_timeout=60)
    say(answers, {"trl": version("trl"), "sync": why_no_sync(client)})
    for line in sys.stdin:
        asked = json.loads(line)
        cpu, wall = time.process_time(), time.perf_counter()
        # As `VLLMGeneration.generate` calls it in its server mode: the unique prompts, n each.
        found = client.generate(
            prompts=asked["prompts"],
            n=asked["group_size"],
            temperature=1.0,
            max_tokens=asked["max_tokens"],
            logprobs=0,
            generation_kwargs={"ignore_eos": True},
        )
        spent = {"wall": time.perf_counter() - wall, "client_cpu": time.process_time() - cpu}
        assert len(found["logprobs"]) == len(found["completion_ids"])
        say(answers, {**spent, "tokens": sum(map(len, found["completion_ids"]))})


def why_no_sync(client: Any) -> str | None:
    """What TRL says of sending weights to this engine; ``None`` where it can."""
    import torch

    if torch.cuda.is_available():
        return None
    try:
        client.init_communicator(device="cpu")
    except NotImplementedError as error:
        return str(error)
    return None


def say(answers: Any, data: dict[str, Any]) -> None:
    answers.write(json.dumps(data) + "\n")
    answers.flush()


if __name__ == "__main__":
    main(sys.argv[1])
