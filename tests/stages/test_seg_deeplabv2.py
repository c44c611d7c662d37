"""What the reference case does not show; the case itself: test_conformance_seg_deeplabv2.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from references import checkpoint

from stages.runtime.images import caffe_bgr
from stages.seg.deeplabv2 import (
    IGNORE,
    MEAN_BGR,
    RECIPES,
    Crops,
    Logits,
    Method,
    scale_losses,
    shrink_label,
)
from wsssbed_hub.errors import HubError


@pytest.mark.parametrize("old", [(321, 321), (40, 65), (7, 9)])
@pytest.mark.parametrize("new", [(41, 41), (31, 21), (80, 100), (1, 1)])
def test_labels_are_resized_like_pillow_s_nearest(
    old: tuple[int, int], new: tuple[int, int]
) -> None:
    label = np.random.default_rng(0).integers(0, 256, old).astype(np.uint8)
    expected = np.asarray(Image.fromarray(label).resize(new[::-1], Image.Resampling.NEAREST))
    resized = shrink_label(torch.from_numpy(label.astype(np.int64))[None], new)
    np.testing.assert_array_equal(resized[0].numpy(), expected)


def dataset(height: int = 50, width: int = 70) -> Any:
    """Images whose red tells the label: a tenth of it (label < 20)."""
    label = np.random.default_rng(0).integers(0, 5, (height // 10, width // 10))
    label = label.astype(np.uint8).repeat(10, 0).repeat(10, 1)
    rgb = np.stack([10 * label, 0 * label, 0 * label], 2)
    return SimpleNamespace(
        image_ids=["one"],
        read_image=lambda image_id: rgb,
        read_label=lambda image_id: label,
        labels=SimpleNamespace(name="label/few"),
    )


def crops(**changes: Any) -> Crops:
    return Crops(dataset(), replace(RECIPES["published"], **changes))


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.5])
def test_image_and_label_stay_together(scale: float) -> None:
    source = crops(scales=(scale,), crop=64)
    for seed in range(20):
        sample = source.sample(0, np.random.default_rng(seed))
        image, label = sample["image"].numpy(), sample["label"].numpy()
        assert (image.shape, label.shape) == ((3, 64, 64), (64, 64))
        known = label != IGNORE
        red = image[2] + MEAN_BGR[2]
        # Interpolation mixes neighbours at the borders of the blocks of ten pixels alone.
        assert np.isclose(red[known], 10.0 * label[known], atol=1e-3).mean() > 0.6
        assert not image[:, ~known].any()  # the padding is the mean colour


def test_padding_lies_below_and_to_the_right() -> None:
    source = crops(scales=(0.5,), crop=64, flip=0.0)
    label = source.sample(0, np.random.default_rng(0))["label"].numpy()
    np.testing.assert_array_equal(
        label != IGNORE, np.pad(np.ones((25, 35), bool), ((0, 39), (0, 29)))
    )


def test_sizes_are_truncated() -> None:
    source = Crops(dataset(50, 70), replace(RECIPES["published"], scales=(0.75,), crop=64, flip=0))
    known = source.sample(0, np.random.default_rng(0))["label"].numpy() != IGNORE
    assert (known.any(1).sum(), known.any(0).sum()) == (37, 52)  # of 37.5 and 52.5


def test_at_its_own_size_a_crop_is_a_window_of_the_image() -> None:
    data = dataset(70, 80)
    source = Crops(data, replace(RECIPES["published"], scales=(1.0,), crop=70, flip=0.0))
    image = caffe_bgr(data.read_image("one"), MEAN_BGR)
    lefts = set()
    for seed in range(200):
        crop = source.sample(0, np.random.default_rng(seed))["image"].numpy()
        lefts |= {left for left in range(11) if (image[..., left : left + 70] == crop).all()}
    assert lefts == set(range(11))


def test_a_label_of_another_size_is_an_error() -> None:
    data = dataset()
    data.read_label = lambda image_id: np.zeros((50, 71), np.uint8)
    with pytest.raises(HubError, match=r"label/few: the label of one .*\(50, 71\).*\(50, 70\)"):
        Crops(data, RECIPES["published"]).sample(0, np.random.default_rng(0))


def test_pixels_that_are_not_labelled_do_not_count() -> None:
    torch.manual_seed(0)
    scores = torch.randn(2, 5, 6, 6)
    label = torch.randint(0, 5, (2, 6, 6))
    label[0, 2:] = IGNORE
    logits = Logits([scores], scores)
    expected = -scores.log_softmax(1).gather(1, label.clamp(max=4)[:, None])[:, 0]
    expected = expected[label != IGNORE].mean()
    for loss in scale_losses(logits, label):
        torch.testing.assert_close(loss, expected)


def test_labels_without_any_labelled_pixel_give_no_loss_and_no_nan() -> None:
    scores = torch.randn(1, 5, 6, 6, requires_grad=True)
    losses = scale_losses(Logits([scores], scores), torch.full((1, 6, 6), IGNORE))
    sum(losses).backward()
    assert [loss.item() for loss in losses] == [0, 0]
    assert not scores.grad.any()


@pytest.mark.parametrize("wrapper", ["", "module."])
def test_the_initial_network_of_the_published_recipe(wrapper: str) -> None:
    """DeepLab-V1 trained on COCO: the backbone without ``base.``, and a classifier of 91."""
    method = Method(RECIPES["published"], Path(), 20)
    network = method.build()
    theirs = {
        wrapper + key.removeprefix("base."): value
        for key, value in checkpoint("seg-deeplabv2").items()
        if "aspp" not in key
    }
    assert len(theirs) == 624
    theirs |= {
        wrapper + "fc.weight": torch.zeros(91, 2048, 1, 1),
        wrapper + "fc.bias": torch.zeros(91),
    }
    method.load_initial(network, theirs)
    torch.testing.assert_close(
        network.backbone.layer3[22].conv3.weight,
        theirs[wrapper + "layer4.block23.increase.conv.weight"],
        rtol=0,
        atol=0,
    )
    for conv in network.pyramid:
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.02)
        assert not conv.bias.any()
    del theirs[wrapper + "layer4.block23.increase.conv.weight"]
    with pytest.raises(HubError, match=r"missing: layer3\.22\.conv3\.weight"):
        method.load_initial(network, theirs)


def test_logits_have_the_size_of_the_image() -> None:
    method = Method(replace(RECIPES["shapes"], width=4), Path(), 3)
    network = method.build().eval()
    with torch.inference_mode():
        logits = method.logits(network, np.zeros((33, 47, 3), np.uint8))
    assert (logits.shape, logits.dtype) == ((4, 33, 47), torch.float32)
