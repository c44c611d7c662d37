"""Where the lock file is, and what it refuses."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from killing import exit_code, in_child

from wsssbed_hub.registry.release.lockfile import Pin, find_pin, read_lock, write_pin
from wsssbed_hub.utils.errors import HubError
from wsssbed_hub.utils.settings import lock_file

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64
KEY = "sal/x@1.0.0"


def pin(**other: object) -> Pin:
    stated = {"url": "https://example.org/x.zip", "size": 5, "sha256": A, "content": A}
    stated |= {"images": 3, "image_list": A, "date": datetime(2026, 1, 2, tzinfo=UTC)}
    return Pin.model_validate(stated | other)


def test_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("WSSSBED_LOCK", str(tmp_path / "mine.yaml"))
    assert lock_file() == tmp_path / "mine.yaml"
    monkeypatch.delenv("WSSSBED_LOCK")
    assert lock_file() == tmp_path / "config" / "wsssbed-hub" / "wsssbed.lock.yaml"
    (tmp_path / "wsssbed.lock.yaml").touch()
    assert lock_file() == tmp_path / "wsssbed.lock.yaml"
    assert find_pin(KEY, "voc12") is None
    write_pin(KEY, "voc12", pin())
    assert find_pin(KEY, "voc12") == pin()
    assert find_pin(KEY, "coco14") is None


@pytest.mark.parametrize(("change", "what"), [({"sha256": B}, "bytes"), ({"content": B}, "maps")])
def test_a_pin_never_changes(change: dict[str, str], what: str) -> None:
    write_pin(KEY, "voc12", pin())
    write_pin(KEY, "voc12", pin(date=datetime(2026, 5, 5, tzinfo=UTC)))
    with pytest.raises(HubError, match=rf"on 2026-01-02: other {what}, {A} then, {B} now"):
        write_pin(KEY, "voc12", pin(**change))
    assert find_pin(KEY, "voc12") == pin()


def test_pins_written_at_the_same_time_all_stay() -> None:
    children = [
        in_child(lambda n=n: write_pin(f"sal/x{n}@1.0.0", "voc12", pin())) for n in range(6)
    ]
    assert [exit_code(child) for child in children] == [0] * 6
    assert sorted(read_lock(lock_file()).pins) == [f"sal/x{n}@1.0.0" for n in range(6)]


@pytest.mark.parametrize("text", ["pins: [", "pins: {a: {b: {}}}", "other: 1", "- a"])
def test_a_damaged_file_is_not_overwritten(text: str) -> None:
    lock_file().parent.mkdir()
    lock_file().write_text(text)
    with pytest.raises(HubError, match=r"wsssbed\.lock\.yaml"):
        write_pin(KEY, "voc12", pin())
    assert lock_file().read_text() == text
