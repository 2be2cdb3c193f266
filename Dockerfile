# syntax=docker/dockerfile:1
# One image for the webserver, the daemon, the code location and the run pods, in two targets:
#   docker build -t evaluation:dev .                        cpu, the default
#   docker build --target cuda -t evaluation:dev-cuda .     with NVIDIA's libraries, several GB more
# Packages from an index of your own, its password in no layer: --secret id=pip,src=pip.conf
#
# A tag can move, a digest can't. This prints the argument that pins a release to what the tag means today:
#   docker buildx imagetools inspect python:3.11.11-slim-bookworm --format '--build-arg PYTHON_IMAGE=python:3.11.11-slim-bookworm@{{.Manifest.Digest}}'
ARG PYTHON_IMAGE=python:3.11.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# The venv has no pip of its own: the image's installs into it.
ENV PIP_CACHE_DIR=/var/.cache/pip \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_PYTHON=/opt/venv/bin/python
WORKDIR /build
RUN python -m venv --without-pip /opt/venv

# A stage of its own, so that an edit of pyproject.toml that changes no requirement installs nothing again.
FROM build AS requirements
ARG EXTRAS=cluster,mlflow,s3,large,tracing
COPY pyproject.toml ./
RUN EXTRAS="$EXTRAS" python -c "import os, tomllib; \
project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
extras = [project['optional-dependencies'][extra] for extra in os.environ['EXTRAS'].split(',')]; \
print(*project['dependencies'], *sum(extras, []), sep='\n')" > requirements.txt

# Changes with every edit of a source, and is small; what it needs comes from the packages-* stages.
FROM build AS application
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY eval_assets eval_assets
COPY resources resources
RUN --mount=type=cache,target=/var/.cache/pip --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install --no-deps --root /application .

# The exact version comes first and by itself: it is the largest download, and outlives a change of the lock file.
FROM build AS packages-cpu
ARG TORCH_VERSION=2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN --mount=type=cache,target=/var/.cache/pip --mount=type=secret,id=pip,target=/etc/pip.conf \
    PIP_INDEX_URL=$TORCH_INDEX pip install --no-deps "torch==$TORCH_VERSION"
COPY constraints.txt ./
COPY --from=requirements /build/requirements.txt ./
RUN --mount=type=cache,target=/var/.cache/pip --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install -c constraints.txt -r requirements.txt \
 && pip check

FROM build AS packages-cuda
ARG TORCH_VERSION=2.13.0
# Empty: PyPI's build, which brings the CUDA libraries that it was made with.
ARG TORCH_INDEX=
RUN --mount=type=cache,target=/var/.cache/pip --mount=type=secret,id=pip,target=/etc/pip.conf \
    PIP_INDEX_URL=$TORCH_INDEX pip install "torch==$TORCH_VERSION"
COPY constraints.txt ./
COPY --from=requirements /build/requirements.txt ./
RUN --mount=type=cache,target=/var/.cache/pip --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install -c constraints.txt -r requirements.txt \
 && pip check

FROM ${PYTHON_IMAGE} AS runtime
# Empty folders where a cluster mounts its volumes; the home is the one folder that is writable everywhere.
RUN groupadd --gid 10001 evaluation \
 && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /tmp --shell /usr/sbin/nologin evaluation \
 && install -d -o 10001 -g 10001 /opt/dagster/dagster_home /results /models /models-cache /data
WORKDIR /app
COPY workspace.yaml ./
# For a container without a cluster: there a ConfigMap covers the whole folder.
COPY deployments/local/dagster.yaml /opt/dagster/dagster_home/dagster.yaml
ARG PYTHON_IMAGE
ARG GIT_REVISION=
ARG SOURCE_URL=
ENV PATH=/opt/venv/bin:$PATH \
    DAGSTER_HOME=/opt/dagster/dagster_home \
    DAGSTER_DISABLE_TELEMETRY=yes \
    EVAL_STORE=/results \
    EVAL_REGISTRY=/models \
    EVAL_CACHE=/models-cache \
    EVAL_DATA_MIRROR=/data \
    EVAL_GIT_REVISION=$GIT_REVISION \
    HF_HUB_DISABLE_TELEMETRY=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
LABEL org.opencontainers.image.title="continuous-model-evaluation" \
      org.opencontainers.image.description="Continuous evaluation of language models as partitioned Dagster assets." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="$SOURCE_URL" \
      org.opencontainers.image.revision="$GIT_REVISION" \
      org.opencontainers.image.base.name="$PYTHON_IMAGE"
# Dagster's own state where nothing is mounted: writable under `docker run --read-only --tmpfs /tmp` as well.
VOLUME ["/opt/dagster/dagster_home"]
USER 10001:10001
EXPOSE 4000
# Of the default command, under Docker. Kubernetes ignores it and has the probes of its manifests.
HEALTHCHECK --interval=30s --timeout=20s --start-period=120s --retries=3 \
    CMD ["dagster", "api", "grpc-health-check", "-p", "4000"]
CMD ["dagster", "code-server", "start", "-h", "0.0.0.0", "-p", "4000", "-m", "eval_assets.definitions"]

FROM runtime AS cuda
COPY --from=packages-cuda /opt/venv /opt/venv
COPY --from=application /application/ /

FROM runtime AS cpu
COPY --from=packages-cpu /opt/venv /opt/venv
# After the packages and apart from them: a new version of the sources pushes and pulls this layer only.
COPY --from=application /application/ /
