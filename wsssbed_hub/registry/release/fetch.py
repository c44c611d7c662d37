"""Artifacts that are one zip at a URL, such as those of the WSSS-BED release, into the cache.

The first fetch compares the zip with what is at hand of the target, converts it to the published
form, and pins bytes and maps in the lock file (see ``lockfile``); the zip is not kept. The
converted manifest stays in ``<cache>/releases/<repository>/<target>-<version>/``, its files among
the blobs.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from wsssbed_hub.artifacts.key_folder import MANIFEST, read_manifest
from wsssbed_hub.artifacts.manifest import Chosen, Entry, File, Manifest, UrlSource
from wsssbed_hub.artifacts.png_layout import PngZip
from wsssbed_hub.artifacts.shard_writer import Written, write_maps
from wsssbed_hub.cache.locks import shared
from wsssbed_hub.cache.store import Fetcher, Store
from wsssbed_hub.evaluation.inspect import (
    Expectation,
    MapStatistics,
    Problem,
    WrongMaps,
    check_lists,
    check_map_size,
    expectation_of,
)
from wsssbed_hub.registry.release.convert import Conversion, convert, default_processes
from wsssbed_hub.registry.release.download import Downloaded, download, download_path
from wsssbed_hub.registry.release.lockfile import Pin, check_pin, find_pin, write_pin
from wsssbed_hub.utils import settings
from wsssbed_hub.utils.errors import HubError
from wsssbed_hub.utils.files import disk_errors, exclusive, sync_folder, write_whole
from wsssbed_hub.utils.progress import Progress

_FOUND_OUT = ("images", "image_list", "content", "files", "source")


def is_url_only(entry: Entry) -> bool:
    """Whether the maps of ``entry`` have to be made from a zip at a URL."""
    return not entry.files and isinstance(entry.source, UrlSource)


def from_url(
    manifest: Manifest,
    chosen: Chosen,
    *,
    store: Store,
    data_root: Path | None = None,
    processes: int | None = None,
    progress: Progress | None = None,
) -> tuple[Manifest, Fetcher]:
    """The manifest of just ``chosen`` with its files, which are in ``store`` when this returns.

    The lists of its target are looked for below ``data_root`` (``$WSSSBED_DATA``, else ``/data``).
    ``processes`` convert the maps (see ``default_processes``); each holds the zip's table of
    contents and 64 images in memory.

    Raises HubError if the zip cannot be had, is damaged or hostile, does not fit the target, or is
    not what the manifest or the lock file says it is. Interrupted, it goes on.
    """
    fetch = _Fetch(manifest, chosen, store, progress)
    data_root = data_root or settings.data_root()
    processes = processes or default_processes()
    path = fetch.home.with_name(f".{fetch.home.name}.lock")
    # Who prunes leaves downloads and blobs alone meanwhile.
    with disk_errors(store.root), shared(store.blobs), exclusive(path) as lock:
        converted = fetch.converted() or fetch.run(data_root, processes, lock)
    record = fetch.home / MANIFEST

    def fetch_again(file: File, out: BinaryIO) -> None:
        record.unlink(missing_ok=True)
        raise HubError(f"{file.path} was damaged in the cache. Run it again to fetch it anew.")

    return converted, fetch_again


class _Fetch:
    """One entry on its way from its URL into the cache."""

    def __init__(self, manifest: Manifest, chosen: Chosen, store: Store, progress: Progress | None):
        assert isinstance(chosen.entry.source, UrlSource)
        self.manifest, self.chosen, self.store = manifest, chosen, store
        self.source = chosen.entry.source
        self.key = f"{manifest.key}@{chosen.version}"
        self.progress = progress
        folder = store.root / "releases" / manifest.parsed_key.repository
        self.home = folder / f"{chosen.target}-{chosen.version}"
        self.pin = find_pin(self.key, chosen.target)

    def converted(self) -> Manifest | None:
        """The manifest of an earlier run, if that is whole and as pinned."""
        if not (self.home / MANIFEST).exists():
            return None
        found = read_manifest(self.home)
        ((_, _, entry),) = found.entries()
        source = entry.source
        if not isinstance(source, UrlSource) or source.url != self.source.url:
            return None
        if not all(self.store.blob(file).exists() for file in entry.files):
            return None
        if self.source.sha256 not in (None, source.sha256):
            return None
        if self.pin is None:
            self._write_pin(entry)
        elif (self.pin.sha256, self.pin.content) != (source.sha256, entry.content):
            return None
        self._check_content(entry)  # the manifest may say more by now
        self._tidy()  # after a run that was killed at that
        found_out = {name: getattr(entry, name) for name in _FOUND_OUT}
        return self._manifest(self.chosen.entry.model_copy(update=found_out))

    def run(self, data_root: Path, processes: int, lock: int) -> Manifest:
        """``lock`` is the lock on all this, which the processes keep with us."""
        path = download_path(self.store.root, self.source.url)
        zipped = download(self.source.url, path, progress=self._four_fifths)
        goal = expectation_of(self.chosen.target, data_root)
        with self._suspicion(path):
            self._check_bytes(zipped)
        with self._suspicion(path, blame=True):
            maps = PngZip(path, self.manifest.kind)
            class_ids = maps.class_ids if maps.kind == "cam" else None
            remarks = _remarks(check_lists(maps.image_ids, goal, class_ids))
        written, pixels = self._convert(maps, goal, zipped, processes, lock)
        if pixels.images == len(maps):  # else an earlier run saw the others
            remarks += map(str, pixels.problems())
        entry = self._entry(zipped, written)
        with self._suspicion(path):
            self._check_content(entry)
            self._write_pin(entry, goal.checks, remarks)
        self._adopt(written, entry)
        converted = self._manifest(entry)
        write_whole(self.home / MANIFEST, converted.dump().encode())
        self._tidy()
        return converted

    def _tidy(self) -> None:
        """Removes what is not needed any more, the folder that says so last."""
        if (self.home / ".partial").exists():
            download_path(self.store.root, self.source.url).unlink(missing_ok=True)
            shutil.rmtree(self.home / ".partial", ignore_errors=True)

    def _four_fifths(self, done: int, of: int) -> None:
        """Says how far the download is; converting is the rest of the work."""
        if self.progress is not None:
            self.progress(done, of * 5 // 4)

    @contextmanager
    def _suspicion(
        self, path: Path, *, blame: bool = False, of: type[HubError] = HubError
    ) -> Iterator[None]:
        """Keeps nothing of a zip that is found to be wrong, which errors ``of`` one type say; with
        ``blame`` they are told as what its URL does not hold."""
        try:
            yield
        except of as error:
            path.unlink(missing_ok=True)
            shutil.rmtree(self.home, ignore_errors=True)
            if not blame:
                raise
            what = str(error).replace(f"{path}: ", "").replace(str(path), "it")
            raise HubError(
                f"{self.source.url} does not hold the maps of {self.key} over "
                f"{self.chosen.target}: {what} Nothing of it was kept."
            ) from None

    def _check_bytes(self, zipped: Downloaded) -> None:
        stated = (self.source.sha256, self.source.size)
        for what, found, expected in zip(
            ("sha256", "size"), (zipped.sha256, zipped.size), stated, strict=True
        ):
            if expected not in (None, found):
                raise HubError(
                    f"{self.source.url}: wrong bytes. The manifest of {self.key} says {what} "
                    f"{expected}, received {found}. Nothing of it was kept."
                )
        if self.pin is not None:
            check_pin(self.pin, self.key, self.chosen.target, zipped.sha256)

    def _convert(
        self, maps: PngZip, goal: Expectation, zipped: Downloaded, processes: int, lock: int
    ) -> tuple[Written, MapStatistics]:
        wanted = set(goal.ids)
        settings = {"url": self.source.url, "sha256": zipped.sha256}
        kind = self.manifest.kind
        done = 0

        def check(image_id: str, size: tuple[int, int]) -> None:
            if image_id in wanted:
                check_map_size(goal, image_id, size)

        def advance(images: int) -> None:
            nonlocal done
            done += images
            if self.progress is not None:
                share = zipped.size // 4 * done // len(maps)
                self.progress(zipped.size + share, zipped.size * 5 // 4)

        with self._suspicion(zipped.path, blame=True, of=WrongMaps):
            pixels = convert(
                Conversion(str(zipped.path), kind, str(self.home), settings),
                maps,
                processes=processes,
                check=check,
                progress=advance,
                locks=[lock],
            )
        # Every part is there, so this joins them.
        return write_maps(self.home, kind, maps.image_ids, maps.read, settings=settings), pixels

    def _entry(self, zipped: Downloaded, written: Written) -> Entry:
        place = f"{self.chosen.target}/{self.chosen.version}"
        source = {"size": zipped.size, "sha256": zipped.sha256}
        made = {
            "images": written.images,
            "image_list": written.image_list,
            "content": written.content,
            "files": [
                File(path=f"{place}/{file.name}", size=file.size, sha256=file.sha256)
                for file in written.files
            ],
            "source": self.source.model_copy(update=source),
        }
        return self.chosen.entry.model_copy(update=made)

    def _check_content(self, entry: Entry) -> None:
        for name in ("content", "images", "image_list"):
            expected, found = getattr(self.chosen.entry, name), getattr(entry, name)
            if expected not in (None, found):
                raise HubError(
                    f"{self.source.url}: the manifest of {self.key} over {self.chosen.target} "
                    f"states {name} {expected}, found {found}."
                )

    def _write_pin(
        self, entry: Entry, checked: Sequence[str] = (), remarks: Sequence[str] = ()
    ) -> None:
        if self.source.sha256 is not None:
            return  # the manifest pins it
        stated = entry.model_dump(include={"content", "images", "image_list"})
        stated |= entry.model_dump()["source"]
        del stated["release"]
        stated |= {"checked": checked, "remarks": remarks}
        pin = Pin.model_validate(stated | {"date": datetime.now(UTC).replace(microsecond=0)})
        write_pin(self.key, self.chosen.target, pin)

    def _adopt(self, written: Written, entry: Entry) -> None:
        """Moves the converted files among the blobs; ``Store.pull`` verifies them there."""
        for new, file in zip(written.files, entry.files, strict=True):
            blob = self.store.blob(file)
            blob.parent.mkdir(parents=True, exist_ok=True)
            path = written.folder / new.name
            if path.exists() or not blob.exists():  # else a run that was killed has moved it
                path.chmod(0o444)
                os.replace(path, blob)
                sync_folder(blob.parent)

    def _manifest(self, entry: Entry) -> Manifest:
        return self.manifest.with_entries([self.chosen._replace(entry=entry)])


def _remarks(problems: list[Problem]) -> list[str]:
    """The warnings, in words. Raises HubError for the errors."""
    errors = [str(problem) for problem in problems if problem.severity == "error"]
    if errors:
        raise HubError("; ".join(errors) + ".")
    return [str(problem) for problem in problems]
