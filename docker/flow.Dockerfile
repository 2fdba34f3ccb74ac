# syntax=docker/dockerfile:1.10
# Prefect, the flows and the library, without torch: API, services, migration, deploying, and the
# workers of pool `cpu`. Built from the root of the repository.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /venv
COPY pyproject.toml constraints.txt README.md LICENSE ./
# Dependencies first, against an empty package: a changed line of code does not fetch them again.
RUN mkdir slm_core && echo '__version__ = "0"' > slm_core/__init__.py \
    && /venv/bin/pip install -c constraints.txt '.[prefect,report]'
COPY slm_core ./slm_core
RUN /venv/bin/pip install --no-deps --force-reinstall .

FROM ${PYTHON_IMAGE}
RUN useradd --uid 10001 --create-home --home-dir /home/slm slm \
    && install -d -o slm -g slm /data /data/spool
COPY --from=build /venv /venv
WORKDIR /app
COPY prefect.yaml constraints.txt ./
COPY flows ./flows
COPY tasks ./tasks
COPY deployments ./deployments
COPY assets ./assets
COPY docker/entrypoint.sh ./docker/
ENV PATH=/venv/bin:$PATH PYTHONPATH=/app PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    SLM_ASSETS=/app/assets DO_NOT_TRACK=1
USER 10001:10001
ENTRYPOINT ["/app/docker/entrypoint.sh"]
CMD ["prefect", "version"]
