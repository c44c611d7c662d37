#!/usr/bin/env bash
# The images, for real: an engine if none runs, a base where none can be pulled, all images, every
# stage in its container under the run contract, and a registry on loopback. Called by .ci/run.
#
# Needs Debian or Ubuntu, and root or sudo for what is missing. What is there already is used.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$PWD/build/docker
root=()
[ "$(id -u)" = 0 ] || root=(sudo)
mkdir -p "$work"

install() { # Debian packages, those that are missing
  local missing=()
  for package in "$@"; do
    dpkg-query --show --showformat '${Status}' "$package" 2> /dev/null | grep -q 'ok installed' \
      || missing+=("$package")
  done
  if [ ${#missing[@]} -gt 0 ]; then
    "${root[@]}" apt-get update -qq
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" \
      > "$work/apt.log" 2>&1 || { cat "$work/apt.log" >&2; exit 1; }
  fi
}

engine() { # one that answers; if it was started here, it ends with this script
  docker info > /dev/null 2>&1 && return
  command -v dockerd > /dev/null || install docker.io iptables
  echo "starting dockerd"
  "${root[@]}" dockerd --data-root "${DOCKER_DATA_ROOT:-/var/lib/docker}" \
    > "$work/dockerd.log" 2>&1 &
  daemon=$!
  trap '"${root[@]}" kill "$daemon" && wait "$daemon" || true' EXIT
  for _ in $(seq 60); do
    docker info > /dev/null 2>&1 && return
    sleep 1
  done
  tail -n 20 "$work/dockerd.log" >&2
  exit 1
}

base_image() { # prints what the base can stand on: the official image, or one of Debian's packages
  local official made=wsssbed/debian:bookworm
  official=$(sed -n 's/^ARG BASE_IMAGE=//p' docker/base.Dockerfile)
  if docker image inspect "$official" > /dev/null 2>&1 \
    || timeout 300 docker pull --quiet "$official" > /dev/null 2>&1; then
    echo "$official"
    return
  fi
  if ! docker image inspect "$made" > /dev/null 2>&1; then
    echo "$official cannot be pulled: a root file system from Debian's packages" >&2
    install debootstrap ca-certificates >&2
    "${root[@]}" rm -rf "$work/root"
    "${root[@]}" debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv \
      bookworm "$work/root" > "$work/debootstrap.log" \
      || { tail -n 20 "$work/debootstrap.log" >&2; exit 1; }
    # This machine's certificates: it may see the package index through a proxy of its own.
    "${root[@]}" cp /etc/ssl/certs/ca-certificates.crt "$work/root/etc/ssl/certs/ca-certificates.crt"
    "${root[@]}" tar --create --numeric-owner --directory "$work/root" \
      --exclude './var/cache/apt/archives/*.deb' --exclude './var/lib/apt/lists/*' . \
      | docker import - "$made" > /dev/null
    "${root[@]}" rm -rf "$work/root"
  fi
  echo "$made"
}

engine
base=$(base_image)
echo "base image: $base"
# The build sees the package index where this machine sees it.
SECONDS=0
make images BASE_IMAGE="$base" BUILD_FLAGS="--network host" > "$work/build.log" 2>&1 \
  || { tail -n 40 "$work/build.log" >&2; exit 1; }
echo "images built in $SECONDS s:"
make --silent list-images | while read -r image; do
  docker image inspect --format "  $image {{.Size}} bytes" "$image"
done

install docker-registry
SECONDS=0
WSSSBED_TEST_ENGINE=docker "${VENV:-.venv}/bin/pytest" tests/docker
echo "every stage ran in its container in $SECONDS s"
