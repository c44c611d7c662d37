"""Where in a COCO annotation file the instances of each image lie.

The file of COCO's training images has 330 MB. It is read once, a window at a time, and what is kept
of it is small: for every image its size and, for each of its instances, category and place in the
file. This index lies in the user's cache, and goes when the file is another one.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import zipfile
from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsssbed_hub.artifacts.png_codec import MAX_PIXELS
from wsssbed_hub.utils.errors import HubError
from wsssbed_hub.utils.files import write_whole

_FORMAT = 2  # goes up when the index changes
_MOST = 1 << 30  # bytes of an annotation file; COCO's largest, of 2017, has 450 MB
_WINDOW = 1 << 20
_ELEMENT = 8 << 20  # bytes of one element; COCO's largest instance has some 100 KB
_IDS = 10**12  # image ids are written with twelve digits
_CATEGORIES = 1 << 16
_SPACE = re.compile(r"[ \t\r\n]*")
_ARRAYS = ("images", "annotations", "categories")


@dataclass(frozen=True, eq=False)
class Index:
    """Images in the order of their ids, and their instances, each image's in the file's order."""

    numbers: np.ndarray
    """int64[N], ascending: the images' ids."""
    sizes: np.ndarray
    """int64[N, 2]: height, width."""
    first: np.ndarray
    """int64[N + 1]: image i has the instances from ``first[i]`` to before ``first[i + 1]``."""
    spans: np.ndarray
    """int64[M, 2]: offset and number of bytes of each instance."""
    category_of: np.ndarray
    """int64[M]: category id of each instance."""
    category_ids: np.ndarray
    """int64[K], ascending."""
    names: tuple[str, ...]
    """Names of the categories, in the order of their ids."""


def load_index(path: Path, prefix: str) -> Index:
    """The index of the annotation file ``path``, whose images are called ``prefix`` and twelve
    digits: from the cache, or read from the file (COCO's in some 10 seconds) and put there.

    Raises HubError naming the file if it is missing, or is not what COCO's are: not JSON, larger
    than 1 GiB, ids that occur twice or refer to nothing, images under other names.
    """
    from wsssbed_hub.utils.settings import cache_folder

    try:
        status = os.stat(path)
    except OSError as error:
        raise HubError(f"{path} cannot be read: {error.strerror}.") from None
    if status.st_size > _MOST:
        raise HubError(f"{path} has more than {_MOST:,} bytes; it is no annotation file of COCO.")
    key = hashlib.sha256(os.path.abspath(path).encode()).hexdigest()[:32]
    kept = cache_folder() / "annotations" / f"{key}.npz"
    stamp = f"{_FORMAT} {prefix} {status.st_size} {status.st_mtime_ns}"
    index = _read(kept, stamp)
    if index is None:
        index = read_index(path, prefix)
        file = io.BytesIO()
        np.savez(file, stamp=np.array(stamp), **asdict(index))
        with suppress(OSError):  # a cache that cannot be written: the file is read again next time
            write_whole(kept, file.getvalue())
    return index


def _read(kept: Path, stamp: str) -> Index | None:
    try:
        with np.load(kept, allow_pickle=False) as arrays:
            if str(arrays["stamp"]) != stamp:
                return None
            fields = {name: arrays[name] for name in arrays.files if name != "stamp"}
        return Index(**fields | {"names": tuple(fields["names"].tolist())})
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None  # not there, or damaged


def read_index(path: Path, prefix: str) -> Index:
    """As ``load_index``, from the file itself."""
    found = _IndexBuilder(path, prefix)
    try:
        with open(path, "rb") as file:
            text = _Text(file.fileno(), path)
            seen = set()
            for key in text.members():
                if key in seen:
                    raise text.wrong(f"it has {key!r} twice")
                seen.add(key)
                if key not in _ARRAYS:
                    text.value()
                    continue
                add = getattr(found, f"add_{key}")
                for element, offset, length in text.elements():
                    add(element, offset, length)
    except OSError as error:
        raise HubError(f"{path} cannot be read: {error.strerror}.") from None
    missing = [key for key in _ARRAYS if key not in seen]
    if missing:
        raise HubError(f"{path} is not an annotation file of COCO: it has no {missing[0]!r}.")
    return found.index()


class _Text:
    """The JSON text of a file, of which a window is in memory; ``place`` is where reading is."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor, self._path = descriptor, path
        self._start, self._text, self._last = 0, "", False
        self.place = 0
        self._decode = json.JSONDecoder().raw_decode

    def _fill(self, size: int) -> None:
        """Moves the window: it begins at ``place``."""
        self._start += self.place
        self.place = 0
        data = os.pread(self._descriptor, size, self._start)
        self._text = data.decode("latin-1")  # one character a byte; what is read is ASCII
        self._last = len(data) < size

    def wrong(self, what: object) -> HubError:
        where = self._start + self.place
        return HubError(f"{self._path} is not an annotation file of COCO: {what} (byte {where:,}).")

    def peek(self) -> str:
        """The next character that is not space, empty at the end."""
        while True:
            match = _SPACE.match(self._text, self.place)
            self.place = match.end() if match else self.place
            if self.place < len(self._text):
                return self._text[self.place]
            if self._last:
                return ""
            self._fill(_WINDOW)

    def take(self, characters: str) -> str:
        """The next character, which has to be one of ``characters``."""
        found = self.peek()
        if not found or found not in characters:
            raise self.wrong(f"{found or 'its end'!r} instead of {' or '.join(characters)}")
        self.place += 1
        return found

    def value(self) -> tuple[Any, int, int]:
        """The next value, its offset and its number of bytes."""
        self.peek()
        problem: object = "its end"
        for size in (0, _WINDOW, _ELEMENT):
            if size:
                self._fill(size)
            try:
                value, end = self._decode(self._text, self.place)
            except (ValueError, RecursionError) as error:
                problem = getattr(error, "msg", error)
                continue
            if end < len(self._text) or self._last:  # else a number may go on
                offset, length = self._start + self.place, end - self.place
                self.place = end
                return value, offset, length
            problem = f"an element of more than {_ELEMENT:,} bytes"
        raise self.wrong(problem)

    def members(self) -> Iterator[str]:
        """Names of the members of the object that the file is; each value is left to be read."""
        self.take("{")
        while True:
            key, _, _ = self.value()
            if not isinstance(key, str):
                raise self.wrong("a name is no string")
            self.take(":")
            yield key
            if self.take(",}") == "}":
                break
        if self.peek():
            raise self.wrong("something follows its end")

    def elements(self) -> Iterator[tuple[Any, int, int]]:
        """The ``value`` of each element of the next array."""
        self.take("[")
        if self.peek() == "]":
            self.place += 1
            return
        while True:
            yield self.value()
            if self.take(",]") == "]":
                return


def _integer(element: Any, name: str, below: int) -> int:
    """Member ``name``, from 0. Raises ValueError."""
    value = element.get(name) if isinstance(element, dict) else None
    if type(value) is not int or not 0 <= value < below:
        raise ValueError(f"{name} is {str(value)[:40]}, not a number from 0 to {below - 1:,}")
    return value


class _IndexBuilder:
    """Collects images, annotations and categories as they are read, and makes the index of them."""

    def __init__(self, path: Path, prefix: str) -> None:
        self._path, self._prefix = path, prefix
        self._images = array("q")  # id, height, width
        self._annotations = array("q")  # image id, category id, offset, length
        self._categories: dict[int, str] = {}

    def _wrong(self, what: object) -> HubError:
        return HubError(f"{self._path} is not an annotation file of COCO: {what}.")

    def add_images(self, element: Any, offset: int, length: int) -> None:
        try:
            number = _integer(element, "id", _IDS)
            height, width = (_integer(element, side, MAX_PIXELS + 1) for side in _SIDES)
        except ValueError as error:
            raise self._wrong(f"image at byte {offset:,}: {error}") from None
        if not 0 < height * width <= MAX_PIXELS:
            raise self._wrong(f"image {number} has {height} x {width} pixels")
        name = f"{self._prefix}{number:012d}.jpg"
        if element.get("file_name") != name:
            other = str(element.get("file_name"))[:80]
            raise self._wrong(f"image {number} is called {other!r}, not {name}")
        self._images.extend((number, height, width))

    def add_annotations(self, element: Any, offset: int, length: int) -> None:
        try:
            image = _integer(element, "image_id", _IDS)
            category = _integer(element, "category_id", _CATEGORIES)
        except ValueError as error:
            raise self._wrong(f"annotation at byte {offset:,}: {error}") from None
        self._annotations.extend((image, category, offset, length))

    def add_categories(self, element: Any, offset: int, length: int) -> None:
        try:
            number = _integer(element, "id", _CATEGORIES)
        except ValueError as error:
            raise self._wrong(f"category at byte {offset:,}: {error}") from None
        name = element.get("name")
        if not isinstance(name, str) or not 0 < len(name) <= 100:
            raise self._wrong(f"category {number} has no name")
        if number in self._categories:
            raise self._wrong(f"category {number} occurs twice")
        self._categories[number] = name

    def index(self) -> Index:
        images = np.array(self._images, np.int64).reshape(-1, 3)
        annotations = np.array(self._annotations, np.int64).reshape(-1, 4)
        images = images[np.argsort(images[:, 0], kind="stable")]
        numbers = images[:, 0]
        twice = numbers[1:][numbers[1:] == numbers[:-1]]
        if len(twice):
            raise self._wrong(f"image {twice[0]} occurs twice")
        ids = np.array(sorted(self._categories), np.int64)
        for column, known, what in ((0, numbers, "image"), (1, ids, "category")):
            unknown = np.setdiff1d(annotations[:, column], known)
            if len(unknown):
                raise self._wrong(f"an annotation is of {what} {unknown[0]}, which it has not")
        rows = np.searchsorted(numbers, annotations[:, 0])
        order = np.argsort(rows, kind="stable")
        return Index(
            numbers=np.ascontiguousarray(numbers),
            sizes=np.ascontiguousarray(images[:, 1:]),
            first=np.searchsorted(rows[order], np.arange(len(images) + 1)),
            spans=np.ascontiguousarray(annotations[order, 2:]),
            category_of=annotations[order, 1],
            category_ids=ids,
            names=tuple(self._categories[number] for number in ids.tolist()),
        )


_SIDES = ("height", "width")
