"""The stream of samples: what stands where does not depend on who asks."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from toys import Noise

from stages.runtime.loader import _Batches, batches, passes_of, rows_of
from stages.runtime.method import Phase, Source
from wsssbed_hub.utils.errors import HubError, UsageError


class Numbers:
    """Sample i is i, and a number that its chance gave."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __len__(self) -> int:
        return self.number

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"number": np.array(index), "chance": np.array(rng.integers(1 << 40))}


def phase(sources: dict[str, Source], accumulate: int = 1) -> Phase:
    return Phase(
        "train",
        10,
        sources,
        lambda: [],
        lambda step: 1.0,
        lambda batches, step: {},
        accumulate=accumulate,
    )


def drawn(source: Source, steps: int, processes: int = 1, passes: int = 1, seed: int = 0) -> list:
    """(index, chance) of every sample of every step, in the order of the row."""
    rows = rows_of(phase({"one": source}), {"one": source}, seed)
    found = []
    for step in range(steps):
        for number in range(passes):
            for rank in range(processes):
                batch = _Batches(rows, passes, rank, processes)[step, number]["one"]  # type: ignore[index]
                found += list(zip(batch["index"].tolist(), batch["chance"].tolist(), strict=True))
    return found


def test_every_epoch_visits_every_sample_once_in_another_order() -> None:
    indices = [index for index, _ in drawn(Source(Numbers(10), 4), steps=5)]
    first, second = indices[:10], indices[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_without_shuffling_the_order_is_that_of_the_list() -> None:
    indices = [index for index, _ in drawn(Source(Numbers(5), 2, shuffle=False), steps=5)]
    assert indices == [0, 1, 2, 3, 4] * 2


def test_an_incomplete_last_batch_can_be_left_out() -> None:
    indices = [index for index, _ in drawn(Source(Numbers(10), 4, drop_last=True), steps=4)]
    assert len(set(indices[:8])) == len(set(indices[8:])) == 8


def test_a_sample_meets_other_chance_in_every_epoch() -> None:
    chances = Counter(chance for _, chance in drawn(Source(Numbers(10), 5), steps=6))
    assert chances.most_common(1)[0][1] == 1


@pytest.mark.parametrize(("processes", "passes"), [(2, 1), (1, 4), (2, 2), (4, 2)])
def test_processes_and_passes_share_the_same_row(processes: int, passes: int) -> None:
    source = Source(Numbers(11), 8)
    assert drawn(source, 5, processes, passes) == drawn(source, 5)


def test_the_stream_can_be_entered_at_any_step() -> None:
    sources = {"one": Source(Numbers(7), 3)}
    rows = rows_of(phase(sources), sources, 0)

    def numbers(first: int) -> list[list[int]]:
        cpu = torch.device("cpu")
        made = batches(rows, first=first, end=6, passes=1, workers=0, device=cpu)
        return [batch["one"]["number"].tolist() for batch in made]

    assert numbers(4) == numbers(0)[4:]


def test_seed_phase_and_source_each_change_the_order() -> None:
    source = Source(Numbers(30), 30)
    assert drawn(source, 1, seed=0) != drawn(source, 1, seed=1)
    both = {"one": source, "two": source}
    batch = _Batches(rows_of(phase(both), both, 0), 1, 0, 1)[0, 0]
    assert batch["one"]["index"].tolist() != batch["two"]["index"].tolist()  # type: ignore[index]


def test_batches_know_index_and_epoch_and_keep_text() -> None:
    sources = {"one": Source(Noise(5), 4, shuffle=False)}
    batch = _Batches(rows_of(phase(sources), sources, 0), 1, 0, 1)[1, 0]["one"]  # type: ignore[index]
    assert batch["index"].tolist() == [4, 0, 1, 2]
    assert batch["epoch"].tolist() == [0, 1, 1, 1]
    assert batch["id"] == ["image4", "image0", "image1", "image2"]
    assert batch["image"].shape == (4, 3, 6, 6)


@pytest.mark.parametrize(
    ("size", "accumulate", "processes", "passes"),
    [
        (8, 2, 1, 2),
        (8, 2, 2, 2),  # four passes of two samples: each pass is split
        (10, 10, 2, 5),  # ten passes of one sample: the passes are shared
        (10, 2, 2, 1),
        (10, 2, 5, 2),
    ],
)
def test_a_step_is_shared_among_processes(
    size: int, accumulate: int, processes: int, passes: int
) -> None:
    sources = {"one": Source(Numbers(50), size)}
    assert passes_of(phase(sources, accumulate), sources, processes) == passes


def test_a_batch_that_cannot_be_shared_is_refused_with_what_would_do() -> None:
    sources = {"one": Source(Numbers(50), 10)}
    with pytest.raises(UsageError, match=r"batch of 10 .* 3 processes .* multiple of 6"):
        passes_of(phase(sources, 2), sources, 3)


def test_too_few_samples_for_one_batch_are_refused() -> None:
    sources = {"one": Source(Numbers(3), 4, drop_last=True)}
    with pytest.raises(UsageError, match="one: 3 samples do not fill a batch of 4"):
        rows_of(phase(sources), sources, 0)


def test_samples_of_different_sizes_are_refused_by_name() -> None:
    class Growing(Numbers):
        def sample(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
            return {"image": np.zeros(index + 1)}

    sources = {"one": Source(Growing(4), 2)}
    cpu = torch.device("cpu")
    rows = rows_of(phase(sources), sources, 0)
    with pytest.raises(HubError, match="one: 'image' has the shapes"):
        list(batches(rows, first=0, end=1, passes=1, workers=0, device=cpu))


def test_samples_that_belong_together_are_not_parted() -> None:
    whole = {"all": Source(Numbers(50), 8, together=8)}
    assert passes_of(phase(whole), whole, 1) == 1
    with pytest.raises(UsageError, match="Of all each 8 samples in a row have to stay together"):
        passes_of(phase(whole), whole, 2)
    with pytest.raises(UsageError, match=r"a batch of 8 .* with 2 passes .* multiple of 16"):
        passes_of(phase(whole, accumulate=2), whole, 1)
    pairs = {"pairs": Source(Numbers(50), 8, shuffle=False, together=2)}
    assert passes_of(phase(pairs), pairs, 4) == 1
    with pytest.raises(UsageError, match="fewer processes"):
        passes_of(phase(pairs), pairs, 8)
    rows = rows_of(phase(pairs), pairs, 0)
    batches_of_ranks = [_Batches(rows, 1, rank, 4)[0, 0]["pairs"] for rank in range(4)]  # type: ignore[index]
    assert [b["index"].tolist() for b in batches_of_ranks] == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_an_epoch_of_half_a_pair_is_refused() -> None:
    sources = {"pairs": Source(Numbers(5), 2, together=2)}
    with pytest.raises(UsageError, match="5 samples make no whole groups of 2"):
        rows_of(phase(sources), sources, 0)
    rows_of(phase(sources), {"pairs": Source(Numbers(5), 2, together=2, drop_last=True)}, 0)


@pytest.mark.parametrize(
    ("samples", "size", "drop_last"), [(22, 8, False), (10, 4, True), (3, 7, False)]
)
def test_the_batch_that_finishes_an_epoch(samples: int, size: int, drop_last: bool) -> None:
    sources = {"one": Source(Numbers(samples), size, drop_last=drop_last)}
    row = rows_of(phase(sources), sources, 0)["one"]
    for batch in range(12):
        last = row.last_batch(batch)
        assert last >= batch
        assert row.finished_epochs(last)
        assert not any(row.finished_epochs(between) for between in range(batch, last))
