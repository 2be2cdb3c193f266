# One image for the webserver, the daemon, the code location and the run pods (CPU).
FROM python:3.11-slim AS build
WORKDIR /build
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY constraints.txt pyproject.toml README.md LICENSE NOTICE ./
COPY eval_assets eval_assets
COPY resources resources
# torch first and by its exact version; TORCH_INDEX names an index with the CPU (or CUDA) build that is wanted.
ARG TORCH_INDEX=""
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch==2.13.0 \
 && pip install --no-cache-dir -c constraints.txt '.[mlflow]'

FROM python:3.11-slim
ARG GIT_REVISION=""
ENV PATH=/opt/venv/bin:$PATH \
    DAGSTER_HOME=/opt/dagster \
    EVAL_STORE=/results \
    EVAL_REGISTRY=/models \
    EVAL_DATA_MIRROR=/data \
    EVAL_GIT_REVISION=$GIT_REVISION \
    HF_HUB_DISABLE_TELEMETRY=1 \
    PYTHONUNBUFFERED=1
RUN useradd --uid 10001 --create-home evaluation \
 && install -d -o evaluation /opt/dagster /results /models /data
COPY --from=build /opt/venv /opt/venv
COPY deployments/local/dagster.yaml /opt/dagster/dagster.yaml
COPY workspace.yaml /app/workspace.yaml
WORKDIR /app
USER 10001
EXPOSE 4000
CMD ["dagster", "code-server", "start", "-h", "0.0.0.0", "-p", "4000", "-m", "eval_assets.definitions"]
