from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsssbed_hub.artifacts.keys import KINDS, Key, Version, looks_like_key
from wsssbed_hub.utils.errors import UsageError

names = st.from_regex(r"[a-z0-9]{1,8}(-[a-z0-9]{1,8}){0,4}", fullmatch=True)
numbers = st.integers(0, 999_999)
versions = st.builds(Version, numbers, numbers, numbers)
keys = st.builds(Key, st.sampled_from(KINDS), names, st.none() | versions)


@given(keys)
def test_a_key_is_spelled_in_one_way(key: Key) -> None:
    assert Key.parse(str(key)) == key
    assert looks_like_key(str(key))


@given(st.text(alphabet="abcXY019-/@. _\n", max_size=20))
def test_what_parses_is_spelled_as_it_was(text: str) -> None:
    try:
        key = Key.parse(text)
    except UsageError:
        return
    assert str(key) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "vst-duts",
        "sal/",
        "/vst",
        "sal/VST-duts",
        "sal/vst_duts",
        "sal/vst--duts",
        "sal/-vst",
        "sal/vst-",
        "sal/vst/duts",
        "sal/../vst",
        "sal/vst\n",
        " sal/vst",
        "sal/vst@",
        "sal/vst@1",
        "sal/vst@1.0",
        "sal/vst@1.0.0.0",
        "sal/vst@01.0.0",
        "sal/vst@1.0.0-rc1",
        "sal/vst@١.0.0",
        "sal/" + "a" * 81,
    ],
)
def test_not_a_key(text: str) -> None:
    with pytest.raises(UsageError, match="is not a key"):
        Key.parse(text)
    assert not looks_like_key(text) or text.startswith("sal/aaaa")


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(UsageError, match=r"no kind 'saliency'\. Kinds are sal, cam, label"):
        Key.parse("saliency/vst")
    assert not looks_like_key("saliency/vst")


def test_versions_are_ordered_as_numbers() -> None:
    texts = ["0.9.10", "0.10.2", "0.9.9", "1.0.0", "0.10.10"]
    ordered = [str(version) for version in sorted(map(Version.parse, texts))]
    assert ordered == ["0.9.9", "0.9.10", "0.10.2", "0.10.10", "1.0.0"]


@pytest.mark.parametrize("text", ["1", "1.0", "v1.0.0", "1.0.0 ", "1.0.-1", "1.0.1000000"])
def test_not_a_version(text: str) -> None:
    with pytest.raises(UsageError, match="is not a version"):
        Version.parse(text)


def test_names_of_a_key() -> None:
    key = Key.parse("cam/eps-vst-duts@1.2.3")
    assert key.repository == "cam-eps-vst-duts"
    assert str(key.unversioned) == "cam/eps-vst-duts"
    assert str(key.at("2.0.0")) == "cam/eps-vst-duts@2.0.0"
