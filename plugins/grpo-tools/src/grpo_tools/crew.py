"""The rollouts of one request: some are being sampled, the others wait for their tools."""

from __future__ import annotations

import hashlib
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import TYPE_CHECKING, Any

from grpo_core.errors import DataError, PluginError
from grpo_core.types import Prompt, Rollout, Turn, TurnRequest
from grpo_tools.calls import Result, run_calls, run_reward
from grpo_tools.episode import Episode
from grpo_tools.sessions import row_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from grpo_core.types import RolloutRequest, SampledTurn
    from grpo_tools.chat import Chat
    from grpo_tools.config import LoopConfig
    from grpo_tools.parsing import Parser, Said
    from grpo_tools.sessions import Kind
    from grpo_tools.workbench import Workbench

_PATIENCE = 5.0
"""Seconds without news after which the workbench is asked whether it is alive."""


class Crew:
    """Takes what was sampled, has tools called for it, and hands out the next turns.

    User code runs on the workbench. Everything else, the tokenizer above all, runs in the thread
    that samples: fast tokenizers are not to be shared between threads.
    """

    def __init__(
        self,
        request: RolloutRequest,
        config: LoopConfig,
        chat: Chat,
        parser: Parser,
        bench: Workbench,
    ) -> None:
        self._request, self._config = request, config
        self._chat, self._parser, self._bench = chat, parser, bench
        self._news: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._running: set[Future[Any]] = set()
        self._ready: list[Turn] = []
        self._episodes: dict[tuple[int, int], Episode] = {}
        self._finished: dict[int, dict[int, Rollout]] = {}

    # -- from prompts to first turns ------------------------------------------------------------

    def start(self, kinds: Sequence[Kind]) -> TurnRequest:
        """Reset all environments, and make ready for sampling.

        Args:
            kinds: each prompt's environment.

        Raises:
            DataError: a prompt, with its tools, does not fit the model.
            PluginError: every single ``reset`` failed.
        """
        generate = self._request.generate
        encoded: dict[tuple[int, str], tuple[int, ...]] = {}

        def begin(episode: Episode, index: int, added: object) -> None:
            text = added if isinstance(added, str) else ""
            if added is not None and not isinstance(added, str):
                self._fail(episode, f"reset() returned a {type(added).__name__}, not text or None")
                return
            if (index, text) not in encoded:
                encoded[index, text] = self._encode(episode, text)
            episode.prompt_ids = encoded[index, text]
            self._ready.append(episode.next_turn())

        for index, kind in enumerate(kinds):
            prompt, key = self._request.prompts_P[index], generate.prompt_keys_P[index]
            for sample in range(generate.group_size):
                episode = Episode(
                    prompt=prompt,
                    key=key,
                    sample=sample,
                    kind=kind,
                    session=kind.open(),
                    max_tokens=generate.sampling.max_tokens,
                )
                self._episodes[key, sample] = episode
                reset = episode.session.reset
                if reset is None:
                    begin(episode, index, None)
                    continue
                row = row_of(prompt, reset, self._seed(key, sample))
                self._run(
                    self._bench.call(reset, **row),
                    partial(begin, episode, index),
                    partial(self._failed, episode, "reset"),
                )
        # All of them before the first token: what a generator must hold for a rollout is known
        # only when the longest prompt is.
        while self._running:
            self._hear(wait=True)
        self._require_some()
        longest = max((len(ids) for ids in encoded.values()), default=0)
        return TurnRequest(
            step=generate.step,
            seed=generate.seed,
            group_size=generate.group_size,
            rollouts=len(self._episodes),
            longest=longest + generate.sampling.max_tokens,
            sampling=generate.sampling,
            eos_token_ids=generate.eos_token_ids,
            take=self.take,
        )

    def take(self, wait: bool) -> Sequence[Turn]:
        """The turns that are ready; see ``TurnRequest.take``."""
        self._hear(wait=False)
        while wait and not self._ready and self._running:
            self._hear(wait=True)
        ready, self._ready = self._ready, []
        return ready

    # -- what became of a turn ------------------------------------------------------------------

    def sampled(self, turn: SampledTurn) -> None:
        """Take one turn of the policy; the rollout goes on, waits, or ends."""
        episode = self._episodes[turn.turn.key, turn.turn.sample]
        prefix = partial(self._chat.text, turn.turn.prompt_ids)
        episode.sampled(turn)
        said = self._parser(self._chat.text(turn.completion.token_ids), prefix)
        episode.messages.append(said.message)
        if turn.completion.finish_reason == "length":
            self._end(episode, "length")
        elif said.calls:
            self._calls(episode, said, turn)
        elif episode.session.step is None:
            self._end(episode, "stop")
        elif self._may_go_on(episode):
            self._run(
                self._bench.call(episode.session.step, said.content),
                lambda answer: self._answered(episode, answer, turn),
                partial(self._failed, episode, "step"),
            )

    def _calls(self, episode: Episode, said: Said, turn: SampledTurn) -> None:
        if not self._may_go_on(episode):
            return
        started = perf_counter()
        self._run(
            run_calls(self._bench, episode, said.calls),
            lambda results: self._returned(episode, said, results, turn, perf_counter() - started),
            partial(self._failed, episode, "calling tools"),
        )

    def _may_go_on(self, episode: Episode) -> bool:
        if episode.turns < self._config.max_turns:
            return True
        # Every token that it said is whole: not "length", which losses may mask as cut off.
        episode.count("tools/turn_limit")
        self._end(episode, "stop")
        return False

    def _returned(
        self,
        episode: Episode,
        said: Said,
        results: Sequence[Result],
        turn: SampledTurn,
        seconds: float,
    ) -> None:
        episode.called(said, results, seconds)
        limit = self._config.max_result_tokens
        texts = [r.text if limit is None else self._chat.shortened(r.text, limit) for r in results]
        names = [result.name for result in results]
        ids = self._chat.after_calls(names, texts, self._schemas(episode), _last(turn))
        messages = [
            {"role": "tool", "name": name, "content": text}
            for name, text in zip(names, texts, strict=True)
        ]
        if episode.session.done:
            # Nothing is left to say: rewards see the results, the policy does not.
            episode.messages += messages
            self._end(episode, "stop")
            return
        self._go_on(episode, ids, messages)

    def _answered(self, episode: Episode, answer: object, turn: SampledTurn) -> None:
        if answer is None or episode.session.done:
            if isinstance(answer, str):
                episode.messages.append({"role": "user", "content": answer})
            self._end(episode, "stop")
        elif not isinstance(answer, str):
            self._fail(episode, f"step() returned a {type(answer).__name__}, not text or None")
        else:
            ids = self._chat.after_answer(answer, self._schemas(episode), _last(turn))
            self._go_on(episode, ids, [{"role": "user", "content": answer}])

    def _go_on(
        self, episode: Episode, ids: tuple[int, ...], messages: Sequence[dict[str, Any]]
    ) -> None:
        if len(ids) >= episode.room:
            # No token would be left to react with: the rollout ends as it was, like TRL's.
            episode.count("tools/cut")
            self._end(episode, "length")
            return
        episode.inserted(ids)
        episode.messages += messages
        self._ready.append(episode.next_turn())

    # -- ends -----------------------------------------------------------------------------------

    def complete(self) -> Iterator[list[Rollout]]:
        """Groups of which every member has ended."""
        size = self._request.generate.group_size
        for key in [key for key, members in self._finished.items() if len(members) == size]:
            members = self._finished.pop(key)
            yield [members[sample] for sample in range(size)]

    def close(self) -> None:
        """Give up what is still running."""
        for future in self._running:
            future.cancel()

    def require_finished(self) -> None:
        """Raises ``PluginError`` when the generator stopped before every rollout had ended."""
        if self._episodes:
            key, sample = next(iter(self._episodes))
            raise PluginError(
                f"the generator ended while {len(self._episodes)} rollouts were not finished, "
                f"sample {sample} of prompt {key} among them; every turn handed out must come back"
            )

    def _end(self, episode: Episode, reason: Any, error: str | None = None) -> None:
        episode.end(reason, error)
        session = episode.session
        if session.reward is None and session.close is None:
            self._store(episode)
            return
        self._run(self._farewell(episode), lambda _: self._store(episode), self._raise)

    async def _farewell(self, episode: Episode) -> None:
        session = episode.session
        if session.reward is not None and episode.error is None:
            episode.extra["environment"] = episode.kind.name
            episode.extra |= await run_reward(self._bench, session.reward)
        if session.close is not None:
            await self._bench.call(session.close)

    def _failed(self, episode: Episode, call: str, error: str) -> None:
        self._fail(episode, f"{call} raised {error}")

    def _fail(self, episode: Episode, error: str) -> None:
        """The environment gives up: the rollout is data for nobody, and says why."""
        self._end(episode, "error", f"environment {episode.kind.name!r}: {error}")

    def _store(self, episode: Episode) -> None:
        del self._episodes[episode.key, episode.sample]
        rollout = episode.rollout(self._request.decode)
        self._finished.setdefault(episode.key, {})[episode.sample] = rollout

    def _require_some(self) -> None:
        finished = [r for members in self._finished.values() for r in members.values()]
        if finished and not self._episodes:
            raise PluginError(f"no rollout could begin: {finished[0].error}")

    # -- helpers --------------------------------------------------------------------------------

    def _run(
        self,
        job: Coroutine[Any, Any, Any],
        done: Callable[[Any], None],
        failed: Callable[[str], None],
    ) -> None:
        """Run a job aside; what came of it is heard in the thread that samples."""
        future = self._bench.start(job)
        self._running.add(future)

        def report() -> None:
            self._running.discard(future)
            error = future.exception()
            if error is None:
                done(future.result())
            else:
                failed(f"{type(error).__name__}: {error}")

        future.add_done_callback(lambda _: self._news.put(report))

    def _hear(self, *, wait: bool) -> None:
        """Take what has come back; with ``wait`` at least one."""
        while True:
            try:
                self._news.get(block=wait, timeout=_PATIENCE if wait else None)()
                wait = False
            except Empty:
                if not wait:
                    return
                self._bench.require_alive()

    def _encode(self, episode: Episode, added: str) -> tuple[int, ...]:
        prompt = episode.prompt
        if not prompt.conversational:
            raise DataError(
                f"prompt {prompt.id!r} is plain text; tools and further turns are written by the "
                "chat template, so give messages: [{role: user, content: ...}]"
            )
        if prompt.inputs:
            # Left out silently, the policy would be trained to answer about what it never saw.
            raise DataError(
                f"prompt {prompt.id!r} also carries {sorted(prompt.inputs)}; environments with "
                "turns take text only"
            )
        if added:
            prompt = _with(prompt, added)
        ids = self._chat.encode(prompt, self._schemas(episode))
        limit = self._request.context_length
        if limit is not None and len(ids) + episode.max_tokens > limit:
            raise DataError(
                f"prompt {prompt.id!r} has {len(ids)} tokens with its tools; with "
                f"sampling.max_tokens {episode.max_tokens} that is more than the model's context "
                f"of {limit}. Lower sampling.max_tokens, describe the tools in fewer words, or "
                "leave the prompt out"
            )
        return ids

    def _schemas(self, episode: Episode) -> list[Any]:
        return [tool.schema for tool in episode.kind.tools.values()]

    def _seed(self, key: int, sample: int) -> int:
        generate = self._request.generate
        place = f"{generate.seed} {generate.step} {key} {sample}"
        return int.from_bytes(hashlib.sha256(place.encode()).digest()[:6], "big")

    @staticmethod
    def _raise(error: str) -> None:
        raise PluginError(f"close() of an environment raised {error}")


def _last(turn: SampledTurn) -> int:
    ids = turn.completion.token_ids
    return ids[-1] if ids else -1


def _with(prompt: Prompt, added: str) -> Prompt:
    """The prompt with text behind its last user message."""
    messages = [dict(message) for message in prompt.content if not isinstance(message, str)]
    for message in reversed(messages):
        if message.get("role") == "user":
            content = message["content"]
            block = [{"type": "text", "text": added}]
            message["content"] = content + added if isinstance(content, str) else content + block
            break
    else:
        messages.append({"role": "user", "content": added})
    return Prompt(
        id=prompt.id, content=tuple(messages), columns=prompt.columns, inputs=prompt.inputs
    )
