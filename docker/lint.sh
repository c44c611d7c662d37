#!/usr/bin/env bash
# Dockerfiles, workflows and shell scripts: `make lint-images`. actionlint, whose PyPI package
# fetches the program from elsewhere, has a job of its own in .github/workflows/ci.yml.
set -euo pipefail
cd "$(dirname "$0")/.."

tools=build/lint
if ! cmp -s docker/requirements-lint.txt "$tools/installed"; then
  rm -rf "$tools"
  "${PYTHON:-python3}" -m venv "$tools"
  "$tools/bin/pip" install --quiet --disable-pip-version-check --requirement docker/requirements-lint.txt
  cp docker/requirements-lint.txt "$tools/installed"
fi

"$tools/bin/hadolint" docker/*.Dockerfile
"$tools/bin/check-jsonschema" --builtin-schema vendor.github-workflows .github/workflows/*.yml
"$tools/bin/zizmor" --offline --quiet .github/workflows
for script in .ci/run docker/*.sh; do
  bash -n "$script"
done
if command -v shellcheck > /dev/null; then
  shellcheck .ci/run docker/*.sh
fi
unpinned=$(grep -nE 'uses: ' .github/workflows/*.yml | grep -vE '@[0-9a-f]{40} # v[0-9]' || true)
if [ -n "$unpinned" ]; then
  printf 'not pinned by commit:\n%s\n' "$unpinned" >&2
  exit 1
fi
