# NVIDIA GPUs: torch's wheels hold CUDA, the host has the driver and the NVIDIA Container Toolkit. In the checkout:
#   docker build -f recipes/docker/cuda.Dockerfile -t seresnet-timm:cuda .
#   docker run --rm --gpus all --shm-size=64g -v DATA:/data:ro -v OUTPUT:/output seresnet-timm:cuda bash recipes/run.sh train_8p --data_path=/data --output /output
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
FROM ${PYTHON_IMAGE}
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# for the C extension that decodes JPEG; without them simplejpeg decodes. Any version does
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev libjpeg-dev \
    && rm -rf /var/lib/apt/lists/*
COPY . /tmp/seresnet_timm
RUN python3 -m pip install --no-cache-dir /tmp/seresnet_timm \
    && mkdir -p /opt/seresnet_timm \
    && mv /tmp/seresnet_timm/recipes /opt/seresnet_timm/recipes \
    && rm -rf /tmp/seresnet_timm
WORKDIR /opt/seresnet_timm
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# computes for a second on every GPU of the container
HEALTHCHECK --interval=30m --timeout=5m --start-period=10m --retries=2 \
    CMD ["seresnet-timm", "doctor", "--device", "cuda", "--seconds", "1"]
ENTRYPOINT ["bash", "/opt/seresnet_timm/recipes/docker/start.sh"]
CMD ["seresnet-timm", "doctor"]
