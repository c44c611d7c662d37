"""One dataset repository of the Hugging Face Hub, through the Hub's own client."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from wsssbed_hub.registry.hub.errors import Failing, client_call
from wsssbed_hub.utils.errors import HubError
from wsssbed_hub.utils.retry import patiently

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, Discussion, HfApi
    from huggingface_hub.utils import XetFileData

T = TypeVar("T")

MAIN = "main"
_SECONDS = 60.0  # without any sign of life


def hub_api() -> HfApi:
    """The client, with the endpoint and the token of the environment."""
    from huggingface_hub import HfApi

    return HfApi(library_name="wsssbed-hub", library_version=version("wsssbed-hub"))


class HubRepository:
    """The dataset repository ``<namespace>/<name>``.

    Every method raises HubError as ``errors.client_call`` says: Missing for what is not there,
    Overtaken for a commit that came too late, Offline.
    """

    def __init__(self, name: str):
        self.name = name

    def __str__(self) -> str:
        return f"hf:{self.name}"

    @property
    def url(self) -> str:
        from huggingface_hub import constants

        return f"{constants.ENDPOINT}/datasets/{self.name}"

    def _ask(self, action: Callable[[HfApi], T]) -> T:
        return _ask(self.name, action)

    def head(self, revision: str = MAIN) -> str:
        """The commit, 40 hexadecimal digits, that a branch, a tag or a reference stands for."""
        info = self._ask(
            lambda hub: hub.dataset_info(self.name, revision=revision, timeout=_SECONDS)
        )
        return str(info.sha)

    def read(self, path: str, commit: str, most: int) -> bytes:
        """A file of at most ``most`` bytes."""
        out = _Small(most, f"{self}/{path}")
        self._by_http(path, commit, out)
        return out.getvalue()

    def fetch(self, path: str, commit: str, out: BinaryIO) -> None:
        """Writes what ``out``, which has ``out.tell()`` of its bytes, lacks of a file at a commit.

        Through Xet where the client would use it. These are the parts of the client's download
        that begin at an offset: the whole of it, ``hf_hub_download``, keeps nothing when it is
        killed.
        """
        from huggingface_hub import constants

        if not constants.HF_HUB_DISABLE_XET and find_spec("hf_xet"):
            url = self._address(path, commit)
            about = self._ask(lambda hub: hub.get_hf_file_metadata(url=url, timeout=_SECONDS))
            if about.xet_file_data is not None:
                self._by_xet(about.xet_file_data, about.size, out)
                return
        self._by_http(path, commit, out)

    def _address(self, path: str, commit: str) -> str:
        from huggingface_hub import constants, hf_hub_url

        return hf_hub_url(
            self.name, path, repo_type="dataset", revision=commit, endpoint=constants.ENDPOINT
        )

    def _by_http(self, path: str, commit: str, out: BinaryIO) -> None:
        """The client mends cut connections, but does not try again where a server fails."""
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import silent_tqdm

        url, headers = self._address(path, commit), {**_headers(), "Accept-Encoding": "identity"}

        def get() -> None:
            with client_call(self.name):
                at = out.tell()
                http_get(url, out, resume_size=at, headers=headers, tqdm_class=silent_tqdm)

        patiently(get, position=out.tell, kind=Failing)

    def _by_xet(self, data: XetFileData, size: int | None, out: BinaryIO) -> None:
        from hf_xet import XetFileInfo, XetSession  # type: ignore[import-untyped]

        headers = _headers()
        with client_call(self.name):
            group = XetSession().new_download_stream_group(
                token_refresh_url=data.refresh_route,
                token_refresh_headers=headers,
                custom_headers={k: v for k, v in headers.items() if k != "authorization"},
            )
            pieces = group.download_stream(XetFileInfo(data.file_hash, size), start=out.tell())
        while True:
            with client_call(self.name):
                piece = next(pieces, None)
            if piece is None:
                break
            out.write(piece)

    def tags(self) -> dict[str, str]:
        """The commit of each tag."""
        refs = self._ask(lambda hub: hub.list_repo_refs(self.name, repo_type="dataset"))
        return {tag.name: tag.target_commit for tag in refs.tags}

    def open_requests(self) -> list[int]:
        """Numbers of the pull requests that nobody has merged or closed."""

        def list_them(hub: HfApi) -> list[Discussion]:
            return list(
                hub.get_repo_discussions(
                    self.name, repo_type="dataset", discussion_type="pull_request"
                )
            )

        found = self._ask(list_them)
        return sorted(one.num for one in found if one.status in ("open", "draft"))

    def is_on(self, branch: str, commit: str) -> bool:
        """Whether ``commit`` is part of the history of ``branch``."""
        listed = self._ask(
            lambda hub: hub.list_repo_commits(self.name, repo_type="dataset", revision=branch)
        )
        return any(one.commit_id == commit for one in listed)

    def set_tag(self, tag: str, commit: str, *, replace: bool) -> None:
        """Puts a tag on a commit, where it may be already."""
        options = {"tag": tag, "repo_type": "dataset"}
        if replace:
            with client_call(self.name):
                hub_api().delete_tag(self.name, **options)
        self._ask(lambda hub: hub.create_tag(self.name, revision=commit, exist_ok=True, **options))

    def create(self) -> None:
        """Makes the repository, unless it is there. Raises HubError if nobody is signed in."""
        from huggingface_hub import get_token
        from huggingface_hub.errors import LocalTokenNotFoundError

        with client_call(self.name):
            if get_token() is None:
                raise LocalTokenNotFoundError
        self._ask(lambda hub: hub.create_repo(self.name, repo_type="dataset", exist_ok=True))

    def upload(self, addition: CommitOperationAdd, *, pull_request: bool) -> None:
        """Sends a file ahead of its commit, unless the Hub has it; the client tries several times.

        Small files are not sent: they go with the commit.
        """
        with client_call(self.name):
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

        Once it is sent it may have happened whatever is raised, unless the Hub refused it.
        """
        with client_call(self.name):
            return hub_api().create_commit(
                self.name,
                additions,
                commit_message=title,
                parent_commit=parent,
                repo_type="dataset",
                create_pr=pull_request,
            )


def _headers() -> dict[str, str]:
    from huggingface_hub.utils import build_hf_headers

    return build_hf_headers(library_name="wsssbed-hub", library_version=version("wsssbed-hub"))


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


class _Small(io.BytesIO):
    """A file that must not be large."""

    def __init__(self, most: int, name: str):
        super().__init__()
        self._most, self._name = most, name

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self._most:
            raise HubError(f"{self._name} has more than {self._most:,} bytes.")
        return super().write(data)


def _ask(name: str, action: Callable[[HfApi], T]) -> T:
    """The client's answer about ``name``, asked for again while an error may pass."""

    def once() -> T:
        with client_call(name):
            return action(hub_api())

    return patiently(once)


def list_repositories(namespace: str, tag: str) -> list[str]:
    """Names, without the namespace, of its dataset repositories whose card has ``tag``."""
    found = _ask(namespace, lambda hub: list(hub.list_datasets(author=namespace, filter=tag)))
    return [info.id.partition("/")[2] for info in found]
