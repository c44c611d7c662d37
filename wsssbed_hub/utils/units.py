"""Sizes in words."""

from __future__ import annotations


def human(size: float) -> str:
    """``31457280`` bytes as ``31.5 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
