# The commands of this project; `make` alone lists them.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

HOST ?= 127.0.0.1
HTTP_PORT ?= 8000
GRPC_PORT ?= 8001
METRICS_PORT ?= 8002

PY := .venv/bin/python
STAMP := .venv/.installed

.PHONY: help setup engine demo serve test lint test-engines test-unit test-server test-kernels test-gpu bench bench-speculation bench-cache bench-precision soak clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 19
	@echo 'Variables of serve: HOST=$(HOST) HTTP_PORT=$(HTTP_PORT) GRPC_PORT=$(GRPC_PORT) METRICS_PORT=$(METRICS_PORT)'

setup: $(STAMP) ## create .venv with everything that is pinned

$(STAMP): requirements.lock pyproject.toml scripts/setup.sh
	@scripts/setup.sh
	@touch $@

engine: setup ## fetch the default model, build its engine and its drafter; quick when up to date
	@PY=$(PY) scripts/engines.sh

demo: engine ## start the server, stream answers, show batching, stop
	@$(PY) -m launcher demo

serve: engine ## keep the server running until Ctrl-C
	@$(PY) -m launcher serve --host $(HOST) --http-port $(HTTP_PORT) --grpc-port $(GRPC_PORT) --metrics-port $(METRICS_PORT)

test: export INSTALL_PACKAGES := 1
test: lint test-unit test-server ## everything that must pass before a change goes in

lint: setup ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m mypy

FP32 := --weights fp32 --kv-cache f32 --dynamic-quantization-group 0 --output .cache/engines/fp32

test-engines: engine ## the engines that only tests use
	@$(PY) -m build_engines default $(FP32)

test-unit: engine ## tests without a server; one of them reads the built tokenizer
	@scripts/test_packages.sh
	@scripts/docker_tools.sh
	$(PY) -m pytest -q tests/unit

test-server: test-engines ## tests against the real server
	@scripts/test_packages.sh
	$(PY) -m pytest -q tests/server

test-kernels: setup ## kernels for GPUs in the interpreter, on thousands of rows; fetches 286 MB, takes some ten minutes
	@scripts/kernel_packages.sh
	$(PY) -m pytest -q -s tests/unit/test_device_sampling.py tests/device

# torch of `make setup` is a CPU build: a Python with CUDA's torch, numpy, numba, psutil, pytest and pytest-timeout serves.
PY_GPU ?= $(PY)

test-gpu: setup ## what needs a GPU or Docker: see tests/gpu; PY_GPU=python whose torch uses the GPU
	@scripts/kernel_packages.sh
	PYTHONPATH=$(CURDIR) $(PY_GPU) -m pytest -q -rs tests/gpu

bench: engine ## tokens/s against the bare engine, the cost of invariance and of sampling
	@$(PY) -m benchmarks.serving
	@$(PY) -m benchmarks.invariance
	@$(PY) -m benchmarks.sampling

bench-speculation: engine ## speed with and without drafters, about an hour: docs/speculation.md
	@$(PY) -m benchmarks.speculation --full

bench-cache: engine ## what KV-cache reuse brings, about ten minutes: docs/cache.svg
	@$(PY) -m benchmarks.cache

bench-precision: engine ## perplexity and speed of the precisions: docs/precision.md
	@$(PY) -m build_engines quality

soak: engine ## ten minutes under load
	$(PY) -m pytest -q -s -m load tests/load

clean: ## remove engines, downloads, logs and caches; .venv stays
	rm -rf .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis model_repository/*/1/engine model_repository/*/1/drafter
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
