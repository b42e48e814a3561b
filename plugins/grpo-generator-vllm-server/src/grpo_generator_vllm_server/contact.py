"""The first words with a server: what it is, and whether it can be worked with."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from grpo_core.errors import ConfigError
from grpo_generator_vllm_server.client import INSTANCE_HEADER, QUICK_SECONDS
from grpo_generator_vllm_server.errors import RequestRefusedError, ServerDownError, ServerLostError
from grpo_generator_vllm_server.likeness import require_alike
from grpo_generator_vllm_server.sync import Facts

if TYPE_CHECKING:
    from grpo_generator_vllm_server.client import Server

logger = logging.getLogger(__name__)

HOW_TO_START = "start it with `grpo serve MODEL`, or with what `grpo serve MODEL --show` prints"


def first_contact(server: Server, versions: str, policys: Mapping[str, Any]) -> Facts:
    """Ask a server what it is.

    Args:
        policys: its configuration; see ``likeness.config_of``.

    Raises:
        ConfigError: it is no vLLM, of another version, answers for some of its workers only,
            reports other log-probs than those that it samples by, computes otherwise than the
            policy, or was started without what weight updates need.
        ServerError: it cannot be reached, or refuses the token.
    """
    try:
        said = server.get("/version").get("version", "")
        require_version(server, str(said), versions)
        models: Any = server.get("/v1/models").get("data", ())
    except (RequestRefusedError, AttributeError) as error:
        if "bearer token" in str(error):
            raise
        raise ConfigError(f"{server} is no vLLM server that can be used: {error}") from error
    served = [m for m in models if not m.get("parent")]
    if not served:
        raise ConfigError(f"{server} offers no model: {models}")
    try:
        workers = server.rpc("grpo_held", seconds=30)
    except RequestRefusedError as error:
        raise ConfigError(
            f"{server} was started without development routes, so weights cannot reach it "
            f"({error}); {HOW_TO_START}"
        ) from error
    except ServerDownError:
        raise
    except ServerLostError as error:  # 500: the workers have no such method
        raise ConfigError(
            f"{server} was started without the worker extension that checks weights ({error}); "
            f"{HOW_TO_START}"
        ) from error
    if not all(isinstance(w, dict) and "lora_rank" in w for w in workers):
        raise ConfigError(
            f"{server} was started without the worker extension that checks weights; {HOW_TO_START}"
        )
    require_all_heard(server, len(workers))
    facts = workers[0]
    if facts["logprobs_mode"] != "processed_logprobs":
        raise ConfigError(
            f"{server} reports {facts['logprobs_mode']}, which leave out the temperature; "
            f"it needs --logprobs-mode processed_logprobs: {HOW_TO_START}"
        )
    (config, *_) = server.rpc("grpo_config", seconds=QUICK_SECONDS)
    require_alike(server, config, policys)
    rounded = [
        f"{what} in {value}"
        for what, value in (
            ("weights", facts.get("quantization")),
            ("keys and values", facts.get("cache_dtype")),
        )
        if str(value) not in ("None", "auto", facts["dtype"])
    ]
    if rounded:
        logger.warning(
            "%s keeps %s: its log-probs are not the policy's by more than rounding "
            "(ratio/sampler_mismatch_kl)",
            *(server, " and ".join(rounded)),
        )
    return Facts(
        version=str(said),
        served=str(served[0]["id"]),
        dtype=str(facts["dtype"]),
        logprobs_mode=str(facts["logprobs_mode"]),
        lora_rank=int(facts["lora_rank"]),
        device=str(facts["device"]),
    )


def require_all_heard(server: Server, heard: int) -> None:
    """Raises ``ConfigError`` unless one process answers, and every worker behind it."""
    if server.seen_instance is None:
        raise ConfigError(
            f"{server} does not say which process answers, so one that has other weights would not "
            "be noticed: it was started without the middleware that guards it, or a proxy removes "
            f"the header {INSTANCE_HEADER}; {HOW_TO_START}"
        )
    workers = server.get("/get_world_size").get("world_size")
    if workers != heard:
        raise ConfigError(
            f"{server} has {workers} workers, of which {heard} answer: with data parallelism vLLM "
            "asks its first engine only, and weights that do not reach the others would not be "
            "noticed. Start as many servers in place of --data-parallel-size (`grpo serve "
            "--replicas`), and name them all in generator.urls"
        )


def require_version(server: object, said: str, versions: str) -> None:
    """Raises ``ConfigError`` unless ``said`` is a version in the range."""
    try:
        accepted = SpecifierSet(versions)
    except InvalidSpecifier as error:
        raise ConfigError(f"generator.versions is {versions!r}: {error}") from error
    try:
        version = Version(said)
    except InvalidVersion as error:
        raise ConfigError(f"{server} says that it is vLLM {said!r}, which is no version") from error
    # Builds from source call themselves 0.32.1.dev5+g1234; they are what they come after.
    if not accepted.contains(Version(version.base_version), prereleases=True):
        raise ConfigError(
            f"{server} is vLLM {said}; this plugin is tested with {versions}. "
            "Install one of these, or set generator.versions to try another at your own risk"
        )
