# One image for every process of ours: the command says which one a container is.

# The dependencies change seldom, and are a layer of their own, which a new version of ours leaves as it is.
FROM python:3.11-slim-bookworm AS dependencies
RUN pip install --no-cache-dir uv==0.13.9
# Bytecode is known by its source's hash, not by the time of a file, which differs between builds.
ENV UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_PYTHON_DOWNLOADS=never \
    UV_PROJECT_ENVIRONMENT=/app/.venv \
    PYC_INVALIDATION_MODE=UNCHECKED_HASH
WORKDIR /src
COPY pyproject.toml uv.lock ./
RUN --mount=type=cache,target=/root/.cache/uv \
    uv sync --locked --no-dev --no-install-project

FROM dependencies AS build
COPY README.md workspace.yaml ./
COPY examples/legacy-panel examples/legacy-panel
COPY eventsourcing eventsourcing
COPY resources resources
COPY pipelines pipelines
COPY api api
RUN --mount=type=cache,target=/root/.cache/uv \
    uv build --wheel --out-dir /wheel

FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="event-sourced-migration" \
      org.opencontainers.image.description="Move users and admins from a legacy system to a new one, and prove what happened to every record."
# A new named volume takes over what stands here, owners included.
RUN groupadd --gid 10001 esm \
    && useradd --uid 10001 --gid esm --no-create-home --home-dir /var/lib/esm --shell /usr/sbin/nologin esm \
    && install --directory --owner=esm --group=esm --mode=0750 \
        /var/lib/esm /var/lib/esm/mappings /var/lib/esm/sources
COPY --from=dependencies /app/.venv /app/.venv
COPY deploy/probe.py /app/probe.py
COPY --chown=esm:esm examples/legacy-panel/mapping.yaml /var/lib/esm/mappings/legacy-panel.yaml
ENV PATH=/app/.venv/bin:$PATH \
    HOME=/var/lib/esm \
    ESM_DATA_DIR=/var/lib/esm \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
RUN --mount=from=dependencies,source=/usr/local/bin/uv,target=/usr/local/bin/uv \
    --mount=from=build,source=/wheel,target=/wheel \
    PYC_INVALIDATION_MODE=UNCHECKED_HASH \
    uv pip install --no-cache --no-deps --offline --compile-bytecode --python /app/.venv /wheel/*.whl
USER 10001:10001
WORKDIR /var/lib/esm
EXPOSE 8006 8007 3000 4000 9108
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=6 \
    CMD ["python", "/app/probe.py", "http://127.0.0.1:8006/readyz"]
CMD ["python", "-m", "api.event_service"]
