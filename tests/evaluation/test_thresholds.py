"""The tau to label with, and where it is from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from drawn_maps import IDS, Drawn

from wsssbed_hub.artifacts.manifest import Threshold
from wsssbed_hub.evaluation import thresholds
from wsssbed_hub.evaluation.curves import threshold_curve
from wsssbed_hub.evaluation.pseudo_label import pseudo_label
from wsssbed_hub.evaluation.thresholds import (
    choose_threshold,
    published_thresholds,
    resolve_threshold,
)
from wsssbed_hub.utils.errors import UsageError


class Truth(Drawn):
    """The labels at tau = 0.3, without ignored pixels."""

    def read(self, image_id: str) -> Any:
        maps = Drawn("cam").read(image_id)
        return pseudo_label(*maps, Drawn("sal").read(image_id), 0.3, ignore=False)


def curve(*, saliency: bool) -> Any:
    return threshold_curve(
        Drawn("cam"), Truth("label"), Drawn("sal") if saliency else None, num_classes=20
    )


def test_thresholds() -> None:
    assert resolve_threshold("cam/drs", saliency=True, tau=0.25) == Threshold(
        tau=0.25, origin="given"
    )
    assert resolve_threshold("cam/drs@1.0.0", saliency=True) == Threshold(
        tau=0.5, origin="published"
    )
    assert resolve_threshold("cam/eps-vst-duts", saliency=False) == Threshold(
        tau=0.2, origin="published"
    )
    best = resolve_threshold(None, saliency=True, curve=curve(saliency=True), split="train")
    assert (best.origin, best.split) == ("curve", "train")
    # The truth has the classes of tau = 0.3 = 76.5/255, and 76/255 gives the same ones. A lower
    # tau labels background as objects, a higher one misses objects.
    assert best.tau == 76 / 255


@pytest.mark.parametrize(
    ("request_", "tau", "origin"),
    [
        ({"cam_key": "cam/l2g-vst-duts", "saliency": False}, 0.3, "published"),
        ({"cam_key": "cam/l2g-vst-duts", "saliency": False, "source": "authors"}, 0.25, "authors"),
        ({"cam_key": "cam/mcis", "saliency": True, "rule": "release"}, 0.5, "published"),
        ({"cam_key": "cam/mcis", "saliency": True, "rule": "mcis"}, 0.3, "authors"),
        ({"cam_key": "cam/cam", "saliency": True, "rule": "drs"}, 0.2, "authors"),
        ({"cam_key": None, "saliency": True, "rule": "edam"}, 0.25, "authors"),
        ({"cam_key": None, "saliency": False, "rule": "edam"}, 0.5, "authors"),
    ],
)
def test_the_benchmark_and_the_authors(request_: dict[str, Any], tau: float, origin: Any) -> None:
    assert resolve_threshold(**request_) == Threshold(tau=tau, origin=origin)


def test_all_that_was_published_about_labels_made_one_way() -> None:
    def taus(key: str, saliency: bool) -> list[float]:
        return [one.tau for one in published_thresholds(key, saliency=saliency)]

    assert taus("cam/l2g-vst-duts", False) == [0.3, 0.25]
    assert taus("cam/l2g-vst-duts", True) == taus("cam/mine", True) == []
    assert taus("cam/oaa", True) == [0.3]


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"cam_key": "cam/drs", "saliency": True, "tau": 1.5}, "tau is 1.5"),
        ({"cam_key": "cam/drs", "saliency": False}, "drs, 0.5, is for labels with saliency"),
        ({"cam_key": "cam/eps", "saliency": True}, "eps, 0.2, is for labels without saliency"),
        ({"cam_key": "cam/mine", "saliency": True}, "No published threshold is known for 'mine'"),
        ({"cam_key": None, "saliency": True}, "without a key"),
        ({"cam_key": "sal/drs", "saliency": True}, "does not name activation maps"),
        ({"cam_key": "cam/drs", "saliency": False, "rule": "drs"}, "drs needs saliency maps"),
        (
            {"cam_key": "cam/drs", "saliency": True, "source": "authors"},
            "authors of drs published tau 0.2 with saliency, rule drs",
        ),
        (
            {"cam_key": "cam/cam", "saliency": True, "source": "authors"},
            "authors of cam published nothing about labels. Take the published tau",
        ),
    ],
)
def test_thresholds_that_are_not_there(request_: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        resolve_threshold(**request_)


def test_curves_that_do_not_answer() -> None:
    without = curve(saliency=False)
    with pytest.raises(UsageError, match="curve is for labels without saliency"):
        resolve_threshold("cam/cam", saliency=True, curve=without, split="train")
    with pytest.raises(UsageError, match="Name the split"):
        resolve_threshold("cam/cam", saliency=False, curve=without)
    with pytest.raises(UsageError, match="one of the two"):
        resolve_threshold("cam/cam", saliency=False, curve=without, split="train", tau=0.1)


class Target:
    """Twenty classes, and the labels at tau = 0.3 as the ground truth of ``train``."""

    num_classes = 20

    def ground_truth(self, split: str) -> Any:
        assert split == "train"
        return Truth("label", IDS[:40])


def choose(**request: Any) -> Threshold:
    given = {"tau": None, "tau_from": "published", "target": "drawn", "data_root": Path("/data")}
    return choose_threshold(Drawn("cam", key="cam/drs@1.0.0"), Drawn("sal"), **{**given, **request})


def test_threshold_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_target(name: str, data_root: Path) -> Target:
        assert (name, data_root) == ("drawn", Path("/data"))
        return Target()

    monkeypatch.setattr(thresholds, "open_target", open_target)
    assert choose() == Threshold(tau=0.5, origin="published")
    assert choose(tau=0.1) == Threshold(tau=0.1, origin="given")
    steps: list[tuple[int, int]] = []
    best = choose(tau_from="curve:train", progress=lambda done, of: steps.append((done, of)))
    assert best == Threshold(tau=76 / 255, origin="curve", split="train")
    assert steps[-1] == (40, 40)
    # 77 is the lowest grey value above 0.3; the release takes A >= tau, the paper A > tau.
    release = choose(tau_from="curve:train", rule="release")
    assert release == Threshold(tau=77 / 255, origin="curve", split="train")
    assert choose(tau_from="authors", rule="drs") == Threshold(tau=0.2, origin="authors")


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"tau_from": "curve:train", "tau": 0.2}, "taken from curve:train: choose one"),
        ({"tau_from": "curve"}, "only from 'published', from 'authors' or from 'curve:SPLIT'"),
        ({"tau_from": "authors", "tau": 0.2}, "taken from authors: choose one"),
        ({"tau_from": "curve:train", "rule": "oaa"}, "no curve by the rule oaa"),
        ({"tau_from": "curve:"}, "only from 'published'"),
        ({"tau_from": "published:train"}, "only from 'published'"),
    ],
)
def test_threshold_from_nowhere(request_: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        choose(**request_)
