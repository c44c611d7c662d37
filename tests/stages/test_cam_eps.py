"""What the reference cases do not show; those are in test_conformance_cam_eps*.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PilImage
from references import resnet38_published_name

from stages.__main__ import main
from stages.cam.eps import RECIPES, Method, estimate_saliency, overlaps
from stages.runtime.method import Image
from wsssbed_hub.datasets import open_target

SMALL = replace(RECIPES["shapes"], width=2)


def test_overlap_is_of_the_class_and_counts_what_is_above_one_half() -> None:
    probability = torch.zeros(1, 3, 10, 10)
    probability[0, 0, :4] = 0.51  # 40 pixels, of which 10 are salient
    probability[0, 1, :] = 0.5  # not above one half anywhere
    probability[0, 2, 0] = 0.9  # all of its 10 pixels are
    saliency = torch.full((1, 1, 10, 10), 0.5)
    saliency[0, 0, 0] = 0.51
    found = overlaps(probability, saliency)
    assert found.tolist() == [pytest.approx([10 / 40.01, 0.0, 10 / 10.01])]


def test_present_classes_are_foreground_or_background_and_absent_ones_neither() -> None:
    """One position of two images: three classes, then the background."""
    probability = torch.tensor([[0.5, 0.2, 0.1, 0.2], [0.1, 0.2, 0.3, 0.4]])[..., None, None]
    label = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    overlap = torch.tensor([[0.41, 0.4, 0.9], [0.9, 0.9, 0.2]])
    recipe = replace(SMALL, least_overlap=0.4, foreground_weight=0.75)
    found = estimate_saliency(probability, label, overlap, recipe)
    assert found.foreground.flatten().tolist() == pytest.approx([0.5, 0.0])
    assert found.not_background.flatten().tolist() == pytest.approx([1 - 0.4, 1 - 0.7])
    expected = [0.75 * 0.5 + 0.25 * 0.6, 0.25 * 0.3]
    assert found.saliency.flatten().tolist() == pytest.approx(expected)


def test_an_overlap_as_large_as_the_threshold_is_not_enough() -> None:
    recipe = replace(SMALL, least_overlap=0.5)
    probability, label = torch.full((1, 2, 1, 1), 0.5), torch.ones(1, 1)
    found = estimate_saliency(probability, label, torch.tensor([[0.5]]), recipe)
    assert found.foreground.item() == 0
    assert found.not_background.item() == 0


def test_the_weight_of_the_saliency_loss_weighs_it() -> None:
    data: Any = SimpleNamespace(image_ids=range(8))
    torch.manual_seed(0)
    network = Method(SMALL, Path(), 3).build()
    batch = {
        "image": torch.randn(2, 3, 32, 32),
        "saliency": torch.rand(2, 1, 32, 32),
        "label": torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]),
    }
    found = []
    for weight in (1.0, 3.0):
        method = Method(replace(SMALL, saliency_weight=weight), Path(), 3)
        (phase,) = method.phases(network.eval(), data)
        found.append(phase.loss({"views": batch}, 0))
    assert found[1]["saliency"].item() == pytest.approx(3 * found[0]["saliency"].item())
    assert found[1]["classification"].item() == found[0]["classification"].item() > 0


def test_what_coco_is_trained_with_differs_from_voc_in_five_values() -> None:
    voc, coco = RECIPES["published-voc"], RECIPES["published-coco"]
    changed = {"foreground_weight": 0.9, "steps": 256_500, "batch_size": 16}
    assert coco == replace(voc, **changed, long_side=(256, 448), crop=321)
    assert (voc.least_overlap, voc.foreground_weight, voc.saliency_weight) == (0.4, 0.5, 1.0)
    assert (voc.long_side, voc.crop, voc.jitter) == ((256, 512), 448, (0.3, 0.3, 0.3, 0.1))
    assert voc.dropout == (0.3, 0.5)


def test_the_imagenet_file_fills_the_backbone_alone() -> None:
    method = Method(replace(SMALL, blocks=(2, 2, 2, 2)), Path(), 4)
    network = method.build()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    state = network.backbone.state_dict()
    published = {resnet38_published_name(key): value + 1 for key, value in state.items()}
    method.load_initial(network, published, "backbone")
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key] + key.startswith("backbone."))


def test_maps_are_of_the_class_that_was_asked_for_and_depend_on_all_others() -> None:
    """The softmax is over all classes and the background, present or not."""
    torch.manual_seed(0)
    method = Method(SMALL, Path(), 4)
    network = method.build().eval()
    data: Any = SimpleNamespace()
    rgb = np.random.default_rng(0).integers(0, 256, (60, 90, 3)).astype(np.uint8)
    with torch.inference_mode():
        both = method.activations(network, Image("a", rgb, np.array([1, 3])), data)
        one = method.activations(network, Image("a", rgb, np.array([3])), data)
        network.classifier.weight[4] = 100 * network.classifier.weight[3].abs()
        drowned = method.activations(network, Image("a", rgb, np.array([3])), data)
    assert (both.shape, both.dtype) == ((2, 60, 90), np.uint8)
    np.testing.assert_array_equal(both[1:], one)
    assert (drowned != one).any()


@pytest.mark.parametrize(
    ("missing", "says"), [(True, "have no saliency maps"), (False, "its image")]
)
def test_saliency_maps_that_do_not_fit_are_named(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture, missing: bool, says: str
) -> None:
    """Images without one before anything is trained, one of another size when it is met."""
    target = open_target("shapes", shapes)
    (tmp_path / "sal").mkdir()
    ids = target.image_ids(target.training_split)
    for image_id in ids[1:] if missing else ids:
        PilImage.new("L", (7, 9)).save(tmp_path / "sal" / f"{image_id}.png")
    arguments = ["--target", "shapes", "--data-root", str(shapes), "--out", str(tmp_path / "out")]
    arguments += ["--recipe", "shapes", "--set", "width=2", "--steps", "1", "--batch-size", "2"]
    arguments += ["--sal", str(tmp_path / "sal"), "--device", "cpu", "--workers", "0"]
    assert main(["cam-eps", *arguments]) == 1
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out" / "cam").exists()
    assert (tmp_path / "out" / "runs").exists() == (not missing)
