"""What the reference case does not show; the case itself: test_conformance_seg_deeplabv3plus.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from closeness import FLOAT32, assert_close_in_norm
from torch import Tensor, nn

from stages.runtime.method import Image
from stages.seg import Options, run
from stages.seg.deeplabv3plus import RECIPES, DeepLabV3Plus, Method
from wsssbed_hub.artifacts.key_folder import read_manifest
from wsssbed_hub.utils.errors import HubError, UsageError

SMALL = replace(RECIPES["shapes"], width=8, channels=16, skip_channels=8, auxiliary_channels=8)
RGB = np.random.default_rng(0).integers(0, 256, (45, 70, 3)).astype(np.uint8)


def method(**changes: Any) -> Method:
    return Method(replace(SMALL, **changes), Path(), 3)


@pytest.fixture
def network() -> DeepLabV3Plus:
    torch.manual_seed(0)
    network = method().build()
    for module in network.modules():  # else all classes are nearly equal
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.weight, std=0.5)
    return network.eval()


def logits(network: DeepLabV3Plus, rgb: np.ndarray = RGB, **changes: Any) -> Tensor:
    with torch.inference_mode():
        return method(**changes).logits(network, Image("any", rgb))


def test_logits_have_the_size_of_the_image(network: DeepLabV3Plus) -> None:
    found = logits(network)
    assert (found.shape, found.dtype) == ((4, 45, 70), torch.float32)


@pytest.mark.numerical
def test_the_recipe_says_how_it_is_tested(network: DeepLabV3Plus) -> None:
    """Whole and sliding, one view and several: each changes what comes out."""
    plain = logits(network)
    slid = logits(network, test_mode="slide", test_window=64, test_stride=40)
    several = logits(network, test_ratios=(1.0, 1.5), test_flip=True)
    assert (plain - slid).norm() > 1e-3 * plain.norm()
    # As wide a window as the image is the image.
    one = logits(network, test_mode="slide", test_window=224, test_stride=224)
    assert_close_in_norm(one, plain, FLOAT32)
    assert_close_in_norm(several.exp().sum(0), torch.ones(45, 70), FLOAT32)
    # With its mirror image, an image and its mirror image are told alike.
    turned = logits(network, RGB[:, ::-1].copy(), test_ratios=(1.0, 1.5), test_flip=True)
    assert_close_in_norm(turned.flip(2).exp(), several.exp(), FLOAT32)


def test_the_decoder_sees_the_first_stage(network: DeepLabV3Plus) -> None:
    """Strides: 4 for what is predicted, 8 for the auxiliary head."""
    image = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        heads = network.all_heads(image)
    assert {name: tuple(one.shape) for name, one in heads.items()} == {
        "decode": (1, 4, 16, 24),
        "aux": (1, 4, 8, 12),
    }


def test_the_lengths_have_names() -> None:
    steps = {name: recipe.steps for name, recipe in RECIPES.items() if name != "shapes"}
    assert steps == {"published": 20_000, "published-40k": 40_000, "coco-80k": 80_000}
    longer = replace(RECIPES["published"], steps=40_000)
    assert RECIPES["published-40k"] == longer


def test_a_checkpoint_of_another_number_of_classes_is_refused(network: DeepLabV3Plus) -> None:
    state = Method(SMALL, Path(), 5).build().state_dict()
    with pytest.raises(HubError, match=r"of another shape: decode_head\.conv_seg\.weight \(6, "):
        network.load_published(state)


@pytest.mark.parametrize("sizes", [{"batch_size": 1}, {"batch_size": 3, "accumulate": 2}])
def test_batch_norm_of_one_number_is_refused(network: DeepLabV3Plus, sizes: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=f"--batch-size {sizes['batch_size']}: .*two images"):
        list(method(**sizes).phases(network, SimpleNamespace(image_ids=["one"])))  # type: ignore[arg-type]


def test_it_states_its_miou(shapes: Path, tmp_path: Path) -> None:
    options = Options(
        target="shapes",
        data_root=shapes,
        out=tmp_path,
        labels="ground-truth",
        recipe="shapes",
        device="cpu",
        workers=0,
        steps=1,
        batch_size=2,
        limit=2,
    )
    run("seg-deeplabv3plus", Method, options)
    entry = (
        read_manifest(tmp_path / "weights/seg-deeplabv3plus-ground-truth").choose("shapes").entry
    )
    assert [result.crf for result in entry.results if result.metric == "mIoU"] == [False]
