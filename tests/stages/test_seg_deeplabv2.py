"""What the reference case does not show; the case itself: test_conformance_seg_deeplabv2.py."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import conformance
import numpy as np
import pytest
import torch
from closeness import FLOAT32, assert_close_in_norm
from PIL import Image as PilImage
from references import checkpoint
from safetensors.torch import load_file

from stages import seg
from stages.ops.densecrf import DEEPLAB, SSNET, densecrf
from stages.ops.images import caffe_bgr
from stages.runtime.method import Image
from stages.seg._crf import Crf
from stages.seg.deeplabv2 import (
    MEAN_BGR,
    RECIPES,
    Crops,
    Logits,
    Method,
    scale_losses,
    shrink_label,
)
from wsssbed_hub.artifacts.key_folder import read_manifest
from wsssbed_hub.artifacts.manifest import Entry, Result
from wsssbed_hub.datasets import open_target
from wsssbed_hub.evaluation.metrics import SegmentationMetrics
from wsssbed_hub.evaluation.pseudo_label import IGNORE
from wsssbed_hub.utils.errors import HubError, UsageError


@pytest.mark.parametrize("old", [(321, 321), (40, 65), (7, 9)])
@pytest.mark.parametrize("new", [(41, 41), (31, 21), (80, 100), (1, 1)])
def test_labels_are_resized_like_pillow_s_nearest(
    old: tuple[int, int], new: tuple[int, int]
) -> None:
    label = np.random.default_rng(0).integers(0, 256, old).astype(np.uint8)
    expected = np.asarray(PilImage.fromarray(label).resize(new[::-1], PilImage.Resampling.NEAREST))
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


@pytest.mark.numerical
def test_pixels_that_are_not_labelled_do_not_count() -> None:
    torch.manual_seed(0)
    scores = torch.randn(2, 5, 6, 6)
    label = torch.randint(0, 5, (2, 6, 6))
    label[0, 2:] = IGNORE
    logits = Logits([scores], scores)
    expected = -scores.log_softmax(1).gather(1, label.clamp(max=4)[:, None])[:, 0]
    expected = expected[label != IGNORE].mean()
    for loss in scale_losses(logits, label):
        assert_close_in_norm(loss, expected, FLOAT32)


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
    method.load_initial(network, theirs, "backbone")
    assert torch.equal(
        network.backbone.layer3[22].conv3.weight,
        theirs[wrapper + "layer4.block23.increase.conv.weight"],
    )
    for conv in network.pyramid:
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.02)
        assert not conv.bias.any()
    del theirs[wrapper + "layer4.block23.increase.conv.weight"]
    with pytest.raises(HubError, match=r"missing: layer3\.22\.conv3\.weight"):
        method.load_initial(network, theirs, "backbone")


def test_logits_have_the_size_of_the_image() -> None:
    method = Method(replace(RECIPES["shapes"], width=4), Path(), 3)
    network = method.build().eval()
    with torch.inference_mode():
        logits = method.logits(network, Image("any", np.zeros((33, 47, 3), np.uint8)))
    assert (logits.shape, logits.dtype) == ((4, 33, 47), torch.float32)


KEY = "weights/seg-deeplabv2-ground-truth"
WEIGHTS = "shapes/1.0.0/model.safetensors"


def train(shapes: Path, out: Path, **options: Any) -> Entry:
    """Two steps of training, then the measurement; what the manifest says of it."""
    common: dict[str, Any] = {"target": "shapes", "data_root": shapes, "out": out}
    common |= {"labels": "ground-truth", "recipe": "shapes", "device": "cpu", "workers": 0}
    # A small rate: two steps at the recipe's say background everywhere.
    common |= {"steps": 2, "batch_size": 2, "set": ["learning_rate=1e-5"]}
    wanted = seg.Options(**common | options)
    seg.run("seg-deeplabv2", Method, wanted)
    suffix = "" if wanted.seeds is None else f"-seed{wanted.seeds[-1]}"
    return read_manifest(out / (KEY + suffix)).entry(wanted.version, "shapes")


def means(entry: Entry) -> list[Result]:
    return [result for result in entry.results if result.metric == "mIoU"]


def measured(shapes: Path, weights: Path, crf: bool) -> SegmentationMetrics:
    """The score of stored weights, with the CRF of the published configuration written out."""
    target = open_target("shapes", shapes)
    method = Method(RECIPES["shapes"], Path(), target.num_classes)
    network = method.build()
    network.load_state_dict(load_file(weights))
    network.eval()
    score, truth = SegmentationMetrics(target.num_classes), target.ground_truth("val")
    for image_id in target.image_ids("val"):
        rgb = target.read_image(image_id)
        with torch.inference_mode():
            scores = method.logits(network, Image(image_id, rgb))
        if crf:
            bgr = np.stack([rgb[..., channel] for channel in (2, 1, 0)], -1)
            scores = densecrf(torch.softmax(scores, 0), bgr, DEEPLAB)
        score.add(scores.argmax(0).numpy().astype(np.uint8), truth.read(image_id), image_id)
    return score


def test_the_manifest_states_miou_without_and_with_crf(shapes: Path, tmp_path: Path) -> None:
    entry = train(shapes, tmp_path, crf="deeplab")
    plain, refined = (measured(shapes, tmp_path / KEY / WEIGHTS, crf) for crf in (False, True))
    assert plain.mean_iou() != refined.mean_iou()
    stated = [(result.value, result.crf, result.note) for result in means(entry)]
    assert stated == [
        (plain.mean_iou(), False, None),
        (refined.mean_iou(), True, "CRF deeplab"),
    ]
    background = [result for result in entry.results if result.metric == "IoU background"]
    assert [result.value for result in background] == [plain.class_iou[0], refined.class_iou[0]]
    result = json.loads(
        (tmp_path / "runs/seg-deeplabv2-shapes-ground-truth/result.json").read_text()
    )
    assert result["miou"]["mean"] == plain.mean_iou()
    assert result["crf"]["miou"]["mean"] == refined.mean_iou()
    assert (result["crf"]["preset"], result["crf"]["image"]) == ("deeplab", "BGR")
    assert result["seeds"]["0"]["crf"]["images"] == 4


def test_on_shapes_there_is_no_crf_unless_asked_for(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert [result.crf for result in means(train(shapes, tmp_path))] == [False]
    with pytest.raises(HubError, match=r"other settings.*crf"):
        train(shapes, tmp_path, crf="ssnet")
    capsys.readouterr()
    later = train(shapes, tmp_path, crf="ssnet", version="1.1.0")
    said = capsys.readouterr().err
    assert "trained before" in said
    assert f"{means(later)[1].value:.4f} with CRF ssnet on shapes val" in said
    assert [result.crf for result in means(later)] == [False, True]
    capsys.readouterr()
    train(shapes, tmp_path, crf="ssnet", version="1.2.0")
    assert "measuring" not in capsys.readouterr().err  # the score was kept


def test_several_seeds_and_threads(shapes: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        entry = train(shapes, tmp_path, crf="deeplab", seeds="0,1", workers=2)
        assert torch.get_num_threads() == 2  # what the CRF's threads take is theirs alone
    finally:
        torch.set_num_threads(threads)
    values = [
        measured(shapes, tmp_path / f"{KEY}-seed{seed}" / WEIGHTS, crf=True).mean_iou()
        for seed in (0, 1)
    ]
    mean, own = (result for result in means(entry) if result.crf)
    assert (mean.value, mean.seeds) == (pytest.approx(sum(values) / 2), [0, 1])
    assert mean.note == "mean of 2 seeds, CRF deeplab"
    assert (own.value, own.seeds) == (values[1], [1])


@pytest.mark.parametrize(
    ("name", "message"),
    [("deplab", "Did you mean 'deeplab'"), ("", "Choose one of deeplab, ssnet"), ("no", "or none")],
)
def test_unknown_crf(name: str, message: str, shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        train(shapes, tmp_path, crf=name)
    assert not tmp_path.exists() or not list(tmp_path.iterdir())


def test_voc_is_measured_with_crf_and_coco_without() -> None:
    """run_voc2012.sh of the benchmark's release, and run_coco2014.sh with ``--wo_crf``."""
    published = Method.published_crf
    assert (published.get("voc12"), published.get("coco14")) == ("deeplab", None)


def test_each_preset_gets_the_image_in_its_published_order() -> None:
    inputs, _ = conformance.load("densecrf")
    rgb = inputs["rgb1"]
    torch.manual_seed(0)
    rough = torch.randn(1, 4, 9, 12)
    logits = torch.nn.functional.interpolate(rough, rgb.shape[:2], mode="bilinear")[0]
    for preset, settings, channels in (
        ("deeplab", DEEPLAB, (2, 1, 0)),
        ("ssnet", SSNET, (0, 1, 2)),
    ):
        image = np.stack([rgb[..., channel] for channel in channels], -1)
        expected = densecrf(logits.softmax(0), image, settings).argmax(0)
        crf = Crf.of(preset)
        assert crf is not None
        np.testing.assert_array_equal(crf.labels(logits, rgb), expected)
        other = densecrf(logits.softmax(0), image[..., ::-1], settings).argmax(0)
        assert (other != expected).any()  # or this test could not tell
