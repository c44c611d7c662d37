"""Seeds of a study, and its files."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.runtime.options import TrainOptions
from stages.runtime.study import read_json, seeds_of, write_json
from wsssbed_hub.utils.errors import UsageError


def test_seeds_are_those_that_are_named() -> None:
    options = TrainOptions(seed=4)
    assert seeds_of(None, options) == [4]
    assert seeds_of("0, 2,1", options) == [0, 2, 1]
    for wrong in ("", "0,0", "0,x", "-1", "1,,2"):
        with pytest.raises(UsageError, match="distinct numbers"):
            seeds_of(wrong, options)
    given = TrainOptions(weights=Path("some.pth"))
    assert seeds_of(None, given) == [None]
    with pytest.raises(UsageError, match="leave --seeds out"):
        seeds_of("1", given)


def test_json_that_is_not_there_or_damaged_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "new" / "score.json"
    assert read_json(path) == {}
    write_json(path, {"a": [1, None]})
    assert read_json(path) == {"a": [1, None]}
    for damaged in ("", "[1]", '{"a"'):
        path.write_text(damaged)
        assert read_json(path) == {}
