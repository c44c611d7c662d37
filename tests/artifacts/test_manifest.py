from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from samples import key_folder, maps_of, provenance

from manifests import A, entry, parse, raw
from wsssbed_hub.artifacts.keys import Version
from wsssbed_hub.artifacts.manifest import Entry, Manifest, json_schema, parse_manifest
from wsssbed_hub.utils.errors import HubError, UsageError
from wsssbed_hub.utils.safe_yaml import MAX_DEPTH


def test_what_is_dumped_is_read(tmp_path: Path) -> None:
    manifest = key_folder(tmp_path, settings={"tau": 1e-5, "on": "2020-01-01", "no": None})
    again = parse_manifest(manifest.dump())
    assert again == manifest
    assert again.dump() == manifest.dump() == (tmp_path / "manifest.yaml").read_text()
    recipe = again.entry("1.0.0", "shapes").provenance
    assert recipe is not None
    assert recipe.recipe == {"tau": 1e-5, "on": "2020-01-01", "no": None}


def test_dump_does_not_depend_on_the_order_of_versions() -> None:
    one = {"voc12": entry(version="1.10.0")}
    two = {"voc12": entry(version="1.9.0"), "coco14": entry("coco14", "1.9.0")}
    first = parse(raw(versions={"1.10.0": one, "1.9.0": two}))
    second = parse(raw(versions={"1.9.0": dict(reversed(two.items())), "1.10.0": one}))
    assert first.dump() == second.dump()
    assert list(yaml.safe_load(first.dump())["versions"]) == ["1.9.0", "1.10.0"]


WRONG = {
    "unknown field": (raw(colour="blue"), "colour: Extra inputs"),
    "unknown field below": (raw(method={"name": "VST", "year": 2021}), "method.year: Extra"),
    "no title": ({k: v for k, v in raw().items() if k != "title"}, "title: Field required"),
    "schema of the future": (raw(schema_version=2), "schema_version"),
    "kind and key": (raw(kind="cam"), "contradicts the key"),
    "no key": (raw(key="VST"), "is not a key"),
    "key with a version": (raw(key="sal/vst-duts@1.0.0"), "has no version"),
    "no versions": (raw(versions={}), "without versions"),
    "no targets": (raw(versions={"1.0.0": {}}), "covers no target"),
    "not a version": (raw(versions={"1.0": {"voc12": entry()}}), "is not a version"),
    "not a target": (raw(versions={"1.0.0": {"../x": entry("../x")}}), "not a"),
    "neither files nor url": (
        raw(versions={"1.0.0": {"voc12": {"images": 3}}}),
        "nothing to fetch",
    ),
    "files without content": (
        raw(versions={"1.0.0": {"voc12": entry(content=None)}}),
        "without a content digest",
    ),
    "maps without a count": (
        raw(versions={"1.0.0": {"voc12": entry(images=None)}}),
        "without their number of images",
    ),
    "maps without a list": (
        raw(versions={"1.0.0": {"voc12": entry(image_list=None)}}),
        "or without image_list",
    ),
    "no images": (raw(versions={"1.0.0": {"voc12": entry(images=0)}}), "images"),
    "a short digest": (raw(versions={"1.0.0": {"voc12": entry(content="sha256:ab")}}), "content"),
    "weights with images": (
        raw(key="weights/vst", kind="weights"),
        "not over a list of images",
    ),
    "weights that are a table": (
        raw(
            key="weights/vst",
            kind="weights",
            versions={"1.0.0": {"voc12": entry(images=None, image_list=None)}},
        ),
        "config.json and model.safetensors",
    ),
}


@pytest.mark.parametrize(("data", "message"), WRONG.values(), ids=WRONG)
def test_wrong_manifests_are_refused(data: Any, message: str) -> None:
    with pytest.raises(HubError) as caught:
        parse(data)
    assert "here/manifest.yaml" in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../x.parquet",
        "voc12/1.0.0/../../x.parquet",
        "voc12/1.0.0/sub/x.parquet",
        "voc12/2.0.0/x.parquet",
        "coco14/1.0.0/x.parquet",
        "voc12//1.0.0/x.parquet",
        "./voc12/1.0.0/x.parquet",
        "voc12/1.0.0/.x.parquet",
        "voc12\\1.0.0\\x.parquet",
        "voc12/1.0.0/x\n.parquet",
        "voc12/1.0.0/" + "x" * 200 + ".parquet",
        "voc12/1.0.0/x.exe",
        "",
    ],
)
def test_a_path_stays_in_its_version(path: str) -> None:
    files = [{"path": path, "size": 10, "sha256": A}]
    with pytest.raises(HubError):
        parse(raw(versions={"1.0.0": {"voc12": entry(files=files)}}))


def test_a_file_is_listed_once() -> None:
    files = [*entry()["files"], *entry()["files"]]
    with pytest.raises(HubError, match="listed twice"):
        parse(raw(versions={"1.0.0": {"voc12": entry(files=files)}}))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_result_is_a_number(value: float) -> None:
    result = {"metric": "mIoU", "value": value, "images": 3, "image_list": A, "split": "val"}
    with pytest.raises(HubError, match="finite number"):
        parse(raw(versions={"1.0.0": {"voc12": entry(results=[result])}}))


@pytest.mark.parametrize(
    ("threshold", "ok"),
    [
        ({"tau": 0.3, "origin": "given"}, True),
        ({"tau": 0.3, "origin": "curve", "split": "train"}, True),
        ({"tau": 0.3, "origin": "curve"}, False),
        ({"tau": 0.3, "origin": "published", "split": "train"}, False),
        ({"tau": 1.3, "origin": "given"}, False),
    ],
)
def test_a_threshold_says_where_it_came_from(threshold: dict[str, Any], ok: bool) -> None:
    result = {"metric": "mIoU", "value": 0.5, "images": 3, "image_list": A, "split": "val"}
    result["threshold"] = threshold
    data = raw(versions={"1.0.0": {"voc12": entry(results=[result])}})
    if ok:
        assert parse(data).entry("1.0.0", "voc12").results[0].value == 0.5
    else:
        with pytest.raises(HubError, match="threshold"):
            parse(data)


TEXTS = {
    "twice": ("key: a\nkey: b\n", "given twice"),
    "twice below": ("method: {name: a, name: b}\n", "given twice"),
    "alias": ("a: &a [1]\nb: *a\n", "aliases"),
    "object": ("a: !!python/object/apply:os.system [true]\n", "could not determine a constructor"),
    "merge": ("a: {<<: {b: 1}}\n", "not YAML that is read"),
    "deep": ("a: " + "[" * 100_000, "nests deeper"),
    "number for a name": ("1: a\n", "is not text"),
    "list for a name": ("? [a]\n: b\n", "is not text"),
    "not YAML": ("a: [", "not YAML that is read"),
    "not text": (b"\xff\xfe\x00", "not YAML that is read"),
    "a list": ("[]", "is not a valid manifest"),
    "nothing": ("", "is not a valid manifest"),
    "too much": ("#" * (5 << 20), "too much for a manifest"),
}


@pytest.mark.parametrize(("text", "message"), TEXTS.values(), ids=TEXTS)
def test_hostile_yaml_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(HubError, match=message) as caught:
        parse_manifest(text, "here/manifest.yaml")
    assert str(caught.value).startswith("here/manifest.yaml")


def test_nesting_up_to_the_limit_is_read() -> None:
    deep: Any = 1
    for _ in range(MAX_DEPTH - 7):
        deep = [deep]
    provenance_ = json.loads(provenance().model_dump_json()) | {"recipe": {"deep": deep}}
    manifest = parse(raw(versions={"1.0.0": {"voc12": entry(provenance=provenance_)}}))
    assert parse_manifest(manifest.dump()) == manifest


def test_the_release_is_known_without_files() -> None:
    source = {"url": "https://github.com/clovaai/WSSS-BED/releases/download/x.zip"}
    manifest = parse(raw(versions={"1.0.0": {"voc12": {"source": source}}}))
    assert manifest.choose().entry.files == []


def several() -> Manifest:
    return parse(
        raw(
            versions={
                "1.9.0": {"voc12": entry(version="1.9.0"), "coco14": entry("coco14", "1.9.0")},
                "1.10.0": {"voc12": entry(version="1.10.0")},
            }
        )
    )


@pytest.mark.parametrize(
    ("target", "version", "expected"),
    [
        ("voc12", None, ("1.10.0", "voc12")),
        ("coco14", None, ("1.9.0", "coco14")),
        ("voc12", "1.9.0", ("1.9.0", "voc12")),
        (None, "1.10.0", ("1.10.0", "voc12")),
    ],
)
def test_choose(target: str | None, version: str | None, expected: tuple[str, str]) -> None:
    number = Version.parse(version) if version else None
    chosen = several().choose(target, number)
    assert (str(chosen.version), chosen.target) == expected


@pytest.mark.parametrize(
    ("target", "version", "message"),
    [
        (None, None, "covers coco14, voc12. Choose one"),
        ("shapes", None, "nothing over 'shapes', only over coco14, voc12"),
        ("coco14", "1.10.0", "nothing over 'coco14', only over voc12"),
        ("voc12", "2.0.0", "no version 2.0.0. It has 1.9.0, 1.10.0"),
    ],
)
def test_choose_says_what_there_is(target: str | None, version: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        several().choose(target, Version.parse(version) if version else None)


def test_latest_and_targets() -> None:
    assert several().targets() == ["coco14", "voc12"]
    assert str(several().latest()) == "1.10.0"
    assert str(several().latest("coco14")) == "1.9.0"


def test_the_schema_refuses_what_the_model_refuses() -> None:
    schema = json_schema()
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == {"key", "kind", "title", "method", "versions"}
    assert schema["$defs"]["Entry"]["additionalProperties"] is False
    assert set(schema["$defs"]["Entry"]["properties"]) == set(Entry.model_fields)


def test_maps_of_a_test_are_not_all_alike() -> None:
    sizes = {maps.shape for maps in maps_of("sal").values()}
    assert len(sizes) == 3
