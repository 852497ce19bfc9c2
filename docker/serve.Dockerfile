# A guard as a web service, on a CPU. The guard's folder is mounted, read-only.
#
#     docker build --file docker/serve.Dockerfile --tag robust-ood:serve .
#     docker run --rm --publish 127.0.0.1:8000:8000 --volume "$PWD/guards/aloe:/guard:ro" robust-ood:serve \
#         serve /guard --host 0.0.0.0

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
# PyTorch without CUDA, a tenth of the size.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY --from=build /dist /dist
RUN python -m pip install --no-cache-dir --extra-index-url "${TORCH_INDEX}" "$(echo /dist/*.whl)[serve]" && rm -r /dist
COPY docker/serve-health /usr/local/bin/robust-ood-serve-health
RUN useradd --create-home --uid 1000 ood && mkdir /work && chown 1000:1000 /work
USER 1000
ENV HOME=/home/ood \
    PYTHONUNBUFFERED=1
WORKDIR /work
HEALTHCHECK --interval=30s --timeout=5s --start-period=1m --retries=3 CMD ["robust-ood-serve-health"]
ENTRYPOINT ["robust-ood"]
CMD ["serve", "--help"]
