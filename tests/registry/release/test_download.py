"""Downloads from a server that cuts, stalls, lies and changes its mind."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from killing import exit_code, in_child
from rangeserver import Fault, RangeServer

from wsssbed_hub.registry.release.download import Downloaded, download, remote_size
from wsssbed_hub.utils.errors import HubError

DATA = np.random.default_rng(0).bytes(3_000_000)
CUT = Fault(cut=1_000_000)


@pytest.fixture
def server() -> Iterator[RangeServer]:
    server = RangeServer({"/a.zip": DATA}).start()
    yield server
    server.stop()


class Get:
    """Downloads into a folder."""

    def __init__(self, server: RangeServer, folder: Path):
        self.server, self.path = server, folder / "downloads" / "a"

    def __call__(self, path: str = "/a.zip") -> Downloaded:
        return download(self.server.url(path), self.path)

    def ranges(self) -> list[str | None]:
        return [asked for _, _, asked in self.server.requests]

    def left(self) -> list[str]:
        return sorted(path.name for path in self.path.parent.iterdir())


@pytest.fixture
def get(server: RangeServer, tmp_path: Path, waits: list[float]) -> Get:
    return Get(server, tmp_path)


def test_a_whole_file(get: Get) -> None:
    steps: list[tuple[int, int]] = []
    url = get.server.url("/a.zip")
    found = download(url, get.path, progress=lambda done, of: steps.append((done, of)))
    assert found == (get.path, len(DATA), "sha256:" + hashlib.sha256(DATA).hexdigest())
    assert get.path.read_bytes() == DATA
    assert steps[-1] == (len(DATA), len(DATA))
    assert get.left() == ["a"]


def test_cut_connections_go_on_where_they_were(get: Get) -> None:
    get.server.faults = [CUT, CUT, Fault(cut=0)]
    assert get().path.read_bytes() == DATA
    starts = [int(r.removeprefix("bytes=").rstrip("-")) if r else 0 for r in get.ranges()]
    assert starts == [0, 1_000_000, 2_000_000, 2_000_000]


def test_a_changed_file_begins_again(get: Get) -> None:
    get.server.faults = [CUT, Fault(status=404)]
    with pytest.raises(HubError, match="is not there"):
        get()
    new = DATA[::-1]
    get.server.files["/a.zip"], get.server.etags["/a.zip"] = new, "2"
    assert get().path.read_bytes() == new


def test_a_server_without_ranges(get: Get) -> None:
    get.server.ranges = False
    get.server.faults = [CUT]
    assert get().path.read_bytes() == DATA


def test_without_a_validator_nothing_is_trusted(get: Get) -> None:
    get.server.etags["/a.zip"] = "W/weak"
    get.server.faults = [CUT]
    assert get().path.read_bytes() == DATA
    assert get.ranges() == [None, None]


@pytest.mark.parametrize(
    ("fault", "pauses"),
    [
        (Fault(status=503), [1.0]),
        (Fault(status=500), [1.0]),
        (Fault(status=429, headers={"Retry-After": "7"}), [7.0]),
    ],
)
def test_a_server_in_trouble_is_asked_again(
    get: Get, waits: list[float], fault: Fault, pauses: list[float]
) -> None:
    get.server.faults = [fault]
    assert get().path.read_bytes() == DATA
    assert waits == pauses


def test_tries_are_bounded(get: Get, waits: list[float]) -> None:
    get.server.always = Fault(status=503)
    with pytest.raises(HubError, match=r"its server fails \(HTTP 503\). Run it again later"):
        get()
    assert waits == [1, 2, 4, 8]
    assert len(get.server.requests) == 5


def test_a_long_wait_is_left_to_the_user(get: Get, waits: list[float]) -> None:
    get.server.faults = [CUT, Fault(status=429, headers={"Retry-After": "3600"})]
    with pytest.raises(HubError, match=r"wait 3600 s.*1,000,000 bytes are here.*goes on") as caught:
        get()
    assert get.server.url("/a.zip") in str(caught.value)
    assert 3600 not in waits
    assert get().path.read_bytes() == DATA
    assert get.ranges()[-1] == "bytes=1000000-"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault(status=404), "the link is dead"),
        (Fault(status=403), "not for everyone"),
        (Fault(status=418), "HTTP 418"),
        (
            Fault(status=302, headers={"Location": "ftp://127.0.0.1/x"}),
            "cannot be had|not followed",
        ),
        (Fault(headers={"Content-Length": str(1 << 60)}), "more than"),
    ],
)
def test_refusals(get: Get, waits: list[float], fault: Fault, message: str) -> None:
    get.server.faults = [fault]
    with pytest.raises(HubError, match=message):
        get()
    assert waits == []
    assert "a" not in get.left()


def test_another_part_than_was_asked_for(get: Get) -> None:
    get.server.faults = [CUT, Fault(headers={"Content-Range": "bytes 0-2999999/3000000"})]
    with pytest.raises(HubError, match="another part"):
        get()


def test_redirects_keep_the_range(get: Get) -> None:
    get.server.faults = [CUT, Fault(status=302, headers={"Location": get.server.url("/b.zip")})]
    get.server.files["/b.zip"] = DATA
    assert get().path.read_bytes() == DATA
    assert get.server.requests[-1] == ("GET", "/b.zip", "bytes=1000000-")


def kill(get: Get, at: int) -> None:
    """A download that is killed when so many bytes are here."""

    def die(done: int, of: int) -> None:
        if done >= at:
            os.kill(os.getpid(), signal.SIGKILL)

    url = get.server.url("/a.zip")
    child = in_child(lambda: download(url, get.path, progress=die))
    assert exit_code(child) == -signal.SIGKILL
    assert "a" not in get.left()
    get.server.requests.clear()


def test_a_killed_download_goes_on(get: Get) -> None:
    kill(get, 1 << 20)
    assert get().path.read_bytes() == DATA
    assert get.ranges() == [f"bytes={1 << 20}-"]


def test_killed_after_the_last_byte_it_asks_for_nothing(get: Get) -> None:
    kill(get, len(DATA))
    assert get() == (get.path, len(DATA), "sha256:" + hashlib.sha256(DATA).hexdigest())
    assert get.server.requests == []
    assert get.left() == ["a"]


def test_killed_after_the_last_byte_of_a_size_that_nobody_told(get: Get) -> None:
    get.server.sizes = False
    kill(get, len(DATA))
    get.server.sizes = True
    assert get().path.read_bytes() == DATA
    assert get.ranges() == [f"bytes={len(DATA)}-"]  # which is answered with 416


@pytest.mark.parametrize("etag", ["1", "2"])
def test_a_file_that_has_become_shorter_begins_again(get: Get, etag: str) -> None:
    kill(get, 2 << 20)
    get.server.files["/a.zip"], get.server.etags["/a.zip"] = DATA[:1_000_000], etag
    assert get().path.read_bytes() == DATA[:1_000_000]


def test_two_at_once_fetch_it_once(get: Get) -> None:
    children = [in_child(get) for _ in range(3)]
    assert [exit_code(child) for child in children] == [0, 0, 0]
    assert get.path.read_bytes() == DATA
    assert len(get.server.requests) == 1


def test_no_server(get: Get) -> None:
    get.server.stop()
    with pytest.raises(HubError, match="its server cannot be reached"):
        get()


def test_remote_size(get: Get) -> None:
    assert remote_size(get.server.url("/a.zip")) == len(DATA)
    assert get.server.requests == [("HEAD", "/a.zip", None)]
    get.server.redirects["/b.zip"] = "/a.zip"
    assert remote_size(get.server.url("/b.zip")) == len(DATA)
    assert {method for method, _, _ in get.server.requests} == {"HEAD"}
    with pytest.raises(HubError, match="the link is dead"):
        remote_size(get.server.url("/none.zip"))
