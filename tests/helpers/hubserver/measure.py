"""``python -m hubserver.measure [MIB [FILES]]``: pull from loopback beside cp and sha256sum.

The same bytes, one after the other, five times; the server is a process of its own. Both sides end
with the bytes on the disk. The last column has Python's hashlib in place of sha256sum, which is the
faster one where coreutils were built without OpenSSL.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAME = "alice/sal-measured"
DIGEST = "sha256:" + "0" * 64  # of the decoded maps, which pull does not look at
HASH = "import hashlib,sys; [hashlib.file_digest(open(n, 'rb'), 'sha256') for n in sys.argv[1:]]"


def main(size: int, count: int) -> None:
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
                "WSSSBED_CACHE": str(root / "cache"),
            }
            publish(root, size, count)
            measure(root, size)
        finally:
            server.kill()


def publish(root: Path, size: int, count: int) -> None:
    import yaml
    from huggingface_hub import CommitOperationAdd, HfApi

    (root / "original").mkdir()
    files: list[dict[str, Any]] = []
    additions = []
    for number in range(count):
        path = root / "original" / f"{number:05d}.parquet"
        with open(path, "wb") as out:
            for _ in range(size // count):
                out.write(os.urandom(1 << 20))
        with open(path, "rb") as data:
            digest = hashlib.file_digest(data, "sha256").hexdigest()
        place = f"shapes/1.0.0/{path.name}"
        files.append({"path": place, "size": path.stat().st_size, "sha256": f"sha256:{digest}"})
        additions.append(CommitOperationAdd(place, path))
    entry = {"images": 1, "image_list": DIGEST, "content": DIGEST, "files": files}
    manifest = {"key": "sal/measured", "kind": "sal", "title": "T", "method": {"name": "M"}}
    text = yaml.safe_dump(manifest | {"versions": {"1.0.0": {"shapes": entry}}})
    additions.append(CommitOperationAdd("manifest.yaml", text.encode()))
    api = HfApi()
    api.create_repo(NAME, repo_type="dataset")
    api.create_commit(NAME, additions, commit_message="x", repo_type="dataset")


def measure(root: Path, size: int) -> None:
    from wsssbed_hub.registry.pull import pull

    def run(hashing: list[str]) -> None:
        (root / "copy").mkdir()
        copies = [str(root / "copy" / path.name) for path in (root / "original").iterdir()]
        subprocess.run(["cp", "-r", f"{root}/original/.", str(root / "copy")], check=True)
        subprocess.run([*hashing, *copies], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["sync", *copies], check=True)

    def rate(action: Callable[[], object]) -> float:
        for name in ("cache", "copy"):
            shutil.rmtree(root / name, ignore_errors=True)
        os.sync()
        start = time.perf_counter()
        action()
        return size / (time.perf_counter() - start)

    for _ in range(5):
        pulled = rate(lambda: pull("sal/measured", registry="hf:alice"))
        tools = rate(lambda: run(["sha256sum"]))
        hashlib_ = rate(lambda: run([sys.executable, "-c", HASH]))
        print(
            f"pull {pulled:.0f} MiB/s; cp + sha256sum {tools:.0f} MiB/s: {pulled / tools:.0%}; "
            f"cp + hashlib {hashlib_:.0f} MiB/s: {pulled / hashlib_:.0%}; "
            f"load {os.getloadavg()[0]:.1f}"
        )


if __name__ == "__main__":
    main(*(int(text) for text in [*sys.argv[1:], *["500", "4"][len(sys.argv) - 1 :]]))
