"""Run by ``test_shared_engine.py`` under torchrun: two ranks that hold one engine together."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import torch
import torch.distributed as dist

from grpo_core import ModelSettings, Policy, SamplingParams
from grpo_core.demo import checkpoint
from grpo_core.types import GenerateRequest, WeightUpdate
from grpo_generator_vllm_colocate import VLLMColocateConfig, VLLMColocateGenerator, lockstep
from grpo_generator_vllm_server import request as requests

PEER_TIMEOUT = 20.0
"""Seconds; longer than two parts of an engine are apart on a busy machine."""
LATE = PEER_TIMEOUT + 2


class Ranks:
    """What the scenarios below share. Each is a method, and returns what the test looks at."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.policy = Policy(ModelSettings(path=str(checkpoint("habit")), threads=1))
        self.policy.prepare(optimizer_steps=1, temperature=1.0, tokens_per_microbatch=4096)
        self.rank = dist.get_rank()
        config = VLLMColocateConfig(tensor_parallel_size=2, peer_timeout=PEER_TIMEOUT, **options)
        self.generator = VLLMColocateGenerator(config)

    def request(self, *keys: int, **changes: Any) -> GenerateRequest:
        return GenerateRequest(
            **{
                "step": 0,
                "seed": 7,
                "prompt_ids_P": tuple((10 + key, 20, 30 + key) for key in keys),
                "prompt_keys_P": keys,
                "group_size": 4,
                "sampling": SamplingParams(max_tokens=12),
                "eos_token_ids": (2,),
                **changes,
            }
        )

    def tokens(self, *keys: int) -> dict[int, Any]:
        """By the prompt's key: what each of its completions is."""
        groups = self.generator.generate(self.request(*keys))
        return {keys[g.index]: [c.token_ids for c in g.completions_G] for g in groups}

    def synced(self) -> None:
        assert self.generator.sync(self.policy.weight_update()) == self.policy.version

    @property
    def engine(self) -> Any:
        return self.generator._engine

    # -- scenarios ------------------------------------------------------------------------------

    def uneven(self) -> Any:
        """As many prompts as the ranks like, also none; nothing else is changed in the process."""
        self.synced()
        random.seed(5), torch.manual_seed(5)
        found = surroundings()
        one = self.tokens(*((0, 1, 2), (3,))[self.rank])
        other = self.tokens(*((), (0, 1, 2, 3))[self.rank])
        assert surroundings() == found
        assert self.engine._llm.llm_engine.is_sleeping()
        return [one, other]

    def rounds(self) -> Any:
        """One rank asks three times, the other once, or not at all."""
        found = []
        with self.generator.together():
            for keys in (((0,), (1, 2), (3,)), ((2,),))[self.rank]:
                found.append(self.tokens(*keys))
        with self.generator.together():
            if self.rank:
                found.append(self.tokens(0))
        with self.generator.together():
            pass
        return found

    def abandoned(self) -> Any:
        """A rank that stops after its first group, and one that never begins."""
        with self.generator.together():
            groups = self.generator.generate(self.request(0, 1))
            if self.rank:
                first = next(groups)
                groups.close()
                assert len(first.completions_G) == 4
            else:
                assert len(list(groups)) == 2
            self.generator.generate(self.request(2))
        return self.tokens(self.rank)

    def broken_tool(self) -> Any:
        """A tool breaks on one rank while the other waits for it."""
        said = failure(self._broken_tool)
        again = failure(lambda: self.tokens(0))
        self.synced()
        return [said, again, self.tokens(self.rank)]

    def _broken_tool(self) -> None:
        with self.generator.together():
            if self.rank:
                time.sleep(0.5)
                raise ValueError("the tool broke")
            self.tokens(0)

    def refused(self) -> Any:
        """vLLM does not take what one rank asks for."""
        prompts = ((10, 5000 if self.rank else 20),)
        said = failure(lambda: list(self.generator.generate(self.request(0, prompt_ids_P=prompts))))
        self.synced()
        return [said, self.tokens(self.rank)]

    def wrong_weights(self) -> Any:
        """The weights of one rank do not fit, before anything is applied and in the middle."""
        return [self._wrong_weights(from_call) for from_call in (0, 1)]

    def _wrong_weights(self, from_call: int) -> Any:
        engine = self.engine
        update = self.policy.weight_update()
        if self.rank:
            update = without_one(update, from_call)
        said = failure(lambda: self.generator.sync(update))
        then = failure(lambda: self.tokens(0))
        self.synced()
        return [said, then, self.engine is engine, self.tokens(self.rank)]

    def other_tokens(self) -> Any:
        """The parts of the engine draw with different random numbers."""
        engine, seed = self.engine, requests.prompt_seed
        requests.prompt_seed = lambda *key: seed(*key) + self.rank  # type: ignore[assignment]
        said = failure(lambda: self.tokens(0, 1))
        requests.prompt_seed = seed
        self.synced()
        return [said, self.engine is engine, self.tokens(self.rank)]

    def other_weights(self) -> Any:
        """One rank has missed a sync."""
        self.generator._lockstep._policy_version += self.rank  # type: ignore[union-attr]
        said = failure(lambda: self.tokens(0, 1))
        self.synced()
        return said

    def comes_late(self) -> Any:
        """A rank that is not there in time, and comes afterwards."""
        if self.rank:
            time.sleep(LATE)
        said = failure(lambda: self.tokens(self.rank))
        dist.barrier()
        self.synced()
        return [said, self.tokens(self.rank)]

    def again(self) -> Any:
        """Closed, and asked once more, in the same process."""
        group, found = dist.group.WORLD, []
        for _ in range(2):
            self.generator.close()
            self.generator.close()
            assert dist.group.WORLD is group
            groups = len(dist.distributed_c10d._world.pg_map)
            ours = [t.name for t in threading.enumerate() if t.name.startswith("grpo-")]
            total = torch.ones(1)
            dist.all_reduce(total)
            said = failure(lambda: self.tokens(0))
            self.synced()
            found.append([groups, ours, float(total), said, self.tokens(self.rank)])
        return found

    def dies_inside(self) -> Any:
        """vLLM fails on one rank, in the middle of a step that the other has begun."""
        lockstep.GRACE = 2.0
        self.synced()
        step, left = self.engine._llm.llm_engine.step, iter(range(2))

        def fails() -> Any:
            if next(left, None) is None:
                raise RuntimeError("CUDA out of memory")
            return step()

        if self.rank:
            self.engine._llm.llm_engine.step = fails
        said = failure(lambda: self.tokens(self.rank))
        # As a saver would that waits for the other.
        time.sleep(60)
        return said


def surroundings() -> Any:
    return (
        torch.get_rng_state().tolist(),
        random.getstate(),
        torch.get_num_threads(),
        torch.set_num_threads,
        sys.excepthook,
        {n: v for n, v in os.environ.items() if not n.startswith("VLLM_")},
    )


def without_one(update: WeightUpdate, from_call: int) -> WeightUpdate:
    calls = iter(range(1000))

    def named_tensors() -> Iterator[tuple[str, torch.Tensor]]:
        tensors = list(update.named_tensors())
        return iter(tensors[:-1] if next(calls) >= from_call else tensors)

    return dataclasses.replace(update, named_tensors=named_tensors)


def failure(call: Callable[[], object]) -> tuple[str, str, float]:
    """Class and text of what it raises, and after how many seconds."""
    began = time.monotonic()
    try:
        call()
    except Exception as error:
        return type(error).__name__, str(error), time.monotonic() - began
    return "", "", time.monotonic() - began


@contextmanager
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo")
    yield
    dist.destroy_process_group()


def main(output: Path, options: dict[str, Any], scenarios: list[str]) -> None:
    with process_group():
        ranks = Ranks(options)
        for name in scenarios:
            began = time.monotonic()
            found = getattr(ranks, name)()
            (output / f"{name}.{ranks.rank}.json").write_text(json.dumps(found))
            print(name, ranks.rank, round(time.monotonic() - began, 1), file=sys.stderr, flush=True)
        ranks.generator.close()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:])
