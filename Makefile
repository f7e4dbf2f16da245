# The commands of this project; `make` alone lists them.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

HOST ?= 127.0.0.1
HTTP_PORT ?= 8000
GRPC_PORT ?= 8001
METRICS_PORT ?= 8002
PROFILE ?= smoke
# What the server tests serve: openvino or onnxruntime.
ENGINE ?= openvino
export ENGINE
RESPONSE_CACHE_MB ?= 64

PY := .venv/bin/python
STAMP := .venv/.installed

.PHONY: help setup engine engine-vision engine-digits demo serve test lint test-engines test-unit test-server test-kernels test-gpu bench bench-speculation bench-cache bench-batching bench-precision report-vision bench-scale-out bench-slots profile load load-baseline plan load-gates test-load test-compile test-litert soak clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 19
	@echo 'Variables of serve: HOST=$(HOST) HTTP_PORT=$(HTTP_PORT) GRPC_PORT=$(GRPC_PORT) METRICS_PORT=$(METRICS_PORT)'
	@echo '                    RESPONSE_CACHE_MB=$(RESPONSE_CACHE_MB), for repeated images'
	@echo 'Variables of load: PROFILE=$(PROFILE) URL=host:port of gRPC, METRICS_URL=host:port; without URL it starts a server;'
	@echo '                   AGAINST=commit measures that one too, in turns, and compares'

setup: $(STAMP) ## create .venv with everything that is pinned

$(STAMP): requirements.lock pyproject.toml scripts/setup.sh
	@scripts/setup.sh
	@touch $@

engine: setup ## fetch the default model, build its engine and its drafter; quick when up to date
	@PY=$(PY) scripts/engines.sh

engine-digits: setup ## train ResNet-50 on digits and build it, about ten minutes; `make serve` then serves it too
	@$(PY) -m build_engines vision resnet50

engine-vision: setup ## build the image classifier of photos; `make serve` then serves it too
	@$(PY) -m build_engines vision efficientnet_lite0

demo: engine ## start the server, stream answers, show batching, stop
	@$(PY) -m launcher demo

serve: engine ## keep the server running until Ctrl-C
	@$(PY) -m launcher serve --host $(HOST) --http-port $(HTTP_PORT) --grpc-port $(GRPC_PORT) --metrics-port $(METRICS_PORT) \
		--response-cache-mb $(RESPONSE_CACHE_MB)

test: export INSTALL_PACKAGES := 1
test: lint test-unit test-server ## everything that must pass before a change goes in

lint: setup ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m mypy

FP32 := --weights fp32 --kv-cache f32 --dynamic-quantization-group 0 --output .cache/engines/fp32

test-engines: engine engine-vision ## the engines that only tests use
ifeq ($(ENGINE),openvino)
	@$(PY) -m build_engines default $(FP32)
else
	@$(PY) -m build_engines default --runtime $(ENGINE) --output .cache/engines/$(ENGINE)
	@$(PY) -m build_engines default --runtime $(ENGINE) --weights fp32 --kv-cache f32 --output .cache/engines/$(ENGINE)-fp32
endif

test-unit: engine engine-vision ## tests without a server; one of them reads the built tokenizer
	@scripts/test_packages.sh
	@scripts/test_tools.sh
	$(PY) -m pytest -q tests/unit

test-server: test-engines ## tests against the real server; ENGINE=onnxruntime serves that engine
	@scripts/test_packages.sh
	$(PY) -m pytest -q tests/server

test-kernels: setup ## kernels for GPUs in the interpreter, on 2000 rows; fetches 286 MB, takes some ten minutes
	@scripts/kernel_packages.sh
	$(PY) -m pytest -q -s tests/unit/test_device_sampling.py tests/unit/test_device_choice.py \
		tests/unit/test_device_kernels.py tests/device

# torch of `make setup` is a CPU build: a Python with CUDA's torch, numpy, numba, psutil, pytest and pytest-timeout serves.
PY_GPU ?= $(PY)

test-gpu: setup ## what needs a GPU or Docker: see tests/gpu; PY_GPU=python whose torch uses the GPU
	@scripts/kernel_packages.sh
	PYTHONPATH=$(CURDIR) $(PY_GPU) -m pytest -q -rs tests/gpu

bench: engine ## tokens/s against the bare engine, the cost of invariance and of sampling
	@$(PY) -m benchmarks.serving
	@$(PY) -m benchmarks.invariance
	@$(PY) -m benchmarks.sampling

bench-speculation: engine ## speed with and without drafters, one to two hours: docs/speculation.md
	@$(PY) -m benchmarks.speculation --full

bench-cache: engine ## what KV-cache reuse brings, some three quarters of an hour: docs/cache.svg
	@$(PY) -m benchmarks.cache

bench-batching: engine-digits ## what dynamic batching of images brings, by perf_analyzer, about ten minutes
	@$(PY) -m benchmarks.batching

profile: engine ## where a step's time goes: docs/operators.md, and a trace of the torch model
	@$(PY) -m benchmarks.operators
	@$(PY) -m benchmarks.torch_trace

bench-precision: engine ## perplexity and speed of the precisions: docs/precision.md
	@$(PY) -m build_engines quality

report-vision: setup ## size, speed and accuracy of the image classifiers' engines, about an hour: docs/vision.md
	@$(PY) -m build_engines vision-report

LOAD = $(PY) -m perf run $(PROFILE) $(if $(URL),--url $(URL)) $(if $(METRICS_URL),--metrics-url $(METRICS_URL)) $(if $(AGAINST),--against $(AGAINST))
# A server that is given has its engine already.
LOAD_NEEDS := $(if $(URL),setup,engine)

load: $(LOAD_NEEDS) ## load test with PROFILE by perf_analyzer: report.html in .cache/load
	@$(LOAD)

load-baseline: $(LOAD_NEEDS) ## the same, kept as what later `make load` is compared with
	@$(LOAD) --store-baseline

plan: engine ## the cheapest configuration that keeps service targets, measured: half an hour to an hour
	@$(PY) -m perf plan $(or $(PLAN),chat)

load-gates: engine ## what the comparison promises: a planted regression is flagged, ten reruns are not; some 40 minutes
	$(PY) -m pytest -q -s -m load tests/load/test_perf_gates.py

test-load: engine ## every panel of the dashboard under load, from a real Prometheus; two servers behind HAProxy, one killed; 10,000 requests in a small cache
	@scripts/test_packages.sh
	$(PY) -m pytest -q -m load tests/load/test_dashboard.py tests/load/test_scale_out.py tests/load/test_cache_trace.py

bench-scale-out: engine ## what a second server behind HAProxy brings, one core each, some ten minutes
	@scripts/test_packages.sh
	@$(PY) -m benchmarks.scale_out

bench-slots: engine ## the ONNX engines: perplexity of each precision, tokens/s against OpenVINO
	@$(PY) -m build_engines precision-gates
	@$(PY) -m build_engines default --runtime onnxruntime --output .cache/engines/onnxruntime
	@$(PY) -m build_engines default --runtime onnxruntime --weights w8a8 --output .cache/engines/onnxruntime-w8a8
	@$(PY) -m build_engines default --runtime onnxruntime --weights int4 --output .cache/engines/onnxruntime-int4
	@$(PY) -m benchmarks.engines

test-compile: setup ## the classifiers' graphs for TensorRT compile for three GPU architectures, here without one
	$(PY) -m pytest -q -m load tests/load/test_vision_compile.py

test-litert: setup ## LiteRT's own converter, 640 MB on disk, makes what the tests use
	$(PY) -m pytest -q -m load tests/load/test_litert.py

soak: engine ## ten minutes under load
	$(PY) -m pytest -q -s -m load tests/load/test_soak.py

clean: ## remove engines, downloads, logs and caches; .venv stays
	rm -rf .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis model_repository/*/1/engine model_repository/*/1/drafter
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
