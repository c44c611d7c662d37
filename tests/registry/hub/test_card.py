"""The dataset card; that ``datasets`` reads by it is in ``test_registry``."""

from __future__ import annotations

from pathlib import Path

import yaml
from samples import key_folder

from wsssbed_hub.artifacts.manifest import MethodCitation, Result, TrainedOn
from wsssbed_hub.registry.hub.card import dataset_card

SHARD = "shapes/1.0.0/00000.parquet"


def test_the_card(tmp_path: Path) -> None:
    manifest = key_folder(tmp_path / "key")
    manifest = manifest.model_copy(
        update={
            "title": "Maps | <b>of</b> a _test_",
            "licence": "CC BY 4.0",
            "method": MethodCitation(name="Test", paper="https://arxiv.org/abs/1"),
            "trained_on": [TrainedOn(dataset="duts", images=3, supervision="pixel masks")],
        }
    )
    text = dataset_card(manifest, "alice/sal-test")
    head, _, body = text.removeprefix("---\n").partition("---\n")
    data = yaml.safe_load(head)
    assert data["license"] == "cc-by-4.0"
    assert data["pretty_name"] == "Maps | <b>of</b> a _test_"
    files = {c["config_name"]: c["data_files"][0]["path"] for c in data["configs"]}
    assert files == {"shapes": [SHARD]}
    assert "# Maps \\| \\<b\\>of\\</b\\> a \\_test\\_" in body
    assert "- Trained on: duts, 3 images; pixel masks" in body
    assert "cite the method's paper: https://arxiv.org/abs/1" in body
    assert 'load_dataset("alice/sal-test", "shapes"' in body
    assert "python -m stages" in body
    other = dataset_card(manifest.model_copy(update={"licence": "My own"}), "alice/sal-test")
    data = yaml.safe_load(other.split("---\n")[1])
    assert (data["license"], data["license_name"]) == ("other", "my-own")
    none = dataset_card(manifest.model_copy(update={"licence": None}), "alice/sal-test")
    assert "license" not in yaml.safe_load(none.split("---\n")[1])
    assert "No licence is stated for the maps" in none


def test_results_say_which_were_measured_with_crf(tmp_path: Path) -> None:
    manifest = key_folder(tmp_path / "key")
    common = {"images": 3, "image_list": "sha256:" + "0" * 64, "split": "val"}
    stated = [
        Result(metric="mIoU", value=0.5, **common),
        Result(metric="mIoU", value=0.6, crf=True, **common),
    ]
    entries = [
        chosen._replace(entry=chosen.entry.model_copy(update={"results": stated}))
        for chosen in manifest.entries()
    ]
    text = dataset_card(manifest.with_entries(entries), "alice/sal-test")
    assert "| mIoU | 0.5000 | val | 3 |" in text
    assert "| mIoU, with CRF | 0.6000 | val | 3 |" in text
