"""What is published and what is added to it, as one manifest."""

from __future__ import annotations

import pytest

from manifests import A, B, entry, parse, raw
from wsssbed_hub.artifacts.manifest import Manifest
from wsssbed_hub.artifacts.merge import merge
from wsssbed_hub.utils.errors import HubError


def test_it_adds_and_keeps() -> None:
    old = parse(raw())
    new = parse(raw(title="Better words", versions={"1.1.0": {"voc12": entry(version="1.1.0")}}))
    merged = merge(old, new)
    assert list(merged.versions) == ["1.0.0", "1.1.0"]
    assert merged.title == "Better words"
    assert merged.entry("1.0.0", "voc12") == old.entry("1.0.0", "voc12")
    assert merge(None, new) is new


def test_what_is_there_changes_nothing() -> None:
    old = parse(raw())
    new = parse(raw(title="Other words", versions={"1.0.0": {"voc12": entry(image_list=B)}}))
    assert merge(old, new) is old


def test_a_version_never_changes() -> None:
    new = parse(raw(versions={"1.0.0": {"voc12": entry(content=B)}}))
    with pytest.raises(HubError, match=f"{A} there, {B} here. A version never changes"):
        merge(parse(raw()), new)


def test_keys_stay_apart() -> None:
    with pytest.raises(HubError, match="sal/vst-msra cannot go where sal/vst-duts"):
        merge(parse(raw()), parse(raw(key="sal/vst-msra")))


def over(target: str, *trained_on: str) -> Manifest:
    """A manifest over one target, of what was trained on these datasets."""
    items = [{"dataset": dataset, "supervision": "image labels"} for dataset in trained_on]
    return parse(raw(trained_on=items, versions={"1.0.0": {target: entry(target)}}))


def trained_on(manifest: Manifest) -> list[tuple[str | None, str | None]]:
    """Datasets, with the target that they are restricted to."""
    return [(item.dataset, item.target) for item in manifest.trained_on]


def test_the_training_of_other_targets_is_not_forgotten() -> None:
    both = merge(over("voc12", "voc12", "imagenet"), over("coco14", "imagenet", "coco14"))
    assert trained_on(both) == [("imagenet", None), ("voc12", "voc12"), ("coco14", "coco14")]
    three = merge(both, over("shapes", "shapes"))
    assert trained_on(three) == [
        ("imagenet", "coco14"),
        ("imagenet", "voc12"),
        ("voc12", "voc12"),
        ("coco14", "coco14"),
        ("shapes", "shapes"),
    ]
    assert trained_on(merge(over("voc12", "x"), over("coco14", "x"))) == [("x", None)]
    # What covers all that is there says all that there is to say.
    later = parse(raw(trained_on=[], versions={"1.1.0": {"voc12": entry(version="1.1.0")}}))
    assert trained_on(merge(over("voc12", "y"), later)) == []
