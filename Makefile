# make demo   the main job on the embedded model
# make test   ruff and the tests; `make slow` runs the long ones, `make types` runs pyright
# Both create .venv and install what they need first. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test slow lint types clean

demo: $(STAMP)
	$(BIN)/scumble generate --max-new-tokens 64 "$$(cat examples/prompt.py)"

test: $(STAMP) lint
	$(BIN)/python -m pytest

slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff check src tests benchmarks docs
	$(BIN)/ruff format --check src tests benchmarks docs

types: $(STAMP)
	$(BIN)/pyright

# constraints.txt pins every version that the tests were last green with.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
