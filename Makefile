# Every target sets up what it needs: `make quickstart` and `make test` work in a fresh clone with Python 3.11+ and gcc.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help quickstart test check lock clean

help:
	@echo "make quickstart  state-tune the embedded RWKV-7 on four pocket benchmarks (about 2 minutes on 2 cores)"
	@echo "make test        run the tests"
	@echo "make check       lint, formatting and types"
	@echo "make lock        write constraints.txt anew"

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

quickstart: $(VENV)/.ready
	$(BIN)/python -m experiments.run --config quickstart

test: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# JAX 0.10.2 is the last for Python 3.11; newer Pythons get 0.11.2.
lock: $(VENV)/.ready-dev
	$(BIN)/python -m pip install --quiet uv
	printf 'jax==0.10.2 ; python_version < "3.12"\njax==0.11.2 ; python_version >= "3.12"\n' > $(VENV)/jax-pins.txt
	$(BIN)/uv pip compile --universal --python-version 3.11 --extra dev --extra lm-eval --constraints $(VENV)/jax-pins.txt \
		--no-emit-index-url --no-header --no-annotate pyproject.toml -o constraints.txt

clean:
	rm -rf $(VENV) runs
