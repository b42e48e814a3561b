"""The generator `vllm-server`: completions from vLLM servers that hold the policy's weights."""

from __future__ import annotations

import contextlib
import logging
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_core.errors import SyncError
from grpo_core.policy import base_of, context_length
from grpo_core.types import Completion, GeneratedGroup
from grpo_generator_vllm_server import answer
from grpo_generator_vllm_server import request as requests
from grpo_generator_vllm_server.client import Server
from grpo_generator_vllm_server.config import VLLMServerConfig
from grpo_generator_vllm_server.contact import first_contact
from grpo_generator_vllm_server.errors import NoServerLeftError, ServerError, ServerLostError
from grpo_generator_vllm_server.fleet import Fleet, Member
from grpo_generator_vllm_server.ranks import on_main_rank
from grpo_generator_vllm_server.start import Started, start_servers
from grpo_generator_vllm_server.sync import Facts, Published, Way, choose, clear_older
from grpo_generator_vllm_server.token import read_token

if TYPE_CHECKING:
    from grpo_core.protocols import BuildContext
    from grpo_core.types import GenerateRequest, WeightUpdate

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0


class VLLMServerGenerator:
    """Samples on vLLM servers, one or several, that run already or are started here.

    Log-probs are those of the distribution that was sampled from: with top-p, top-k, min-p or a
    repetition penalty not the policy's own. Sampling is by seeds per (seed, step, prompt, sample):
    batches and servers change no random number, but the last bits of logits, and so now and then
    a token.
    """

    processed_logprobs = True

    def __init__(self, config: VLLMServerConfig, context: BuildContext | None = None) -> None:
        self._config = config
        self._run_dir = context.run_dir if context else None
        self._run = f"grpo-{secrets.token_hex(4)}"
        self._started: Started | None = None
        self._fleet: Fleet | None = None
        self._facts: dict[Server, Facts] = {}
        self._held: dict[Server, int] = {}
        self._way: Way | None = None
        self._published: Published | None = None
        self._folder: Path | None = None
        self._writes = False
        """Whether this process is the one that publishes weights."""
        self._vocabulary = 0
        self._context_length: int | None = None

    # -- weights ------------------------------------------------------------------------------

    def sync(self, update: WeightUpdate) -> int:
        """Have every server take the weights, and ask each what it holds.

        A server that does not take them stays paused and gets no prompts; the next sync tries it
        again.

        Raises:
            SyncError: no server has taken them.
            ConfigError: the servers cannot be used; see ``first_contact``.
            ServerError: none can be reached.
        """
        config: Any = base_of(update.model).config.get_text_config()
        self._vocabulary = int(config.vocab_size)
        self._context_length = context_length(update.model)
        # Of several trainer processes one starts servers and sends weights; all of them sample.
        held, urls, token, way, published = on_main_rank(partial(self._sync_servers, update))
        if self._fleet is None:
            self._connect(urls, token)
        self._way, self._published = way, published
        for member in self._members():
            if member.server not in self._facts:
                self._meet(member)
        return int(held)

    def _sync_servers(
        self, update: WeightUpdate
    ) -> tuple[int, tuple[str, ...], str | None, Way, Published]:
        if self._fleet is None:
            self._start(update)
        for member in self._members():
            self._try(member, partial(self._meet, member))
        self._fleet_or_fail().require_any()
        if self._way is None:
            self._way = choose(self._config.sync, update, list(self._facts.values()))
        mark = f"{self._run}.v{update.policy_version}"
        if self._published is None or self._published.mark != mark:
            folder = self._sync_folder() / mark
            self._writes = True
            self._way.write(folder, update)
            self._published = Published(
                policy_version=update.policy_version, mark=mark, folder=folder, way=self._way.name
            )
        for member in self._members():
            self._try(member, partial(self._push, member))
        if not self._fleet_or_fail().usable:
            self._revive()
        if not self._fleet_or_fail().usable:
            reasons = "; ".join(str(m.out) for m in self._members())
            raise SyncError(
                f"no vLLM server holds policy version {update.policy_version}: {reasons}"
            )
        clear_older(self._published)
        urls = tuple(m.server.url for m in self._members())
        token = self._started.token if self._started else self._given_token()
        held = min(self._held[m.server] for m in self._fleet_or_fail().usable)
        return held, urls, token, self._way, self._published

    def _push(self, member: Member) -> int:
        assert self._way is not None
        assert self._published is not None
        version = self._way.push(member.server, self._published, self._config.sync_seconds)
        self._held[member.server] = version
        member.take_in()
        return version

    def _try(self, member: Member, call: Callable[[], int | None]) -> int | None:
        """Do something with a server; one that fails is out, which is said."""
        try:
            return call()
        except (ServerError, SyncError) as error:
            member.take_out(error)
            return None

    def _meet(self, member: Member) -> None:
        """Ask who is there, unless it is the one that is known."""
        server = member.server
        if server in self._facts and member.out is None:
            return
        if self._started is None:
            server.instance = None
        self._facts[server] = first_contact(server, self._config.versions)
        if self._started is None:
            server.instance = server.seen_instance
        member.out = None

    # -- sampling -----------------------------------------------------------------------------

    def generate(self, request: GenerateRequest) -> Iterator[GeneratedGroup]:
        """Yield the groups as they are complete.

        Raises:
            DataError: a prompt is empty, or too long with ``max_tokens``.
            ConfigError: the request cannot be served.
            SyncError: there are no weights yet, or they changed while they were sampled from.
            ServerError: no server is left, or one refuses the request.
        """
        # Not a generator function itself: a wrong request fails here, not at the first `next`.
        if self._published is None or self._fleet is None:
            raise SyncError("generator 'vllm-server' was asked before it had any weights")
        requests.check(request, self._context_length)
        return self._groups(request, self._published, self._fleet)

    def _groups(
        self, request: GenerateRequest, published: Published, fleet: Fleet
    ) -> Iterator[GeneratedGroup]:
        ask = partial(self._ask, request, published)
        for index, completions in fleet.each(len(request.prompt_ids_P), ask):
            yield GeneratedGroup(
                index=index, completions_G=completions, policy_version=published.policy_version
            )
        # Whoever else sent weights to a server in between has not changed its process.
        for member in fleet.usable:
            try:
                held = self._way_or_fail().held(member.server, published)
            except ServerLostError as error:
                # Its completions came from the process that was synced; what it does now is next.
                member.take_out(error)
                continue
            if held != published.policy_version:
                raise SyncError(
                    f"{member.server} held policy version {published.policy_version} of this run "
                    f"when step {request.step} began, and {held} when it ended: does another run "
                    "use the same server?"
                )

    def _ask(
        self, request: GenerateRequest, published: Published, server: Server, index: int
    ) -> tuple[Completion, ...]:
        """The group of one prompt from one server; called from many threads."""
        body = requests.body(
            request,
            index,
            model=self._way_or_fail().served_as(self._facts[server], published),
            structured_outputs=self._config.structured_outputs,
        )
        found = server.post("/v1/completions", body, seconds=self._config.request_seconds)
        return answer.completions(found, request, index, vocabulary=self._vocabulary, server=server)

    def close(self) -> None:
        if self._fleet is not None:
            for member in self._fleet.members:
                member.server.close()
            self._fleet = None
        if self._started is not None:
            self._started.stop()
            self._started = None
        if self._published is not None and self._writes:
            shutil.rmtree(self._published.folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # others may keep theirs there
                self._published.folder.parent.rmdir()
        self._published = None
        self._facts.clear()
        self._way = None

    # -- servers ------------------------------------------------------------------------------

    def _start(self, update: WeightUpdate) -> None:
        launch = self._config.launched
        if launch is None:
            self._connect(self._config.urls, self._given_token())
            return
        folder = (self._run_dir or self._sync_folder()) / "vllm-server"
        self._started = start_servers(launch, update, folder)
        self._connect(self._started.urls, self._started.token)
        for member, launched in zip(self._members(), self._started.launched, strict=True):
            launched.wait_ready(member.server)

    def _connect(self, urls: tuple[str, ...], token: str | None) -> None:
        seconds = self._config.connect_seconds
        self._fleet = Fleet(
            members=[Member(Server(url, token, connect_seconds=seconds)) for url in urls],
            at_once=self._config.requests_at_once,
            attempts=self._config.attempts,
            revive=self._revive,
        )

    def _revive(self) -> None:
        """Wait for a server to come back, start ours again, and give it the weights it had."""
        end = time.monotonic() + self._config.recover_seconds
        while True:
            # In the loop: a supervisor needs a moment to see that its server is dead.
            if self._started is not None:
                self._started.restart(self._members())
            for member in self._members():
                if member.hung and not member.server.is_another():
                    continue
                if member.server.healthy(seconds=2):
                    self._try(member, partial(self._meet, member))
                    if member.out is None and self._try(member, partial(self._push, member)):
                        logger.warning("%s is back and holds the weights again", member.server)
            if self._fleet_or_fail().usable or time.monotonic() > end:
                return
            time.sleep(RETRY_SECONDS)

    def _members(self) -> list[Member]:
        return list(self._fleet_or_fail().members)

    def _fleet_or_fail(self) -> Fleet:
        if self._fleet is None:
            raise NoServerLeftError("generator 'vllm-server' has been closed")
        return self._fleet

    def _way_or_fail(self) -> Way:
        if self._way is None:
            raise NoServerLeftError("generator 'vllm-server' has been closed")
        return self._way

    def _given_token(self) -> str | None:
        return read_token(self._config.token_env, self._config.token_file)

    def _sync_folder(self) -> Path:
        if self._folder is None:
            given = self._config.sync_folder
            if given is not None:
                self._folder = Path(given)
            elif self._run_dir is not None:
                self._folder = self._run_dir / "sync"
            else:
                self._folder = Path(tempfile.mkdtemp(prefix="grpo-sync-"))
            self._folder = self._folder.resolve()
        return self._folder
