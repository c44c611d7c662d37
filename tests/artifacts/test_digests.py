"""The expected digests were computed with sha256sum over bytes spelled out with printf."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wsssbed_hub.artifacts.digests import content_digest, file_digest, image_digest, list_digest

SAL = "b324cf1d191e88e18b7695595e853a76161d9672334f96e365f448a1fb0c1e50"
CAM = "d51c3a24d37a67215bbf7191e09be65e386c5f10d6b6bbaaf60e9345c85d9e78"


def test_list_digest_does_not_depend_on_the_order() -> None:
    expected = "sha256:911169ddaaf146aff539f58c26c489af3b892dff0fe283c1c264c65ae5aa59a2"
    assert list_digest(["b", "a"]) == list_digest(["a", "b"]) == expected


def test_image_digest() -> None:
    pixels = np.arange(6, dtype=np.uint8)
    assert image_digest(pixels.reshape(2, 3)) == SAL
    assert image_digest(pixels.reshape(2, 1, 3), [4, 17]) == CAM
    assert image_digest(pixels.reshape(3, 2)) != SAL
    assert image_digest(pixels.reshape(2, 1, 3), [4, 18]) != CAM


def test_image_digest_sees_values_and_not_memory() -> None:
    turned = np.arange(6, dtype=np.uint8).reshape(2, 3).T.copy().T
    assert not turned.flags.c_contiguous
    assert image_digest(turned) == SAL


def test_content_digest() -> None:
    sal = "sha256:1f28376519c71dd25f4f0f5c1c301ba6160e6a225991d968c1d2accc8ee18fe3"
    cam = "sha256:8a3d3fd09349daddca5700bf621917746dbe53c09b2ebcf31f53e0f026fe8f9e"
    assert content_digest("sal", [("a", SAL), ("b", SAL)]) == sal
    assert content_digest("cam", [("a", CAM)]) == cam
    assert content_digest("label", [("a", SAL), ("b", SAL)]) != sal


def test_file_digest(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"a\nb\n")
    assert file_digest(tmp_path / "x") == list_digest(["a", "b"])
