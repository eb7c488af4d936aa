# Ascend NPUs, on aarch64 (Kunpeng) and on x86-64. In the checkout:
#   docker build -f recipes/docker/npu.Dockerfile -t seresnet-timm:npu .
#   bash recipes/docker/run_npu.sh seresnet-timm:npu DATA OUTPUT bash recipes/run.sh train_8p --data_path=/data --output /output
# The tag names CANN, chip, system and Python; torch_npu must belong to that CANN. For 910A and others, name your own
# image with CANN: --build-arg CANN_IMAGE=...
ARG CANN_IMAGE=ascendai/cann:8.5.0-910b-ubuntu22.04-py3.11
FROM ${CANN_IMAGE}
ARG TORCH_NPU=2.9.0
# PyTorch's index of CPU builds, or a mirror of it: beside a CUDA build torch_npu aborts the process
ARG CPU_INDEX=https://download.pytorch.org/whl/cpu
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# for the C extension that decodes JPEG; without them simplejpeg decodes. Any version does
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev libjpeg-dev \
    && rm -rf /var/lib/apt/lists/*
COPY . /tmp/seresnet_timm
RUN python3 -m pip install --no-cache-dir '/tmp/seresnet_timm[npu]' "torch_npu==${TORCH_NPU}" \
        -c "/tmp/seresnet_timm/seresnet_timm/ascend/constraints/torch_npu-${TORCH_NPU%%.post*}.txt" \
        --extra-index-url "${CPU_INDEX}" \
    && mkdir -p /opt/seresnet_timm \
    && mv /tmp/seresnet_timm/recipes /opt/seresnet_timm/recipes \
    && rm -rf /tmp/seresnet_timm
WORKDIR /opt/seresnet_timm
# the driver's libraries come from the host
ENV LD_LIBRARY_PATH=/usr/local/Ascend/driver/lib64:/usr/local/Ascend/driver/lib64/common:/usr/local/Ascend/driver/lib64/driver:${LD_LIBRARY_PATH}
# computes for a second on every NPU of the container
HEALTHCHECK --interval=30m --timeout=5m --start-period=10m --retries=2 \
    CMD ["bash", "/opt/seresnet_timm/recipes/docker/start.sh", "seresnet-timm", "doctor", "--device", "npu", "--seconds", "1"]
ENTRYPOINT ["bash", "/opt/seresnet_timm/recipes/docker/start.sh"]
CMD ["seresnet-timm", "doctor"]
