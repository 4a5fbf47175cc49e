# The inference service: gRPC front and engine process. Build from the root of the repository:
#   docker build -f docker/inference.Dockerfile -t qwen-vl-serving/inference:0.3.0 .
# To pin it by digest: --build-arg BASE=python:3.11.14-slim-bookworm@sha256:...
ARG BASE=python:3.11.14-slim-bookworm
FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
# Wheels on a slim base instead of a CUDA image: torch brings the CUDA libraries that it was built with, a second copy would
# only be larger and could differ; the driver is the node's. torch, by far the largest part, has its own layer, which changes
# only with the constraints.
COPY constraints.txt ./
RUN python -m venv /opt/qwenvl && /opt/qwenvl/bin/pip install -c constraints.txt torch
COPY pyproject.toml README.md LICENSE ./
COPY protos protos
COPY inference_service inference_service
# `--build-arg EXTRAS=inference,tracing,transformers`: also models that the engine does not know (k8s/components/transformers)
ARG EXTRAS=inference,tracing
RUN /opt/qwenvl/bin/pip install -c constraints.txt ./protos ".[${EXTRAS}]"

FROM ${BASE}
# Triton, which compiles the kernels for a GPU at run time, also compiles a small module of Python for each process: it needs a
# C compiler with the headers of libc (205 MB, torch with CUDA has several GB); those of Python are in the base.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc=4:12.* libc6-dev=2.36-* \
    && rm -rf /var/lib/apt/lists/*
# A numeric user, so that Kubernetes can verify that it is not root; with a name for getpass.getuser.
RUN groupadd --gid 10001 qwenvl \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin qwenvl
COPY --from=build /opt/qwenvl /opt/qwenvl
ENV PATH=/opt/qwenvl/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    QWENVL_GRPC_ADDRESS=[::]:50051
# Where nodes mount the driver without a runtime hook (GKE), and what a runtime hook shall mount. Which GPUs are
# visible is set by whoever assigns them: the device plugin or `docker run --gpus`.
ENV LD_LIBRARY_PATH=/usr/local/nvidia/lib64 NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
EXPOSE 50051
ENTRYPOINT ["inference-service"]
