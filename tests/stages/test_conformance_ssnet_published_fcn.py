"""The parts of SSNet against the published code's first network (case ssnet-published-fcn).

That network is not the paper's SSNet-1: its features have stride 16, it adds logits of three
depths, and its saliency convolution is 16 x 16. It is put together here from this project's parts
where they are the same, so that every output of the case tests some of them:

- ``feature_stride8``: the backbone of the paper as it is; the networks part only after it.
- ``feature_stride16``, ``feature``: the same layers with one pooling less taken out
  (``drop_pooling``), which tests the dilation.
- ``seg_stride16``: SSNet-1's head, a 1x1 convolution.
- ``seg``, ``seg_corner``, ``probability``, ``background``, ``label``: the deconvolution by 8, on
  logits that the test adds up as the published network does.
- ``sal_logit``, ``sal``, ``saliency``: the aggregation module, with a kernel of 16; the score of
  the background (channel 0) is left out, as nothing uses it.

The tolerance is the case's: 1e-4 relative, labels equal.
"""

from __future__ import annotations

from collections.abc import Mapping

import conformance
import numpy as np
import pytest
import torch
from closeness import FLOAT32, assert_close_in_norm
from references import checkpoint, compared, outputs_of
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import densenet169

from stages.backbones.dilated import Dilated, drop_pooling
from stages.backbones.state import load_strictly
from stages.ops.images import imagenet_rgb
from stages.ssnet.ssnet import SaliencyAggregation, SSNet1Head, Upsampling, aggregated

pytestmark = pytest.mark.numerical
CASE = "ssnet-published-fcn"
INPUTS, OUTPUTS = conformance.load(CASE)
IMAGE = torch.from_numpy(imagenet_rgb(INPUTS["image"][0]))[None]
SAMPLED = (..., slice(3, None, 8), slice(5, None, 8))
LEFT_OUT = {"feature_stride8": "below, of the whole backbone", "label": "below, equal"}


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return checkpoint(CASE)


def below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def loaded(module: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    load_strictly(module, state, "The case")
    return module.eval()


@pytest.fixture(scope="module")
def found(state: dict[str, Tensor]) -> dict[str, Tensor]:
    features = densenet169(weights=None).features
    drop_pooling(features, (3,))
    loaded(features, below("feature.features.", state))
    head = loaded(SSNet1Head(1664, 20), conv("pred_seg.0.", state))
    side = SaliencyAggregation(1664, 20, 16)
    loaded(side, {k: v[1:] for k, v in conv("pred_sal.", state).items()})
    upsampling = loaded(Upsampling(21), below("upsample.2.", state))
    inside = {
        "stride8": features.transition2.conv,
        "stride16": features.transition3.conv,
        "sal_logit": side.conv,
    }
    with torch.inference_mode(), outputs_of(inside) as between:
        feature = features(IMAGE)
        coarse = head(feature)
        both = coarse + F.conv2d(between["stride16"], *convolution("pred_seg.1.", state))
        fine = F.conv_transpose2d(both, *convolution("upsample.1.", state), stride=2, padding=1)
        logits = upsampling(fine + F.conv2d(between["stride8"], *convolution("pred_seg.2.", state)))
        scores = side(feature)
        probability = logits.softmax(1)
        return {
            "feature_stride16": between["stride16"][:, ::16],
            "feature": feature[:, ::16],
            "seg_stride16": coarse,
            "seg": logits[SAMPLED],
            "seg_corner": logits[..., :8, :8],
            "probability": probability[SAMPLED],
            "background": probability[:, 0][SAMPLED],
            "sal_logit": between["sal_logit"].flatten(1),
            "sal": scores,
            "saliency": aggregated(scores, probability)[SAMPLED],
            "label": logits.argmax(1)[:, ::4, ::4],
        }


def conv(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"conv.{k}": v for k, v in below(prefix, state).items()}


def convolution(prefix: str, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    return state[f"{prefix}weight"], state[f"{prefix}bias"]


@pytest.mark.parametrize("name", compared(OUTPUTS, LEFT_OUT))
def test_the_parts_put_together_as_published(found: dict[str, Tensor], name: str) -> None:
    expected = OUTPUTS[name]
    if name in ("sal_logit", "sal"):
        expected = expected[:, 1:]
    assert_close_in_norm(found[name], expected, FLOAT32, name)


def test_the_class_of_every_pixel(found: dict[str, Tensor]) -> None:
    np.testing.assert_array_equal(found["label"].numpy(), OUTPUTS["label"])


def test_the_backbone_of_the_paper_up_to_where_they_part(state: dict[str, Tensor]) -> None:
    backbone = Dilated("densenet169").eval()
    backbone.load_initial(below("feature.", state), "The case")
    second = backbone.features.get_submodule("transition2.conv")
    with torch.inference_mode(), outputs_of({"stride8": second}) as inside:
        feature = backbone(IMAGE)
    assert_close_in_norm(inside["stride8"][:, ::16], OUTPUTS["feature_stride8"], FLOAT32)
    assert feature.shape == (1, 1664, 32, 32)
