"""The lock file: what the files of a release were when they were first fetched.

A release without checksums is trusted once. What came is written down, and whatever comes later has
to be the same. The file is ``$WSSSBED_LOCK``; else ``wsssbed.lock.yaml`` in the current folder if
it is there, so that a project can keep its own under version control (``touch`` makes one); else
``wsssbed-hub/wsssbed.lock.yaml`` in the user's configuration folder.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, ValidationError

from wsssbed_hub.artifacts.manifest import Digest, Model
from wsssbed_hub.utils.errors import HubError
from wsssbed_hub.utils.files import disk_errors, exclusive, write_whole
from wsssbed_hub.utils.safe_yaml import load_yaml
from wsssbed_hub.utils.settings import lock_file

MAX_BYTES = 16 << 20


class Pin(Model):
    """One file of a release: its bytes, its maps, and what these were compared with.

    ``checked`` are of ``count`` (the published number of images), ``ids``, ``sizes`` and
    ``classes``, depending on what of the target was at hand; ``remarks`` what was odd.
    """

    url: str
    size: Annotated[int, Field(ge=1)]
    sha256: Digest
    content: Digest
    images: Annotated[int, Field(ge=1)]
    image_list: Digest
    checked: list[Literal["count", "ids", "sizes", "classes"]] = Field(default_factory=list)
    remarks: list[str] = Field(default_factory=list)
    date: datetime


class Lock(Model):
    """Pins by key with version and then target."""

    schema_version: Literal[1] = 1
    pins: dict[str, dict[str, Pin]] = Field(default_factory=dict)


def read_lock(path: Path) -> Lock:
    """The lock file at ``path``, an empty one if there is none. Raises HubError for damage."""
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return Lock()
    except OSError as error:
        raise HubError(f"{path} cannot be read: {error.strerror}.") from None
    if len(text) > MAX_BYTES:
        raise HubError(f"{path} is too big for a lock file.")
    try:
        return Lock.model_validate(load_yaml(text, str(path)) or {})
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise HubError(f"{path} is not a valid lock file: {where}: {first['msg']}.") from None


def find_pin(key: str, target: str) -> Pin | None:
    """The pin of ``key`` (with its version) over ``target``."""
    return read_lock(lock_file()).pins.get(key, {}).get(target)


def write_pin(key: str, target: str, pin: Pin) -> Path:
    """Writes ``pin`` down unless there is one already; the lock file's path.

    Raises HubError if there is one with other bytes or other maps.
    """
    path = lock_file()
    with disk_errors(path.parent), exclusive(path.parent, folder=True):
        lock = read_lock(path)
        old = lock.pins.get(key, {}).get(target)
        if old is None:
            pins = lock.pins | {key: lock.pins.get(key, {}) | {target: pin}}
            data = Lock(pins=dict(sorted(pins.items()))).model_dump(mode="json")
            write_whole(path, yaml.safe_dump(data, sort_keys=False, width=100).encode())
        else:
            check_pin(old, key, target, pin.sha256, pin.content)
    return path


def check_pin(pin: Pin, key: str, target: str, sha256: str, content: str | None = None) -> None:
    """Raises HubError if what came now is not what ``pin`` says came first."""
    for what, then, now in (("bytes", pin.sha256, sha256), ("maps", pin.content, content)):
        if now is not None and then != now:
            raise HubError(
                f"{key} over {target}: {pin.url} has changed since it was first fetched on "
                f"{pin.date:%Y-%m-%d}: other {what}, {then} then, {now} now. Nothing of it was "
                f"kept. If the new ones are right, remove its pin from {lock_file()} and run it "
                "again."
            )
