# Vitrine as an image: TorchServe with the example models, and room for yours.
#
#   docker build -t vitrine .
#   docker run -p 8080:8080 vitrine
#   docker run -p 8080:8080 -v "$PWD/my_store:/opt/vitrine/model_store:ro" vitrine
#
# Without a GPU, name a CPU wheel index of torch (pytorch.org's install page does), or pip may take
# the CUDA build: docker build --build-arg TORCH_INDEX_URL=... -t vitrine .

ARG BASE=python:3.11-slim-bookworm

# What serving needs. Rebuilt only when the requirements change.
FROM ${BASE} AS packages
ARG TORCH_INDEX_URL=
ENV PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore VITRINE_VENV=/opt/venv
# `tracing` adds what exports traces.
ARG WITH=serve
WORKDIR /build
COPY scripts/bootstrap scripts/
COPY requirements/constraints.txt requirements/serve.txt requirements/tracing.txt requirements/
RUN scripts/bootstrap ${WITH}

# The example models, exported.
FROM packages AS export
COPY requirements/export.txt requirements/
RUN scripts/bootstrap export
COPY formats/ formats/
COPY engine/ engine/
COPY handlers/ handlers/
COPY export/ export/
COPY models/ models/
RUN /opt/venv/bin/python -m export --model-store /model_store \
        models/control_flow.py models/dann.py models/activation_mlp.py models/digits.py \
    && rm -f /model_store/*.sources.json

# What serving needs, without what only building and testing does.
FROM packages AS runtime
RUN /opt/venv/bin/python -m pip uninstall --yes pip \
    && cd /opt/venv/lib/python3.11/site-packages \
    && rm -rf torch/include torch/share torch/test torch/lib/*test*.so \
    && find torch/bin -type f ! -name torch_shm_manager -delete

FROM ${BASE}
# The front: Debian's own package, so that its security updates come with a rebuild.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends haproxy \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin vitrine
COPY --from=runtime /opt/venv /opt/venv
WORKDIR /opt/vitrine
COPY config.properties ./
COPY server/ server/
COPY formats/ formats/
COPY --from=export /model_store model_store/
# A second less until the server is ready.
RUN /opt/venv/bin/python -m server java-cache
# Nothing but /tmp has to be writable; the image runs with --read-only --tmpfs /tmp:exec too.
ENV HOME=/tmp PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
    CMD ["python", "-m", "server", "health", "--state", "/tmp/vitrine.state.json"]
# The front only is reachable from outside; management, metrics and gRPC stay on the loopback.
ENTRYPOINT ["python", "-m", "server", "--front", "--bind", "0.0.0.0", \
    "--state", "/tmp/vitrine.state.json"]
