"""The environments `tools` and `multi-turn`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from grpo_core import Reward
from grpo_core.errors import ConfigError, DataError
from grpo_core.plugins import import_object
from grpo_core.turns import sample_turns
from grpo_tools.chat import Chat
from grpo_tools.config import LoopConfig, MultiTurnConfig, ToolsConfig
from grpo_tools.crew import Crew
from grpo_tools.parsing import Parser, make_parser
from grpo_tools.rewards import EnvironmentReward
from grpo_tools.sessions import Factory, Functions, Kind
from grpo_tools.workbench import Workbench

if TYPE_CHECKING:
    from grpo_core.protocols import BuildContext, Generator
    from grpo_core.types import Prompt, Rollout, RolloutRequest


class _Loop:
    """Turns of the policy, and what is said to it in between."""

    def __init__(self, config: LoopConfig, kinds: Sequence[Kind]) -> None:
        self._config = config
        self._kinds = kinds
        self._bench: Workbench | None = None
        self._ready_for: tuple[object, Chat, Parser] | None = None

    def rollouts(
        self, request: RolloutRequest, generator: Generator
    ) -> Iterator[Sequence[Rollout]]:
        """Yield each group when its last member has ended.

        Raises:
            ConfigError: the chat template or the tokenizer cannot do what is asked; said before
                anything is sampled.
            DataError: a prompt is no conversation, too long with its tools, or names an
                environment that there is not.
            PluginError: the generator or the user's code broke what they promise.
        """
        chat, parser = self._tried_out(request)
        if self._bench is None:
            self._bench = Workbench(
                timeout=self._config.call_timeout, at_once=self._config.calls_at_once
            )
        crew = Crew(request, self._config, chat, parser, self._bench)
        try:
            turns = crew.start([self._kind_of(prompt) for prompt in request.prompts_P])
            for turn in sample_turns(generator, turns):
                crew.sampled(turn)
                yield from crew.complete()
            crew.require_finished()
            yield from crew.complete()
        finally:
            crew.close()

    def _kind_of(self, prompt: Prompt) -> Kind:
        return self._kinds[0]

    def _tried_out(self, request: RolloutRequest) -> tuple[Chat, Parser]:
        """The chat template and the parser, tried once per tokenizer."""
        encoder = request.encoder
        if encoder is None:
            raise ConfigError(
                "the rollout request has no encoder; an environment with turns needs the policy's "
                "tokenizer and chat template"
            )
        if self._ready_for is None or self._ready_for[0] is not encoder:
            template = self._config.chat_template
            chat = Chat(encoder, request.generate.eos_token_ids, template)
            for kind in self._kinds:
                chat.probe([tool.schema for tool in kind.tools.values()], answers=kind.answers)
            self._ready_for = encoder, chat, make_parser(self._config, encoder.tokenizer)
        return self._ready_for[1:]


class Tools(_Loop):
    """The policy calls functions; what they return stands in its context, and it goes on.

    ``Tools(tools=[search, calculator])``, or by import path in a config. The calls of one turn run
    together, those of different rollouts too, so functions must be thread-safe (or
    ``calls_at_once=1``).
    """

    def __init__(
        self,
        config: ToolsConfig | None = None,
        context: BuildContext | None = None,
        *,
        tools: Sequence[Callable[..., Any]] = (),
    ) -> None:
        """Raises ``ConfigError`` for a tool that cannot be imported or described."""
        config = config or ToolsConfig()
        named = [import_object(path, what=f"tool {path!r}") for path in config.tools]
        super().__init__(config, [Functions([*named, *tools])])


class MultiTurn(_Loop):
    """Each rollout takes place in an instance of the user's class; see ``Factory``.

    ``MultiTurn(environment_factory=Wordle)``, or ``{"wordle": Wordle, "maze": Maze}`` with a column
    that says which. Instances live for one rollout, so that there is nothing to save between steps.
    """

    def __init__(
        self,
        config: MultiTurnConfig | None = None,
        context: BuildContext | None = None,
        *,
        environment_factory: Callable[[], Any] | Mapping[str, Callable[[], Any]] | None = None,
    ) -> None:
        """Raises ``ConfigError`` for a class that cannot be imported, made or used."""
        config = config or MultiTurnConfig()
        made = environment_factory or config.environment_factory
        if not made:
            raise ConfigError(
                "environment 'multi-turn' has no environment_factory; name a class, as "
                "package.module:Class or file.py:Class"
            )
        self._routed = isinstance(made, Mapping)
        named: Mapping[str, Any] = made if isinstance(made, Mapping) else {"environment": made}
        self._by_name = {name: Factory(name, _imported(found)) for name, found in named.items()}
        self._column, self._weight = config.column, config.reward_weight
        super().__init__(config, list(self._by_name.values()))

    def rewards(self) -> Sequence[Reward]:
        """One for each environment that has a reward of its own, called by its class."""
        return [
            Reward(
                provider=EnvironmentReward(name, kind.label),
                weight=self._weight,
                label=kind.label if self._labels.count(kind.label) == 1 else name,
            )
            for name, kind in self._by_name.items()
            if kind.rewards
        ]

    @property
    def _labels(self) -> list[str]:
        return [kind.label for kind in self._by_name.values()]

    def _kind_of(self, prompt: Prompt) -> Kind:
        if not self._routed:
            return self._kinds[0]
        name = prompt.columns.get(self._column)
        if name not in self._by_name:
            raise DataError(
                f"prompt {prompt.id!r} names the environment {name!r} in its column "
                f"{self._column!r}; there are: {', '.join(self._by_name)}"
            )
        return self._by_name[name]


def _imported(found: str | Callable[[], Any]) -> Callable[[], Any]:
    return import_object(found, what=f"environment {found!r}") if isinstance(found, str) else found
