from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from samples import IDS, key_folder, maps_of, same

from wsssbed_hub.artifacts.maps import Maps
from wsssbed_hub.registry.hub.registry import HubRegistry
from wsssbed_hub.registry.open_artifact import (
    Activations,
    check_image_id,
    open_artifact,
    write_pngs,
)
from wsssbed_hub.registry.pull import open_registry
from wsssbed_hub.utils.errors import HubError, UsageError

image_ids = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9_-]|\.(?!\.)){0,20}", fullmatch=True)


@st.composite
def some_maps(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A kind and maps of it, of any ids, sizes, values and classes."""
    kind = draw(st.sampled_from(["sal", "cam", "label"]))
    ids = draw(st.lists(image_ids, min_size=1, max_size=5, unique_by=str.lower))
    found: dict[str, Any] = {}
    for image_id in ids:
        height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
        if kind == "cam":
            classes = sorted(draw(st.sets(st.integers(0, 99), min_size=1, max_size=3)))
            shape = (len(classes), height, width)
            found[image_id] = Activations(draw(arrays(np.uint8, shape)), np.array(classes))
        else:
            found[image_id] = draw(arrays(np.uint8, (height, width)))
    return kind, found


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(some_maps())
def test_one_content_digest_whatever_holds_the_maps(
    tmp_path_factory: pytest.TempPathFactory, made: tuple[str, dict[str, Any]]
) -> None:
    kind, maps = made
    root = tmp_path_factory.mktemp("round-trip")
    content = key_folder(root / "key", kind, maps).entry("1.0.0", "shapes").content
    folder = write_pngs(open_artifact(root / "key"), root / "pngs")
    with zipfile.ZipFile(root / "pngs.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in folder.iterdir():
            archive.write(path, f"below/{path.name}")
    again = key_folder(root / "again", kind, dict(open_artifact(folder, kind=kind)))
    assert again.entry("1.0.0", "shapes").content == content
    for where in (root / "key", folder, root / "pngs.zip"):
        found = open_artifact(where, kind=kind)
        assert found.digest() == content
        assert found.image_ids == sorted(maps)
        assert all(same(found.read(image_id), maps[image_id]) for image_id in maps)


@given(st.text(max_size=12) | st.text(alphabet="aA0._-/\\\n", max_size=12))
def test_an_image_id_is_one_file_name(text: str) -> None:
    try:
        assert check_image_id(text) == text
    except HubError:
        return
    assert Path("/x", f"{text}.png").resolve() == Path(f"/x/{text}.png")
    assert Path(f"/x/{text}.png").parent == Path("/x")
    assert text.isascii()
    assert not text.startswith(".")


def test_a_digest_reports_its_progress(tmp_path: Path) -> None:
    key_folder(tmp_path)
    steps: list[tuple[int, int]] = []
    open_artifact(tmp_path).digest(lambda done, total: steps.append((done, total)))
    assert steps == [(1, 3), (2, 3), (3, 3)]


class FromMemory(Maps):
    """What somebody else may derive: a target's ground truth for example."""

    kind, name, image_ids = "label", "memory", IDS

    def read(self, image_id: str) -> np.ndarray:
        found = maps_of("label")[image_id]
        assert isinstance(found, np.ndarray)
        return found


def test_any_reader_has_a_content_digest_and_can_be_written(tmp_path: Path) -> None:
    content = key_folder(tmp_path / "key", "label").entry("1.0.0", "shapes").content
    assert FromMemory().digest() == content
    assert len(FromMemory()) == 3
    folder = write_pngs(FromMemory(), tmp_path / "pngs")
    assert open_artifact(folder).digest() == content


def test_open_says_what_it_found(tmp_path: Path) -> None:
    manifest = key_folder(tmp_path, "cam")
    found = open_artifact(tmp_path)
    assert found.key == "cam/test@1.0.0"
    assert found.content == manifest.entry("1.0.0", "shapes").content
    assert found.stored_bytes == manifest.entry("1.0.0", "shapes").size


def test_a_key_is_pulled_and_a_path_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_folder(tmp_path / "sal/test", maps=maps_of("sal", ["here"]))
    key_folder(tmp_path / "other", maps=maps_of("sal", ["there"]))
    open_registry(create=True).publish(tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    assert open_artifact("sal/test").image_ids == ["there"]
    assert open_artifact("./sal/test").image_ids == ["here"]
    assert open_artifact(Path("sal/test")).image_ids == ["here"]
    assert open_artifact("sal/test@1.0.0", "shapes").image_ids == ["there"]


def test_a_repository_on_the_hub_is_pulled(tmp_path: Path, published: HubRegistry) -> None:
    here = open_artifact(tmp_path / "key").digest()
    for address in ("hf:alice/sal-test", "hf:alice/sal-test@1.0.0"):
        assert open_artifact(address, "shapes").digest() == here
    with pytest.raises(HubError, match="alice/sal-none"):
        open_artifact("hf:alice/sal-none")


@pytest.mark.parametrize("where", ["nowhere", "./sal/x", "../y", "SAL/vst", "data/x.zip"])
def test_a_path_that_is_not_there(where: str) -> None:
    with pytest.raises(UsageError, match="is neither a key nor a folder or zip"):
        open_artifact(where)


def test_another_kind_than_the_manifest_s(tmp_path: Path) -> None:
    key_folder(tmp_path, "cam")
    assert open_artifact(tmp_path, kind="cam").kind == "cam"
    with pytest.raises(UsageError, match="cam/test has the kind cam, not sal"):
        open_artifact(tmp_path, kind="sal")


def test_a_target_that_the_folder_lacks(tmp_path: Path) -> None:
    key_folder(tmp_path)
    with pytest.raises(UsageError, match="nothing over 'voc12', only over shapes"):
        open_artifact(tmp_path, "voc12")


def test_the_package_offers_its_names_late() -> None:
    import wsssbed_hub

    assert set(wsssbed_hub.__all__) <= set(dir(wsssbed_hub))
    for name in wsssbed_hub.__all__:
        assert getattr(wsssbed_hub, name)
    with pytest.raises(AttributeError, match="has no attribute 'pul'"):
        wsssbed_hub.pul  # noqa: B018
