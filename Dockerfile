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
# hadolint ignore=DL3006
FROM ${BASE} AS packages
ARG TORCH_INDEX_URL=
ARG TORCH_UNVERIFIED=
ENV PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore VITRINE_VENV=/opt/venv
# `tracing` adds what exports traces.
ARG WITH=serve
WORKDIR /build
COPY scripts/bootstrap scripts/
COPY requirements/locked/torch.txt requirements/locked/torch-cpu.txt requirements/locked/cuda.txt \
    requirements/locked/serve.txt requirements/locked/tracing.txt requirements/locked/
RUN scripts/bootstrap "${WITH}"

# The example models, exported.
FROM packages AS export
COPY requirements/locked/export.txt requirements/locked/
RUN scripts/bootstrap export
COPY formats/ formats/
COPY engine/ engine/
COPY handlers/ handlers/
COPY export/ export/
COPY models/ models/
RUN /opt/venv/bin/python -m export --model-store /model_store \
        models/control_flow.py models/dann.py models/activation_mlp.py models/digits.py \
    && rm -f /model_store/*.sources.json

# What serving needs, without what only building and testing does. torch imports sympy and networkx
# to compile; libtorch_cpu.so's own symbol table is 89 MB, and what is linked against is another.
FROM packages AS runtime
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends binutils \
    && rm -rf /var/lib/apt/lists/* \
    && /opt/venv/bin/python -m pip uninstall --yes sympy mpmath networkx pip setuptools wheel
WORKDIR /opt/venv/lib/python3.11/site-packages
RUN rm -rf torch/include torch/share torch/test torch/lib/*test*.so \
        matplotlib/mpl-data/sample_data \
    && find torch/bin -type f ! -name torch_shm_manager -delete \
    && find . -type d -name tests -not -path "./torch/*" -prune -exec rm -rf {} + \
    && find torch/lib -name "lib*.so" -exec strip --strip-unneeded {} +

# Looks at the activation log, without torch: docker build --target observe -t vitrine-observe .
# hadolint ignore=DL3006
FROM ${BASE} AS observe-packages
ENV PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore VITRINE_VENV=/opt/venv
WORKDIR /build
COPY scripts/bootstrap scripts/
COPY requirements/locked/observe.txt requirements/locked/
RUN scripts/bootstrap observe && /opt/venv/bin/python -m pip uninstall --yes pip setuptools

# hadolint ignore=DL3006
FROM ${BASE} AS observe
# The same user as the server's, whose log it reads.
RUN groupadd --gid 10001 vitrine \
    && useradd --uid 10001 --gid vitrine --no-create-home --shell /usr/sbin/nologin vitrine \
    && install -d -o vitrine -g vitrine /var/log/vitrine \
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} +
COPY --from=observe-packages /opt/venv /opt/venv
WORKDIR /opt/vitrine
COPY formats/ formats/
COPY observe/ observe/
# Their baselines.
COPY --from=export /model_store model_store/
ENV HOME=/tmp PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001
EXPOSE 8090
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import http.client, sys; \
asked = http.client.HTTPConnection('127.0.0.1', 8090, timeout=4); \
asked.request('GET', '/health'); sys.exit(asked.getresponse().status != 200)"]
ENTRYPOINT ["python", "-m", "observe"]
CMD ["page", "/var/log/vitrine", "--host", "0.0.0.0", "--port", "8090"]

# The server, which is what `docker build` makes.
# hadolint ignore=DL3006
FROM ${BASE} AS server
# The front: Debian's own package, so that its security updates come with a rebuild.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends haproxy \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin \
    && groupadd --gid 10001 vitrine \
    && useradd --uid 10001 --gid vitrine --no-create-home --shell /usr/sbin/nologin vitrine \
    # A volume that is mounted here for the first time takes its owner from here.
    && install -d -o vitrine -g vitrine /var/log/vitrine \
    # Nothing here is somebody else when it runs (su, mount, ...).
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} +
COPY --from=runtime /opt/venv /opt/venv
WORKDIR /opt/vitrine
COPY config.properties ./
COPY server/ server/
COPY formats/ formats/
COPY --from=export /model_store model_store/
# A second less until the server is ready, and nothing of Java's that /tmp has to run.
RUN /opt/venv/bin/python -m server java-cache
# Nothing but /tmp has to be writable, and nothing there is run, but for archives of the engine `aot`:
# the image runs with --read-only --tmpfs /tmp too. compose.yaml runs it so.
ENV HOME=/tmp PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
    CMD ["python", "-m", "server", "health", "--state", "/tmp/vitrine.state.json"]
# The front only is reachable from outside; management, metrics and gRPC stay on the loopback.
ENTRYPOINT ["python", "-m", "server", "--front", "--bind", "0.0.0.0", \
    "--state", "/tmp/vitrine.state.json"]
# Last, so that another commit changes nothing else.
ARG REVISION=
ARG SOURCE=
LABEL org.opencontainers.image.title="Vitrine" \
    org.opencontainers.image.description="Serves PyTorch models over HTTP, and looks inside a single request." \
    org.opencontainers.image.version="0.1.0" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.source="${SOURCE}" \
    org.opencontainers.image.licenses="Apache-2.0"
