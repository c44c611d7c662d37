"""The Hugging Face Hub as a registry: one dataset repository per key, ``hf:<namespace>``.

A repository holds a key folder and a dataset card: ``manifest.yaml``, the files at
``<target>/<version>/``, ``README.md``, and a tag for each version. Every file is read at the commit
at which its manifest was read. HF_TOKEN, HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE mean what they
mean elsewhere; offline, the manifest is the one that was seen last.
"""

from __future__ import annotations

import json
import re
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple
from urllib.parse import quote, urlsplit

from wsssbed_hub.artifacts.key_folder import MANIFEST, verify_folder
from wsssbed_hub.artifacts.keys import HUB, Key, Version
from wsssbed_hub.artifacts.manifest import MAX_BYTES, File, Manifest, parse_manifest
from wsssbed_hub.artifacts.merge import merge
from wsssbed_hub.registry.base import BaseRegistry, Missing, Publication, Transfer, keys_of
from wsssbed_hub.registry.hub.card import TAG, dataset_card
from wsssbed_hub.registry.hub.errors import Offline, Overtaken, no_bars
from wsssbed_hub.registry.hub.repository import (
    MAIN,
    HubRepository,
    file_addition,
    list_repositories,
)
from wsssbed_hub.utils.errors import HubError, UsageError
from wsssbed_hub.utils.files import write_whole
from wsssbed_hub.utils.parallel import Stop, at_once
from wsssbed_hub.utils.progress import Progress, share
from wsssbed_hub.utils.retry import Passing, patiently
from wsssbed_hub.utils.settings import cache_folder

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?!\.)){0,95}"


class State(NamedTuple):
    """A repository at one moment."""

    commit: str
    manifest: Manifest | None


class Proposed(NamedTuple):
    """A pull request on the Hub."""

    url: str
    waiting: bool = False
    """Whether it was open before."""


class HubRegistry(BaseRegistry):
    """The artifacts of a namespace (a user or an organisation) of the Hub.

    ``repository`` and ``revision`` narrow it to one repository at a branch, tag, reference or
    commit, as ``open_repository`` does.
    """

    def __init__(self, namespace: str, *, repository: str | None = None, revision: str = MAIN):
        if not re.fullmatch(_NAME, namespace, re.ASCII):
            raise UsageError(
                f"{HUB}{namespace}: a registry on the Hub is {HUB}NAMESPACE, the name of a "
                f"user or an organisation. `wsssbed-hub pull {HUB}NAMESPACE/REPOSITORY` "
                "reads one repository."
            )
        self.namespace, self._only, self._revision = namespace, repository, revision
        self._seen: dict[str, State] = {}

    def __str__(self) -> str:
        at = "" if self._revision == MAIN else f"@{self._revision}"
        return f"{HUB}{self.namespace}" + (f"/{self._only}{at}" if self._only else "")

    def repository(self, key: Key) -> HubRepository:
        """Where ``key`` is, or would be."""
        return HubRepository(f"{self.namespace}/{self._only or key.repository}")

    def keys(self) -> list[Key]:
        """The keys that the Hub's index knows; what was just published may come a little later."""
        return keys_of(list_repositories(self.namespace, TAG))

    def _where(self, key: Key) -> str:
        return f"{self.repository(key)}/{MANIFEST}"

    def _load(self, key: Key) -> Manifest:
        repository = self.repository(key)
        manifest = self._look(repository).manifest
        if manifest is None:
            raise Missing(f"{repository} is empty.")
        return manifest

    def only_key(self) -> Key:
        """The key of the only repository that this registry was narrowed to."""
        repository = HubRepository(f"{self.namespace}/{self._only}")
        manifest = self._look(repository).manifest
        if manifest is None:
            raise UsageError(f"{self} is not an artifact: it has no {MANIFEST}.")
        return manifest.parsed_key

    def fetch(self, key: Key, file: File, out: BinaryIO) -> None:
        """Writes what ``out`` lacks of ``file``, at the commit at which ``find`` saw it.

        Cut connections are mended. Raises HubError where that does not help.
        """
        repository = self.repository(key)
        state = self._seen.get(repository.name) or self._look(repository)
        repository.fetch(file.path, state.commit, out)

    def _look(self, repository: HubRepository) -> State:
        """The state now, at the registry's revision; offline, the one that was seen last."""
        remembered = self._memory(repository)
        try:
            commit = repository.head(self._revision)
        except Offline:
            if not remembered.exists():
                raise
            seen = json.loads(remembered.read_bytes())
            commit, text = str(seen["commit"]), str(seen["manifest"])
        else:
            try:
                text = repository.read(MANIFEST, commit, MAX_BYTES).decode(errors="replace")
            except Missing:
                return State(commit, None)
            seen = {"commit": commit, "manifest": text}
            write_whole(remembered, json.dumps(seen).encode())
        state = State(commit, parse_manifest(text, f"{repository}/{MANIFEST}"))
        self._seen[repository.name] = state
        return state

    def _memory(self, repository: HubRepository) -> Path:
        host = urlsplit(repository.url).netloc.replace(":", "-")
        name = f"{quote(self._revision, safe='')}.json"
        return cache_folder() / "hub" / host / repository.name / name

    def _send(self, publication: Publication, progress: Progress | None) -> None:
        """In one commit. If others publish at the same time, it begins again from what they left.
        Files that have arrived are not sent again."""
        repository = self.repository(publication.key)
        sender = _Sender(publication, repository, progress)

        def commit() -> None:
            state = self._state(repository, create=True)
            merged = merge(state.manifest, publication.manifest)
            if merged is not state.manifest:
                sender.send(state, merged, pull_request=False)

        patiently(commit, kind=Overtaken)
        self._tag(repository, publication)

    def propose(
        self, folder: Path, *, version: str | None = None, progress: Progress | None = None
    ) -> Proposed:
        """As ``publish``, in a pull request that the owners of the repository decide on.

        An open one with the same content is not opened again. Raises UsageError if the repository
        is not there or holds all of it already.
        """
        plan = Publication(folder, version)
        verify_folder(folder, progress=share(progress, 0, plan.size, 2 * plan.size))
        progress = share(progress, plan.size, plan.size, 2 * plan.size)
        sender = _Sender(plan, self.repository(plan.key), progress)
        repository = sender.repository
        state = self._state(repository, create=False)
        merged = merge(state.manifest, plan.manifest)
        if merged is state.manifest:
            raise UsageError(f"{repository} holds all of {folder} already.")
        for number in repository.open_requests():
            if self.holds(plan.manifest, f"refs/pr/{number}"):
                return Proposed(f"{repository.url}/discussions/{number}", waiting=True)
        return Proposed(sender.send(state, merged, pull_request=True))

    def holds(self, manifest: Manifest, revision: str) -> bool:
        """Whether a revision of the key's repository has every entry with the same content."""
        name = manifest.parsed_key.repository
        place = HubRegistry(self.namespace, repository=name, revision=revision)
        try:
            there = place.find(manifest.parsed_key)
        except UsageError:
            return False  # nothing is published there yet
        contents = {chosen[:2]: chosen.entry.content for chosen in there.entries()}
        return all(contents.get(c[:2]) == c.entry.content is not None for c in manifest.entries())

    def _state(self, repository: HubRepository, *, create: bool) -> State:
        """The state now, of a repository that is made if it is not there and ``create``."""
        try:
            return self._look(repository)
        except Missing:
            if not create:
                raise
            repository.create()
            return self._look(repository)

    def _tag(self, repository: HubRepository, plan: Publication) -> None:
        """A tag for each version that was published, on a commit that holds all of its targets."""
        state = self._look(repository)
        tags = repository.tags()
        for number, targets in plan.manifest.versions.items():
            tagged = tags.get(number)
            if tagged is not None and set(targets) <= _targets(repository, tagged, number):
                continue
            repository.set_tag(number, state.commit, replace=tagged is not None)


class _Sender:
    """Files on their way to a repository; what has arrived is not sent again."""

    def __init__(self, plan: Publication, repository: HubRepository, progress: Progress | None):
        self.plan, self.repository, self.progress = plan, repository, progress
        self._sent: dict[str, CommitOperationAdd] = {}
        self._gone: dict[str, int] = {}  # bytes, by path
        self._lock = threading.Lock()

    def send(self, state: State, merged: Manifest, *, pull_request: bool) -> str:
        """One commit that turns ``state`` into ``merged``: files, manifest and card.

        Gives the URL of the commit or of the pull request. Raises Overtaken if the repository is
        not in that state any more, or that cannot be told.
        """
        from huggingface_hub import CommitOperationAdd

        def upload(transfer: Transfer, stop: Stop) -> None:
            self._upload(*transfer, stop, pull_request)

        missing = self.plan.missing(state.manifest)
        with no_bars():
            at_once(upload, [pair for pair in missing if pair.there.path not in self._sent])
        paths = [new.path for _, new in missing]
        card = dataset_card(merged, self.repository.name)
        additions = [
            *(self._sent[path] for path in paths),
            CommitOperationAdd(MANIFEST, merged.dump().encode()),
            CommitOperationAdd("README.md", card.encode()),
        ]
        title = "Publish " + ", ".join(str(key) for key in self.plan.keys)
        try:
            info = self.repository.commit(additions, title, state.commit, pull_request=pull_request)
        except Passing as error:
            look = f" Look at {self.repository.url}/discussions first: it may have been opened."
            raise Overtaken(f"{error}{look if pull_request else ''}", error.wait) from None
        return str(info.pr_url if pull_request else info.commit_url)

    def _upload(self, old: File, new: File, stop: Stop, pull_request: bool) -> None:
        def sent(size: int) -> None:
            self._advance(new, size)
            if new.path not in self._sent:  # a small file is read again, for the commit
                stop.check()

        operation = file_addition(new.path, self.plan.folder / old.path, sent)
        self.repository.upload(operation, pull_request=pull_request)
        found = f"sha256:{operation.upload_info.sha256.hex()}"
        if found != old.sha256:
            raise HubError(
                f"{self.plan.folder / old.path} changed while it was sent: expected {old.sha256}, "
                f"found {found}. Nothing was published."
            )
        self._sent[new.path] = operation
        self._advance(new, new.size)

    def _advance(self, file: File, size: int) -> None:
        """Says that ``size`` bytes of ``file`` have gone; a file that is sent again does not count
        for less meanwhile."""
        with self._lock:
            self._gone[file.path] = max(size, self._gone.get(file.path, 0))
            if self.progress is not None:
                self.progress(sum(self._gone.values()), self.plan.size)


def _targets(repository: HubRepository, commit: str, version: str) -> set[str]:
    """The targets that a version has at a commit."""
    try:
        text = repository.read(MANIFEST, commit, MAX_BYTES)
        return set(parse_manifest(text, f"{repository}@{commit}").versions.get(version, {}))
    except HubError:
        return set()


def open_repository(address: str) -> tuple[HubRegistry, Key]:
    """The registry, narrowed to ``hf:<namespace>/<repository>[@revision]``, and the key there.

    A revision is a version of the key, or else a branch, a tag, a reference such as ``refs/pr/1``,
    or a commit. Raises UsageError for what is not an artifact, HubError as ``find`` does.
    """
    match = re.fullmatch(rf"hf:({_NAME})/({_NAME})(?:@(.{{1,200}}))?", address, re.ASCII)
    if match is None:
        raise UsageError(
            f"{address!r}: write {HUB}NAMESPACE/REPOSITORY with an optional @REVISION, such "
            f"as {HUB}wsssbed/sal-vst-duts@1.0.0."
        )
    namespace, repository, revision = match.groups()
    version = None
    with suppress(UsageError):
        version = Version.parse(revision or "")
    registry = HubRegistry(
        namespace, repository=repository, revision=MAIN if version else revision or MAIN
    )
    key = registry.only_key()
    return registry, key.at(version) if version else key
