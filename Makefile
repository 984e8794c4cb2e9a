# `make` lists what there is to do. Everything is installed into .venv, nothing outside it.

PYTHON ?= python3
ARGS ?=

python := .venv/bin/python
extras-test := [test]
extras-bench := [bench]
extras-docs := [docs,plot]

.DEFAULT_GOAL := help
.PHONY: help run test lint bench bench-inference bench-loading docs setup-run setup-test setup-bench setup-docs clean

help: ## list these goals
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo '  ARGS="..."          options for the program that run, test or bench starts'
	@echo '  PYTHON=python3.12   the Python that .venv is made with (make clean first)'

run: setup-run ## train a small image classifier
	@$(python) -m palto.recipes.classify $(ARGS)

test: lint ## ruff, mypy, then the tests
	env -u OPENBLAS_CORETYPE OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 \
	  $(python) -m pytest -n auto $(ARGS)

lint: setup-test ## ruff and mypy
	$(python) -m ruff check .
	$(python) -m mypy

bench: setup-bench ## training steps beside PyTorch, JAX, TensorFlow and MLX, into docs/
	@$(python) benchmarks/training.py $(ARGS)

bench-inference: setup-bench ## forward passes beside PyTorch and ONNX Runtime, into docs/
	@$(python) benchmarks/inference.py $(ARGS)

bench-loading: setup-bench ## batches beside PyTorch's DataLoader
	@$(python) benchmarks/loading.py $(ARGS)

docs: setup-docs ## the documents as a site, into site/
	@NO_MKDOCS_2_WARNING=1 $(python) -m mkdocs build --strict $(ARGS)

clean: ## remove .venv, caches and build output
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist site *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +

# .venv is ready while .venv/ready-* equals pyproject.toml; then nothing touches the network.
# .venv/unfinished means that an installation was interrupted: that .venv is made afresh.
setup-run setup-test setup-bench setup-docs: setup-%:
	@trap 'exit 130' INT TERM; \
	if [ -e .venv/unfinished ] || ! $(python) -c '' 2>/dev/null; then rm -rf .venv; fi; \
	if cmp -s pyproject.toml .venv/ready-$*; then exit 0; fi; \
	fail() { rm -f .venv/unfinished; echo "$$1" >&2; exit 1; }; \
	if ! $(python) -m pip --version >/dev/null 2>&1; then \
	  command -v "$(PYTHON)" >/dev/null || fail \
	    "'$(PYTHON)' was not found. Install Python 3.11 or newer, or name it: PYTHON=/path/to/python3"; \
	  "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail \
	    "Palto needs Python 3.11 or newer; '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1). Name a newer one: PYTHON=python3.12"; \
	  "$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || fail \
	    "'$(PYTHON)' lacks the venv module. Install it (Debian, Ubuntu: sudo apt install python3-venv) and run make again."; \
	  mkdir -p .venv && : > .venv/unfinished; \
	  "$(PYTHON)" -m venv .venv || fail "Could not make .venv: see the message above."; \
	fi; \
	echo "Installing Palto and what it needs into .venv ..."; \
	: > .venv/unfinished; \
	$(python) -m pip install --quiet --disable-pip-version-check --editable '.$(extras-$*)' || fail \
	  "Installation failed: see the message above. It needs the network once; run make again to retry."; \
	rm -f .venv/ready-* && cp pyproject.toml .venv/ready-run && cp pyproject.toml .venv/ready-$* && \
	  rm .venv/unfinished
