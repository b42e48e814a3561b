"""Options of the code reward."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from grpo_core.settings import Settings
from grpo_sandbox.program import Limits


class LocalSettings(Settings):
    """Programs run on this machine, in namespaces of their own."""

    kind: Literal["local"] = "local"
    python: str | None = Field(
        None,
        description="Interpreter for the programs, with the packages that they may import; null is "
        "this one's, without any packages.",
    )
    read_only: tuple[str, ...] = Field(
        (), description="Further folders that programs may read, such as data."
    )
    unsafe: bool = Field(
        False, description="Run without isolation where this machine permits none."
    )


class PistonSettings(Settings):
    """Programs run on a Piston server, API v2 (github.com/engineer-man/piston)."""

    kind: Literal["piston"] = "piston"
    url: str = Field(
        description="Base of the API: http://127.0.0.1:2000/api/v2", pattern=r"^https?://"
    )
    token: str | None = Field(None, description="Sent as the header Authorization.")
    version: str = Field("*", description="Of the language, as the server selects it (semver).")
    timeout_s: float = Field(
        30.0, gt=0, description="Seconds for an answer, beyond the program's own wall time."
    )


ExecutorSettings = Annotated[LocalSettings | PistonSettings, Field(discriminator="kind")]


class CodeConfig(Settings):
    """How code is found, where it is run and what it is worth."""

    column: str | None = Field(
        None,
        description="Column with the tests; null looks for the usual names: tests, "
        "verification_info, input_output, test_cases, public_test_cases, test_list, test.",
    )
    language: str = Field(
        "python", description="Of the programs; others than python need Piston and stdin tests."
    )
    fences: tuple[str, ...] = Field(
        ("python", "py", "python3"),
        min_length=1,
        description='Language tags of the block that is taken, the last one; "" for untagged.',
    )
    scoring: Literal["pass-fail", "fraction", "weighted"] = Field(
        "pass-fail",
        description="pass-fail: 1 if every test passes, else 0. fraction: share of tests passed. "
        "weighted: the same by the tests' weights.",
    )
    no_code: float = Field(
        0.0, description="Score of a completion without a program (open-r1's cf_code: -1)."
    )
    stdout: Literal["lines", "tokens", "exact"] = Field(
        "lines", description="How stdout is compared; white space at line ends counts in exact."
    )
    tolerance: float = Field(
        0.0, ge=0, lt=1, description="Numbers may differ so much, relatively or absolutely."
    )
    concurrency: int | None = Field(
        None, ge=1, description="Programs at a time; null is the number of CPUs."
    )
    limits: Limits = Field(default_factory=Limits, description="Of each run of a program.")
    executor: ExecutorSettings = Field(
        default_factory=LocalSettings, description="Where programs run."
    )
