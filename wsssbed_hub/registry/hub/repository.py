"""One dataset repository of the Hugging Face Hub, through the Hub's own client."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from wsssbed_hub import __version__
from wsssbed_hub.registry.hub.errors import (
    TRIES,
    patiently,
    refuse_long_waits,
    said_plainly,
    waiting_time,
)
from wsssbed_hub.utils.errors import HubError
from wsssbed_hub.utils.files import CHUNK

if TYPE_CHECKING:
    from httpx2 import Response
    from huggingface_hub import CommitOperationAdd, HfApi

MAIN = "main"
_SECONDS = 60.0  # without any sign of life


def hub_api() -> HfApi:
    """The client, with the endpoint and the token of the environment."""
    from huggingface_hub import HfApi

    return HfApi(library_name="wsssbed-hub", library_version=__version__)


class _Quiet:
    """Keeps the client's own bars and warnings, which name signed URLs, from the terminal, and the
    client from waiting for as long as a server says when it tries again.

    Its settings are those of the process: the first thread that enters changes them, the last one
    that leaves sets them back. What looks at the answers stays, and looks while a thread is inside.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._bars, self._level = False, 0
        self._here = threading.local()

    def _look(self, response: Response) -> None:
        if getattr(self._here, "depth", 0):
            refuse_long_waits(response)

    def __enter__(self) -> None:
        from huggingface_hub import utils

        self._here.depth = getattr(self._here, "depth", 0) + 1
        session = utils.get_session()
        with self._lock:
            hooks = session.event_hooks
            if self._look not in hooks["response"]:
                session.event_hooks = hooks | {"response": [*hooks["response"], self._look]}
            self._inside += 1
            if self._inside == 1:
                self._bars = not utils.are_progress_bars_disabled()
                self._level = utils.logging.get_verbosity()
                utils.logging.set_verbosity_error()
                if self._bars:
                    utils.disable_progress_bars()

    def __exit__(self, *error: object) -> None:
        from huggingface_hub import utils

        self._here.depth -= 1
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                utils.logging.set_verbosity(self._level)
                if self._bars:
                    utils.enable_progress_bars()


_QUIET = _Quiet()


class HubRepository:
    """The dataset repository ``<namespace>/<name>``.

    Every method raises HubError as ``errors.said_plainly`` says: Missing for what is not
    there, Conflict for a commit that came too late, Offline.
    """

    def __init__(self, name: str):
        self.name = name

    def __str__(self) -> str:
        return f"hf:{self.name}"

    @property
    def url(self) -> str:
        from huggingface_hub import constants

        return f"{constants.ENDPOINT}/datasets/{self.name}"

    def head(self, revision: str = MAIN) -> str:
        """The commit, 40 hexadecimal digits, that a branch, a tag or a reference stands for."""
        with said_plainly(self.name), _QUIET:
            info = patiently(
                lambda: hub_api().dataset_info(self.name, revision=revision, timeout=_SECONDS)
            )
        return str(info.sha)

    def read(self, path: str, commit: str, most: int) -> bytes:
        """The first ``most`` bytes, or fewer, of a small file."""
        data = bytearray()
        with self.open(path, commit, 0, most) as stream:
            while len(data) < most and (piece := stream.read(most - len(data))):
                data += piece
        return bytes(data)

    def open(self, path: str, commit: str, offset: int, size: int) -> BinaryIO:
        """The bytes of a file from ``offset`` on; no more is asked for once ``size`` is reached."""
        return _Download(self, path, commit, offset, size)  # type: ignore[return-value]

    def tags(self) -> dict[str, str]:
        """The commit of each tag."""
        with said_plainly(self.name), _QUIET:
            refs = patiently(lambda: hub_api().list_repo_refs(self.name, repo_type="dataset"))
        return {tag.name: tag.target_commit for tag in refs.tags}

    def open_requests(self) -> list[int]:
        """Numbers of the pull requests that nobody has merged or closed."""
        with said_plainly(self.name), _QUIET:
            found = patiently(
                lambda: list(
                    hub_api().get_repo_discussions(
                        self.name, repo_type="dataset", discussion_type="pull_request"
                    )
                )
            )
        return sorted(one.num for one in found if one.status in ("open", "draft"))

    def is_on(self, branch: str, commit: str) -> bool:
        """Whether ``commit`` is part of the history of ``branch``."""
        with said_plainly(self.name), _QUIET:
            listed = patiently(
                lambda: hub_api().list_repo_commits(self.name, repo_type="dataset", revision=branch)
            )
        return any(one.commit_id == commit for one in listed)

    def set_tag(self, tag: str, commit: str, *, replace: bool) -> None:
        """Puts a tag on a commit, where it may be already."""
        api = hub_api()
        with said_plainly(self.name), _QUIET:
            if replace:
                api.delete_tag(self.name, tag=tag, repo_type="dataset")
            patiently(
                lambda: api.create_tag(
                    self.name, tag=tag, revision=commit, repo_type="dataset", exist_ok=True
                )
            )

    def create(self) -> None:
        """Makes the repository, unless it is there. Raises HubError if nobody is signed in."""
        from huggingface_hub import get_token
        from huggingface_hub.errors import LocalTokenNotFoundError

        with said_plainly(self.name), _QUIET:
            if get_token() is None:
                raise LocalTokenNotFoundError
            patiently(lambda: hub_api().create_repo(self.name, repo_type="dataset", exist_ok=True))

    def upload(self, addition: CommitOperationAdd, *, pull_request: bool) -> None:
        """Sends a file ahead of its commit, unless the Hub has it; the client tries several times.

        Small files are not sent: they go with the commit.
        """
        with said_plainly(self.name), _QUIET:
            hub_api().preupload_lfs_files(
                self.name,
                additions=[addition],
                repo_type="dataset",
                create_pr=pull_request,
                free_memory=False,
            )

    def commit(
        self,
        additions: Sequence[CommitOperationAdd],
        title: str,
        parent: str,
        *,
        pull_request: bool,
    ) -> Any:
        """One commit on top of ``parent``: the client's CommitInfo.

        Once it is sent it may have happened whatever is raised, except for Conflict.
        """
        with said_plainly(self.name), _QUIET:
            return hub_api().create_commit(
                self.name,
                additions,
                commit_message=title,
                parent_commit=parent,
                repo_type="dataset",
                create_pr=pull_request,
            )


class _Download(io.RawIOBase):
    """A file that comes over the network and goes on by itself where the connection was cut."""

    def __init__(self, repository: HubRepository, path: str, commit: str, offset: int, size: int):
        self._repository, self._path, self._commit = repository, path, commit
        self._position, self._size = offset, size
        self._response: Response | None = None
        self._pieces: Iterator[bytes] = iter(())
        self._rest = b""  # of the piece that came last
        self._broken: Exception | None = None
        if offset < size:
            with said_plainly(repository.name), _QUIET:
                patiently(self._connect)

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        if self._response is not None:
            self._response.close()
        super().close()

    def read(self, size: int = -1) -> bytes:
        """The next bytes, as they come: at most ``size`` and a mebibyte, none at the end."""
        most = CHUNK if size < 0 else min(size, CHUNK)
        with said_plainly(self._repository.name):
            data = self._take(most)
            for attempt in range(TRIES):
                if data or self._broken is None:
                    break
                self._mend(self._broken, attempt)
                data = self._take(most)
            if not data and self._broken is not None:
                raise self._broken
        self._position += len(data)
        return data

    def _take(self, most: int) -> bytes:
        """What comes until there is enough, the file ends or the connection breaks."""
        pieces, have = [self._rest], len(self._rest)
        self._rest = b""
        try:
            while have < most and (piece := next(self._pieces, b"")):
                pieces.append(piece)
                have += len(piece)
        except Exception as error:
            self._broken = error
        data = b"".join(pieces)
        self._rest = data[most:]
        return data[:most]

    def _mend(self, error: Exception, attempt: int) -> None:
        """Connects again for the bytes that follow, or raises ``error`` if that is no use."""
        wait = waiting_time(error, attempt)
        if wait is None:
            raise error
        if attempt:
            time.sleep(wait)
        with _QUIET:
            patiently(self._connect)

    def _connect(self) -> None:
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        if self._response is not None:
            self._response.close()
        url = hf_hub_url(
            self._repository.name,
            self._path,
            repo_type="dataset",
            revision=self._commit,
            endpoint=constants.ENDPOINT,
        )
        headers = build_hf_headers(library_name="wsssbed-hub", library_version=__version__)
        headers["Accept-Encoding"] = "identity"  # the digest is of the bytes as they are
        if self._position:
            headers["Range"] = f"bytes={self._position}-"
        session = get_session()
        request = session.build_request("GET", url, headers=headers, timeout=_SECONDS)
        self._response = session.send(request, stream=True, follow_redirects=True)
        hf_raise_for_status(self._response)
        self._pieces, self._rest, self._broken = self._response.iter_raw(), b"", None
        self._skip(self._response)

    def _skip(self, response: Response) -> None:
        """Comes to the position where the server sends the file from another one."""
        begins = 0
        if response.status_code == 206:
            given = response.headers.get("Content-Range", "")
            begins = int(given.removeprefix("bytes ").partition("-")[0] or 0)
        left = self._position - begins
        if left < 0:
            raise HubError(f"{self._repository.name}: {self._path} came from the wrong place on.")
        while left > 0 and (piece := next(self._pieces, b"")):
            self._rest = piece[left:]
            left -= len(piece)


def addition(path: str, content: bytes) -> CommitOperationAdd:
    """A small file of a commit."""
    from huggingface_hub import CommitOperationAdd

    return CommitOperationAdd(path, content)


def file_addition(path: str, file: Path, sent: Callable[[int], object]) -> CommitOperationAdd:
    """A file of a commit, to be read when it is sent.

    ``sent`` is told how many bytes of it have gone, again and again, where the client shows that:
    it does not while it sends through Xet.
    """
    from huggingface_hub import CommitOperationAdd

    class Addition(CommitOperationAdd):
        @contextmanager
        def as_file(self, with_tqdm: bool = False) -> Iterator[BinaryIO]:
            with _Watched(file, sent) as stream:
                yield stream

    return Addition(path, file)


class _Watched(io.FileIO):
    """A file that says how far it has been read; it is sent once more where a try failed."""

    def __init__(self, path: Path, sent: Callable[[int], object]):
        super().__init__(path)
        self._sent = sent

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(-1 if size is None else size)
        self._sent(self.tell())
        return data


def list_repositories(namespace: str, tag: str) -> list[str]:
    """Names, without the namespace, of its dataset repositories whose card has ``tag``."""
    with said_plainly(namespace), _QUIET:
        found = patiently(lambda: list(hub_api().list_datasets(author=namespace, filter=tag)))
    return [info.id.partition("/")[2] for info in found]
