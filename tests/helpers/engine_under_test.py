"""Which engine the tests of the images use, and as whom."""

from __future__ import annotations

import os
from importlib.metadata import version

from wsssbed_hub.containers.command import default_image

ENGINE = os.environ.get("WSSSBED_TEST_ENGINE", "")
# Nobody that the images know; files can be given to another user by root only.
USER = (12345, 12346) if os.geteuid() == 0 else (os.getuid(), os.getgid())


def image_of(name: str) -> str:
    """The image of a stage (or the base) as `make images` tags it."""
    return default_image(name, "wsssbed", version("wsssbed-hub"))
