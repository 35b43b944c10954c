# Two commands do everything: `make demo` and `make test`.
#
# TORCH says which PyTorch is installed. On Linux the default brings CUDA, so that a GPU is used where there is
# one; without a GPU, `make demo TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"` is a much
# smaller download. Once .venv exists, its torch is kept.

PYTHON ?= python3
TORCH ?= torch==2.13.0
PORT ?= 8000
BIN := .venv/bin

.PHONY: demo test lint bench soak chaos clean

demo: .venv/demo
	$(BIN)/tween demo --port $(PORT)

test: lint
	$(BIN)/python -m pytest

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/dev .venv/bench
	$(BIN)/python -m tests.bench
	$(BIN)/python -m tests.bench.cache_hits

soak: .venv/dev
	$(BIN)/python -m tests.soak

chaos: .venv/dev
	$(BIN)/python -m pytest tests/test_chaos.py
	$(BIN)/python -m tests.promises

clean:
	rm -rf .venv

.venv/torch:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(TORCH)
	touch $@

.venv/demo: .venv/torch pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	touch $@

.venv/bench: .venv/torch pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	touch $@

.venv/dev: .venv/torch pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ .venv/demo
