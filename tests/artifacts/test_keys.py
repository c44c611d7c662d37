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


@given(keys, st.sampled_from("XÉ١_./@: \n\0"), st.data())
def test_no_other_letter_stands_anywhere_in_a_key(
    key: Key, letter: str, data: st.DataObject
) -> None:
    text = str(key)
    place = data.draw(st.integers(0, len(text)))
    text = text[:place] + letter + text[place:]
    with pytest.raises(UsageError, match="is not a key"):
        Key.parse(text)
    assert not looks_like_key(text)


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
    ],
)
def test_not_a_key(text: str) -> None:
    with pytest.raises(UsageError, match="is not a key"):
        Key.parse(text)
    assert not looks_like_key(text)


def test_a_name_that_is_too_long_is_meant_as_a_key_and_is_none() -> None:
    Key.parse("sal/" + "a" * 80)
    assert looks_like_key("sal/" + "a" * 81)  # so that it is refused as a key, not as a path
    with pytest.raises(UsageError, match="is not a key"):
        Key.parse("sal/" + "a" * 81)


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
