"""Statistics of maps: gathered in several places and put together, they are those of all maps."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from samples import InMemory

from wsssbed_hub.artifacts.maps import Activations
from wsssbed_hub.evaluation.inspect import Expectation, MapStatistics, gather_statistics
from wsssbed_hub.utils.errors import HubError


def maps(kind: str) -> dict[str, Any]:
    """Images of every sort that statistics tell apart; ``broken`` cannot be read."""
    noise = np.random.default_rng(0).integers(2, 256, (8, 8), dtype=np.uint8)
    inverted = np.full((8, 8), 200, np.uint8)
    inverted[2:6, 2:6] = 3
    found = {"dark": noise % 2, "flat": 0 * noise, "inverted": inverted, "noise": noise}
    if kind == "cam":
        return {
            i: Activations(one[None], np.array([n])) for n, (i, one) in enumerate(found.items())
        }
    return found


class WithBroken(InMemory):
    def read(self, image_id: str) -> Any:
        if image_id == "broken":
            raise HubError("broken is cut short.")
        return super().read(image_id)


def statistics(kind: str, image_ids: list[str]) -> MapStatistics:
    known = {"broken": None, **maps(kind)}
    part = WithBroken(kind, {image_id: known[image_id] for image_id in image_ids})
    return gather_statistics(part, Expectation("shapes"))


@pytest.mark.parametrize("kind", ["sal", "cam", "label"])
def test_statistics_of_parts_together_are_those_of_the_whole(kind: str) -> None:
    ids = ["broken", *maps(kind)]
    whole = statistics(kind, ids)
    for cut in range(len(ids) + 1):
        together = MapStatistics(kind)
        for part in (ids[cut:], ids[:cut]):
            together.merge(statistics(kind, part))
        assert together == whole


def test_no_statistic_is_left_out_of_the_samples() -> None:
    """A field that all samples leave at its default would be compared with itself."""
    seen = {
        field.name
        for kind in ("sal", "cam", "label")
        for field in fields(MapStatistics)
        if getattr(statistics(kind, ["broken", *maps(kind)]), field.name)
    }
    assert seen == {field.name for field in fields(MapStatistics)} - {"sizes"}  # needs a target
