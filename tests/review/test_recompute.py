"""What a manifest says of its maps' quality is computed again, and a false number is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from proofs import index_manifest, release_files, slow_iou, stated
from rangeserver import RangeServer
from samples import provenance

from wsssbed_hub.artifacts.digests import content_digest, image_digest
from wsssbed_hub.datasets import Target, make_shapes
from wsssbed_hub.review.check_manifest import read
from wsssbed_hub.review.prove import Proof, prove
from wsssbed_hub.review.recompute import agrees, half_digit


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    make_shapes(root, train=5, val=2, sod=1, sod_test=1, small=1)
    return root


def noisy_labels(target: Target) -> dict[str, np.ndarray]:
    """The truth of train_aug with a third of the pixels ignored and a band of another class."""
    found = {}
    truth = target.ground_truth("train_aug")
    for image_id in truth.image_ids:
        label = np.array(truth.read(image_id))
        label[::3] = 255
        label[1:9] = 1 + target.image_labels(image_id)[0]
        found[image_id] = label
    return found


def proof(path: Path, data: Path) -> Proof:
    manifest = read(path)
    (chosen,) = manifest.entries()
    return prove(path, manifest, chosen, data)


def claims(path: Path, data: Path, outcome: str) -> list[str]:
    return [str(claim) for claim in proof(path, data).claims if claim.outcome == outcome]


def labels(
    folder: Path, server: RangeServer, target: Target, results: list[dict[str, Any]], **entry: Any
) -> Path:
    files = release_files("label", noisy_labels(target))
    return index_manifest(folder, server, "label/x", files, results=results, **entry)


@pytest.mark.parametrize(("digits", "change"), [(3, 0.0), (6, 0.0), (17, 0.0), (3, 0.002)])
def test_the_miou_of_labels(
    tmp_path: Path, server: RangeServer, target: Target, data: Path, digits: int, change: float
) -> None:
    truly = float(np.nanmean(slow_iou(noisy_labels(target), target, "train")))
    claimed = round(truly + change, digits)
    path = labels(tmp_path, server, target, [stated(target, "train", "mIoU", claimed)])
    if not change:
        assert any(text.startswith("mIoU") for text in claims(path, data, "proved"))
        assert claims(path, data, "failed") == []
        return
    (failed,) = claims(path, data, "failed")
    assert failed == f"mIoU {claimed!r} on train: {claimed!r} is stated, {truly:.6g} was found"
    (error,) = (str(one) for one in proof(path, data).errors())
    assert error == f"1.0.0/shapes: {failed}"


def test_each_class_and_the_coverage(
    tmp_path: Path, server: RangeServer, target: Target, data: Path
) -> None:
    iou = slow_iou(noisy_labels(target), target, "train")
    names = ("background", *target.classes)
    known = [(name, value) for name, value in zip(names, iou, strict=True) if value == value]
    results = [stated(target, "train", f"IoU {name}", value) for name, value in known]
    truth = target.ground_truth("train")
    pixels = [
        (np.asarray(truth.read(i)) != 255, noisy_labels(target)[i] != 255)
        for i in target.image_ids("train")
    ]
    coverage = sum((a & b).sum() for a, b in pixels) / sum(a.sum() for a, _ in pixels)
    results.append(stated(target, "train", "coverage", round(float(coverage), 4)))
    path = labels(tmp_path, server, target, results)
    proved = [text for text in claims(path, data, "proved") if " on train" in text]
    assert len(proved) == len(known) + 1
    assert claims(path, data, "failed") == claims(path, data, "not checked") == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seeds": [0, 1]}, "it is the mean of 2 runs, and one is here"),
        ({"standard_error": 0.1}, "it is the mean of several runs"),
        ({"crf": True}, "a CRF was applied first, which takes torch; without it 0."),
        ({"split": "test"}, "shapes has no split 'test' here, only train_aug, train, val"),
        ({"image_list": "sha256:" + "0" * 64}, "it was measured on other images"),
        ({"metric": "boundary F"}, "no measure of label is called 'boundary F' here"),
    ],
)
def test_what_cannot_be_recomputed_is_said(
    tmp_path: Path,
    server: RangeServer,
    target: Target,
    data: Path,
    change: dict[str, Any],
    reason: str,
) -> None:
    path = labels(tmp_path, server, target, [stated(target, "train", "mIoU", 0.5) | change])
    (text,) = claims(path, data, "not checked")
    assert f"not recomputed, because {reason}" in text
    assert claims(path, data, "failed") == []
    assert proof(path, data).unchecked() == [f"1.0.0/shapes: {text}"]


def test_without_the_ground_truth(tmp_path: Path, server: RangeServer, target: Target) -> None:
    path = labels(tmp_path, server, target, [stated(target, "train", "mIoU", 0.5)])
    unchecked = claims(path, tmp_path / "nothing", "not checked")
    where = f"not recomputed, because shapes is not at hand below {tmp_path / 'nothing'}"
    assert any(text.endswith(where) for text in unchecked)
    assert any("images are those of the target: not checked" in text for text in unchecked)
    assert claims(path, tmp_path / "nothing", "failed") == []


def test_a_wrong_number_of_images(
    tmp_path: Path, server: RangeServer, target: Target, data: Path
) -> None:
    path = labels(tmp_path, server, target, [stated(target, "train", "mIoU", 0.5) | {"images": 9}])
    (failed,) = claims(path, data, "failed")
    assert "9 images are stated, and that list has" in failed


def test_images_that_the_maps_do_not_cover(
    tmp_path: Path, server: RangeServer, target: Target, data: Path
) -> None:
    path = labels(tmp_path, server, target, [stated(target, "val", "mIoU", 0.5)])
    (failed,) = claims(path, data, "failed")
    assert "it cannot have been measured" in failed


@pytest.mark.parametrize(
    ("threshold", "outcome"),
    [
        ({"tau": 0.3, "origin": "given"}, "proved"),
        ({"tau": 0.4, "origin": "given"}, "failed"),
        ({"tau": 0.3, "origin": "curve", "split": "train"}, "failed"),
    ],
)
def test_the_tau_of_labels_is_that_of_their_recipe(
    tmp_path: Path,
    server: RangeServer,
    target: Target,
    data: Path,
    threshold: dict[str, Any],
    outcome: str,
) -> None:
    truly = float(np.nanmean(slow_iou(noisy_labels(target), target, "train")))
    made = provenance(recipe={"tau": 0.3, "tau_origin": "given", "tau_split": None})
    path = labels(
        tmp_path,
        server,
        target,
        [stated(target, "train", "mIoU", truly, threshold=threshold)],
        provenance=made.model_dump(mode="json"),
    )
    (text,) = (text for text in claims(path, data, outcome) if text.startswith("tau"))
    assert ("were made at tau 0.3 (given)" in text) == (outcome == "failed")


def activations(target: Target) -> dict[str, dict[int, np.ndarray]]:
    """Of each class a value of its own that fills its pixels, and noise below it."""
    found = {}
    truth = target.ground_truth("train_aug")
    for number, image_id in enumerate(truth.image_ids):
        label = np.asarray(truth.read(image_id))
        noise = np.random.default_rng(number).integers(0, 160, label.shape, dtype=np.uint8)
        found[image_id] = {
            c: np.maximum(noise, np.where(label == c + 1, 150 + 10 * c, 0)).astype(np.uint8)
            for c in target.image_labels(image_id)
        }
    return found


def saliency(target: Target) -> dict[str, np.ndarray]:
    truth = target.ground_truth("train_aug")
    return {
        i: np.where(np.asarray(truth.read(i)) > 0, 230, 20).astype(np.uint8)
        for i in truth.image_ids
    }


def labelled(
    target: Target, tau: float, sal: dict[str, np.ndarray] | None
) -> dict[str, np.ndarray]:
    """Algorithm 1 in numpy, pixel by pixel set: the class that wins, if it is above tau."""
    found = {}
    for image_id, of in activations(target).items():
        classes = np.array(sorted(of))
        stack = np.stack([of[c] for c in classes])
        winner, value = classes[stack.argmax(0)] + 1, stack.max(0)
        if sal is None:
            found[image_id] = np.where(value / 255 > tau, winner, 0)
        else:
            label = np.where(value / 255 > tau, winner, 255)
            found[image_id] = np.where(sal[image_id] / 255 > 0.2, label, 0)
    return found


TAU = 0.6
GIVEN = {"tau": TAU, "origin": "given"}


def digest_of(maps: dict[str, np.ndarray]) -> str:
    return content_digest("sal", [(i, image_digest(m)) for i, m in sorted(maps.items())])


def partner(digest: str = "sha256:" + "0" * 64, **name: str) -> dict[str, str]:
    return {"role": "sal", "digest": digest, **name}


def cams(folder: Path, server: RangeServer, target: Target, results: list[dict[str, Any]]) -> Path:
    files = release_files("cam", activations(target))
    return index_manifest(folder, server, "cam/x", files, results=results)


@pytest.mark.parametrize("together", [False, True])
def test_activation_maps_at_their_tau(
    tmp_path: Path, server: RangeServer, target: Target, data: Path, together: bool
) -> None:
    sal = saliency(target) if together else None
    truly = float(np.nanmean(slow_iou(labelled(target, TAU, sal), target, "train")))
    how: dict[str, Any] = {"threshold": GIVEN}
    if sal is not None:
        index_manifest(tmp_path, server, "sal/x", release_files("sal", sal))
        named = partner(digest_of(sal), key="sal/x@1.0.0")
        how |= {"saliency": named, "sal_threshold": 0.2, "rule": "paper"}
    right = stated(target, "train", "mIoU", round(truly, 4), **how)
    wrong = stated(target, "train", "mIoU", round(truly, 4) - 0.01, **how)
    path = cams(tmp_path, server, target, [right, wrong])
    proved = claims(path, data, "proved")
    with_what = " with sal/x@1.0.0" if together else ""
    assert any(
        text.startswith(f"mIoU {round(truly, 4)!r} on train at tau 0.6 (given){with_what}: ")
        for text in proved
    )
    (failed,) = claims(path, data, "failed")
    assert f"{truly:.6g} was found" in failed


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({}, "it does not say at which tau"),
        ({"rule": None}, "it does not say by which rule"),
        ({"rule": "oaa"}, "labels by the rule oaa have no curve"),
        ({"saliency": partner(key="sal/none")}, "sal/none is"),
        ({"saliency": partner(key="sal/x")}, "it was measured with other maps"),
        ({"saliency": partner(file="x.zip")}, "the saliency maps 'x.zip' have no key"),
    ],
)
def test_activation_maps_whose_number_cannot_be_told(
    tmp_path: Path,
    server: RangeServer,
    target: Target,
    data: Path,
    how: dict[str, Any],
    reason: str,
) -> None:
    index_manifest(tmp_path, server, "sal/x", release_files("sal", saliency(target)))
    named = partner(digest_of(saliency(target)), key="sal/x")
    whole = {"threshold": GIVEN, "saliency": named, "sal_threshold": 0.2, "rule": "paper"}
    result = stated(target, "train", "mIoU", 0.5, **({**whole, **how} if how else {}))
    path = cams(tmp_path, server, target, [result])
    unchecked = claims(path, data, "not checked")
    assert f"not recomputed, because {reason}" in unchecked[0]
    assert claims(path, data, "failed") == []


def test_a_tau_that_was_published(
    tmp_path: Path, server: RangeServer, target: Target, data: Path
) -> None:
    """L2G's by the benchmark and by its authors, and one by nobody."""
    taus = [(0.3, "published"), (0.25, "authors"), (0.25, "published")]
    results = [
        stated(target, "train", "mIoU", 0.5, threshold={"tau": tau, "origin": origin})
        for tau, origin in taus
    ]
    files = release_files("cam", activations(target))
    path = index_manifest(tmp_path, server, "cam/l2g-vst-duts", files, results=results)
    proved = [text for text in claims(path, data, "proved") if "as published" in text]
    assert proved == ["tau 0.3 (published): as published", "tau 0.25 (authors): as published"]
    failed = [text for text in claims(path, data, "failed") if text.startswith("tau")]
    assert failed == [
        "tau 0.25 (published): of this method was published: WSSS-BED 0.3 without saliency; "
        "authors 0.25 without saliency"
    ]


def worth(target: Target, tau: float) -> float:
    return float(np.nanmean(slow_iou(labelled(target, tau, None), target, "train")))


def test_a_tau_that_was_read_off_a_curve(
    tmp_path: Path, server: RangeServer, target: Target, data: Path
) -> None:
    taus = np.arange(120, 220, 4) / 255
    values = [worth(target, tau) for tau in taus]
    results = [
        stated(
            target,
            "train",
            "mIoU",
            0.5,
            threshold={"tau": tau, "origin": "curve", "split": "train"},
        )
        for tau in (0.1, 0.9)
    ]
    path = cams(tmp_path, server, target, results)
    failed = [text for text in claims(path, data, "failed") if text.startswith("tau")]
    assert len(failed) == 2
    best = float(failed[0].rpartition(" ")[2])
    # A coarse grid is a lower bound for the best of all.
    assert worth(target, best) >= max(values)
    how = {"tau": round(best, 3), "origin": "curve", "split": "train"}
    path = cams(tmp_path, server, target, [stated(target, "train", "mIoU", 0.5, threshold=how)])
    assert any(t.startswith("tau") for t in claims(path, data, "proved"))


def test_saliency_maps_against_the_objects(
    tmp_path: Path, server: RangeServer, target: Target, data: Path
) -> None:
    truth = target.ground_truth("train")
    errors = []
    for image_id in truth.image_ids:
        found = saliency(target)[image_id]
        inside = np.asarray(truth.read(image_id)) > 0
        stretched = (found - float(found.min())) / (int(found.max()) - int(found.min()))
        errors.append(np.abs(stretched - inside).mean())
    mae = float(np.mean(errors))
    results = [
        stated(target, "train", "MAE", round(mae, 4)),
        stated(target, "train", "max_f", 0.123),
    ]
    files = release_files("sal", saliency(target))
    path = index_manifest(tmp_path, server, "sal/x", files, results=results)
    assert any(text.startswith("MAE") for text in claims(path, data, "proved"))
    (failed,) = claims(path, data, "failed")
    assert failed.startswith("max_f 0.123 on train: 0.123 is stated, ")


@pytest.mark.parametrize(
    ("value", "half"), [(0.612, 0.0005), (0.61, 0.005), (0.6, 0.005), (1.0, 0.005), (2e-05, 5e-6)]
)
def test_rounding_to_the_digits_that_are_stated(value: float, half: float) -> None:
    assert half_digit(value) == pytest.approx(half, rel=1e-12)
    assert agrees(value, value + 0.99 * half)
    assert not agrees(value, value + 1.01 * half)
