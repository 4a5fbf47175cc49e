# The REST adapter, a small image. Build from the root of the repository:
#   docker build -f docker/rest-adapter.Dockerfile -t qwen-vl-serving/rest-adapter:0.3.0 .
# To pin it by digest: --build-arg BASE=python:3.11.14-slim-bookworm@sha256:...
ARG BASE=python:3.11.14-slim-bookworm
FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY protos protos
COPY rest_adapter rest_adapter
RUN python -m venv /opt/qwenvl && /opt/qwenvl/bin/pip install -c constraints.txt ./protos '.[adapter,tracing]'

FROM ${BASE}
# A numeric user, so that Kubernetes can verify that it is not root.
RUN groupadd --gid 10001 qwenvl \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin qwenvl
COPY --from=build /opt/qwenvl /opt/qwenvl
ENV PATH=/opt/qwenvl/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    QWENVL_HTTP_ADDRESS=[::]:8000
USER 10001:10001
EXPOSE 8000
ENTRYPOINT ["rest-adapter"]
