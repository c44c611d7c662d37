"""Publishing to a registry at a URL: files first, the manifest last.

What a killed push leaves is therefore never visible. A file that lies there already is read back,
and is not sent again if it has the right size and sha256; no ETag and no other note of the store is
trusted with that.

S3 and Google Cloud Storage write on a condition, and every write here has one. A file is written
where nothing lies (``If-None-Match: *``, generation 0), so no file is ever written over or deleted.
The manifest is written if it is still the one that was read (``If-Match``, its generation); if
another publisher was faster, this one goes on from what that one left. So any number of them may
publish to one key at the same time: each version ends up in the manifest or its publisher gets an
error, and what the manifest lists never changes. That holds as far as the store keeps the
conditions: AWS does; one that refuses them gives an error, one that ignores them gives what the
other drivers give.

Other drivers know of no conditions. The publishers of one process take turns, so ``memory://`` is
as safe. Otherwise people must take turns at a key. The manifest is read right before it is written,
and again afterwards: if another wrote in between, this one adds its entries again. Of two that
publish the same version with other content at the same time, the loser may damage the winner's
files, which ``verify`` finds.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import PurePosixPath
from typing import NamedTuple

from wsssbed_hub.artifacts.key_folder import MANIFEST, check_size
from wsssbed_hub.artifacts.manifest import File, Manifest
from wsssbed_hub.artifacts.merge import merge
from wsssbed_hub.registry.base import Publication, Transfer
from wsssbed_hub.registry.url.drivers import BLOCK, Lost, driver_of, give_up, losing
from wsssbed_hub.registry.url.place import Place
from wsssbed_hub.utils.errors import HubError
from wsssbed_hub.utils.files import CHUNK
from wsssbed_hub.utils.parallel import Stop, at_once
from wsssbed_hub.utils.progress import Progress
from wsssbed_hub.utils.retry import patiently

TRIES = 20  # times that others may be faster


class Seen(NamedTuple):
    """The manifest at one moment, and what tells it from a later one."""

    manifest: Manifest | None
    mark: str | None


class Publisher:
    """One push of ``publication`` to ``place``, which may begin again when others publish too."""

    def __init__(self, place: Place, publication: Publication, progress: Progress | None):
        self.place, self.publication, self.progress = place, publication, progress
        self.files, self.key = place.files, publication.key
        self.driver = driver_of(place.files)
        self._path = place.path(self.key)
        self._manifest_name = f"{self.key.repository}/{MANIFEST}"
        self._names: dict[str, str] = {}  # of files that are there, by the path that was planned
        self._done = 0
        self._lock = threading.Lock()

    def run(self) -> None:
        """Publishes. Raises HubError if something is in the way; nothing is visible then."""
        with self.driver.turn():
            try:
                patiently(self._publish, tries=TRIES)
            except Lost:
                raise HubError(
                    f"{self.place}: others publish {self.key} at the same time, "
                    f"{TRIES} times in a row. Run it again later; files that have arrived are not "
                    "sent again."
                ) from None

    def _publish(self) -> None:
        """Raises Lost if another publisher was faster."""
        written = False
        while True:
            seen = self._read()
            if merge(seen.manifest, self.publication.manifest) is seen.manifest:
                return  # all of it is there: since long, or by the last turn of this loop
            if written:
                raise Lost  # to one who wrote right after us, where writing has no condition
            if self._send(self.publication.missing(seen.manifest)):
                continue  # that may have taken hours
            wanted = _renamed(self.publication.manifest, self._names)
            text = merge(seen.manifest, wanted).dump()
            with self.place.errors(self._manifest_name, "written"):
                self.driver.replace(self._path, text.encode(), seen.mark)
            written = True

    def _read(self) -> Seen:
        self.files.invalidate_cache()
        try:
            with self.place.errors(self._manifest_name, may_miss=True):
                data, mark = self.driver.read(self._path)
        except FileNotFoundError:
            return Seen(None, None)
        return Seen(self.place.parse(self.key, data), mark)

    def _send(self, transfers: list[Transfer]) -> bool:
        """Brings the files of each entry there, under names that are found out here; False if all
        were there already."""
        before = len(self._names)
        for folder, group in groupby(transfers, lambda one: PurePosixPath(one.there.path).parent):
            entry = list(group)
            if entry[0].there.path in self._names:
                continue
            for names in self._candidates(folder, entry):
                if self._fill(entry, names):
                    self._names |= names
                    break
            else:
                raise HubError(
                    f"{self.place}: in {self.key.repository}/{folder} lie other files, of a push "
                    "that was not finished or is under way. Publish under another version "
                    "(--version)."
                )
        return len(self._names) > before

    def _candidates(
        self, folder: PurePosixPath, entry: Sequence[Transfer]
    ) -> Iterator[dict[str, str]]:
        """Names for the files of an entry: their own, and others that say what is in them, for
        where a push that was not finished has left something else. Weights have names of their own
        only. Under all of them the files keep their order, which is that of the images."""
        yield {there.path: there.path for _, there in entry}
        if self.publication.manifest.kind != "weights":
            digests = "".join(there.sha256 for _, there in entry)
            prefix = hashlib.sha256(digests.encode()).hexdigest()[:12]
            yield {there.path: f"{folder}/{prefix}-{there.name}" for _, there in entry}

    def _fill(self, entry: Sequence[Transfer], names: dict[str, str]) -> bool:
        """Whether all files of an entry are there under ``names``, once those that were missing
        are sent; False if something else lies at one of them."""
        places = {one: self.place.path(self.key, names[one.there.path]) for one in entry}
        before = self._done
        there: dict[Transfer, bool | None] = {}
        arrived: list[bool] = []

        def look(one: Transfer, stop: Stop) -> None:
            there[one] = self._holds(places[one], one.there, stop)

        def send(one: Transfer, stop: Stop) -> None:
            arrived.append(self._send_file(one, places[one], stop))

        at_once(look, entry)
        if self.driver.conditions and False in there.values():
            return False
        self._advance(sum(one.there.size for one in entry if there[one]))
        at_once(send, [one for one in entry if not there[one]])
        if not all(arrived):
            self._done = before
        return all(arrived)

    def _holds(self, path: str, file: File, stop: Stop) -> bool | None:
        """Whether the file at ``path``, read back, is ``file``; None if there is none."""
        self.files.invalidate_cache()
        try:
            with self.place.errors(file.path, may_miss=True):
                about = self.files.info(path)
        except FileNotFoundError:
            return None
        with self.place.errors(file.path):
            if about["type"] != "file" or about["size"] != file.size:
                return False
            digest = hashlib.sha256()
            with self.files.open(path, "rb", block_size=BLOCK) as stream:
                while data := stream.read(CHUNK):
                    digest.update(data)
                    stop.check()
        return f"sha256:{digest.hexdigest()}" == file.sha256

    def _send_file(self, transfer: Transfer, path: str, stop: Stop) -> bool:
        """Sends a file; False if another publisher has put something else there meanwhile.

        Raises HubError if what was read of it is not what the manifest states: it changed.
        """
        here, there = transfer
        source = check_size(self.publication.folder, here)
        digest = hashlib.sha256()
        with self.place.errors(there.path, "written"), open(source, "rb") as file:
            stream = self.driver.create(path)
            try:
                while data := file.read(CHUNK):
                    stop.check()
                    digest.update(data)
                    stream.write(data)
                    self._advance(len(data))
                if f"sha256:{digest.hexdigest()}" != here.sha256:
                    raise HubError(
                        f"{source} changed while it was sent: expected {here.sha256}, found "
                        f"sha256:{digest.hexdigest()}. Nothing was published."
                    )
            except BaseException:
                give_up(stream)
                raise
            try:
                with losing():
                    stream.close()
            except Lost:
                give_up(stream)
            else:
                return True
        return self._holds(path, there, stop) is True

    def _advance(self, size: int) -> None:
        with self._lock:
            self._done += size
            if self.progress is not None:
                self.progress(min(self._done, self.publication.size), self.publication.size)


def _renamed(manifest: Manifest, names: dict[str, str]) -> Manifest:
    """The manifest with the files under the names that they got."""
    entries = []
    for chosen in manifest.entries():
        files = [
            file.model_copy(update={"path": names.get(file.path, file.path)})
            for file in chosen.entry.files
        ]
        entry = chosen.entry.model_copy(update={"files": files})
        entries.append(chosen._replace(entry=entry))
    return manifest.with_entries(entries)
