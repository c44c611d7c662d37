"""``python -m hubserver.measure [MIB]``: pull from loopback beside cp and sha256sum.

The same bytes, one after the other, three times; the server is a process of its own. Both sides
end with the bytes on the disk.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NAME, PATH = "alice/sal-measured", "shapes/1.0.0/00000.parquet"


def main(size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        server = subprocess.Popen(
            [sys.executable, "-m", "hubserver", str(root / "hub")],
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert server.stdout is not None
            os.environ |= dict(pair.split("=") for pair in server.stdout.readline().split())
            os.environ |= {
                "HF_HUB_DISABLE_XET": "1",
                "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                "HF_HOME": str(root / "hf"),
            }
            measure(root, size)
        finally:
            server.kill()


def measure(root: Path, size: int) -> None:
    from huggingface_hub import CommitOperationAdd, HfApi

    from wsssbed_hub.hub_repository import HubRepository
    from wsssbed_hub.manifest import File
    from wsssbed_hub.store import Store

    original = root / "original"
    with open(original, "wb") as out:
        for _ in range(size):
            out.write(os.urandom(1 << 20))
    with open(original, "rb") as data:
        digest = hashlib.file_digest(data, "sha256").hexdigest()
    api, repository = HfApi(), HubRepository(NAME)
    api.create_repo(NAME, repo_type="dataset")
    files = [CommitOperationAdd(PATH, original)]
    commit = api.create_commit(NAME, files, commit_message="x", repo_type="dataset").oid
    file = File(path=PATH, size=size << 20, sha256=f"sha256:{digest}")
    copy = f"cp {original} {root}/copy && sha256sum {root}/copy >/dev/null && sync {root}/copy"
    for _ in range(3):
        shutil.rmtree(root / "cache", ignore_errors=True)
        (root / "copy").unlink(missing_ok=True)
        times = []
        start = time.perf_counter()
        Store(root / "cache").fetch(
            file, lambda file, offset: repository.open(file.path, commit, offset, file.size)
        )
        times.append(time.perf_counter() - start)
        start = time.perf_counter()
        subprocess.run(copy, shell=True, check=True)
        times.append(time.perf_counter() - start)
        pull, both = (size / seconds for seconds in times)
        print(f"pull {pull:.0f} MiB/s, cp + sha256sum {both:.0f} MiB/s: {pull / both:.0%}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500)
