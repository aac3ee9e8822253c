# Every target sets up what it needs: `make quickstart` and `make test` work in a fresh clone with Python 3.11+ and gcc.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

AOT := .venv-aot

.PHONY: help quickstart test check docs pictures aot lock clean

help:
	@echo "make quickstart  state-tune the embedded RWKV-7 on four pocket benchmarks (about 2 minutes on 2 cores)"
	@echo "make test        run the tests"
	@echo "make check       lint, formatting and types"
	@echo "make docs        build the site into site/ and check its links"
	@echo "make pictures    draw the pictures of docs/concepts anew"
	@echo "make aot         compile the kernels for TPUs and GPUs that are not attached, and compare"
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

# A worker that crashes ends the run with its failure: with --dist loadfile, one in its place never finishes.
test: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart=0

check: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

$(VENV)/.ready-docs: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	touch $@

docs: $(VENV)/.ready-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	$(BIN)/python scripts/docs/links.py site

pictures: $(VENV)/.ready
	$(BIN)/python -m scripts.docs.pictures

# An environment of its own: the compilers' packages would make JAX look for accelerators in all other tests.
$(AOT)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(AOT)
	$(PYTHON) -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb")); print(*p["project"]["optional-dependencies"]["aot"], sep="\n")' > $(AOT)/packages.txt
	$(AOT)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r $(AOT)/packages.txt \
		jax jaxtyping beartype pytest hypothesis
	touch $@

aot: $(AOT)/.ready
	$(AOT)/bin/python -m pytest tests/pallas_kernels/aot

# JAX 0.10.2 is the last for Python 3.11; newer Pythons get 0.11.2.
lock: $(VENV)/.ready-dev
	$(BIN)/python -m pip install --quiet uv
	for package in jax jax-cuda13-plugin; do \
		printf '%s==0.10.2 ; python_version < "3.12"\n%s==0.11.2 ; python_version >= "3.12"\n' $$package $$package; \
	done > $(VENV)/jax-pins.txt
	$(BIN)/uv pip compile --universal --python-version 3.11 --extra dev --extra docs --extra lm-eval --extra aot \
		--constraints $(VENV)/jax-pins.txt --no-emit-index-url --no-header --no-annotate pyproject.toml -o constraints.txt

clean:
	rm -rf $(VENV) $(AOT) runs site
