# The image of the service.
#
#   docker build -t tween --target serve .                                 for CPUs
#   docker build -t tween:cuda --target serve --build-arg FLAVOUR=cuda .   for NVIDIA GPUs
#   docker build -t tween:demo --target demo .                             with the demo bank inside (trained here, minutes)
#
# It runs as a numeric user, on a read-only root file system, with a writable /tmp. The bank is mounted at /bank:
#
#   docker run --read-only --tmpfs /tmp -v ./bank:/bank:ro -p 8000:8000 tween
#
# Both stages start from BASE, a Debian with a Python of 3.11 or newer as `python3`; name it by digest
# (python@sha256:...) where builds must be repeatable. Nothing here needs BuildKit.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
# What pip reads from the environment, for builders behind a proxy with certificates of its own or with wheels on disk.
ARG PIP_CERT
ARG PIP_FIND_LINKS
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
SHELL ["/bin/sh", "-eu", "-c"]
RUN python3 -m venv /opt/tween
ENV PATH=/opt/tween/bin:$PATH
WORKDIR /src

# The lock holds every package but torch with the hashes of its files, for every platform and Python ("make lock").
# It is complete, so nothing is resolved here; `pip check` below says so if it is not.
COPY requirements.lock requirements-cuda.lock ./
RUN pip install --no-deps --require-hashes -r requirements.lock

# Torch is a matter of its own. The index that everybody uses has it with CUDA, for Linux, and its hashes are in
# requirements-cuda.lock with those of the libraries that it brings; the base image need hold no CUDA, the host only a
# driver. Without CUDA it is another wheel of the same version (2.13.0+cpu) from PyTorch's own index, 3 GB smaller.
# A resolver cannot put two wheels of one version from two indexes into one file, so the hash of that one is given
# here by whoever wants it: --build-arg TORCH="torch==2.13.0+cpu --hash=sha256:...".
ARG FLAVOUR=cpu
ARG TORCH="torch==2.13.0"
ARG TORCH_FROM="--index-url https://download.pytorch.org/whl/cpu"
# hadolint ignore=SC2086
RUN case "$FLAVOUR" in \
      cpu) echo "$TORCH" > torch.txt; pip install --no-deps $TORCH_FROM -r torch.txt ;; \
      cuda) pip install --no-deps --require-hashes -r requirements-cuda.lock ;; \
      *) echo "FLAVOUR is cpu or cuda, not $FLAVOUR" >&2; exit 1 ;; \
    esac

# Without isolation it is built by the setuptools of the lock, and fetches nothing.
COPY pyproject.toml README.md LICENSE ./
COPY app app
RUN pip install --no-deps --no-build-isolation . && pip check

# What a service never opens: headers, packages' own tests, and pip, which could only bring in something else. Compiled
# Python files stay, because a read-only root file system takes no new ones and a start would compile everything.
FROM build AS packages
WORKDIR /opt/tween/lib
RUN rm -rf python3*/site-packages/torch/include python3*/site-packages/torch/share python3*/site-packages/pip* \
      python3*/site-packages/pyarrow/include python3*/site-packages/pyarrow/src ../bin/pip* \
    && find . -type d -name tests -prune -exec rm -rf {} + \
    && python3 -c "import app.main, app.api.telemetry.tracing, app.cli.sweep_command, matplotlib.pyplot, optuna, pyarrow.parquet"

FROM build AS bank
RUN XDG_CACHE_HOME=/made tween demo --only-build && mv /made/tween/demo-* /bank && chmod -R a+rX /bank

FROM ${BASE} AS serve
LABEL org.opencontainers.image.title="Tween" \
      org.opencontainers.image.description="Text classification served from the weights between models" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=packages /opt/tween /opt/tween
# Whatever a library wants to write goes to /tmp; the user has no entry in /etc/passwd and needs none.
ENV PATH=/opt/tween/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    HOME=/tmp USER=tween HF_HOME=/tmp/huggingface XDG_CACHE_HOME=/tmp/cache MPLCONFIGDIR=/tmp/matplotlib \
    TWEEN_HOST=0.0.0.0 TWEEN_BANK=/bank/bank.toml \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 65532:65532
WORKDIR /tmp
EXPOSE 8000
# Alive, not ready: a container that still loads its bank is not ill. Kubernetes asks by its own probes.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
  CMD ["python3", "-c", "import os, urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ.get('TWEEN_PORT', '8000')}/livez\", timeout=2)"]
ENTRYPOINT ["tween"]
CMD ["serve"]

FROM serve AS demo
COPY --from=bank /bank /bank

# Without --target: the service alone.
FROM serve
