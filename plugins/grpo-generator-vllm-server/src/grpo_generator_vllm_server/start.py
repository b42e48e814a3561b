"""The servers that a run starts for itself."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_core.errors import ConfigError
from grpo_core.policy import base_of
from grpo_generator_vllm_server.adapters import adapter_rank
from grpo_generator_vllm_server.config import LaunchSettings
from grpo_generator_vllm_server.launch import Launched, Plan, choose_ports, is_loopback
from grpo_generator_vllm_server.token import new_token

if TYPE_CHECKING:
    from grpo_core.types import WeightUpdate
    from grpo_generator_vllm_server.fleet import Member

logger = logging.getLogger(__name__)


class Started:
    """Servers of ours, and how often they may still be started again."""

    def __init__(self, plans: Sequence[Plan], token: str, restarts: int) -> None:
        self.token = token
        self.launched = [Launched(plan) for plan in plans]
        self.urls = tuple(plan.url for plan in plans)
        self._restarts = restarts
        self._lock = threading.Lock()
        self._ended = False

    def start(self) -> None:
        """Start all of them, at once; none is left behind if one cannot be."""
        try:
            self._start(self.launched)
        except BaseException:
            self.stop()
            raise

    def restart(self, members: Sequence[Member]) -> None:
        """Start again those that have ended, and wait until they are ready."""
        for launched, member in zip(self.launched, members, strict=True):
            if member.hung:
                launched.stop()
        dead = [
            (launched, member)
            for launched, member in zip(self.launched, members, strict=True)
            if not launched.alive
        ]
        if not dead or not self._restarts:
            return
        self._restarts -= 1
        self._start([launched for launched, _ in dead])
        for launched, member in dead:
            logger.warning("%s has ended and is started again", member.server)
            launched.wait_ready(member.server)
            member.hung = False

    def _start(self, which: Sequence[Launched]) -> None:
        # Another thread may be starting again what has died while the run ends.
        with self._lock:
            for launched in which if not self._ended else ():
                launched.start()

    def stop(self) -> None:
        with self._lock:
            self._ended = True
            for launched in self.launched:
                launched.stop()


def start_servers(settings: LaunchSettings, update: WeightUpdate, folder: Path) -> Started:
    """Start the servers of a run, with the model and the precision of its policy.

    Raises:
        ConfigError: the address is not a loopback one, a port is taken, or vllm is not found.
    """
    if not is_loopback(settings.host):
        raise ConfigError(
            f"generator.launch.host is {settings.host!r}, but the servers of a run listen on "
            "loopback only. For other machines start them by hand, with `grpo serve`, and name "
            "them in generator.urls"
        )
    base: Any = base_of(update.model)
    if settings.dtype == "auto" and next(base.parameters()).device.type == "cpu":
        # What vLLM takes is the checkpoint's, often bfloat16, which a CPU emulates.
        settings = settings.model_copy(update={"dtype": "float32"})
    model = settings.model or str(base.name_or_path)
    token = new_token()
    devices = settings.devices or (None,) * settings.replicas
    plans = [
        Plan(
            model=model,
            revision=None,
            settings=settings,
            port=port,
            device=device,
            lora_rank=settings.lora_rank or adapter_rank(update) or 0,
            token=token,
            log=folder / f"server-{number}.log",
        )
        for number, (port, device) in enumerate(zip(choose_ports(settings), devices, strict=True))
    ]
    started = Started(plans, token, settings.restarts)
    started.start()
    logger.info("started %d vLLM servers, logs in %s", len(plans), folder)
    return started
