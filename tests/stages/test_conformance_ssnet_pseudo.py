"""SSNet's pseudo labels against the case ssnet-pseudo, by the paper's rule.

The network's part is played by one that gives the case's probabilities; the images of the case are
smaller than a network's input, and taken as they are. The tolerances are the case's for another CRF
than its own: labels at 99.5 % of the pixels, marginals to 1e-2.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import conformance
import numpy as np
import pytest
import torch
from references import compared
from ssnets import Fixed
from torch import Tensor

from stages.ops.densecrf import PRESETS
from stages.ops.images import resize_nearest
from stages.runtime.method import Image
from stages.ssnet.ssnet import RECIPES, SETTINGS, Method, masked, pseudo_scores

pytestmark = pytest.mark.numerical
INPUTS, OUTPUTS = conformance.load("ssnet-pseudo")
IMAGES = ("img0", "img1", "img2")
OTHER_RULE = "the published rule masks logits, which this project does not; see the last test"
LEFT_OUT = {name: OTHER_RULE for name in OUTPUTS if ".published." in name}


class AsTheyAre(Method):
    """Takes images at their own size."""

    def _input(self, rgb: np.ndarray) -> np.ndarray:
        return rgb


METHOD = AsTheyAre(RECIPES["published"], Path(), 20, SETTINGS["M"])
CRF = PRESETS[METHOD.recipe.crf]


def of_case(image: str) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Probabilities, the picture, the classes that it has."""
    probability = torch.from_numpy(INPUTS[f"{image}.seg_logits"]).softmax(0)
    classes = np.flatnonzero(INPUTS[f"{image}.class_labels"])
    return probability, INPUTS[f"{image}.image"], classes


@pytest.mark.parametrize("image", IMAGES)
def test_the_masking_by_the_labels_of_the_image(image: str) -> None:
    probability, _, classes = of_case(image)
    found = masked(probability, classes)[:, ::4, ::4].numpy()
    assert np.abs(found - OUTPUTS[f"{image}.paper.masked"]).max() < 1e-5  # the case's, of 1


@pytest.mark.parametrize("image", IMAGES)
def test_the_label_without_crf(image: str) -> None:
    """Equal: the two most probable classes of a pixel are 4e-4 of themselves apart or more."""
    found = pseudo_scores(*of_case(image), replace(CRF, iterations=0)).argmax(0)
    np.testing.assert_array_equal(found, OUTPUTS[f"{image}.paper.label_no_crf"])


@pytest.mark.parametrize("image", IMAGES)
def test_the_label_after_the_crf(image: str) -> None:
    probability, rgb, classes = of_case(image)
    found = METHOD.pseudo_label(Fixed(probability), Image(image, rgb, classes))  # type: ignore[arg-type]
    assert (found == OUTPUTS[f"{image}.paper.label"]).mean() >= 0.995


def test_the_marginals_of_the_crf() -> None:
    found = pseudo_scores(*of_case("img0"), CRF)[:, ::2, ::2].numpy()
    assert np.abs(found - OUTPUTS["img0.paper.q"]).max() < 1e-2


@pytest.mark.parametrize("image", IMAGES)
def test_the_label_is_brought_to_the_size_of_the_image(image: str) -> None:
    expected = OUTPUTS[f"{image}.label_resized_nearest"]
    found = resize_nearest(OUTPUTS[f"{image}.paper.label"], *expected.shape)
    np.testing.assert_array_equal(found, expected)


def test_the_published_rule_is_another_one() -> None:
    probability, _, classes = of_case("img2")
    published = OUTPUTS["img2.published.label_no_crf"]
    absent = ~np.isin(published, [0, *(classes + 1)])
    assert absent.mean() > 0.7
    assert np.isin(masked(probability, classes).argmax(0), [0, *(classes + 1)]).all()


def test_nothing_of_the_case_is_forgotten() -> None:
    kinds = {name.split(".", 1)[1] for name in compared(OUTPUTS, LEFT_OUT)}
    of_paper = {f"paper.{name}" for name in ("masked", "label_no_crf", "label", "q")}
    assert kinds == of_paper | {"label_resized_nearest"}
