"""The reward of code that passes its tests."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from grpo_core.types import Abstained, Failed, RewardOutcome, Value
from grpo_sandbox.cases import Case, cases
from grpo_sandbox.config import CodeConfig, LocalSettings, PistonSettings
from grpo_sandbox.extract import last_block
from grpo_sandbox.grading import Grader, UnfitTestError
from grpo_sandbox.local import LocalExecutor
from grpo_sandbox.piston import PistonExecutor
from grpo_sandbox.program import Executor, SandboxError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from grpo_core.protocols import BuildContext
    from grpo_core.types import Rollout, ScoreRequest

log = logging.getLogger(__name__)


class Code:
    """Runs the last code block of each completion against the prompt's tests.

    A program that is wrong, crashes, or passes a limit fails that test. A box that breaks, or a
    test that cannot be run, is ``Failed``: it says nothing about the program. A column with null
    in place of tests: abstained.
    """

    Config = CodeConfig
    name = "code"

    def __init__(
        self,
        config: CodeConfig | None = None,
        context: BuildContext | None = None,
        *,
        executor: Executor | None = None,
    ) -> None:
        """Raises ``IsolationError`` where programs cannot be isolated, see ``LocalExecutor``.

        Args:
            executor: takes the place of the config's, which is built at the start of a run.
        """
        self._config = config or CodeConfig()
        self._given = executor
        self._grader: Grader | None = None
        if context is not None and context.run_dir is not None:
            self._ready()  # a machine without isolation is told before anything is sampled

    def describe(self) -> str:
        """Where programs run, and what isolates them."""
        return self._ready().executor.describe()

    async def score(self, request: ScoreRequest) -> Sequence[RewardOutcome]:
        """One outcome per rollout, in order; a program that occurs twice for a prompt is run once.

        Raises:
            DataError: a prompt brings no tests, or in no known form.
        """
        grader = self._ready()
        work: dict[tuple[str, str], asyncio.Task[RewardOutcome]] = {}
        outcomes: list[RewardOutcome | asyncio.Task[RewardOutcome]] = []
        tests = {r.prompt.id: self._tests(r) for r in request.rollouts_B}
        async with asyncio.TaskGroup() as group:
            for rollout in request.rollouts_B:
                code = last_block(rollout.text, self._config.fences)
                found = tests[rollout.prompt.id]
                if found is None:
                    outcomes.append(Abstained(reason="the prompt has no tests (null)"))
                elif code is None:
                    outcomes.append(Value(value=self._config.no_code))
                else:
                    key = (rollout.prompt.id, code)
                    if key not in work:
                        work[key] = group.create_task(self._outcome(grader, code, found))
                    outcomes.append(work[key])
        return [o.result() if isinstance(o, asyncio.Task) else o for o in outcomes]

    def _tests(self, rollout: Rollout) -> list[Case] | None:
        return cases(rollout.prompt.columns, self._config.column)

    async def _outcome(self, grader: Grader, code: str, tests: list[Case]) -> RewardOutcome:
        try:
            return Value(value=await self._value(grader, code, tests))
        except SandboxError as error:
            return Failed(kind="error", reason=str(error))
        except UnfitTestError as error:
            return Failed(kind="invalid", reason=f"a test cannot be run: {error}")

    async def _value(self, grader: Grader, code: str, tests: list[Case]) -> float:
        if self._config.scoring == "pass-fail":
            # One after the other: the first that fails decides.
            for test in tests:
                if not (await grader.grade(code, test)).passed:
                    return 0.0
            return 1.0
        verdicts = await asyncio.gather(*(grader.grade(code, test) for test in tests))
        weighted = self._config.scoring == "weighted"
        weights = [test.weight if weighted else 1.0 for test in tests]
        passed = [w for w, verdict in zip(weights, verdicts, strict=True) if verdict.passed]
        # All passed is exactly 1, whatever the rounding of the sums.
        return 1.0 if len(passed) == len(tests) else sum(passed) / sum(weights)

    def _ready(self) -> Grader:
        # Not always when built: a config is also checked where nothing is to be run.
        if self._grader is None:
            config = self._config
            executor = self._given or make_executor(config)
            log.info("model-written code runs in: %s", executor.describe())
            self._grader = Grader(
                executor=executor,
                limits=config.limits,
                language=config.language,
                stdout_rule=config.stdout,
                tolerance=config.tolerance,
            )
        return self._grader


def make_executor(config: CodeConfig) -> Executor:
    """The executor that a config names."""
    chosen = config.executor
    if isinstance(chosen, PistonSettings):
        return PistonExecutor(chosen, concurrency=config.concurrency)
    assert isinstance(chosen, LocalSettings)
    return LocalExecutor(
        python=chosen.python,
        read_only=chosen.read_only,
        concurrency=config.concurrency,
        unsafe=chosen.unsafe,
    )
