"""How new weights reach a server: one interface, chosen by what policy and servers can do.

A push is all or nothing. The server is asked afterwards what it holds, and only resumed, by whoever
paused it, when that is what it was given.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from grpo_generator_vllm_server.adapters import base_digests, write_adapter
from grpo_generator_vllm_server.client import QUICK_SECONDS
from grpo_generator_vllm_server.errors import PushError, ServerError
from grpo_generator_vllm_server.weights import Sent, write_weights

if TYPE_CHECKING:
    from grpo_core.types import WeightUpdate
    from grpo_generator_vllm_server.client import Server

WayName = Literal["file", "adapter", "broadcast", "ipc"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What a server says of itself.

    Example: ``Facts(version="0.32.0", served="policy", dtype="float32",
    logprobs_mode="processed_logprobs", lora_rank=16, device="cuda")``.
    """

    version: str
    served: str
    """Under which name it offers its base model."""
    dtype: str
    logprobs_mode: str
    lora_rank: int
    """Largest rank of adapters that it takes; 0 is none."""
    device: str
    """``cpu``, ``cuda`` ..."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """Weights that lie ready for any server, now or after it was restarted.

    Example: ``Published(policy_version=3, mark="a1b2.v3", folder=Path("sync/a1b2.v3"),
    way="file")``.
    """

    policy_version: int
    mark: str
    """Unique to this run and version; what servers must say that they hold."""
    folder: Path
    way: WayName

    def version_in(self, mark: object) -> int | None:
        """The policy version that a mark of this run names."""
        run, _, version = str(mark).rpartition(".v")
        same = run == self.mark.rpartition(".v")[0]
        return int(version) if same and version.isdecimal() else None


class Way(Protocol):
    """One way for weights to travel."""

    name: WayName
    pauses: bool
    """Whether the server must be paused for a push even if nothing is being sampled."""

    def write(self, folder: Path, update: WeightUpdate) -> Sent:
        """Put the weights where servers can have them, now or when they are back."""

    def push(self, server: Server, published: Published, seconds: float) -> int:
        """Have a server take them over; the ``policy_version`` that it then says it holds.

        Raises:
            PushError: it has not taken them.
            ServerError: it did not answer as it should.
        """

    def held(self, server: Server, published: Published) -> int | None:
        """Which version of this run the server holds now; ``None``: none."""

    def served_as(self, facts: Facts, published: Published) -> str:
        """The model's name in requests."""

    def close(self) -> None:
        """Give back the memory that ``write`` has taken; there are no more pushes."""


class ByFile:
    """All weights through a folder that both sides see; works for every model and LoRA, merged."""

    name: WayName = "file"
    pauses = True

    def __init__(self, dtype: str | None) -> None:
        self.dtype = dtype

    def write(self, folder: Path, update: WeightUpdate) -> Sent:
        return write_weights(folder, update, self.dtype)

    def push(self, server: Server, published: Published, seconds: float) -> int:
        self._ask(
            *(server, published, "grpo_load", seconds),
            path=str(published.folder),
            mark=published.mark,
        )
        return self._settle(server, published, seconds)

    def _ask(
        self, server: Server, published: Published, method: str, seconds: float, **arguments: Any
    ) -> list[Any]:
        return _require(server, published, method, seconds, **arguments)

    def _settle(self, server: Server, published: Published, seconds: float) -> int:
        """Forget what the old weights left behind; the version that the server says it holds."""
        # Keys and values of the old weights would be found by the new ones (vLLM's default is to
        # keep them across a reload).
        if server.post("/reset_prefix_cache", None, seconds=seconds).get("success") is not True:
            raise PushError(f"{server}: kept its prefix cache, which is of the old weights")
        server.post("/update_weight_version", {"new_version": published.mark}, seconds=seconds)
        version = self.held(server, published)
        if version != published.policy_version:
            raise PushError(
                f"{server}: was given policy version {published.policy_version} and holds {version}"
            )
        return version

    def held(self, server: Server, published: Published) -> int | None:
        marks = {found.get("held") for found in server.rpc("grpo_held", seconds=QUICK_SECONDS)}
        marks.add(server.get("/weight_info").get("weight_version"))
        # Every worker and the engine must say the same: a part of a model is no model.
        return published.version_in(marks.pop()) if len(marks) == 1 else None

    def served_as(self, facts: Facts, published: Published) -> str:
        return facts.served

    def close(self) -> None:
        pass


class ByAdapter:
    """LoRA's matrices alone, under a new name each time; the base is never sent again."""

    name: WayName = "adapter"
    pauses = False

    def __init__(self) -> None:
        self._base: dict[str, tuple[str, str]] | None = None
        self._compared: set[tuple[str, str | None]] = set()
        """Server processes whose base has been found to be the policy's."""

    def write(self, folder: Path, update: WeightUpdate) -> Sent:
        if self._base is None:
            self._base = base_digests(update.model)
        return write_adapter(folder, update)

    def push(self, server: Server, published: Published, seconds: float) -> int:
        names = _adapters(server)
        if changed := touched(server):
            raise PushError(
                f"{server}: its base weights have been replaced since it started ({changed}), so "
                "an adapter would sit on other weights than in training; start it again, or set "
                "generator.sync to file"
            )
        process = (server.url, server.instance)
        if process not in self._compared:
            _require(server, published, "grpo_base", seconds, listed=self._base)
            self._compared.add(process)
        _require_adapter(server, published, seconds, loaded=False)
        if published.mark not in names:
            # Not in place: one id with another path may serve the old adapter (seen with 0.32.0).
            body = {"lora_name": published.mark, "lora_path": str(published.folder)}
            try:
                server.post_for_text("/v1/load_lora_adapter", body, seconds=seconds)
            except ServerError as error:
                raise PushError(
                    f"{server}: has not taken the adapter of policy version "
                    f"{published.policy_version}: {error}. With generator.sync: file it is merged "
                    "into the weights in place of that"
                ) from error
        _require_adapter(server, published, seconds, loaded=True)
        if not self._lists(server, published):
            raise PushError(
                f"{server}: was given the adapter of policy version {published.policy_version} "
                f"and lists {sorted(_adapters(server)) or 'none'}"
            )
        run = published.mark.rpartition(".v")[0]
        for old in names:
            if old.startswith(f"{run}.v") and old != published.mark:
                server.post_for_text("/v1/unload_lora_adapter", {"lora_name": old}, seconds=seconds)
        return published.policy_version

    def held(self, server: Server, published: Published) -> int | None:
        if not self._lists(server, published) or touched(server):
            return None
        try:
            _require_adapter(server, published, QUICK_SECONDS, loaded=True)
        except PushError:
            return None
        return published.policy_version

    def _lists(self, server: Server, published: Published) -> bool:
        return _adapters(server).get(published.mark) == str(published.folder)

    def served_as(self, facts: Facts, published: Published) -> str:
        return published.mark

    def close(self) -> None:
        pass


def touched(server: Server) -> str | None:
    """Why a server's base is not what it started with, as far as its workers know."""
    workers = server.rpc("grpo_held", seconds=QUICK_SECONDS)
    found = {str(w.get("broken") or w.get("held")) for w in workers} - {"None"}
    return ", ".join(sorted(found)) or None


def _require_adapter(server: Server, published: Published, seconds: float, *, loaded: bool) -> None:
    path, mark = str(published.folder), published.mark
    _require(server, published, "grpo_adapter", seconds, path=path, mark=mark, loaded=loaded)


def _require(
    server: Server, published: Published, method: str, seconds: float, **arguments: Any
) -> list[Any]:
    """Call a method of every worker.

    Raises:
        PushError: one of them says that it could not, or that something does not fit.
    """
    found = server.rpc(method, seconds=seconds, **arguments)
    errors = [str(f["error"]) for f in found if isinstance(f, dict) and "error" in f]
    if errors:
        raise PushError(
            f"{server}: has not taken policy version {published.policy_version}: {errors[0]}"
        )
    return found


def clear_older(published: Published) -> None:
    """Remove what this run published before; the newest stays for servers that are restarted."""
    run = published.mark.rpartition(".v")[0]
    for folder in published.folder.parent.glob(f"{run}.v*"):
        if folder != published.folder:
            shutil.rmtree(folder, ignore_errors=True)


def _adapters(server: Server) -> Mapping[str, str | None]:
    """Loaded adapters and the folders that they come from."""
    listed: Any = server.get("/v1/models").get("data", ())
    return {entry["id"]: entry.get("root") for entry in listed if entry.get("parent")}
