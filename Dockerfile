# The web page in a container: docker build -t styleapp . && docker run -p 7860:7860 styleapp
# With a GPU:               docker build -t styleapp:cuda --build-arg TORCH=cuda . && docker run --gpus all …
# docs/deploy.md has the rest.
FROM python:3.12-slim AS build
ARG TORCH=cpu
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# PyTorch first, the newest that fits: its layer stays while the code changes. The registry's own build has CUDA inside.
# hadolint ignore=DL3013
RUN if [ "$TORCH" = cpu ]; then \
        pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu; \
    else pip install torch torchvision; fi
COPY pyproject.toml README.md LICENSE NOTICE /src/
COPY styleapp /src/styleapp
COPY weights /src/weights
COPY examples /src/examples
RUN pip install /src

FROM python:3.12-slim
ARG TORCH=cpu
# Triton compiles kernels for the GPU that is there; without a compiler PyTorch's own do the same in more steps.
# hadolint ignore=DL3008
RUN if [ "$TORCH" != cpu ]; then \
        apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; \
    fi
COPY --from=build /venv /venv
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin styleapp
USER 10001
ENV PATH=/venv/bin:$PATH \
    HOME=/tmp \
    GRADIO_ANALYTICS_ENABLED=False \
    GRADIO_TEMP_DIR=/tmp/gradio \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
EXPOSE 7860
# All that is written goes to /tmp: the root file system may be read-only, with a tmpfs there.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:7860/healthz', timeout=4)"]
ENTRYPOINT ["styleapp"]
CMD ["web", "--host", "0.0.0.0"]
