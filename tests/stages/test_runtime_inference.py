from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from stages.runtime import inference
from stages.runtime.inference import through_network

CPU, GPU = torch.device("cpu"), torch.device("cuda")  # nothing is computed on either


@pytest.fixture
def two_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def number(item: int) -> int:
    return item


@pytest.mark.usefixtures("two_cores")
def test_on_the_cpu_every_core_takes_an_image_of_its_own() -> None:
    both = threading.Barrier(2, timeout=60)
    cores: list[int] = []

    def work(item: int) -> int:
        both.wait()  # an image alone would wait in vain
        cores.append(torch.get_num_threads())
        return item

    found = through_network(range(8), number, work, number, device=CPU, workers=1)
    assert list(found) == [*range(8)]
    assert cores == [1] * 8
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_cores")
def test_without_workers_the_cpu_computes_the_same_in_this_thread() -> None:
    seen: set[tuple[int, int]] = set()

    def work(item: int) -> int:
        seen.add((threading.get_ident(), torch.get_num_threads()))
        return item

    found = through_network(range(3), number, work, number, device=CPU, workers=0)
    assert next(found) == 0
    found.close()  # left early
    assert seen == {(threading.get_ident(), 1)}
    assert torch.get_num_threads() == 2


def test_the_images_at_once_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "AT_ONCE", 2)
    before = torch.get_num_threads()
    torch.set_num_threads(5)
    workers: set[int] = set()

    def work(item: int) -> int:
        workers.add(threading.get_ident())
        return item

    try:
        list(through_network(range(50), number, work, number, device=CPU, workers=5))
    finally:
        torch.set_num_threads(before)
    assert len(workers) <= 2


def test_a_gpu_takes_one_image_after_the_other_in_this_thread() -> None:
    here = threading.get_ident()
    others: set[int] = set()

    def work(item: int) -> int:
        assert threading.get_ident() == here
        return item

    def finish(item: int) -> int:
        others.add(threading.get_ident())
        return item

    found = through_network(range(5), number, work, finish, device=GPU, workers=2)
    assert list(found) == [*range(5)]
    assert here not in others
