"""Reading the files of a dataset. They come from outside, so they are checked before they count.

Pictures are PNG or JPEG, whatever their names say, of at most ``MAX_PIXELS`` pixels. All functions
raise HubError naming the file if it is missing, too large, damaged or of another kind.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from wsssbed_hub.artifacts.maps import check_image_id
from wsssbed_hub.artifacts.png_codec import MAX_BYTES, MAX_PIXELS, check_png, decode_png
from wsssbed_hub.utils.errors import HubError

SHOWN = 3  # examples that a message gives
_LIST_BYTES = 16 << 20
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
_GREYS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")  # 8 bits a channel or fewer


def read_bytes(path: Path, most: int) -> bytes:
    """The whole file, of at most ``most`` bytes."""
    try:
        with open(path, "rb") as file:
            data = file.read(most + 1)
    except FileNotFoundError:
        raise HubError(f"{path} is not there.") from None
    except OSError as error:
        raise HubError(f"{path} cannot be read: {error.strerror}.") from None
    if len(data) > most:
        raise HubError(f"{path} has more than {most:,} bytes; it is not what its name says.")
    return data


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    if not path.is_file():
        raise HubError(f"{path} is not there.")
    if path.stat().st_size > MAX_BYTES:
        raise HubError(f"{path} has more than {MAX_BYTES:,} bytes; it is not a picture.")
    try:
        with Image.open(path, formats=["PNG", "JPEG"]) as picture:
            height, width = picture.height, picture.width
            if height * width > MAX_PIXELS:
                raise HubError(f"{path} has {height} x {width} pixels, more than {MAX_PIXELS:,}.")
            yield picture
    except (*_BROKEN, Image.DecompressionBombError) as error:
        raise HubError(f"{path} is not a whole PNG or JPEG: {error}.") from None


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) as the file's header says."""
    with _opened(path) as picture:
        return picture.height, picture.width


def read_rgb(path: Path) -> np.ndarray:
    """uint8[H, W, 3]; the orientation that a camera noted is not applied, masks ignore it too.

    Raises HubError for grey levels of 16 bits, which would become white.
    """
    with _opened(path) as picture:
        if picture.mode.startswith(("I", "F")):
            raise HubError(f"{path} has grey levels of more than 8 bits. Save it with 8.")
        return np.array(picture.convert("RGB"))


def read_grey(path: Path) -> np.ndarray:
    """uint8[H, W]; colours and palettes become their brightness."""
    with _opened(path) as picture:
        if picture.mode not in _GREYS:
            raise HubError(f"{path} is a picture of mode {picture.mode}, not an 8-bit mask.")
        return np.array(picture.convert("L"))


def read_indices(path: Path, num_classes: int) -> np.ndarray:
    """A label: uint8[H, W], the indices of a palette PNG or the values of an 8-bit grey one.

    They have to be 0 to ``num_classes``, or 255.
    """
    data = read_bytes(path, MAX_BYTES)
    check_png(data, str(path))
    return check_label_values(decode_png(data, str(path)), num_classes, path)


def check_label_values(label: np.ndarray, num_classes: int, path: Path) -> np.ndarray:
    """``label`` itself. Raises HubError if it has values other than 0 to C and 255."""
    values = np.flatnonzero(np.bincount(label.ravel(), minlength=256))
    wrong = values[(values > num_classes) & (values != 255)]
    if len(wrong):
        raise HubError(
            f"{path} has the value {wrong[0]}; a label has 0 to {num_classes}, and 255 for void."
        )
    return label


def read_lines(path: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Number, image id and further words of each line of a list file that is not blank."""
    try:
        lines = read_bytes(path, _LIST_BYTES).decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise HubError(f"{path} is not a list of image ids: it is not plain text.") from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            image_id, *words = line.split()
            try:
                yield number, check_image_id(image_id), words
            except HubError as error:
                raise HubError(f"{path}, line {number}: {error}") from None


def read_ids(path: Path) -> list[str]:
    """The image ids of a list file, one a line, in ascending order, none twice."""
    ids = []
    for number, image_id, words in read_lines(path):
        if words:
            raise HubError(f"{path}, line {number}: more than an image id is there: {words[0]!r}.")
        ids.append(image_id)
    if not ids:
        raise HubError(f"{path} lists no images.")
    if len(set(ids)) < len(ids):
        twice = sorted(image_id for image_id, times in Counter(ids).items() if times > 1)
        raise HubError(f"{path} lists {some(twice)} more than once.")
    return sorted(ids)


def listing(folder: Path) -> set[str]:
    """Names of the entries of a folder that are not hidden; none if the folder is not there."""
    try:
        return {name for name in os.listdir(folder) if not name.startswith(".")}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def some(names: Sequence[str]) -> str:
    """``a, b, c and 7 more``."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def some_messages(messages: Sequence[str]) -> str:
    """The first sentences, and how many more there are."""
    more = len(messages) - SHOWN
    return " ".join(messages[:SHOWN]) + (f" And {more:,} more." if more > 0 else "")


def either(paths: Iterable[Path]) -> str:
    """``a, or b``: paths that would do."""
    return ", or ".join(map(str, paths))
