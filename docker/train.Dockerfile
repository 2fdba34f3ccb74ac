# syntax=docker/dockerfile:1.10
# The flow image with what training needs: the workers of pool `gpu`. torch brings its own CUDA,
# the host its driver (NVIDIA container toolkit). The base is not the slim one, because Triton
# compiles kernels with a C compiler. Built from the root of the repository.
ARG PYTHON_IMAGE=python:3.11.14-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /venv
COPY pyproject.toml constraints.txt README.md LICENSE ./
# Dependencies first, against an empty package: a changed line of code does not fetch them again.
RUN mkdir slm_core && echo '__version__ = "0"' > slm_core/__init__.py \
    && /venv/bin/pip install -c constraints.txt '.[prefect,report,train,hub,fanout]'
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
    SLM_ASSETS=/app/assets DO_NOT_TRACK=1 \
    HF_HOME=/data/huggingface TRITON_CACHE_DIR=/data/cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/data/cache/inductor MPLCONFIGDIR=/tmp/matplotlib \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
ENTRYPOINT ["/app/docker/entrypoint.sh"]
CMD ["prefect", "version"]
