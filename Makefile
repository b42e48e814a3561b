# `make demo` trains a small model and `make test` runs the tests; each first makes .venv if needed.

PYTHON =
VENV = .venv
PROCESSES = 2
BIN = $(VENV)/bin
PLUGINS = $(patsubst %/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml))
PACKAGES = pyproject.toml $(PLUGINS:=/pyproject.toml) constraints.txt
# One command, the core first: they require each other, and pip looks for what it has not yet seen
# in the index.
INSTALL = $(BIN)/python -m pip install --constraint constraints.txt
EDITABLE_PLUGINS = $(PLUGINS:%=--editable %)

CONTRIB = $(patsubst %/pyproject.toml,%,$(wildcard contrib/*/pyproject.toml))
# Its own environment: what contrib needs is heavy, and must not be what the core is tested with.
CONTRIB_VENV = .venv-contrib

# A real vLLM, which needs an environment of its own; `make test ARGS='-m vllm'` then finds it.
ENGINE = .venv-vllm
ENGINE_LOCK = plugins/grpo-generator-vllm-server/engine-cpu.lock
COLOCATE = plugins/grpo-generator-vllm-colocate
ENGINE_PYTHON = $(or $(GRPO_VLLM_PYTHON),$(wildcard $(CURDIR)/$(ENGINE)/bin/python))

.PHONY: help demo test contrib engine colocate lint types clean
.NOTPARALLEL:

help:
	@echo "make demo     train a small language model, in a few minutes on a CPU"
	@echo "make test     run the tests; ARGS='-k name' chooses some"
	@echo "make contrib  test and type-check contrib/, in an environment of its own"
	@echo "make engine   install vLLM for a CPU into $(ENGINE); then make test ARGS='-m vllm'"
	@echo "make colocate test the engine in the training process, with trainer and vLLM in $(ENGINE)"
	@echo "make lint     ruff: rules and format"
	@echo "make types    mypy --strict"
	@echo "make clean    remove $(VENV) and caches"

# One thread: with two, waiting for each other on two busy cores, 8 s of work were measured as 54 s.
demo: $(VENV)/.run
	OMP_NUM_THREADS=1 $(BIN)/grpo demo $(ARGS)

# Processes of one thread each: half the time on two cores.
test: $(VENV)/.test
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 GRPO_VLLM_PYTHON=$(ENGINE_PYTHON) \
	  $(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadgroup $(ARGS)

contrib: $(CONTRIB_VENV)/.contrib
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(CONTRIB_VENV)/bin/python -m pytest contrib -m "not gpu"
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(CONTRIB_VENV)/bin/python -m pytest tests/docs -k contrib
	MYPYPATH=$$(echo $(CONTRIB:%=%/src) | tr ' ' ':') $(CONTRIB_VENV)/bin/mypy $(CONTRIB:%=%/src)

lint: $(VENV)/.test
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.test
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(CONTRIB_VENV) $(ENGINE) .mypy_cache .pytest_cache .ruff_cache .hypothesis

engine: $(ENGINE)/.ready

# Without bytecode, importing vLLM takes 14 to 34 s instead of 4, in each of three processes.
$(ENGINE)/.ready: $(ENGINE_LOCK) | $(BIN)/python
	$(BIN)/python -m venv $(ENGINE)
	env -u PYTHONDONTWRITEBYTECODE $(ENGINE)/bin/python -m pip install --quiet --no-deps \
	  --requirement $(ENGINE_LOCK)
	@touch $@

colocate: $(ENGINE)/.colocate
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 \
	  $(ENGINE)/bin/python -m pytest $(COLOCATE) -m vllm $(ARGS)

# Trainer and vLLM in one environment, with the torch and transformers that vLLM pins.
$(ENGINE)/.colocate: $(ENGINE)/.ready $(PACKAGES) $(COLOCATE)/beside-vllm.txt
	env -u PYTHONDONTWRITEBYTECODE $(ENGINE)/bin/python -m pip install --quiet --no-deps \
	  --constraint constraints.txt --requirement $(COLOCATE)/beside-vllm.txt
	$(ENGINE)/bin/python -m pip install --quiet --no-deps --editable . $(EDITABLE_PLUGINS)
	@touch $@

# Environments made by uv have no pip of their own.
$(VENV)/.pip: | $(BIN)/python
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip
	@touch $@

$(VENV)/.run: $(PACKAGES) | $(VENV)/.pip
	$(INSTALL) --editable '.[hf]' $(EDITABLE_PLUGINS)
	@touch $@

$(VENV)/.test: $(PACKAGES) | $(VENV)/.pip
	$(INSTALL) --editable '.[hf,qlora,rewards,tensorboard,testing,dev]' $(EDITABLE_PLUGINS)
	@touch $(VENV)/.run $@

$(CONTRIB_VENV)/.contrib: $(PACKAGES) $(CONTRIB:=/pyproject.toml) contrib/constraints.txt
	$(MAKE) VENV=$(CONTRIB_VENV) $(CONTRIB_VENV)/.test
	$(CONTRIB_VENV)/bin/python -m pip install --constraint constraints.txt \
	  --constraint contrib/constraints.txt $(CONTRIB:%=--editable %)
	@touch $@

$(BIN)/python:
	@for python in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	  "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	  if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	    echo "$$python cannot make virtual environments;" \
	      "on Debian or Ubuntu: apt-get install python3-venv" >&2; \
	    exit 1; \
	  fi; \
	  echo "making $(VENV) with $$("$$python" --version)"; \
	  exec "$$python" -m venv $(VENV); \
	done; \
	echo "found no Python 3.11 or newer; name yours: make PYTHON=/path/to/python3.12 ..." >&2; \
	exit 1
