# One file, three images: `cpu` and `gpu` serve, `export` converts. No torch where images are served.
#
#   docker build --target cpu -t resnet-service:cpu .
#
# Docker's classic builder makes every stage above the target, so what is asked for least comes last. With some storage
# drivers it copies the whole image for every step, so what describes an image comes before what fills it.
#
# The base is a build argument, so that a mirror or a hardened image can take its place.
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

# --- an empty environment to install into, and what is to be installed
FROM ${PYTHON_IMAGE} AS environment
# pip reads these from the environment; a package mirror may be given.
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_FIND_LINKS=/src PATH=/opt/venv/bin:$PATH
WORKDIR /src
RUN python -m venv /opt/venv
COPY docker/wheels/ docker/requirements.py docker/slim.py pyproject.toml constraints.txt ./

# --- our own code, which needs a compiler for the resize kernel: a small layer that goes on top of the dependencies
FROM environment AS code
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*
COPY . .
RUN pip install --quiet -c constraints.txt --no-deps --root /code .

FROM environment AS environment-cpu
RUN python requirements.py cpu grpc signing > requirements.txt \
 && pip install --quiet -c constraints.txt -r requirements.txt \
 && python slim.py

# --- what all images share: nothing but Python, an init process, and a user without rights
FROM ${PYTHON_IMAGE} AS runtime
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp
RUN apt-get update \
 && apt-get install --yes --no-install-recommends tini \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin resnet \
 && mkdir /models && chown 10001:10001 /models
VOLUME /models
ARG VERSION=0.1.0 REVISION=unknown
LABEL org.opencontainers.image.title="resnet-service" \
      org.opencontainers.image.description="A trained ResNet behind HTTP, proved to answer as it was trained" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

FROM runtime AS serve
ENV SERVICE_MODELS=/models SERVICE_HOST=0.0.0.0 SERVICE_PORT=8000
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 CMD ["python", "/usr/local/bin/healthcheck.py"]
USER 10001
ENTRYPOINT ["tini", "--", "resnet-serve"]
COPY docker/healthcheck.py /usr/local/bin/healthcheck.py

FROM serve AS cpu
ENV SERVICE_DEVICE=cpu
COPY --from=environment-cpu /opt/venv /opt/venv
COPY --from=code /code /

FROM environment AS environment-export
# torch's wheels for Linux bring CUDA along; an index of CPU builds makes this image several gigabytes smaller.
ARG TORCH_INDEX_URL
RUN python requirements.py cpu export > requirements.txt \
 && pip install --quiet -c constraints.txt ${TORCH_INDEX_URL:+--extra-index-url $TORCH_INDEX_URL} -r requirements.txt

FROM runtime AS export
USER 10001
ENTRYPOINT ["tini", "--", "resnet-export"]
CMD ["--help"]
COPY --from=environment-export /opt/venv /opt/venv
COPY --from=code /code /

FROM environment AS environment-gpu
RUN python requirements.py gpu grpc signing > requirements.txt \
 && pip install --quiet -c constraints.txt -r requirements.txt \
 && python slim.py

FROM serve AS gpu
ENV SERVICE_DEVICE=cuda NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=environment-gpu /opt/venv /opt/venv
COPY --from=code /code /
