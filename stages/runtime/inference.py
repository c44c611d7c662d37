"""Images through a trained network, with what comes before and after it in other threads."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Generator, Iterable
from functools import cache, partial
from typing import TypeVar

import torch

from wsssbed_hub.utils.parallel import pipeline

T = TypeVar("T")
Read = TypeVar("Read")
Made = TypeVar("Made")
Result = TypeVar("Result")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
AT_ONCE = 8  # images in the network on a CPU, at most: each takes its memory


def through_network(
    items: Iterable[T],
    read: Callable[[T], Read],
    work: Callable[[Read], Made],
    finish: Callable[[Made], Result],
    *,
    device: torch.device,
    workers: int,
) -> Generator[Result]:
    """``finish(work(read(item)))`` of each item, in order; ``work`` is what uses the network.

    On a GPU it takes one image after the other, while ``workers`` threads read ahead of it and
    finish behind. On the CPU every core that torch may use takes an image of its own (at most
    ``AT_ONCE``), since a small network gains little from several; what it computes then does not
    depend on their number. With 0 workers all happens in this thread, one after the other.
    """
    cores = torch.get_num_threads()
    one_core = partial(torch.set_num_threads, 1)
    cpu = device.type == "cpu"
    threads = min(cores, AT_ONCE) if cpu and workers else workers
    try:
        if cpu:
            one_core()
            _keep_freed_memory()
        yield from pipeline(
            items, read, work, finish, threads=threads, at_once=cpu, initializer=one_core
        )
    finally:
        torch.set_num_threads(cores)  # threads that start later take the number set last


@cache
def _keep_freed_memory() -> None:
    """Let glibc keep the memory that tensors leave.

    What is given back to the system is fetched anew for the next tensor, page by page, and all
    threads wait for one lock meanwhile. Other C libraries stay as they are.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_THRESHOLD, 32 << 20)  # glibc takes no more
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
