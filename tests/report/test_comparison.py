"""Reports over a registry: networks find the row of the saliency map that they learnt from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from samples import Hub, key_folder, provenance

from wsssbed_hub.artifacts.digests import list_digest
from wsssbed_hub.artifacts.key_folder import complete
from wsssbed_hub.artifacts.manifest import (
    Ingredient,
    MethodCitation,
    Result,
    Supervision,
    TrainedOn,
)
from wsssbed_hub.artifacts.shard_writer import write_maps
from wsssbed_hub.artifacts.weights import write_weights
from wsssbed_hub.datasets import Target, make_shapes, open_target
from wsssbed_hub.evaluation.labelling import ingredient
from wsssbed_hub.evaluation.metrics import SegmentationMetrics
from wsssbed_hub.registry.open_artifact import Activations, Maps, open_artifact
from wsssbed_hub.registry.pull import open_registry
from wsssbed_hub.report.comparison import Comparison, compare, make_report
from wsssbed_hub.utils.errors import HubError, UsageError

DIGEST = "sha256:" + "0" * 64


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    make_shapes(root, train=6, val=2, sod=1, sod_test=1, small=1)
    return root


def _publish(folder: Path, kind: str, name: str, maps: dict, *made_from: Ingredient) -> Maps:
    complete(
        folder,
        write_maps(folder, kind, list(maps), maps.__getitem__, settings={}),
        key=f"{kind}/{name}",
        target="shapes",
        version="1.0.0",
        title="For a test",
        method=MethodCitation(name="Test"),
        provenance=provenance(made_from=list(made_from)),
    )
    open_registry(None, create=True).publish(folder)
    return open_artifact(f"{kind}/{name}", "shapes")


def _network(
    folder: Path,
    name: str,
    miou: float,
    *made_from: Ingredient,
    supervision: tuple[Supervision, ...] = (),
    with_crf: float | None = None,
) -> None:
    common = {"images": 2, "image_list": DIGEST, "split": "val", "seeds": [0]}
    results = [
        Result(metric=metric, value=value, crf=crf, **common)
        for value, crf in ((miou, False), (with_crf, True))
        for metric in ("mIoU", "IoU background")
        if value is not None
    ]
    tensor = np.full(3, miou, dtype=np.float32)
    complete(
        folder,
        write_weights(folder, {"w": tensor}, {}, settings={}),
        key=f"weights/{name}",
        target="shapes",
        version="1.0.0",
        title="For a test",
        method=MethodCitation(name="DeepLab-V2"),
        trained_on=[TrainedOn(dataset="shapes", supervision=kind) for kind in supervision],
        provenance=provenance(made_from=list(made_from)),
        results=results,
    )
    open_registry(None, create=True).publish(folder)


@pytest.fixture
def published(data: Path, tmp_path: Path) -> tuple[Maps, list[Maps]]:
    """A cam, two saliency maps, labels from each and networks on each and on the truth."""
    target: Target = open_target("shapes", data)
    truth = dict(target.ground_truth("train_aug"))
    classes = {name: np.array(target.image_labels(name)) for name in truth}
    cam = _publish(
        tmp_path / "cam",
        "cam",
        "cam",
        {
            name: Activations(
                np.stack(
                    [np.where(label == c + 1, 200, 9).astype(np.uint8) for c in classes[name]]
                ),
                classes[name],
            )
            for name, label in truth.items()
        },
    )
    good = {name: np.where(label > 0, 255, 0).astype(np.uint8) for name, label in truth.items()}
    bad = {name: np.roll(grey, 25, axis=1) for name, grey in good.items()}
    sals = []
    for name, maps, miou in (("good", good, 0.8), ("bad", bad, 0.5)):
        sals.append(_publish(tmp_path / name, "sal", f"{name}-shapes", maps))
        sources = (ingredient(cam), ingredient(sals[-1]))
        labels = _publish(tmp_path / f"label-{name}", "label", f"cam-{name}", truth, *sources)
        _network(tmp_path / f"net-{name}", f"seg-{name}", miou, ingredient(labels))
    _network(tmp_path / "net-truth", "seg-truth", 0.9, supervision=("pixel masks",))
    return cam, sals


def _compared(published: tuple[Maps, list[Maps]], data: Path) -> Comparison:
    cam, sals = published
    return compare(
        cam, sals, target="shapes", data_root=data, split="train_aug", saliency_quality=True
    )


def test_each_network_stands_in_the_row_of_its_saliency_map(
    published: tuple[Maps, list[Maps]], data: Path
) -> None:
    names = ["weights/seg-bad", "weights/seg-truth", "weights/seg-good"]
    report = make_report(_compared(published, data), names, images=2)
    found = {row.name: row.segmentation.miou for row in report.rows if row.segmentation}
    assert found == {"sal/good-shapes@1.0.0": 0.8, "sal/bad-shapes@1.0.0": 0.5, "ground truth": 0.9}
    assert report.gallery is not None
    assert len(report.gallery.rows) == 2
    made = {node.name for tree in report.provenance for node in tree.walk()}
    assert "label/cam-good@1.0.0" in made


def test_numbers_of_a_comparison(published: tuple[Maps, list[Maps]], data: Path) -> None:
    compared = _compared(published, data)
    good, bad = compared.pairs
    assert compared.image_list == list_digest(open_target("shapes", data).image_ids("train_aug"))
    assert good.quality is not None
    assert good.quality.mae == 0
    assert good.published is not None
    assert good.published.tau == 0.1
    # The truth as saliency and as activations: every label is right; void is skipped.
    assert good.curve.row(0.1)["miou_ignored_missed"] == 1
    assert bad.curve.row(0.1)["miou_ignored_missed"] < 1


def test_a_network_without_a_row_is_an_error(
    published: tuple[Maps, list[Maps]], data: Path
) -> None:
    cam, (good, _) = published
    compared = compare(cam, [good], target="shapes", data_root=data, split="train_aug")
    with pytest.raises(HubError, match="weights/seg-bad"):
        make_report(compared, ["weights/seg-bad"], images=0)
    with pytest.raises(UsageError, match="weights/"):
        make_report(compared, ["sal/good-shapes"], images=0)


def test_maps_without_key_need_no_registry(data: Path, tmp_path: Path) -> None:
    ids = open_target("shapes", data).image_ids("train_aug")
    sizes = {name: open_target("shapes", data).size(name) for name in ids}
    classes = {name: open_target("shapes", data).image_labels(name) for name in ids}
    maps = {
        name: Activations(
            np.full((len(classes[name]), *sizes[name]), 99, np.uint8), np.array(classes[name])
        )
        for name in ids
    }
    key_folder(tmp_path / "own", "cam", maps, name="own")
    cam = open_artifact(tmp_path / "own")
    report = make_report(compare(cam, [], target="shapes", data_root=data, split="train_aug"))
    assert [row.role for row in report.rows] == ["no saliency"]
    assert report.provenance == []


@pytest.fixture
def joint(published: tuple[Maps, list[Maps]], data: Path, tmp_path: Path) -> Maps:
    """Labels that another method made, partly wrong and partly ignored, and its networks.

    Trained on image labels and on masks of a SOD dataset, as SSNet is.
    """
    maps = {}
    for name, label in open_target("shapes", data).ground_truth("train_aug"):
        maps[name] = np.asarray(label).copy()
        maps[name][50:60] = 0
        maps[name][-10:] = 255
    own = _publish(tmp_path / "label-joint", "label", "joint-shapes", maps)
    both: tuple[Supervision, ...] = ("image labels", "pixel masks")
    _network(tmp_path / "joint", "joint-shapes", 0.7, ingredient(own), supervision=both)
    _network(tmp_path / "alone", "joint-m-shapes", 0.3, supervision=both)
    return own


def test_labels_made_elsewhere_have_a_row_with_their_network(
    published: tuple[Maps, list[Maps]], joint: Maps, data: Path
) -> None:
    cam, sals = published
    compared = compare(cam, sals, [joint], target="shapes", data_root=data, split="train_aug")
    names = [
        "weights/joint-shapes",
        "weights/seg-good",
        "weights/seg-truth",
        "weights/joint-m-shapes",
    ]
    report = make_report(compared, names, images=1)
    rows = {row.name: row for row in report.rows}
    assert [row.role for row in report.rows] == [
        *("saliency", "saliency", "labels", "ground truth", "network")
    ]
    seen = {row.name: row.segmentation.miou for row in report.rows if row.segmentation}
    assert seen == {
        "sal/good-shapes@1.0.0": 0.8,
        "label/joint-shapes@1.0.0": 0.7,
        "ground truth": 0.9,
        "weights/joint-m-shapes@1.0.0": 0.3,
    }
    own = rows["label/joint-shapes@1.0.0"].own
    truth = open_target("shapes", data).ground_truth("train_aug")
    expected = SegmentationMetrics(len(compared.target.classes), undecided="missed")
    for name, label in truth:
        expected.add(np.asarray(joint.read(name)), np.asarray(label), name)
    assert own is not None
    assert own.miou_ignored_missed == pytest.approx(expected.mean_iou())
    assert own.coverage == pytest.approx(expected.coverage)
    assert own.miou is not None
    assert 0 < own.miou_ignored_missed < own.miou < 1
    assert own.basis.image_list == list_digest(truth.image_ids)
    assert report.settings["own labels"] == "label/joint-shapes@1.0.0"
    assert report.gallery is not None
    assert "label/joint-shapes@1.0.0" in report.gallery.columns
    assert "label/joint-shapes@1.0.0" in {tree.name for tree in report.provenance}


def test_a_network_on_labels_that_are_not_named_is_no_upper_bound(
    published: tuple[Maps, list[Maps]], joint: Maps, data: Path
) -> None:
    with pytest.raises(HubError, match=r"weights/joint-shapes .*--labels"):
        make_report(_compared(published, data), ["weights/joint-shapes"], images=0)


def test_labels_without_saliency_belong_to_their_own_activations(
    published: tuple[Maps, list[Maps]], joint: Maps, data: Path
) -> None:
    """Labels of a joint method were made from no saliency map, but from no activations either."""
    compared = compare(
        published[0], [], [joint], target="shapes", data_root=data, split="train_aug"
    )
    report = make_report(compared, ["weights/joint-shapes"], images=0)
    assert [(row.role, row.segmentation is not None) for row in report.rows] == [
        ("no saliency", False),
        ("labels", True),
    ]


def test_scores_with_crf_are_shown_where_every_network_has_one(
    published: tuple[Maps, list[Maps]], data: Path, tmp_path: Path
) -> None:
    compared = _compared(published, data)
    _network(tmp_path / "refined", "refined", 0.6, supervision=("pixel masks",), with_crf=0.65)

    def shown(*names: str) -> list[tuple[float | None, str]]:
        rows = make_report(compared, names, images=0).rows
        scores = [row.segmentation for row in rows if row.segmentation]
        return [(score.miou, score.basis.details["CRF"]) for score in scores]

    assert shown("weights/refined") == [(0.65, "yes")]
    assert shown("weights/refined", "weights/seg-good") == [(0.8, "no"), (0.6, "no")]
    row = make_report(compared, ["weights/refined"], images=0).rows[-1]
    assert row.segmentation is not None
    assert row.segmentation.per_class[0] == 0.65


def test_report_from_the_command_line(
    published: tuple[Maps, list[Maps]], joint: Maps, data: Path, tmp_path: Path, command: Hub
) -> None:
    page = tmp_path / "report.html"
    words = ["--cam", "cam/cam", "--sal", "sal/good-shapes", "--labels", "label/joint-shapes"]
    words += ["--segmentation", "weights/joint-shapes", "--segmentation", "weights/seg-good"]
    where = ["--target", "shapes", "--split", "train_aug", "--data-root", str(data), "--to", page]
    done = command("report", *words, *where, "--images", 1, "--json")
    assert done.code == 0, done.err
    rows = {row["name"]: row for row in json.loads(done.out)["rows"]}
    own = rows["label/joint-shapes@1.0.0"]
    assert own["segmentation"]["miou"] == 0.7
    assert 0 < own["own"]["miou_ignored_missed"] < 1
    assert "threshold" not in own["own"]
    assert "own labels" in page.read_text()
    wrong = command("report", *words, *where, "--labels", "sal/good-shapes")
    assert wrong.code == 2
    assert "label" in wrong.err
