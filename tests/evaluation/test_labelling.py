"""Labelling an artifact: what is written, what is compared, and what a killed run leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_maps import IDS, TAU, Drawn, expected
from PIL import Image

from wsssbed_hub.artifacts.digests import list_digest
from wsssbed_hub.artifacts.manifest import Ingredient, Threshold
from wsssbed_hub.evaluation.labelling import ingredient, label_artifact, label_settings
from wsssbed_hub.evaluation.pseudo_label import pseudo_label
from wsssbed_hub.registry.open_artifact import open_artifact
from wsssbed_hub.utils.errors import HubError, UsageError


def settings_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "settings.json").read_text())["settings"]


def test_folder_of_pngs(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    out = tmp_path / "labels"
    labels = label_artifact(
        Drawn("cam"),
        Drawn("sal"),
        out,
        tau=TAU,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert steps == [(n, 80) for n in range(1, 81)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels"]
    maps = open_artifact(out)
    assert maps.kind == "label"
    assert list(maps.image_ids) == IDS
    for image_id, label in maps:
        np.testing.assert_array_equal(label, expected(image_id))
    assert labels == (80, maps.digest(), None)
    with Image.open(out / f"{IDS[0]}.png") as picture:
        assert picture.mode == "P"
        # VOC's colours of background, aeroplane, person and ignore.
        colours = np.array(picture.getpalette()).reshape(-1, 3)[[0, 1, 15, 255]]
    assert colours.tolist() == [[0, 0, 0], [128, 0, 0], [192, 128, 128], [224, 224, 192]]


def test_settings_are_recorded(tmp_path: Path) -> None:
    cam, sal = Drawn("cam"), Drawn("sal", key=None)
    tau = Threshold(tau=0.4, origin="curve", split="train")
    labels = label_artifact(
        cam, sal, tmp_path / "a", tau=tau, rule="release", sal_threshold=0.5, ignore=False
    )
    record = json.loads((tmp_path / "a" / "settings.json").read_text())
    assert record["content"] == labels.content
    assert record["settings"] == {
        "cam": "cam/drawn@1.0.0",
        "cam_content": cam.digest(),
        "sal": "sal",
        "sal_content": sal.digest(),
        "tau": 0.4,
        "tau_origin": "curve",
        "tau_split": "train",
        "rule": "release",
        "sal_threshold": 0.5,
        "ignore": False,
        "images": 80,
        "image_list": list_digest(IDS),
    }


def test_without_saliency_its_settings_do_not_count(tmp_path: Path) -> None:
    label_artifact(Drawn("cam"), None, tmp_path / "a", tau=TAU, sal_threshold=0.7, ignore=False)
    settings = settings_in(tmp_path / "a")
    assert settings["sal_threshold"] is settings["ignore"] is None
    assert "sal" not in settings
    label_artifact(Drawn("cam"), None, tmp_path / "a", tau=TAU)
    label = open_artifact(tmp_path / "a").read(IDS[5])
    np.testing.assert_array_equal(label, pseudo_label(*Drawn("cam").read(IDS[5]), None, TAU.tau))


@pytest.mark.parametrize(
    ("rule", "recorded"),
    [
        ("oaa", {"sal_threshold": None, "ignore": None}),
        ("drs", {"sal_threshold": 50 / 255, "ignore": False}),
        ("edam", {"sal_threshold": 0.5, "ignore": None, "beta": 0.9}),
    ],
)
def test_what_counts_for_a_rule_is_recorded(
    tmp_path: Path, rule: Any, recorded: dict[str, Any]
) -> None:
    sources = Drawn("cam"), Drawn("sal")
    how = {"ignore": rule != "drs", "sal_threshold": 0.5, "beta": 0.9}
    for _ in range(2):  # the second finds the first's
        label_artifact(*sources, tmp_path / "a", tau=TAU, rule=rule, **how)
    settings = settings_in(tmp_path / "a")
    assert settings["rule"] == rule
    names = ("sal_threshold", "ignore", "beta")
    assert {name: settings[name] for name in names if name in settings} == recorded
    activations, saliency = Drawn("cam").read(IDS[5]), Drawn("sal").read(IDS[5])
    expected = pseudo_label(*activations, saliency, TAU.tau, rule=rule, **how)
    np.testing.assert_array_equal(open_artifact(tmp_path / "a").read(IDS[5]), expected)


@pytest.mark.parametrize(
    ("cam_alone", "how", "words"),
    [
        (True, {"rule": "oaa"}, "needs saliency maps"),
        (False, {"rule": "mcis", "ignore": False}, "always ignores"),
    ],
)
def test_a_rule_that_cannot_label_so_leaves_nothing(
    tmp_path: Path, cam_alone: bool, how: dict[str, Any], words: str
) -> None:
    sal = None if cam_alone else Drawn("sal")
    with pytest.raises(UsageError, match=words):
        label_artifact(Drawn("cam"), sal, tmp_path / "a", tau=TAU, **how)
    assert list(tmp_path.iterdir()) == []


def test_some_of_the_images(tmp_path: Path) -> None:
    label_artifact(Drawn("cam"), None, tmp_path / "a", tau=TAU, image_ids=[IDS[7], IDS[2]])
    maps = open_artifact(tmp_path / "a")
    assert list(maps.image_ids) == [IDS[2], IDS[7]]
    assert settings_in(tmp_path / "a")["images"] == 2


def test_parquet_waits_to_be_completed(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    labels = label_artifact(
        Drawn("cam"),
        Drawn("sal"),
        tmp_path / "a",
        tau=TAU,
        as_="parquet",
        progress=lambda done, total: steps.append((done, total)),
    )
    assert steps[-1] == (80, 80)
    assert labels.written is not None
    assert labels.written.settings["tau"] == 0.3
    assert labels.written.images == 80
    pngs = label_artifact(Drawn("cam"), Drawn("sal"), tmp_path / "b", tau=TAU)
    assert labels.content == labels.written.content == pngs.content
    with pytest.raises(HubError, match="as PNGs"):
        label_artifact(Drawn("cam"), Drawn("sal"), tmp_path / "b", tau=TAU, as_="parquet")
    with pytest.raises(HubError, match=r"tau: 0\.3 there, 0\.4 now"):
        label_artifact(
            Drawn("cam"),
            Drawn("sal"),
            tmp_path / "a",
            tau=Threshold(tau=0.4, origin="given"),
            as_="parquet",
        )


def test_same_settings_again_labels_nothing(tmp_path: Path) -> None:
    first = label_artifact(Drawn("cam"), Drawn("sal"), tmp_path / "a", tau=TAU)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()}
    cam, sal = Drawn("cam"), Drawn("sal")
    ingredients = [ingredient(cam), ingredient(sal)]
    cam.reads = sal.reads = 0
    again = label_artifact(cam, sal, tmp_path / "a", tau=TAU, ingredients=ingredients)
    assert again == first
    assert cam.reads == sal.reads == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()} == before


def test_an_empty_folder_is_fine(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    label_artifact(Drawn("cam"), None, tmp_path / "a", tau=TAU)
    assert len(open_artifact(tmp_path / "a")) == 80


def test_images_that_are_not_there(tmp_path: Path) -> None:
    few = Drawn("sal", IDS[:78])
    with pytest.raises(
        HubError, match=r"2 of 80 images have no saliency maps in sal/drawn.*img078"
    ):
        label_artifact(Drawn("cam"), few, tmp_path / "a", tau=TAU)
    with pytest.raises(HubError, match=r"1 of 2 images have no activation maps.*: other\."):
        label_artifact(Drawn("cam"), None, tmp_path / "a", tau=TAU, image_ids=[IDS[0], "other"])
    with pytest.raises(HubError, match="names img001 twice"):
        label_artifact(Drawn("cam"), None, tmp_path / "a", tau=TAU, image_ids=[IDS[1], IDS[1]])
    with pytest.raises(HubError, match="nothing to label"):
        label_artifact(Drawn("cam"), None, tmp_path / "a", tau=TAU, image_ids=[])
    with pytest.raises(HubError, match="not an image id"):
        label_artifact(Drawn("cam"), None, tmp_path / "a", tau=TAU, image_ids=["../../etc/x"])
    assert list(tmp_path.iterdir()) == []


class OtherSize(Drawn):
    def read(self, image_id: str) -> Any:
        saliency = super().read(image_id)
        return saliency if image_id != IDS[9] else saliency[:5]


def test_map_of_another_size(tmp_path: Path) -> None:
    with pytest.raises(HubError, match=r"^img009: The saliency map is 5x7"):
        label_artifact(Drawn("cam"), OtherSize("sal"), tmp_path / "a", tau=TAU)
    assert not (tmp_path / "a").exists()
    # The same maps (as far as their digests go), repaired: it goes on.
    label_artifact(
        Drawn("cam"),
        Drawn("sal"),
        tmp_path / "b",
        tau=TAU,
        ingredients=[ingredient(Drawn("cam")), ingredient(Drawn("sal"))],
    )


@pytest.mark.parametrize(
    "change",
    [
        {"cam": Drawn("sal")},
        {"sal": Drawn("cam")},
        {"as_": "jpeg"},
        {"rule": "none"},
        {"sal_threshold": 2},
        {"ingredients": []},
    ],
)
def test_mistakes_in_the_request(tmp_path: Path, change: dict[str, Any]) -> None:
    request: dict[str, Any] = {"cam": Drawn("cam"), "sal": Drawn("sal"), "tau": TAU}
    with pytest.raises(UsageError):
        label_artifact(**{**request, **change}, out=tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_ingredients_that_labels_are_not_made_of() -> None:
    weights = Ingredient(role="weights", file="x", digest="sha256:" + "0" * 64)
    with pytest.raises(UsageError, match="cam and sal, not of"):
        label_settings([weights], IDS, tau=TAU)


def test_stated_digest_is_taken() -> None:
    maps = Drawn("sal")
    maps.content = "sha256:" + "1" * 64
    assert ingredient(maps).digest == maps.content
    assert ingredient(maps).key == "sal/drawn@1.0.0"
    assert maps.reads == 0
    assert ingredient(Drawn("cam", key=None)).file == "cam"


def test_torch_is_not_needed() -> None:
    code = "import sys; import wsssbed_hub.evaluation.labelling; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
