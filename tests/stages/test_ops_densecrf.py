"""The fully connected CRF: the reference case, an exact evaluation, and its symmetries."""

from __future__ import annotations

from dataclasses import replace

import conformance
import numpy as np
import pytest
import torch
from closeness import FLOAT32, assert_close_in_norm
from hypothesis import given
from hypothesis import strategies as st
from other_device import OtherDevice
from torch import Tensor
from torch.nn import functional as F

from stages.ops import densecrf as module
from stages.ops import permutohedral
from stages.ops.densecrf import (
    DEEPLAB,
    PRESETS,
    SSNET,
    CrfSettings,
    bilateral_lattice,
    densecrf,
    densecrf_from_unary,
    gaussian_lattice,
)
from wsssbed_hub.utils.errors import HubError, UsageError

pytestmark = pytest.mark.numerical
INPUTS, OUTPUTS = conformance.load("densecrf")
SETTINGS = {"deeplab": DEEPLAB, "ssnet": SSNET}
# The case's, for another implementation than pydensecrf, of marginals up to 1: both are float32,
# and iterations amplify the rounding of single pixels. Measured: 1.5e-4; in norm 3e-6.
TOLERANCE = 1e-2


def case_probabilities(image: int) -> Tensor:
    if image == 0:
        return torch.from_numpy(INPUTS["prob0"])
    logits = torch.from_numpy(INPUTS[f"logits8_{image}"])[None]
    size = INPUTS[f"rgb{image}"].shape[:2]
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False).softmax(1)[0]


def some_images(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Two flat colours with a slanted edge and a little noise: uint8[count, H, W, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    side = (x + 0.5 * y > 0.6 * width)[None, ..., None]
    colours = np.where(side, [200, 90, 30], [60, 100, 160])
    return np.clip(colours + rng.normal(0, 8, (count, height, width, 3)), 0, 255).astype(np.uint8)


def some_probabilities(count: int, classes: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, classes, height, width, generator=generator).mul(2).softmax(1)


# The reference case


def of_name(name: str) -> tuple[int, CrfSettings]:
    """The image and the settings of an output of the case."""
    image, setting, *_ = name.split("_")
    return int(image[-1]), SETTINGS[setting]


def refined(name: str) -> Tensor:
    image, settings = of_name(name)
    if name.endswith("_iter1"):
        settings = replace(settings, iterations=1)
    return densecrf(case_probabilities(image), INPUTS[f"rgb{image}"], settings)


def outputs(first: str) -> list[str]:
    return sorted(name for name in OUTPUTS if name.startswith(first))


@pytest.mark.parametrize("name", outputs("Q"))
def test_marginals_of_the_reference_case(name: str) -> None:
    step = 1 if name.startswith("Q0") else 2
    marginals = refined(name)[:, ::step, ::step]
    assert (marginals - torch.from_numpy(OUTPUTS[name])).abs().max() < TOLERANCE
    assert_close_in_norm(marginals, OUTPUTS[name], FLOAT32, name)


@pytest.mark.parametrize("name", outputs("argmax"))
def test_labels_of_the_reference_case(name: str) -> None:
    different = refined(name).argmax(0).numpy() != OUTPUTS[name]
    assert different.mean() < 1e-3  # the case's


@pytest.mark.parametrize("name", outputs("filter0"))
def test_filters_of_the_reference_case(name: str) -> None:
    image, settings = of_name(name)
    rgb = torch.from_numpy(INPUTS[f"rgb{image}"])
    height, width, _ = rgb.shape
    if name.endswith("gaussian"):
        lattice = gaussian_lattice(settings, height, width, rgb.device)
    else:
        lattice = bilateral_lattice(settings, rgb[None])
    filtered = lattice.filter(case_probabilities(image).flatten(1).t().contiguous())
    filtered = filtered.t().view(-1, height, width)[:, ::2, ::2]
    # Splatting adds thousands of float32: 1e-5 is what the order of the additions may change.
    assert_close_in_norm(filtered, OUTPUTS[name], 1e-5, name)


def test_nothing_of_the_reference_case_is_forgotten() -> None:
    assert len(OUTPUTS) == len(outputs("Q") + outputs("argmax") + outputs("filter0")) == 18


# Evaluated with every pair of pixels


def exact_step(unary: np.ndarray, rgb: np.ndarray, settings: CrfSettings) -> np.ndarray:
    """One mean-field step with every pair of pixels, float64: the kernels as they are meant."""
    classes, height, width = unary.shape
    y, x = (axis.ravel() for axis in np.mgrid[:height, :width])
    places, colours = np.stack([x, y], 1), rgb.reshape(-1, 3).astype(float)

    def kernel(features: np.ndarray) -> np.ndarray:
        pairs = np.exp(-0.5 * ((features[:, None] - features[None]) ** 2).sum(-1))
        norm = 1 / np.sqrt(pairs.sum(1))
        return norm[:, None] * pairs * norm

    near = kernel(places / settings.gaussian_xy)
    alike = kernel(np.hstack([places / settings.bilateral_xy, colours / settings.bilateral_rgb]))
    energies = -unary.reshape(classes, -1).T
    q = np.exp(energies) / np.exp(energies).sum(1, keepdims=True)
    total = energies + settings.gaussian_weight * near @ q + settings.bilateral_weight * alike @ q
    total = np.exp(total - total.max(1, keepdims=True))
    return (total / total.sum(1, keepdims=True)).T.reshape(unary.shape)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_step_is_near_that_of_the_exact_kernels(setting: str) -> None:
    # A crop of a photograph. The lattice's kernel is wider than the Gaussian and not round; the
    # normalisation removes most of that. On whole images the reference case's README found a
    # mean difference of 0.006-0.008 and 1 % of the labels; in a small one margins weigh more.
    rgb = INPUTS["rgb1"][30:60, 40:80]
    probabilities = case_probabilities(1)[:, 30:60, 40:80]
    settings = replace(SETTINGS[setting], iterations=1)
    step = densecrf(probabilities, rgb, settings).numpy()
    exact = exact_step(-np.log(probabilities.double().numpy()), rgb, settings)
    assert np.abs(step - exact).mean() < 0.01
    assert (step.argmax(0) != exact.argmax(0)).mean() < 0.02
    without = replace(settings, bilateral_weight=0)  # the bound tells the terms apart
    assert np.abs(densecrf(probabilities, rgb, without).numpy() - exact).mean() > 0.02


# What follows from the equations


def test_a_single_pixel_rewards_its_own_label() -> None:
    # K of one pixel is a number, and n K n = 1: Q <- softmax(-U + (w_g + w_b) Q), by hand.
    p = torch.tensor([0.6, 0.3, 0.1])
    settings = CrfSettings(2, 3, 1.5, 80, 13, 2.5)
    expected = p
    for _ in range(2):
        expected = (p.log() + 4 * expected).softmax(0)
    marginals = densecrf(p.view(3, 1, 1), np.zeros((1, 1, 3), np.uint8), settings)
    assert_close_in_norm(marginals.flatten(), expected, FLOAT32)


def test_no_iterations_or_no_weights_leave_the_clipped_probabilities() -> None:
    image = some_images(1, 6, 7)[0]
    p = some_probabilities(1, 4, 6, 7)[0] * 0.5  # unnormalised
    p[1, 2] = 0.0
    clipped = p.clamp(1e-5, 1)
    expected = clipped / clipped.sum(0)
    for settings in (
        replace(SSNET, iterations=0),
        replace(SSNET, gaussian_weight=0, bilateral_weight=0),
    ):
        assert_close_in_norm(densecrf(p, image, settings), expected, FLOAT32)


def test_equal_probabilities_stay_equal() -> None:
    image = some_images(1, 20, 24)[0]
    marginals = densecrf(torch.full((5, 20, 24), 0.2), image, DEEPLAB)
    assert_close_in_norm(marginals, torch.full_like(marginals, 0.2), FLOAT32)


def test_in_a_flat_image_the_majority_wins() -> None:
    labels = torch.zeros(16, 16)
    labels[3, 4] = labels[12, 9] = 1
    probabilities = torch.stack([0.75 - 0.5 * labels, 0.25 + 0.5 * labels])
    marginals = densecrf(probabilities, np.full((16, 16, 3), 90, np.uint8), SSNET)
    assert (marginals[0] > 0.9).all()


def test_labels_follow_the_edge_of_the_image() -> None:
    image = some_images(1, 40, 48)[0]
    truth = torch.from_numpy(image[..., 0] > 130).float()
    logits = 1.5 * (2 * truth - 1) + torch.randn(40, 48, generator=torch.Generator().manual_seed(3))
    probabilities = torch.stack([-logits, logits]).softmax(0)
    wrong_before = (probabilities.argmax(0) != truth).float().mean()
    wrong_after = (densecrf(probabilities, image, SSNET).argmax(0) != truth).float().mean()
    assert wrong_before > 0.04
    assert wrong_after < 0.002
    blind = densecrf(probabilities, np.zeros_like(image), SSNET)  # it is the image that does it
    assert (blind.argmax(0) != truth).float().mean() > 0.01


@pytest.mark.parametrize("classes", [6, 21])  # two ways to compute the softmax
def test_permuted_labels_give_permuted_marginals(classes: int) -> None:
    image = some_images(1, 18, 22)[0]
    probabilities = some_probabilities(1, classes, 18, 22)[0]
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(1))
    permuted = densecrf(probabilities[order], image, SSNET)
    # Not the same bytes: the softmax sums the classes in another order.
    assert_close_in_norm(permuted, densecrf(probabilities, image, SSNET)[order], FLOAT32)


def test_probabilities_and_energies_agree() -> None:
    image = some_images(1, 10, 12)[0]
    probabilities = some_probabilities(1, 3, 10, 12)[0]
    energies = -probabilities.clamp(1e-5, 1).log()
    from_energies = densecrf_from_unary(energies + 7.0, image, SSNET)  # a constant is nothing
    assert_close_in_norm(from_energies, densecrf(probabilities, image, SSNET), FLOAT32)


SOME_SETTINGS = st.builds(
    CrfSettings,
    iterations=st.integers(0, 4),
    gaussian_xy=st.floats(0.5, 20),
    gaussian_weight=st.sampled_from([0.0, 0.5, 3.0]),
    bilateral_xy=st.floats(1, 90),
    bilateral_rgb=st.floats(1, 60),
    bilateral_weight=st.sampled_from([0.0, 0.5, 4.0]),
)


@given(SOME_SETTINGS, st.integers(1, 23), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_energies_count_by_their_differences_and_marginals_sum_to_one(
    settings: CrfSettings, classes: int, height: int, width: int, seed: int
) -> None:
    """A constant at a pixel, another one at each, changes no marginal."""
    image = some_images(1, height, width, seed)[0]
    chance = torch.Generator().manual_seed(seed)
    energies = 3 * torch.randn(classes, height, width, generator=chance)
    constants = 3 * torch.randn(1, height, width, generator=chance)
    marginals = densecrf_from_unary(energies, image, settings)
    assert_close_in_norm(marginals.sum(0), torch.ones(height, width), FLOAT32)
    assert marginals.min() >= 0
    moved = densecrf_from_unary(energies + constants, image, settings)
    assert_close_in_norm(moved, marginals, FLOAT32)


# Batches, bytes, devices


@pytest.mark.parametrize("together", [1, 3])
def test_a_batch_equals_its_images_one_by_one(
    together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, probabilities = some_images(3, 21, 17), some_probabilities(3, 4, 21, 17)
    images[2] = 255 - images[0]
    single = [densecrf(p, rgb, DEEPLAB) for p, rgb in zip(probabilities, images, strict=True)]
    # As on a GPU: all images in one lattice, in groups.
    monkeypatch.setattr(module, "_images_at_once", lambda batch, device: together)
    assert torch.equal(densecrf(probabilities, images, DEEPLAB), torch.stack(single))


@pytest.mark.parametrize("image", [0, 2])  # of 3 and 21 classes: two ways to compute the softmax
def test_same_input_same_bytes_whatever_the_threads(image: int) -> None:
    settings = replace(DEEPLAB, iterations=2)
    arguments = case_probabilities(image), INPUTS[f"rgb{image}"], settings
    first = densecrf(*arguments)
    torch.set_num_threads(2)
    try:
        with_two = densecrf(*arguments)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(first, densecrf(*arguments))
    assert torch.equal(first, with_two)


def test_arrays_tensors_views_and_precisions_are_taken() -> None:
    images = some_images(2, 9, 11)
    probabilities = some_probabilities(2, 3, 9, 11)
    expected = densecrf(probabilities, images, SSNET)
    frozen = images.copy()
    frozen.setflags(write=False)
    mirrored = np.ascontiguousarray(images[:, :, ::-1])[:, :, ::-1]
    for same in (frozen, mirrored, torch.from_numpy(images)):
        assert torch.equal(densecrf(probabilities, same, SSNET), expected)
    strided = probabilities.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)
    assert torch.equal(densecrf(strided, images, SSNET), expected)
    assert densecrf(probabilities.double(), images, SSNET).dtype == torch.float32
    tracked = densecrf(probabilities.clone().requires_grad_(), images, SSNET)
    assert not tracked.requires_grad
    with torch.inference_mode():
        assert torch.equal(densecrf(probabilities, images, SSNET), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(densecrf(probabilities, images, SSNET), expected)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_device_that_rounds_otherwise_gives_almost_the_same(
    setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise over a smooth image, and ten iterations: nothing amplifies the last bit more.

    3e-3 (at 375x500 8e-2) while each device rounded its own way to the lattice; what is left is
    the order of sums.
    """
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 3, 12, 16, generator=generator) * 40 + 120
    noise = torch.randn(150, 200, 3, generator=generator) * 12
    smooth = F.interpolate(coarse, (150, 200), mode="bicubic")[0].permute(1, 2, 0)
    image = (smooth + noise).clamp(0, 255).to(torch.uint8)
    probabilities = torch.randn(21, 150, 200, generator=generator).softmax(0)
    here = densecrf(probabilities, image, SETTINGS[setting])
    module._gaussian_term.cache_clear()
    monkeypatch.setattr(permutohedral, "_longest_row", lambda device: 32)
    with OtherDevice():
        there = densecrf(probabilities, image, SETTINGS[setting])
    module._gaussian_term.cache_clear()
    assert 0 < (here - there).abs().max() < 1e-3
    assert torch.equal(here.argmax(0), there.argmax(0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_cpu_and_repeats_itself() -> None:
    probabilities = case_probabilities(2)[None].repeat(2, 1, 1, 1)
    images = np.stack([INPUTS["rgb2"], 255 - INPUTS["rgb2"]])
    expected = densecrf(probabilities, images, DEEPLAB)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        once, again = (densecrf(probabilities.cuda(), images, DEEPLAB) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(before)
    assert once.is_cuda
    assert torch.equal(once, again)
    assert_close_in_norm(once, expected, FLOAT32)


# Settings and mistakes


def test_presets_are_the_published_numbers() -> None:
    # From the reference cases' READMEs: seg-deeplabv2, ssnet-pseudo, sod-deepusps,
    # cam-edam-inference, sod-dss.
    published = {
        "deeplab": CrfSettings(10, 1, 3, 67, 3, 4),
        "ssnet": CrfSettings(5, 3, 3, 80, 13, 10),
        "deepusps": CrfSettings(5, 3, 3, 80, 13, 10),
        "edam": CrfSettings(3, 3, 3, 80, 13, 10),
        "dss": CrfSettings(1, 3, 3, 60, 5, 5),
    }
    assert published == PRESETS


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gaussian_xy", 0),
        ("bilateral_xy", float("nan")),
        ("bilateral_rgb", -1),
        ("gaussian_weight", -0.5),
        ("bilateral_weight", float("inf")),
        ("iterations", -1),
        ("iterations", 2.5),
    ],
)
def test_impossible_settings_are_refused(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=name):
        replace(SSNET, **{name: value})


GOOD_IMAGE = np.zeros((6, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("probabilities", "image", "message"),
    [
        (torch.full((2, 6, 8), 1.5), GOOD_IMAGE, "within 0..1, found 1.5"),
        (torch.full((2, 6, 8), -0.5), GOOD_IMAGE, "within 0..1"),
        (torch.full((2, 6, 8), float("nan")), GOOD_IMAGE, "finite"),
        (torch.ones(2, 6, 8, dtype=torch.int64), GOOD_IMAGE, "floating-point"),
        (np.ones((2, 6, 8), np.float32), GOOD_IMAGE, "floating-point Tensor, not ndarray"),
        (torch.ones(6, 8), GOOD_IMAGE, r"\[C, H, W\]"),
        (torch.ones(0, 6, 8), GOOD_IMAGE, "not empty"),
        (torch.ones(2, 8, 6), GOOD_IMAGE, r"shape \[8, 6, 3\], not uint8 and \[6, 8, 3\]"),
        (torch.ones(2, 6, 8), GOOD_IMAGE.astype(np.float32), "not float32"),
        (torch.ones(2, 6, 8), GOOD_IMAGE[..., 0], r"not uint8 and \[6, 8\]"),
        (torch.ones(2, 2, 6, 8), GOOD_IMAGE, r"shape \[2, 6, 8, 3\]"),
        (torch.ones(2, 6, 8), GOOD_IMAGE.tolist(), "not list"),
    ],
)
def test_unfit_input_is_refused(
    probabilities: Tensor, image: np.ndarray | Tensor, message: str
) -> None:
    with pytest.raises(HubError, match=message):
        densecrf(probabilities, image, SSNET)


def test_infinite_energies_are_refused() -> None:
    with pytest.raises(HubError, match="unary energies must be finite"):
        densecrf_from_unary(torch.full((2, 6, 8), float("inf")), GOOD_IMAGE, SSNET)
