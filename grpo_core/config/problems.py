"""Everything that is wrong with a config, collected, so that one run of the command shows it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from grpo_core.config.tree import KeyPath, Place, dotted
from grpo_core.errors import ConfigError, GRPOError


@dataclass(frozen=True, slots=True)
class Problem:
    """Example: ``Problem("unknown key; did you mean 'clip_high'?", ("loss", "clip_hi"),
    Place("run.yaml", 12))`` reads ``run.yaml:12: loss.clip_hi: unknown key; did you ...``."""

    text: str
    path: KeyPath = ()
    place: Place | None = None
    kind: type[GRPOError] = ConfigError

    def __str__(self) -> str:
        parts = [str(self.place) if self.place else "", dotted(self.path), self.text]
        return ": ".join(part for part in parts if part)


@dataclass(slots=True)
class Problems:
    """A list that raises itself at the end."""

    found: list[Problem] = field(default_factory=list)

    def add(
        self,
        text: str,
        path: KeyPath = (),
        place: Place | None = None,
        kind: type[GRPOError] = ConfigError,
    ) -> None:
        problem = Problem(text, path, place, kind)
        if problem not in self.found:
            self.found.append(problem)

    @contextmanager
    def caught(self, path: KeyPath, place: Place) -> Iterator[None]:
        """Errors that the framework raises on purpose become problems at ``path``."""
        try:
            yield
        except GRPOError as error:
            self.add(str(error), path, place, type(error))

    def raise_if_any(self) -> None:
        """Raises ``ConfigError`` with every problem on a line of its own. When all of them are
        of one narrower class, a broken plugin for instance, that class is raised."""
        if not self.found:
            return
        kinds = {problem.kind for problem in self.found}
        kind = kinds.pop() if len(kinds) == 1 else ConfigError
        lines = [str(problem) for problem in self.found]
        if len(lines) > 1:
            lines = [f"{len(lines)} problems in the config:", *("  " + line for line in lines)]
        raise kind("\n".join(lines))
