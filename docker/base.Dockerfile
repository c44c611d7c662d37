# syntax=docker/dockerfile:1
# What every stage's image stands on: Python, and the project's pinned dependencies with torch's
# CUDA wheels, which carry the CUDA libraries. No compiler, no CUDA toolkit.
#
# Any Debian-like base with Python 3.11 or newer will do; the default is the official slim one.
# Published images name theirs by digest too (.github/workflows/images.yml).
ARG BASE_IMAGE=python:3.11-slim-bookworm

# The dependencies come from pyproject.toml, so that there is one list of them. Drawn out here, they
# are all that decides whether the big layer below is built anew.
# hadolint ignore=DL3006
FROM ${BASE_IMAGE} AS requirements
WORKDIR /requirements
COPY pyproject.toml ./
RUN python3 -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(*p["dependencies"], *p["optional-dependencies"]["stages"], "setuptools", sep="\n")' > requirements.txt

# hadolint ignore=DL3006
FROM ${BASE_IMAGE}
WORKDIR /opt/wsssbed
COPY constraints.txt ./
COPY --from=requirements /requirements/requirements.txt ./
RUN python3 -m venv /opt/venv \
 && /opt/venv/bin/pip install --no-cache-dir --constraint constraints.txt --requirement requirements.txt

# Everything that libraries like to write goes below /cache, whatever the user's id; /data is read
# only, /artifacts is where results go. torch asks for a user name, which an id alone has not.
RUN mkdir -m 1777 /cache /artifacts && mkdir /data
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/cache \
    USER=wsssbed \
    XDG_CACHE_HOME=/cache \
    HF_HOME=/cache/huggingface \
    TORCH_HOME=/cache/torch \
    MPLCONFIGDIR=/cache/matplotlib \
    TRITON_CACHE_DIR=/cache/triton \
    CUDA_CACHE_PATH=/cache/cuda \
    WSSSBED_CACHE=/cache/wsssbed-hub \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
