"""The generator `vllm-server`: completions from vLLM servers that hold the policy's weights."""

from __future__ import annotations

import contextlib
import logging
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_core.errors import SyncError
from grpo_core.policy import base_of, context_length
from grpo_generator_vllm_server import request as requests
from grpo_generator_vllm_server.choice import choose
from grpo_generator_vllm_server.client import Server
from grpo_generator_vllm_server.config import VLLMServerConfig
from grpo_generator_vllm_server.contact import first_contact
from grpo_generator_vllm_server.errors import NoServerLeftError, ServerError
from grpo_generator_vllm_server.fleet import Fleet, Member
from grpo_generator_vllm_server.gate import CLOSED
from grpo_generator_vllm_server.likeness import config_of
from grpo_generator_vllm_server.quiet import Patience, quiet
from grpo_generator_vllm_server.ranks import on_main_rank
from grpo_generator_vllm_server.sampling import Sampling, Terms, decoder
from grpo_generator_vllm_server.start import Started, start_servers
from grpo_generator_vllm_server.sync import Published, Way, clear_older
from grpo_generator_vllm_server.token import read_token
from grpo_generator_vllm_server.weights import Sent

if TYPE_CHECKING:
    from grpo_core.protocols import BuildContext
    from grpo_core.types import (
        GeneratedGroup,
        GenerateRequest,
        SampledTurn,
        TurnRequest,
        WeightUpdate,
    )

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0

Given = tuple[str | None, str | None]
"""Why a server is out, and which process it is."""


class VLLMServerGenerator:
    """Samples on vLLM servers, one or several, that run already or are started here.

    Log-probs are those of the distribution that was sampled from: with top-p, top-k, min-p or a
    repetition penalty not the policy's own. Sampling is by seeds per (seed, step, prompt, sample):
    batches and servers change no random number, but the last bits of logits, and so now and then
    a token.

    Groups and turns may be consumed in several threads, and ``sync`` called meanwhile by one.
    Servers then interrupt what they sample; each unfinished completion goes on under the new
    weights, which compute keys and values of all its tokens anew, so that each token's log-prob is
    exactly that under the version named for it.
    """

    processed_logprobs = True
    samples_apart = True

    def __init__(self, config: VLLMServerConfig, context: BuildContext | None = None) -> None:
        self._config = config
        # A grammar cannot be taken up in the middle: its state is not in the tokens alone.
        self.syncs_in_flight = config.structured_outputs is None
        self._run_dir = context.run_dir if context else None
        self._run = f"grpo-{secrets.token_hex(4)}"
        self._started: Started | None = None
        self._fleet: Fleet | None = None
        self._way: Way | None = None
        self._published: Published | None = None
        self._terms: Terms | None = None
        self._sent: Sent | None = None
        self._folder: Path | None = None
        self._writes = False
        """Whether this process is the one that publishes weights."""
        self._context_length: int | None = None
        self._policys: dict[str, Any] = {}
        """The policy's configuration."""
        self._weights = threading.RLock()
        """Held by whoever gives weights to servers: a sync, or a thread that revives one."""

    # -- weights ------------------------------------------------------------------------------

    def sync(self, update: WeightUpdate) -> int:
        """Have every server take the weights, and ask each what it holds.

        A server that does not take them stays paused and gets no prompts; the next sync tries it
        again.

        Raises:
            SyncError: no server has taken them, or somebody else gave weights to one meanwhile.
            ConfigError: the servers cannot be used; see ``first_contact``.
            ServerError: none can be reached.
        """
        config: Any = base_of(update.model).config.get_text_config()
        self._terms = Terms(
            vocabulary=int(config.vocab_size),
            decode=decoder(update.tokenizer),
            seconds=self._config.request_seconds,
            structured_outputs=self._config.structured_outputs,
        )
        self._context_length = context_length(update.model)
        self._policys = config_of(update.model)
        with self._weights:
            # Of several trainer processes one starts servers and sends weights; all sample.
            urls, token, way, published = on_main_rank(partial(self._publish, update))
            if self._fleet is None:
                self._connect(urls, token)
            fleet = self._fleet_or_fail()
            self._way = way
            with quiet(fleet, way, self._patience()):
                held, given = on_main_rank(partial(self._give, published))
                self._published = published
                for member in fleet.members:
                    self._follow(member, *given[member.server.url])
            return held

    def metrics(self) -> dict[str, float]:
        """Of the latest sync; see ``grpo_core.protocols.Generator``."""
        if self._sent is None or self._fleet is None:
            return {}
        usable = self._fleet.usable
        return self._sent.metrics() | {
            "sync/servers": float(len(usable)),
            "sync/interrupted": float(self._fleet.interrupted),
        }

    def _publish(self, update: WeightUpdate) -> tuple[tuple[str, ...], str | None, Way, Published]:
        """Put the weights where servers find them; sampling goes on."""
        if self._fleet is None:
            self._start(update)
        members = self._members()
        met = [self._try(member, partial(self._meet, member)) for member in members]
        if not any(met):
            self._fleet_or_fail().require_any()
        if self._way is None:
            self._way = choose(
                self._config,
                update,
                [m.facts for m in members if m.facts is not None],
                [m.server for m in members if m.met],
                self._sync_folder,
            )
        mark = f"{self._run}.v{update.policy_version}"
        published = self._published
        if published is None or published.mark != mark:
            folder = self._sync_folder() / mark
            self._writes = True
            self._sent = self._way.write(folder, update)
            published = Published(
                policy_version=update.policy_version, mark=mark, folder=folder, way=self._way.name
            )
        urls = tuple(m.server.url for m in members)
        token = self._started.token if self._started else self._given_token()
        return urls, token, self._way, published

    def _give(self, published: Published) -> tuple[int, dict[str, Given]]:
        """Have each server take the weights."""
        self._published = published
        fleet = self._fleet_or_fail()
        with ThreadPoolExecutor(len(fleet.members)) as pool:
            pushes = [
                pool.submit(self._try, member, partial(self._push, member))
                for member in fleet.members
                if member.met
            ]
        for push in pushes:
            push.result()
        if not fleet.usable:
            self._revive()
        if not fleet.usable:
            reasons = "; ".join(str(m.out) for m in fleet.members)
            raise SyncError(
                f"no vLLM server holds policy version {published.policy_version}: {reasons}"
            )
        clear_older(published)
        held = min(member.held for member in fleet.usable)
        return held, {m.server.url: (m.out, m.server.instance) for m in fleet.members}

    def _push(self, member: Member) -> None:
        way, published, seconds = self._way, self._published, self._config.sync_seconds
        assert way is not None
        assert published is not None
        server = member.server
        if way.pauses or member.paused:
            member.paused = True
            server.post("/pause?mode=abort", None, seconds=seconds)
        member.held = way.push(server, published, seconds)
        if member.paused:
            server.post("/resume", None, seconds=seconds)
            member.paused = False
        member.published = published
        member.take_in()

    def _follow(self, member: Member, out: str | None, instance: str | None) -> None:
        """Take over what the main process knows of a server."""
        if member.published == self._published and member.out == out:
            return
        if out is None:
            if member.server.instance != instance:
                member.met = False
            self._meet(member)
            member.published = self._published
            member.take_in()
        else:
            member.take_out(out)

    def _try(self, member: Member, call: Callable[[], None]) -> bool:
        """Do something with a server; one that fails is out, which is said."""
        try:
            call()
        except (ServerError, SyncError) as error:
            member.take_out(error)
            return False
        return True

    def _meet(self, member: Member) -> None:
        """Ask who is there, unless it is the one that is known. One that was out stays so until it
        has been given weights."""
        server = member.server
        if member.met:
            return
        if self._started is None:
            server.instance = None
        member.facts = first_contact(server, self._config.versions, self._policys)
        if self._started is None:
            server.instance = server.seen_instance
        member.met = True

    def _patience(self) -> Patience:
        config = self._config
        seconds = config.sync_seconds if self.syncs_in_flight else config.request_seconds
        return Patience(interrupts=self.syncs_in_flight, seconds=seconds)

    # -- sampling -----------------------------------------------------------------------------

    def generate(self, request: GenerateRequest) -> Iterator[GeneratedGroup]:
        """Yield the groups as they are complete.

        Raises:
            DataError: a prompt is empty, or too long with ``max_tokens``.
            ConfigError: the request cannot be served.
            SyncError: there are no weights yet, or others than this generator's were sampled from.
            ServerError: no server is left, one refuses the request, or the generator was closed.
        """
        # Not a generator function itself: a wrong request fails here, not at the first `next`.
        sampling = self._sampling()
        requests.check(request, self._context_length)
        return sampling.groups(request)

    def sample_turns(self, request: TurnRequest) -> Iterator[SampledTurn]:
        """Yield each turn as soon as it is sampled; those that become ready meanwhile begin.

        Raises:
            DataError: a rollout may become longer than the model's context.
            ConfigError: the request cannot be served.
            SyncError: there are no weights yet, or others than this generator's were sampled from.
            ServerError: no server is left, one refuses the request, or the generator was closed.
        """
        sampling = self._sampling()
        requests.check_turns(request, self._context_length)
        return sampling.turns(request)

    def _sampling(self) -> Sampling:
        fleet, way, terms = self._fleet, self._way, self._terms
        if self._published is None or fleet is None or way is None or terms is None:
            raise SyncError("generator 'vllm-server' was asked before it had any weights")
        return Sampling(fleet, way, terms)

    def close(self) -> None:
        """End everything, also what other threads are doing: they get an error."""
        if self._fleet is not None:
            self._fleet.close()
        if self._started is not None:
            self._started.stop()
        with self._weights:
            if self._published is not None and self._writes:
                shutil.rmtree(self._published.folder, ignore_errors=True)
                with contextlib.suppress(OSError):  # others may keep theirs there
                    self._published.folder.parent.rmdir()
            if self._way is not None:
                self._way.close()
            self._fleet = self._started = self._published = self._way = None

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
        config = self._config
        server = partial(
            Server, token=token, connect_seconds=config.connect_seconds, ca_file=config.ca_file
        )
        self._fleet = Fleet(
            members=[Member(server(url)) for url in urls],
            at_once=self._config.requests_at_once,
            attempts=self._config.attempts,
            revive=self._revive,
        )

    def _revive(self) -> None:
        """Wait for a server to come back, start ours again, and give it the weights it had."""
        fleet = self._fleet_or_fail()
        with self._weights:
            end = time.monotonic() + self._config.recover_seconds
            while not fleet.usable:
                fleet.require_open()
                # In the loop: a supervisor needs a moment to see that its server is dead.
                if self._started is not None:
                    self._started.restart(fleet.members)
                for member in fleet.members:
                    self._bring_back(member)
                if time.monotonic() > end:
                    return
                if not fleet.usable:
                    fleet.closed.wait(RETRY_SECONDS)

    def _bring_back(self, member: Member) -> None:
        if member.hung and not member.server.is_another():
            return
        if not member.server.healthy(seconds=2):
            return
        shut = member.gate.is_shut
        member.gate.shut()
        # What a former life left behind must not be sampled by the new one.
        member.server.hang_up()
        try:
            if (
                member.gate.wait_empty(RETRY_SECONDS)
                and self._try(member, partial(self._meet, member))
                and self._try(member, partial(self._push, member))
            ):
                logger.warning("%s is back and holds the weights again", member.server)
        finally:
            if not shut:
                member.gate.open()

    def _members(self) -> list[Member]:
        return list(self._fleet_or_fail().members)

    def _fleet_or_fail(self) -> Fleet:
        if self._fleet is None:
            raise NoServerLeftError(CLOSED)
        return self._fleet

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
