"""Maps a second, and the CRF beside the bytes that it must move."""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as Picture
from torch import nn
from torch.nn import functional as F

from benchmarks.pictures import Pictures, photograph
from stages.ops.densecrf import (
    DEEPLAB,
    CrfSettings,
    bilateral_lattice,
    densecrf,
    gaussian_lattice,
)
from stages.ops.permutohedral import Lattice
from stages.runtime.inference import through_network
from stages.runtime.method import Image
from wsssbed_hub.artifacts.shard_writer import write_parts


def maps_written(method: Any, network: nn.Module, data: Pictures, threads: int) -> float:
    """Images a second, as a stage writes saliency maps: read ahead, PNGs encoded behind."""
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        method.saliency(network, Image("warm", data.read_image(data.image_ids[0])))
        device = next(network.parameters()).device
        began = time.perf_counter()
        write_parts(
            Path(folder) / "maps",
            "sal",
            data.image_ids,
            torch.inference_mode()(partial(method.saliency, network)),
            settings={},
            read=lambda image_id: Image(image_id, data.read_image(image_id)),
            pipe=partial(through_network, device=device, workers=threads),
        )
        return len(data.image_ids) / (time.perf_counter() - began)


def maps_in_a_loop(method: Any, network: nn.Module, data: Pictures) -> float:
    """Images a second of the published programs' loop: read, predict, save, one after the other."""
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        method.saliency(network, Image("warm", data.read_image(data.image_ids[0])))
        began = time.perf_counter()
        for image_id in data.image_ids:
            saliency = method.saliency(network, Image(image_id, data.read_image(image_id)))
            Picture.fromarray(saliency).save(Path(folder) / f"{image_id}.png")
        return len(data.image_ids) / (time.perf_counter() - began)


def crf(
    device: torch.device, height: int, width: int, classes: int, repeats: int
) -> dict[str, float]:
    """One image of a photograph's kind: milliseconds, memory beside the input, bytes, bandwidth."""
    rgb = torch.from_numpy(photograph(height, width, np.random.default_rng(0))).to(device)
    chance = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, classes, height // 8, width // 8, generator=chance)
    probabilities = F.interpolate(coarse, (height, width), mode="bilinear")[0].softmax(0).to(device)
    densecrf(probabilities, rgb, DEEPLAB)
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
    began = time.perf_counter()
    for _ in range(repeats):
        densecrf(probabilities, rgb, DEEPLAB)
    if cuda:
        torch.cuda.synchronize(device)
    seconds = (time.perf_counter() - began) / repeats
    moved = DEEPLAB.iterations * iteration_bytes(DEEPLAB, rgb, classes)
    rate = bandwidth(device)
    found = {
        "ms": 1e3 * seconds,
        "GB that must move": moved / 1e9,
        "GB/s of a copy": rate / 1e9,
        "times the bound": seconds / (moved / rate),
    }
    if cuda:
        found["MiB beside the input"] = (torch.cuda.max_memory_allocated(device) - held) / 2**20
    return found


def iteration_bytes(settings: CrfSettings, rgb: torch.Tensor, classes: int) -> int:
    """Bytes that an iteration moves, if every array is read and written once an operation.

    Per lattice: splat (marginals in, vertices out), one blur per axis (vertices in and out), slice
    (vertices in, pixels out), each with its table; then sums and softmax over the pixels.
    """
    height, width, _ = rgb.shape
    lattices = (
        gaussian_lattice(settings, height, width, rgb.device),
        bilateral_lattice(settings, rgb[None]),
    )
    pixels = height * width * classes * 4
    # Unaries and both filtered maps in, the total out, and the softmax in and out.
    return 6 * pixels + sum(_lattice_bytes(lattice, pixels, classes) for lattice in lattices)


def _lattice_bytes(lattice: Lattice, pixels: int, classes: int) -> int:
    vertices = (len(lattice.blur[0].offsets) - 1) * classes * 4
    neighbours = 2 * 4 * (len(lattice.blur[0].offsets) - 1)  # two numbers a vertex and axis
    entries = 2 * 8 * lattice.slicing.columns.numel()  # number and weight, splat and slice
    axes = len(lattice.blur)
    return 2 * pixels + 2 * vertices + entries + axes * (2 * vertices + neighbours)


def bandwidth(device: torch.device) -> float:
    """Bytes a second that a copy of a large array reads and writes here."""
    source = torch.zeros(2**28 if device.type == "cuda" else 2**24, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(5):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * source.nbytes / best
