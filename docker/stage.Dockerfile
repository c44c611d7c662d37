# syntax=docker/dockerfile:1
# One stage as one command: the image wsssbed/<stage>. The project's code, a few MB on top of the
# shared base, is the same layer for all stages; what differs is metadata.
ARG BASE=wsssbed/base
# hadolint ignore=DL3006
FROM ${BASE}

WORKDIR /opt/wsssbed
COPY pyproject.toml README.md LICENSE ./
COPY wsssbed_hub wsssbed_hub
COPY stages stages
# ENTRYPOINT takes no build argument, so it is a program that reads the stage's name.
# hadolint ignore=SC2016
RUN pip install --no-cache-dir --no-deps --no-build-isolation --disable-pip-version-check . \
 && python -m compileall -q /opt/venv/lib/python3*/site-packages/stages /opt/venv/lib/python3*/site-packages/wsssbed_hub \
 && rm -rf build ./*.egg-info wsssbed_hub stages \
 && printf '#!/bin/sh\nexec python -m stages "$WSSSBED_STAGE" "$@"\n' > /usr/local/bin/stage \
 && chmod 755 /usr/local/bin/stage
WORKDIR /artifacts
ENTRYPOINT ["stage"]

ARG STAGE
ARG VERSION
ARG REVISION=
ARG REPOSITORY=wsssbed
ENV WSSSBED_STAGE=${STAGE} \
    WSSSBED_COMMIT=${REVISION} \
    WSSSBED_IMAGE=${REPOSITORY}/${STAGE}:${VERSION}
LABEL org.opencontainers.image.title="wsssbed/${STAGE}" \
      org.opencontainers.image.description="The stage ${STAGE} of wsssbed-hub" \
      org.opencontainers.image.source="https://github.com/wsssbed/wsssbed-hub" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      wsssbed.stage="${STAGE}"
# There is such a stage, and all that it imports is here.
RUN : "${STAGE:?name a stage with --build-arg STAGE=}" "${VERSION:?}" && stage --help > /dev/null
