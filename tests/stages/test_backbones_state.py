from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from stages.backbones.state import load_strictly
from wsssbed_hub.utils.errors import HubError


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def state() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {
        key: torch.randn(value.shape) if value.is_floating_point() else value + 7
        for key, value in network().state_dict().items()
    }


def test_every_entry_is_loaded() -> None:
    loaded, wanted = network(), state()
    load_strictly(loaded, wanted, "it")
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, wanted[key])


def test_counters_may_be_missing() -> None:
    wanted = state()
    del wanted["1.num_batches_tracked"]
    loaded = network()
    load_strictly(loaded, wanted, "it")
    assert torch.equal(loaded[1].running_mean, wanted["1.running_mean"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"0.gain": torch.ones(3)}, "1 unknown: 0.gain."),
        ({"0.bias": None}, "1 missing: 0.bias."),
        (
            {"0.weight": torch.ones(4, 1, 1, 1)},
            r"0.weight \(4, 1, 1, 1\) instead of \(4, 3, 1, 1\)",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_changes_nothing(
    change: dict[str, Tensor | None], said: str
) -> None:
    wrong = {key: value for key, value in (state() | change).items() if value is not None}
    untouched = network()
    before = {key: value.clone() for key, value in untouched.state_dict().items()}
    with pytest.raises(HubError, match=rf"resnet\.pth does not fit.*{said}"):
        load_strictly(untouched, wrong, "resnet.pth")
    for key, value in untouched.state_dict().items():
        assert torch.equal(value, before[key])


def test_a_message_stays_short() -> None:
    many = {f"layer{n}": torch.ones(1) for n in range(300)}
    with pytest.raises(HubError, match=r"300 unknown: .* and 295 more") as trouble:
        load_strictly(network(), many, "it")
    assert len(str(trouble.value)) < 500


def in_other_words(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{'ab'[int(k[0])]}_{int(k[0]) + 1}{k[1:]}": v for k, v in state.items()}


RULES = ((r"^[ab]_(\d)\.", r"\1."), (r"^(\d)", lambda at: str(int(at[1]) - 1)))


def test_names_are_mapped_by_all_rules_in_order_without_the_wrapper() -> None:
    wanted = state()
    theirs = in_other_words(wanted)
    assert "module.a_1.weight" in theirs
    loaded = network()
    load_strictly(loaded, theirs, "it", RULES)
    assert torch.equal(loaded[0].weight, wanted["0.weight"])
    assert torch.equal(loaded[1].weight, wanted["1.weight"])


def test_what_is_wrong_is_named_as_in_the_file() -> None:
    theirs = in_other_words(state())
    theirs["module.a_1.bias"] = torch.ones(5)
    theirs["module.c_1.bias"] = torch.ones(5)
    with pytest.raises(HubError) as trouble:
        load_strictly(network(), theirs, "it", RULES)
    assert "1 unknown: module.c_1.bias." in str(trouble.value)
    assert "module.a_1.bias (5,) instead of (4,)" in str(trouble.value)


def test_two_names_must_not_become_one() -> None:
    twice = state() | {"module.0.weight": torch.ones(1)}
    with pytest.raises(HubError, match=r"'0\.weight' a second time, as 'module\.0\.weight'"):
        load_strictly(network(), twice, "it")
