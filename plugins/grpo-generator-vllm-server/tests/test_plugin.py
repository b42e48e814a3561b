"""What every plugin promises, and the config's own rules."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from grpo_core.testing import PluginSuite
from grpo_generator_vllm_server import LaunchSettings, VLLMServerConfig


class TestPlugin(PluginSuite):
    distribution = "grpo-generator-vllm-server"
    package = "grpo_generator_vllm_server"
    options = {"vllm-server": {"urls": ["http://127.0.0.1:1"]}}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "neither of urls and launch"),
        ({"urls": ["http://a:1"], "launch": True}, "both of urls and launch"),
        ({"urls": ["a:8000"]}, "no address"),
        ({"urls": ["http://me:secret@a:1"]}, "must not hold a password"),
        ({"urls": ["http://a:1", "http://a:1"]}, "twice"),
        ({"launch": {"replicas": 2, "devices": ["0"]}}, "1 entries for 2 replicas"),
        ({"urls": ["http://a:1"], "token": "x"}, "Extra inputs"),
    ],
)
def test_configs_that_cannot_be_meant(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        VLLMServerConfig(**options)


def test_launch_may_be_true_or_say_how() -> None:
    assert VLLMServerConfig(launch=True).launched == LaunchSettings()
    assert VLLMServerConfig(launch={"replicas": 2}).launched == LaunchSettings(replicas=2)
    assert VLLMServerConfig(urls=("http://a:1/",)).launched is None
    assert VLLMServerConfig(urls=("http://a:1/",)).urls == ("http://a:1",)
