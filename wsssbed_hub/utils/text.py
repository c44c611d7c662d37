"""Text to show: numbers, and texts from outside, which may come from somebody else's manifest."""

from __future__ import annotations

import unicodedata
from typing import Annotated

from pydantic import AfterValidator

MOST = 4000  # characters of one text


def printable(text: str) -> str:
    """``text`` on one line, without control and format characters (Unicode Cc, Cf, Cs, Zl, Zp),
    which steer a terminal or turn the direction of writing; cut short after ``MOST`` characters."""
    kept = (
        " " if letter in "\n\r\t" else letter
        for letter in text
        if letter in "\n\r\t" or unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
    )
    line = "".join(kept)
    return line if len(line) <= MOST else line[: MOST - 1] + "…"


def count(number: int, noun: str) -> str:
    """``1 file``, ``2,000 files``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


Printable = Annotated[str, AfterValidator(printable)]
