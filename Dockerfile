# For a host with an NVIDIA GPU and the NVIDIA container runtime:
#     docker build -t stillhouse . && docker run --gpus all -v "$PWD:/project" stillhouse run recipes/segformer_b5_to_b0.yaml
# The project's tests lint this file; they have no Docker engine and no GPU, so nobody has built it there. Not measured.
FROM nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# pycuda is built from source: it wants a compiler, the CUDA headers and the driver stub.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-dev python3-venv build-essential cuda-nvcc-13-0 cuda-cudart-dev-13-0 \
       cuda-driver-dev-13-0 cuda-profiler-api-13-0 libcurand-dev-13-0 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 --user-group still

ENV PATH=/opt/venv/bin:/usr/local/cuda/bin:$PATH CUDA_ROOT=/usr/local/cuda
WORKDIR /opt/stillhouse
COPY pyproject.toml setup.py README.md LICENSE ./
COPY pipeline pipeline
COPY stages stages
COPY kernels kernels
COPY recipes recipes
RUN python3 -m venv /opt/venv \
    && LIBRARY_PATH=/usr/local/cuda/lib64/stubs pip install --no-cache-dir -e ".[gpu,trt,triton,pycuda]" \
    && python -m kernels.nvcc

USER 10001
WORKDIR /project
ENTRYPOINT ["python", "-m", "pipeline"]
