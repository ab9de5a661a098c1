# Two images: `aggregator`, without TensorFlow, and `worker`, which is also the evaluator's. docker-compose.yml builds
# both; docs/how-to/containers.md tells how to derive one's own from them.
ARG PYTHON=python:3.13-slim

FROM ${PYTHON} AS wheel
WORKDIR /source
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip \
    pip wheel --quiet --no-deps --wheel-dir /wheels .

# The user, the folder of a task of one's own (it is importable: `--task package.module:name`), and the folder of the
# initial model; the volume that is mounted there takes over its owner. Some platforms choose another user for each
# container, always of group 0: that group may write what this user may. /tmp alone must be writable.
FROM ${PYTHON} AS base
RUN useradd --uid 10001 --gid 0 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin fluffle \
 && python -m venv /opt/fluffle \
 && install -d /task \
 && install -d -o fluffle -g 0 -m 775 /models
ENV PATH=/opt/fluffle/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /task
# Healthy is who has a connection to the broker, 5672 or with TLS 5671. What listens on a port does so for those who look on.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["grep", "-Eqs", ":162[78] 01 ", "/proc/net/tcp", "/proc/net/tcp6"]

FROM base AS aggregator
COPY requirements-aggregator.lock /opt/fluffle/
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --quiet --require-hashes --requirement /opt/fluffle/requirements-aggregator.lock
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --quiet --no-deps --no-index /wheels/*.whl
USER fluffle
CMD ["python", "-m", "fluffle_aggregator"]

FROM base AS worker
# Updates wait here until the broker has them; the volume comes with the container, and stays when it starts again.
RUN install -d -o fluffle -g 0 -m 770 /spool
ENV FLUFFLE_SPOOL=/spool
VOLUME /spool
COPY requirements-worker.lock /opt/fluffle/
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --quiet --require-hashes --requirement /opt/fluffle/requirements-worker.lock
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --quiet --no-deps --no-index /wheels/*.whl
USER fluffle
CMD ["python", "-m", "fluffle_worker"]
