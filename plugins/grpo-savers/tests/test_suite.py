"""The saver of models against the suite that every saver is held to."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from grpo_core.testing import SaverSuite
from grpo_savers import SafetensorsConfig, SafetensorsSaver


class TestFullModel(SaverSuite):
    kinds = ("checkpoint", "final")

    def make(self) -> SafetensorsSaver:
        return SafetensorsSaver(SafetensorsConfig(at_checkpoints=True))

    def restore(self, path: Path):
        return load_file(path / "model.safetensors")


class TestAdapter(SaverSuite):
    lora = True

    def make(self) -> SafetensorsSaver:
        return SafetensorsSaver()

    def restore(self, path: Path):
        # PEFT leaves the adapter's name out of files.
        return {
            name.replace(".weight", ".default.weight"): tensor
            for name, tensor in load_file(path / "adapter_model.safetensors").items()
        }
