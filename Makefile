# make demo   the main job on the embedded model; installs what a user needs
# make test   ruff and the tests; `make slow` runs the long ones, `make types` runs pyright; installs the developers' tools
# Both create .venv first. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
USER := $(VENV)/.installed-user
STAMP := $(VENV)/.installed
CODE := src tests tools benchmarks docs

# torch from PyPI brings CUDA along on Linux, some gigabytes. Where no NVIDIA driver is found, torch's own index has a
# build without it; where that index cannot be reached, PyPI serves. `make TORCH_INDEX= …` takes what pip finds first.
GPU := $(shell command -v nvidia-smi)
TORCH_INDEX ?= $(if $(filter Linux,$(shell uname -s)),$(if $(GPU),,https://download.pytorch.org/whl/cpu))
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test slow lint types clean

demo: $(if $(wildcard $(STAMP)),$(STAMP),$(USER))
	$(BIN)/scumble generate --max-new-tokens 64 "$$(cat examples/prompt.py)"

# Two processes, a file of tests each; threads that wait leave their core to the other process.
test: $(STAMP) lint
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist loadfile

slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)

types: $(STAMP)
	$(BIN)/pyright

# constraints.txt pins every version that the tests were last green with.
$(USER): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(PIP) --no-deps --retries 0 --timeout 15 --index-url $(TORCH_INDEX) torch || \
		echo "torch's build without CUDA cannot be fetched from $(TORCH_INDEX); taking what pip finds")
	$(PIP) -e .
	touch $(USER)

$(STAMP): $(USER)
	$(PIP) -e ".[dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
