"""Labelling into a folder that is there: killed runs, other settings, changed files."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_maps import IDS, TAU, Drawn, expected

from wsssbed_hub.artifacts.manifest import Threshold
from wsssbed_hub.evaluation.labelling import ingredient, label_artifact
from wsssbed_hub.registry.open_artifact import open_artifact
from wsssbed_hub.utils.errors import HubError

OTHER: dict[str, tuple[dict[str, Any], str]] = {
    "tau": ({"tau": Threshold(tau=0.5, origin="given")}, "tau: 0.3 there, 0.5 now"),
    "origin": (
        {"tau": Threshold(tau=0.3, origin="published")},
        'tau_origin: "given" there, "published" now',
    ),
    "rule": ({"rule": "release"}, 'rule: "paper" there, "release" now'),
    "sal_threshold": ({"sal_threshold": 0.5}, "sal_threshold: 0.2 there, 0.5 now"),
    "ignore": ({"ignore": False}, "ignore: true there, false now"),
    "images": ({"image_ids": IDS[:-1]}, "images: 80 there, 79 now"),
    "saliency": ({"sal": None}, 'sal: "sal/drawn@1.0.0" there, null now'),
    "version": (
        {"cam": Drawn("cam", key="cam/drawn@1.0.1")},
        'cam: "cam/drawn@1.0.0" there, "cam/drawn@1.0.1" now',
    ),
}


@pytest.mark.parametrize("name", OTHER)
def test_other_settings_in_the_same_folder(tmp_path: Path, name: str) -> None:
    change, words = OTHER[name]
    settings = {"cam": Drawn("cam"), "sal": Drawn("sal"), "tau": TAU}
    label_artifact(**settings, out=tmp_path / "a")
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    with pytest.raises(HubError) as caught:
        label_artifact(**{**settings, **change}, out=tmp_path / "a")
    assert words in str(caught.value)
    assert str(tmp_path / "a") in str(caught.value)
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


class Fails(Drawn):
    """Maps that stop the run at one image."""

    def __init__(self, kind: str, at: str, error: BaseException) -> None:
        super().__init__(kind)
        self.at, self.error = at, error

    def read(self, image_id: str) -> Any:
        if image_id == self.at:
            raise self.error
        return super().read(image_id)


def interrupted(out: Path, error: BaseException | None = None) -> None:
    """Leaves 50 of 80 labels unfinished."""
    cam = Fails("cam", IDS[50], error or KeyboardInterrupt())
    made_from = [ingredient(Drawn("cam")), ingredient(Drawn("sal"))]
    with pytest.raises(type(cam.error)):
        label_artifact(cam, Drawn("sal"), out, tau=TAU, ingredients=made_from)
    assert not out.exists()


def test_other_settings_of_unfinished_labels(tmp_path: Path) -> None:
    interrupted(tmp_path / "a")
    with pytest.raises(HubError) as caught:
        label_artifact(
            Drawn("cam"), Drawn("sal"), tmp_path / "a", tau=Threshold(tau=0.5, origin="given")
        )
    assert "tau: 0.3 there, 0.5 now" in str(caught.value)
    assert f"Remove {tmp_path / '.a.partial'} to begin again" in str(caught.value)
    label_artifact(Drawn("cam"), Drawn("sal"), tmp_path / "a", tau=TAU)
    for image_id, label in open_artifact(tmp_path / "a"):
        np.testing.assert_array_equal(label, expected(image_id))


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped"])
def test_what_is_not_whole_is_labelled_again(tmp_path: Path, damage: str) -> None:
    """As a power cut may leave it; a kill cannot."""
    interrupted(tmp_path / "a")
    path = tmp_path / ".a.partial" / f"{IDS[3]}.png"
    data = bytearray(path.read_bytes())
    data[-20] ^= 1  # inside the pixels
    path.write_bytes({"cut": bytes(data[:-12]), "empty": b"", "flipped": bytes(data)}[damage])
    cam = Drawn("cam")
    made_from = [ingredient(Drawn("cam")), ingredient(Drawn("sal"))]
    label_artifact(cam, Drawn("sal"), tmp_path / "a", tau=TAU, ingredients=made_from)
    assert cam.reads == 30 + 1
    label = open_artifact(tmp_path / "a").read(IDS[3])
    np.testing.assert_array_equal(label, expected(IDS[3]))


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    write_bytes = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if len(written) == 20:
            write_bytes(path, data[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(path)
        return write_bytes(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(HubError, match=r"disk is full.*goes on where it stopped"):
            label_artifact(Drawn("cam"), Drawn("sal"), tmp_path / "a", tau=TAU)
    assert not (tmp_path / "a").exists()
    labels = label_artifact(Drawn("cam"), Drawn("sal"), tmp_path / "a", tau=TAU)
    assert labels.content == open_artifact(tmp_path / "a").digest()


RUN = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from drawn_maps import Drawn, TAU
from wsssbed_hub.evaluation.labelling import ingredient, label_artifact

class Slow(Drawn):
    def read(self, image_id):
        time.sleep(float(sys.argv[4]))
        return super().read(image_id)

made_from = [ingredient(Drawn(kind)) for kind in ("cam", "sal")]
label_artifact(
    Slow("cam"), Drawn("sal"), Path(sys.argv[2]), tau=TAU, ingredients=made_from, as_=sys.argv[3]
)
"""


def start(out: Path, as_: str, seconds: float) -> subprocess.Popen[bytes]:
    here = str(Path(__file__).parents[1] / "helpers")
    return subprocess.Popen([sys.executable, "-c", RUN, here, str(out), as_, str(seconds)])


def wait_for(there: Any, process: subprocess.Popen[bytes]) -> None:
    while not there():
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.005)


@pytest.mark.parametrize("as_", ["png", "parquet"])
def test_killed(tmp_path: Path, as_: Any) -> None:
    out = tmp_path / "a"
    unfinished = tmp_path / ".a.partial" if as_ == "png" else out / ".partial"
    process = start(out, as_, 0.02)
    # A Parquet part holds 64 images.
    enough, pattern = (5, "img*.png") if as_ == "png" else (1, "0*.parquet")
    try:
        wait_for(lambda: len(list(unfinished.glob(pattern))) >= enough, process)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    whole = len(list(unfinished.glob(pattern)))
    assert as_ == "parquet" or not out.exists()
    (unfinished / ".img079.tmp").write_bytes(b"half")  # what a kill in a write leaves
    with pytest.raises(HubError, match=r"tau: 0\.3 there, 0\.5 now"):
        label_artifact(
            Drawn("cam"), Drawn("sal"), out, tau=Threshold(tau=0.5, origin="given"), as_=as_
        )
    made_from = [ingredient(Drawn("cam")), ingredient(Drawn("sal"))]
    cam = Drawn("cam")
    labels = label_artifact(cam, Drawn("sal"), out, tau=TAU, ingredients=made_from, as_=as_)
    assert cam.reads == 80 - (whole if as_ == "png" else 64 * whole)
    once = label_artifact(Drawn("cam"), Drawn("sal"), tmp_path / "b", tau=TAU)
    assert labels.content == once.content
    if as_ == "png":
        assert {p.name: p.read_bytes() for p in out.iterdir()} == {
            p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()
        }


def test_two_runs_at_once(tmp_path: Path) -> None:
    processes = [start(tmp_path / "a", "png", 0.005) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
    for image_id, label in open_artifact(tmp_path / "a"):
        np.testing.assert_array_equal(label, expected(image_id))


@pytest.mark.parametrize("what", ["a file", "other files", "a damaged record"])
def test_folder_that_is_something_else(tmp_path: Path, what: str) -> None:
    out = tmp_path / "a"
    if what == "a file":
        out.write_text("mine")
    else:
        out.mkdir()
        name = "mine.txt" if what == "other files" else "settings.json"
        (out / name).write_text("{}")
    words = "damaged" if what == "a damaged record" else "nothing says how it was made"
    with pytest.raises(HubError, match=words):
        label_artifact(Drawn("cam"), None, out, tau=TAU)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda out: (out / f"{IDS[4]}.png").unlink(), f"{IDS[4]}.png is missing"),
        (lambda out: (out / "other.png").write_bytes(b""), "other.png should not be there"),
    ],
)
def test_finished_folder_that_was_changed(tmp_path: Path, change: Any, words: str) -> None:
    label_artifact(Drawn("cam"), None, tmp_path / "a", tau=TAU)
    (tmp_path / "a" / ".DS_Store").write_bytes(b"")  # no one's fault
    label_artifact(Drawn("cam"), None, tmp_path / "a", tau=TAU)
    change(tmp_path / "a")
    with pytest.raises(HubError, match=words):
        label_artifact(Drawn("cam"), None, tmp_path / "a", tau=TAU)
