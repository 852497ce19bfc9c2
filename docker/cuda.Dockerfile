# robust_ood on NVIDIA GPUs. The CUDA libraries come with PyTorch; the driver comes from the host (NVIDIA Container Toolkit).
#
#     docker build --file docker/cuda.Dockerfile --tag robust-ood:cuda .
#     docker run --rm --gpus all --shm-size 8g --volume "$PWD:/work" robust-ood:cuda train fit \
#         -c configs/experiments/digits_aloe.yaml --trainer.accelerator gpu

FROM python:3.12.8-slim-bookworm AS build
WORKDIR /build
RUN python -m pip install --no-cache-dir build==1.2.2
COPY pyproject.toml setup.py README.md LICENSE ./
COPY robust_ood robust_ood
COPY configs configs
# The context holds no .git; give the version that the tag says.
ARG VERSION=0.1.0
RUN SETUPTOOLS_SCM_PRETEND_VERSION="${VERSION}" python -m build --wheel --outdir /dist

FROM python:3.12.8-slim-bookworm
# PyTorch for Linux brings CUDA.
COPY --from=build /dist /dist
RUN python -m pip install --no-cache-dir "$(echo /dist/*.whl)[report]" && rm -r /dist
COPY docker/health /usr/local/bin/robust-ood-health
RUN useradd --create-home --uid 1000 ood && mkdir /work && chown 1000:1000 /work
USER 1000
ENV HOME=/home/ood \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONUNBUFFERED=1
# The checkpoint that the health check evaluates: a few steps on the embedded digits.
RUN robust-ood train fit -c configs/experiments/digits_standard.yaml --trainer.max_steps 3 --output /home/ood/health
WORKDIR /work
HEALTHCHECK --interval=10m --timeout=2m --start-period=1m --retries=2 CMD ["robust-ood-health"]
ENTRYPOINT ["robust-ood"]
CMD ["--help"]
