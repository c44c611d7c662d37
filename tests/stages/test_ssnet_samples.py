"""What SSNet is trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ssnets import CLASSES, Labels, two_images

from stages.ops.determinism import generator
from stages.ops.images import MEAN_RGB, STD_RGB
from stages.ssnet.samples import ClassImages, SaliencyImages, SsnetData, Views
from wsssbed_hub.utils.errors import HubError


@pytest.fixture(scope="module")
def data(shapes: Path) -> SsnetData:
    return two_images(shapes)


def views(**changes: Any) -> Views:
    return Views(**({"size": 32, "crop": 0.9, "augmentation": "paper"} | changes))


def blocks(height: int = 60, width: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """A label of blocks of 20 pixels, 0 to 4, and an image whose red is 50 times the label."""
    label = np.random.default_rng(1).integers(0, 5, (height // 20, width // 20)).astype(np.uint8)
    label = label.repeat(20, 0).repeat(20, 1)
    return np.stack([50 * label, 0 * label, 0 * label], 2), label


@pytest.mark.parametrize("augmentation", ["paper", "code"])
def test_image_and_label_stay_together(augmentation: Any) -> None:
    rgb, label = blocks()
    seen = set()
    for seed in range(40):
        red, found = views(augmentation=augmentation).of([rgb, label], generator(seed))
        assert (red.shape, found.shape) == ((32, 32, 3), (32, 32))
        assert set(np.unique(found)) <= set(range(5))
        # Interpolation mixes neighbours at the borders of the blocks alone.
        assert np.isclose(red[..., 0] / 50, found, atol=0.1).mean() > 0.6
        seen.add(found.tobytes())
    assert len(seen) > 10  # a window has few places, and the pixels of some are the same


def test_the_paper_crops_and_the_code_also_turns_and_mirrors() -> None:
    """A ramp from left to right: what a view does to it tells its turn and its mirror image."""
    ramp = np.tile(np.arange(200, dtype=np.uint8), (200, 1))
    slopes: dict[str, list[tuple[float, float]]] = {"paper": [], "code": []}
    for augmentation, found in slopes.items():
        for seed in range(120):
            (view,) = views(size=64, augmentation=augmentation).of([ramp], generator(seed))
            across = float(view[:, -1].mean()) - float(view[:, 0].mean())
            down = float(view[-1].mean()) - float(view[0].mean())
            found.append((across, down))
    # 63 of 64 pixels of 0.9 of 200 steps; the nearest pixel, so give or take two.
    assert all(abs(across - 177) < 3 and down == 0 for across, down in slopes["paper"])
    mirrored = sum(across < 0 for across, _ in slopes["code"])
    assert 40 < mirrored < 80  # of 120, even chances: 3.6 deviations
    turns = [np.degrees(np.arctan2(down, abs(across))) for across, down in slopes["code"]]
    assert -10.8 < min(turns) < -8
    assert 8 < max(turns) < 10.8


def test_a_whole_crop_is_the_resized_image(data: SsnetData) -> None:
    image_id = data.image_ids[0]
    rgb = data.target.read_image(image_id)
    sample = ClassImages(data, views(crop=1.0), data.labels).sample(0, generator(0))
    red = sample["image"][0] * STD_RGB[0] + MEAN_RGB[0]
    assert red.mean() == pytest.approx(rgb[..., 0].mean() / 255, abs=0.01)
    assert (sample["image"].dtype, sample["label"].dtype) == (np.float32, np.int64)
    known = set(np.unique(data.labels.read(image_id)))  # type: ignore[union-attr]
    assert set(np.unique(sample["label"])) <= known


def test_image_level_labels_are_those_of_the_whole_image(data: SsnetData) -> None:
    """Not of the crop; nothing but the target's image-level labels is asked."""
    image_id = data.image_ids[0]
    target = SimpleNamespace(
        num_classes=CLASSES, read_image=data.target.read_image, image_labels=lambda image_id: (1, 4)
    )
    images = ClassImages(replace(data, target=target, labels=None), views(crop=0.1), None)  # type: ignore[arg-type]
    assert len(images) == 2
    assert data.target.image_labels(image_id) != (1, 4)
    for seed in range(5):
        np.testing.assert_array_equal(
            images.sample(0, generator(seed))["classes"], np.float32([0, 1, 0, 0, 1, 0])
        )


def test_a_mask_is_cut_at_mid_grey() -> None:
    mask = np.uint8([[0, 127, 128, 255]]).repeat(8, 1).repeat(32, 0)
    sod = SimpleNamespace(
        image_ids=["one"], read_image=lambda i: np.stack([mask] * 3, 2), read_mask=lambda i: mask
    )
    sample = SaliencyImages(sod, views(crop=1.0)).sample(0, generator(0))  # type: ignore[arg-type]
    assert (sample["mask"].shape, sample["mask"].dtype) == ((32, 32), np.float32)
    np.testing.assert_array_equal(sample["mask"][0], np.float32([0, 0, 1, 1]).repeat(8))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.zeros((4, 5), np.uint8), r"label/some: the label of .* \(4, 5\) pixels"),
        (None, r"values up to 255.*values up to 6"),
    ],
)
def test_pseudo_labels_that_do_not_fit_are_refused(
    data: SsnetData, label: np.ndarray | None, message: str
) -> None:
    image_id = data.image_ids[0]
    if label is None:
        label = np.full(data.target.read_image(image_id).shape[:2], 255, np.uint8)
    images = ClassImages(data, views(), Labels({image_id: label}))  # type: ignore[arg-type]
    with pytest.raises(HubError, match=message):
        images.sample(0, generator(0))
