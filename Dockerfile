# Two images from the same steps: PLATFORM=cpu on a small Debian with Python, PLATFORM=gpu on NVIDIA's Triton image.
# `docker compose --profile cpu up` or `--profile gpu up` builds and runs them; the README says more ("Docker").
ARG PLATFORM=cpu
# Its Python is one that the bundled tritonserver has a stub for.
ARG PYTHON_TAG=3.11.13-slim-bookworm
# TensorRT 11.1. Plans of one version do not run on another: change the tag, and `build` makes them anew.
ARG TRITON_TAG=26.07-py3

FROM python:${PYTHON_TAG} AS base-cpu
FROM nvcr.io/nvidia/tritonserver:${TRITON_TAG} AS base-gpu

# hadolint ignore=DL3006
FROM base-${PLATFORM} AS tandem
ARG PLATFORM
SHELL ["/bin/bash", "-eo", "pipefail", "-c"]
WORKDIR /opt/tandem

# The steps of `make setup`. Where pip would fetch a CUDA build of torch, point PIP_EXTRA_INDEX_URL at a CPU build.
ARG PIP_EXTRA_INDEX_URL=
COPY requirements.lock pyproject.toml README.md LICENSE NOTICE ./
COPY scripts scripts
COPY tandem tandem
COPY build_engines build_engines
COPY client client
COPY launcher launcher
COPY perf perf
RUN --mount=type=cache,target=/var/cache/pip \
    PIP_CACHE_DIR=/var/cache/pip INSTALL_PACKAGES=1 scripts/setup.sh && rm -rf /var/lib/apt/lists/*
COPY docker docker
RUN if [ "$PLATFORM" = gpu ]; then docker/tensorrt_python.sh && scripts/kernel_packages.sh --into-environment; fi
COPY drafters drafters
COPY model_repository model_repository

# Nobody writes here; what is made goes to volumes, which take over the owner of these directories when they are new.
# The last line turns the telemetry of OpenVINO's Python packages off.
RUN useradd --uid 10001 --user-group --home-dir /var/lib/tandem --shell /usr/sbin/nologin tandem && \
    install -d -o tandem -g tandem /var/lib/tandem /var/lib/tandem/model_repository /var/lib/tandem/.cache \
        /var/lib/tandem/state /var/lib/tandem/kv && \
    mkdir /var/lib/tandem/intel && echo 0 > /var/lib/tandem/intel/openvino_telemetry
USER 10001:10001
WORKDIR /var/lib/tandem
ENV HOME=/var/lib/tandem PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
EXPOSE 8000 8001 8002
ENTRYPOINT ["/opt/tandem/docker/entrypoint.sh"]
CMD ["serve"]
