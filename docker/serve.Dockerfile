# syntax=docker/dockerfile:1.10
# `slm serve`: the live adapters of a store, or one model, in OpenAI's and Azure's form. Without
# Prefect. For a machine without GPU, build with
# --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu: a tenth of the size.
# Built from the root of the repository.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG PIP_EXTRA_INDEX_URL=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /venv
COPY pyproject.toml constraints.txt README.md LICENSE ./
# Dependencies first, against an empty package: a changed line of code does not fetch them again.
RUN mkdir slm_core && echo '__version__ = "0"' > slm_core/__init__.py \
    && /venv/bin/pip install -c constraints.txt '.[serve,train]'
COPY slm_core ./slm_core
RUN /venv/bin/pip install --no-deps --force-reinstall .

FROM ${PYTHON_IMAGE}
RUN useradd --uid 10001 --create-home --home-dir /home/slm slm \
    && install -d -o slm -g slm /data
COPY --from=build /venv /venv
WORKDIR /app
COPY assets ./assets
COPY docker/entrypoint.sh ./docker/
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    SLM_ASSETS=/app/assets SLM_HOME=/data HF_HOME=/data/huggingface \
    TRITON_CACHE_DIR=/tmp/triton TORCHINDUCTOR_CACHE_DIR=/tmp/inductor \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
EXPOSE 8000
ENTRYPOINT ["/app/docker/entrypoint.sh"]
CMD ["slm", "serve", "--routes", "--host", "0.0.0.0", "--port", "8000"]
