"""Fully connected CRF over the pixels of an image, solved by mean field.

Paper: Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials", NIPS 2011, arXiv 1210.5644. The energy of a labelling x is

    E(x) = sum_i U_i(x_i) + sum_{i<j} [x_i != x_j] (w_g k_g(i, j) + w_b k_b(i, j))

with a Gaussian kernel k_g of the pixels' places and a bilateral one k_b of places and colours,
each normalised symmetrically: k(i, j) = K(i, j) / sqrt(sum_l K(i, l) sum_l K(l, j)), which is what
pydensecrf does unless told otherwise (the paper does not say). Mean field (Algorithm 1 there):

    Q <- softmax(-U);  repeat:  Q <- softmax(-U + w_g k_g Q + w_b k_b Q)

over all pixels at once, without damping. Kernels are evaluated on the permutohedral lattice
(``stages.ops.permutohedral``), a pixel's own term included as in the published code; the
paper's sum leaves it out. Potts compatibility rewards the own label, which after the softmax is
the same as punishing the others.

    from stages.ops.densecrf import DEEPLAB, densecrf
    marginals = densecrf(logits.softmax(0), rgb, DEEPLAB)      # [C, H, W]; .argmax(0) is the label

``docs/densecrf.md`` has the measured accuracy and speed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stages.ops.permutohedral import Lattice, build_lattice
from wsssbed_hub.utils.errors import HubError, UsageError


@dataclass(frozen=True)
class CrfSettings:
    """Parameters of a method's CRF, as published. A weight of 0 leaves the term out."""

    iterations: int  # of mean field; 0 gives softmax(-U)
    gaussian_xy: float  # standard deviation of the Gaussian term, pixels
    gaussian_weight: float
    bilateral_xy: float  # standard deviation of the bilateral term, pixels
    bilateral_rgb: float  # and in colour, of 0..255
    bilateral_weight: float

    def __post_init__(self) -> None:
        for name in ("gaussian_xy", "bilateral_xy", "bilateral_rgb"):
            deviation = getattr(self, name)
            if not (deviation > 0 and math.isfinite(deviation)):
                raise UsageError(f"CRF setting {name} must be positive and finite, not {deviation}")
        for name in ("gaussian_weight", "bilateral_weight"):
            weight = getattr(self, name)
            if not (weight >= 0 and math.isfinite(weight)):
                raise UsageError(f"CRF setting {name} must be 0 or more and finite, not {weight}")
        if not isinstance(self.iterations, int) or self.iterations < 0:
            raise UsageError(
                f"CRF setting iterations must be a whole number, 0 or more, not {self.iterations}"
            )


# DeepLab-V2 on VOC: kazuto1011/deeplab-pytorch, configs/voc12.yaml, at the image's size.
DEEPLAB = CrfSettings(10, 1, 3, 67, 3, 4)
# SSNet's pseudo labels: zengxianyu/jsws, syn_stage1.py (the paper has no settings), at 256 x 256.
SSNET = CrfSettings(5, 3, 3, 80, 13, 10)
# DeepUSPS, rounds of training and test: its Par_CRF.apply_dcrf_single; the same numbers.
DEEPUSPS = SSNET
# EDAM's fused maps: allenwu97/EDAM, infer_cls.py. The crf functions of EPS, L2G, OAA, MCIS and DRS
# have these weights too; their factor t divides the deviations of places.
EDAM = CrfSettings(3, 3, 3, 80, 13, 10)
# DSS: Andrew-Qibin/dss_crf (the paper's text gives other weights). Two labels, and a unary of its
# own, so to be used with ``densecrf_from_unary``.
DSS = CrfSettings(1, 3, 3, 60, 5, 5)

PRESETS = {
    "deeplab": DEEPLAB,
    "ssnet": SSNET,
    "deepusps": DEEPUSPS,
    "edam": EDAM,
    "dss": DSS,
}

SMALLEST = 1e-5  # probabilities below it count as this much, in all published programs


@torch.no_grad()
def densecrf(probabilities: Tensor, image: Tensor | np.ndarray, settings: CrfSettings) -> Tensor:
    """Refine class probabilities so that labels follow the image.

    ``probabilities``: floating point [C, H, W] or [B, C, H, W], each in 0..1. They need not sum to
    one over the classes (a factor per pixel changes nothing); 0 is allowed and counts as 1e-5.
    ``image``: uint8 RGB [H, W, 3], for a batch [B, H, W, 3]; Tensor or array, on any device. The
    lattice treats the three colours slightly differently, so BGR gives slightly other results.

    Returns the mean-field marginals, float32, shape and device of ``probabilities``, each in 0..1
    with sum 1 over the classes. No gradient flows through. Same input, same bytes; the images of
    a batch do not influence each other. Raises HubError for shapes, types, sizes or values that do
    not fit.
    """
    least, most = _finite_range(probabilities, "probabilities")
    if least < -1e-4 or most > 1 + 1e-4:  # the slack is for rounding
        raise HubError(
            f"probabilities for the CRF must be within 0..1, found {least:.4g}..{most:.4g}; "
            "pass the softmax of logits, or energies to densecrf_from_unary"
        )
    return _refine(probabilities.float().clamp(SMALLEST, 1).log(), image, settings)


@torch.no_grad()
def densecrf_from_unary(unary: Tensor, image: Tensor | np.ndarray, settings: CrfSettings) -> Tensor:
    """The same with the unary energies U given: floating point, finite, low for likely labels.

    ``densecrf`` is this with U = -log(clip(p, 1e-5, 1)). Shapes, result and errors as there.
    """
    _finite_range(unary, "unary energies")
    return _refine(-unary.float(), image, settings)


def _refine(maps: Tensor, image: Tensor | np.ndarray, settings: CrfSettings) -> Tensor:
    """Marginals from -U, float32 [C, H, W] or [B, C, H, W]."""
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(np.array(image, order="C"))  # read-only and mirrored ones too
    if not isinstance(image, Tensor):
        raise HubError(f"the CRF's image must be a Tensor or an array, not {type(image).__name__}")
    image = image.to(maps.device)
    logits, images = (maps, image) if maps.dim() == 4 else (maps[None], image[None])
    batch, _, height, width = logits.shape
    if images.dtype != torch.uint8 or tuple(images.shape) != (batch, height, width, 3):
        wanted = [*maps.shape[:-3], height, width, 3]
        raise HubError(
            f"for maps of shape {list(maps.shape)} the CRF needs an image of type uint8 and shape "
            f"{wanted}, not {str(image.dtype).removeprefix('torch.')} and {list(image.shape)}"
        )
    together = _images_at_once(batch, maps.device)
    fixed = []
    if settings.gaussian_weight:
        fixed.append(_gaussian_term(settings, height, width, maps.device, together))
    results = []
    for start in range(0, batch, together):
        part = slice(start, start + together)
        terms = list(fixed)
        if settings.bilateral_weight:
            lattice = bilateral_lattice(settings, images[part])
            terms.append(_normalised(lattice, settings.bilateral_weight))
        rows = logits[part].permute(0, 2, 3, 1).reshape(together * height * width, -1).contiguous()
        marginals = _mean_field(rows, terms, settings.iterations)
        results.append(marginals.view(together, height, width, -1).permute(0, 3, 1, 2))
    return torch.cat(results).reshape(maps.shape).contiguous()


def _images_at_once(batch: int, device: torch.device) -> int:
    """One image at a time fits a processor's caches; a GPU wants all the work there is."""
    return 1 if device.type == "cpu" else batch


def _mean_field(logits: Tensor, terms: Sequence[Lattice], iterations: int) -> Tensor:
    """Marginals [P, C] from -U [P, C]; the terms' filters are normalised and weighted."""
    marginals = _softmax(logits)
    for _ in range(iterations):
        total = logits
        for term in terms:
            total = total + term.filter(marginals)
        marginals = _softmax(total)
    return marginals


def _softmax(rows: Tensor) -> Tensor:
    """Over the columns of [P, C], contiguous.

    On a CPU torch's own takes several times as long for rows shorter than a vector; over the
    first dimension of the transpose its last bits depend on how threads share the work.
    """
    if rows.shape[1] >= 16 or rows.device.type != "cpu":
        return rows.softmax(1)
    columns = rows.t().contiguous()
    columns = (columns - columns.amax(0)).exp_()
    total = columns[0].clone()
    for column in columns[1:]:
        total += column
    return columns.div_(total).t().contiguous()


def gaussian_lattice(
    settings: CrfSettings, height: int, width: int, device: torch.device, batch: int = 1
) -> Lattice:
    """The filter of the Gaussian term, K_g(v), over the pixels of ``batch`` images, row by row."""
    places = _places(height, width, settings.gaussian_xy, device)
    return build_lattice(places.repeat(1, batch), batch)


@functools.lru_cache(maxsize=2)  # images lying and standing; some 20 MB each at 375x500
def _gaussian_term(
    settings: CrfSettings, height: int, width: int, device: torch.device, batch: int
) -> Lattice:
    lattice = gaussian_lattice(settings, height, width, device, batch)
    return _normalised(lattice, settings.gaussian_weight)


def bilateral_lattice(settings: CrfSettings, images: Tensor) -> Lattice:
    """The filter of the bilateral term, K_b(v), for uint8[B, H, W, 3] RGB."""
    batch, height, width, _ = images.shape
    places = _places(height, width, settings.bilateral_xy, images.device)
    colours = _divided(images.reshape(-1, 3).t().float(), settings.bilateral_rgb)
    return build_lattice(torch.cat([places.repeat(1, batch), colours]), batch)


def _places(height: int, width: int, deviation: float, device: torch.device) -> Tensor:
    """float32[2, H * W]: x and y of the pixels, row by row, in deviations."""
    y, x = (
        _divided(torch.arange(side, dtype=torch.float32, device=device), deviation)
        for side in (height, width)
    )
    return torch.stack([x.repeat(height), y.repeat_interleave(width)])


def _divided(values: Tensor, by: float) -> Tensor:
    """Rounded correctly on every device; by a Python number CUDA multiplies by the reciprocal."""
    return values / values.new_tensor(by)


def _normalised(lattice: Lattice, weight: float) -> Lattice:
    """v -> weight * n * K(n * v) with n = 1 / sqrt(K(1))."""
    points = lattice.slicing.offsets.numel() - 1
    ones = torch.ones(points, 1, device=lattice.slicing.weights.device)
    factors = (lattice.filter(ones)[:, 0] + 1e-20).rsqrt()
    return lattice.scaled(factors, factors * weight)


def _finite_range(values: Tensor, what: str) -> tuple[float, float]:
    if not isinstance(values, Tensor) or not values.is_floating_point():
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise HubError(f"the CRF's {what} must be a floating-point Tensor, not {kind}")
    if values.dim() not in (3, 4) or not values.numel():
        raise HubError(
            f"the CRF's {what} must be [C, H, W] or [B, C, H, W] and not empty, "
            f"not {list(values.shape)}"
        )
    least, most = (bound.item() for bound in values.detach().aminmax())
    if not (math.isfinite(least) and math.isfinite(most)):
        raise HubError(f"the CRF's {what} must be finite: there is NaN or infinity in them")
    return least, most
