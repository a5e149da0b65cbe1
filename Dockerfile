# The server's image, for a CPU or, with TORCH_VARIANT, for NVIDIA GPUs. `make image` builds it; README.md tells how
# to run it.

FROM python:3.11.15-slim-bookworm AS base
# That image carries no bytecode of the standard library, and on a read-only root none could be kept.
RUN python -m compileall -q --invalidation-mode unchecked-hash -x site-packages \
        "$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" \
    && groupadd --gid 10001 basaran \
    && useradd --uid 10001 --gid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin basaran \
    && install --directory --owner 10001 --group 10001 /models \
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} +


# Wheels that pip should find before it asks an index: --build-context wheels=DIRECTORY fills this.
FROM scratch AS wheels


FROM base AS dependencies
# cpu, or a CUDA release for which PyTorch has wheels, such as cu130.
ARG TORCH_VARIANT=cpu
# Where PyTorch keeps these wheels. Empty: where pip looks anyway.
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/${TORCH_VARIANT}
ENV PATH=/opt/basaran_ops/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_NO_COMPILE=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
COPY constraints.txt ./
# The secrets are optional: pip's configuration and the certificates of a proxy, for builds behind one.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca-bundle,target=/run/secrets/ca-bundle \
    --mount=type=bind,from=wheels,target=/wheels \
    python -m venv /opt/basaran_ops \
    && pip install --constraint constraints.txt --upgrade pip setuptools \
    && pip install --constraint constraints.txt --find-links /wheels \
        ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} torch
COPY pyproject.toml deployments/image/dependencies.py deployments/image/slim.py ./
# Of torch's tests one is for a newer Python and cannot be compiled.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca-bundle,target=/run/secrets/ca-bundle \
    --mount=type=bind,from=wheels,target=/wheels \
    python dependencies.py > requirements.txt \
    && pip install --constraint constraints.txt --find-links /wheels --requirement requirements.txt \
    && pip check \
    && python slim.py "$TORCH_VARIANT" \
    && python -m compileall -q --invalidation-mode unchecked-hash -x py312_ /opt/basaran_ops/lib


FROM dependencies AS application
# Debian keeps no old versions that could be named here.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY README.md LICENSE ./
COPY basaran_ops basaran_ops
# An extension is optional to the package, not to the image.
RUN pip install --no-deps --no-build-isolation --no-index --prefix /application . \
    && ls /application/lib/python3*/site-packages/basaran_ops/engine/_kernels*.so \
    && python -m compileall -q --invalidation-mode unchecked-hash /application/lib


FROM base
# pip fetches the default model; HOME and HF_HOME are for libraries that keep something somewhere.
ENV PATH=/opt/basaran_ops/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    HOME=/tmp \
    HF_HOME=/models/huggingface \
    MODEL_CACHE_DIR=/models \
    PORT=80
# Not a writable directory: Python looks here for modules first.
WORKDIR /opt/basaran_ops
COPY --from=dependencies /opt/basaran_ops /opt/basaran_ops
COPY --from=application /application /opt/basaran_ops
USER 10001:10001
EXPOSE 80 9000
STOPSIGNAL SIGTERM
# A first start fetches the model. Not by urllib, which would ask a proxy for our own address.
HEALTHCHECK --interval=10s --timeout=5s --retries=3 --start-period=30m CMD ["python", "-I", "-c", "\
import http.client, os, sys; \
management = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('MANAGEMENT_PORT') or 9000), timeout=3); \
management.request('GET', '/readyz'); \
sys.exit(management.getresponse().status != 200)"]
ENTRYPOINT ["python", "-m", "basaran_ops"]

# Last: they change with every build.
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="basaran_ops" \
      org.opencontainers.image.description="Text-generation models of transformers behind an OpenAI-compatible API" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/library/python:3.11.15-slim-bookworm" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED"
