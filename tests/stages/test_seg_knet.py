"""What the reference cases do not show; the cases themselves: test_conformance_seg_knet.py."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import conformance
import numpy as np
import pytest
import torch
from closeness import FLOAT32, FLOAT64, assert_close_in_norm
from torch import Tensor

from stages.ops.images import imagenet_rgb
from stages.runtime.method import Image, Phase
from stages.seg._upernet import UPerNet
from stages.seg.knet import RECIPES, KNet, Method, Update
from wsssbed_hub.utils.errors import HubError, UsageError

SMALL = replace(RECIPES["shapes"], width=8, updator_width=4, heads=2, hidden=8)
DATA: Any = SimpleNamespace(image_ids=range(10_582))


def phase_of(method: Method, network: KNet) -> Phase:
    (phase,) = method.phases(network, DATA)
    return phase


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Of MMSegmentation's checkpoint with Swin-T."""
    entries = json.loads((conformance.HERE / "seg-knet-tiny" / "state.json").read_text())
    return {entry[0]: tuple(entry[1]) for entry in entries}


def decay_of_published_names() -> dict[str, float]:
    """The weight decay of each parameter, under its name in the published checkpoint.

    Each tensor of the checkpoint that is loaded holds its own number.
    """
    method = Method(replace(RECIPES["published"], backbone="swin-t"), Path(), 20)
    network = method.build()
    shapes = published_shapes()
    names = list(shapes)
    state = {name: torch.full(shapes[name], float(n)) for n, name in enumerate(names)}
    network.load_published(state)
    groups = phase_of(method, network).optimizer().param_groups  # type: ignore[union-attr]
    return {
        names[int(parameter.flatten()[0])]: group["weight_decay"]
        for group in groups
        for parameter in group["params"]
    }


def test_what_is_decayed_follows_the_published_names() -> None:
    found = decay_of_published_names()
    trained = [
        name
        for name in published_shapes()
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    ]
    assert sorted(found) == sorted(trained)
    for name, decay in found.items():
        free = "norm" in name or "relative_position_bias_table" in name
        assert decay == (0 if free else 5e-4), name
    assert found["decode_head.kernel_update_head.1.mask_fcs.1.weight"] == 5e-4
    assert found["decode_head.kernel_generate_head.bottleneck.bn.bias"] == 5e-4


def test_the_published_training() -> None:
    method = Method(SMALL, Path(), 3)
    network = method.build()
    published = Method(RECIPES["published"], Path(), 3)
    phase = phase_of(published, network)
    groups = phase.optimizer().param_groups  # type: ignore[union-attr]
    assert {(group["lr"], group["betas"]) for group in groups} == {(6e-5, (0.9, 0.999))}
    assert (phase.steps, phase.clip_norm, phase.accumulate) == (80_000, 1.0, 1)
    assert phase.sources["crops"].batch_size == 16  # type: ignore[index]


@pytest.mark.parametrize(
    ("name", "factors"),
    [
        # MMEngine counts the milestones 60,000 and 72,000 from the end of the warm-up.
        (
            "published",
            {0: 0.001, 999: 1, 1_000: 1, 60_999: 1, 61_000: 0.1, 72_999: 0.1, 73_000: 0.01},
        ),
        # MMCV: 1 - (1 - n / 1000) * (1 - 0.001), and milestones from the first iteration.
        ("authors", {0: 0.001, 999: 0.999001, 1_000: 1, 59_999: 1, 60_000: 0.1, 72_000: 0.01}),
    ],
)
def test_the_rate(name: str, factors: dict[int, float]) -> None:
    method = Method(RECIPES[name], Path(), 3)
    phase = phase_of(method, Method(SMALL, Path(), 3).build())
    found = {step: phase.schedule(step) for step in factors}
    assert found == pytest.approx(factors, rel=1e-9)


def test_recipes_by_name() -> None:
    widths = {name: (recipe.width, recipe.updator_width) for name, recipe in RECIPES.items()}
    assert widths["published"] == widths["published-640"] == (512, 256)
    assert widths["authors"] == widths["authors-640"] == (256, 256)
    for name in ("published-640", "authors-640"):
        recipe = RECIPES[name]
        assert (recipe.crop, recipe.scale, recipe.test_scale) == (640, (2048, 640), (2048, 640))
        assert recipe.drop_path == 0.4
    assert RECIPES["published"].drop_path == 0.3


def test_drop_path_of_the_recipe_is_that_of_the_backbone() -> None:
    network = Method(replace(SMALL, drop_path=0.5), Path(), 3).build()
    drops = [block.drop for stage in network.backbone.stages for block in stage.blocks]
    assert (drops[0], drops[-1]) == (0, 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "swin_l"}, r"backbone=swin_l.*Did you mean 'swin-l'"),
        ({"width": 300}, r"width=300 is no multiple of updator_width=256"),
        ({"accumulate": 9}, r"batch_size=16, accumulate=9: a pass needs two images"),
        ({"width": 12, "updator_width": 4}, r"width=12 is no multiple of heads=8"),
    ],
)
def test_recipes_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(RECIPES["published"], **changes)


@pytest.mark.numerical
def test_halves_of_a_kernel_are_kernels_of_their_own() -> None:
    """What the updator makes of one half does not depend on the other."""
    torch.manual_seed(0)
    update = Update(SMALL).double().eval()
    seen: list[Tensor] = []
    update.updator.register_forward_hook(lambda module, inputs, output: seen.append(output))
    feature, logits = torch.randn(2, 8, 5, 6).double(), torch.randn(2, 3, 5, 6).double()
    kernels = torch.randn(2, 3, 8).double()
    update(feature, kernels, logits)
    changed = kernels.clone()
    changed[:, :, 4:] += 1
    update(feature, changed, logits)
    first, second = (output.reshape(2, 3, 8) for output in seen)
    assert_close_in_norm(second[:, :, :4], first[:, :, :4], FLOAT64)
    assert (second[:, :, 4:] - first[:, :, 4:]).abs().max() > 1e-3


def test_the_gathered_feature_is_a_sum_that_half_precision_does_not_cut() -> None:
    """200 x 200 pixels of 10 add up to more than float16 holds."""
    torch.manual_seed(0)
    update = Update(SMALL).eval()
    with torch.no_grad():
        update.transform.weight.zero_()
        update.transform.bias.fill_(10)
    seen: list[Tensor] = []
    update.updator.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    logits = torch.zeros(1, 2, 200, 200)
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        update(torch.zeros(1, 8, 200, 200), torch.zeros(1, 2, 8), logits)
    assert_close_in_norm(seen[0], np.full((1, 2, 2, 4), 200_000.0), FLOAT32)


def test_in_training_all_pixels_share_the_mean() -> None:
    """A batch whose labels are all ignored has no loss, and half of them half of it."""
    torch.manual_seed(0)
    method = Method(SMALL, Path(), 3)
    network = method.build().eval()
    phase = phase_of(method, network)
    image, label = torch.randn(1, 3, 40, 40), torch.zeros(1, 40, 40, dtype=torch.int64)
    with torch.no_grad():
        logits = network.all_logits(image)
        found = []
        for ignored in (0, 20, 40):
            label[:, :ignored] = 255
            losses = phase.loss({"crops": {"image": image, "label": label}}, 0)
            found.append(torch.stack(list(losses.values())).numpy())
    pixels = torch.nn.functional.interpolate(logits.stages[3], (40, 40), mode="bilinear")
    expected = -pixels.log_softmax(1)[0, 0]
    assert found[0][3] == pytest.approx(expected.mean().item(), rel=1e-4)
    assert found[1][3] == pytest.approx(expected[20:].sum().item() / 1600, rel=1e-4)
    assert not found[2].any()


def test_logits_have_the_size_of_the_image_and_are_those_of_the_last_update() -> None:
    torch.manual_seed(0)
    recipe = replace(SMALL, test_scale=(66, 94))  # the image itself
    method = Method(recipe, Path(), 3)
    network = method.build().eval()
    rgb = np.random.default_rng(0).integers(0, 256, (47, 33, 3)).astype(np.uint8)
    recipe = replace(recipe, test_scale=(47, 33))
    with torch.inference_mode():
        logits = Method(recipe, Path(), 3).logits(network, Image("any", rgb))
        last = network.all_logits(torch.from_numpy(imagenet_rgb(rgb))[None]).stages[-1]
        expected = torch.nn.functional.interpolate(last, (47, 33), mode="bilinear")[0]
    assert (logits.shape, logits.dtype) == ((4, 47, 33), torch.float32)
    assert_close_in_norm(logits, expected, FLOAT32)


def test_upernet_of_maps_that_are_smaller_than_its_pools() -> None:
    network = UPerNet((4, 8, 16, 32), 6, 3, 0.0).eval()
    maps = [torch.randn(1, c, h, w) for c, h, w in ((4, 7, 3), (8, 4, 2), (16, 2, 1), (32, 1, 1))]
    assert network(maps).shape == (1, 6, 7, 3)


def test_a_checkpoint_of_other_classes_or_another_width_is_refused() -> None:
    network = Method(SMALL, Path(), 3).build()
    method = Method(replace(SMALL, width=16), Path(), 3)
    assert method.build().state_dict().keys() == network.state_dict().keys()
    published = {
        "decode_head.kernel_generate_head.conv_seg.weight": torch.zeros(150, 8, 1, 1),
        "backbone.stages.0.blocks.0.attn.w_msa.relative_position_index": torch.zeros(49, 49),
    }
    with pytest.raises(HubError, match=r"\d+ missing.*conv_seg\.weight \(150, 8, 1, 1\)") as caught:
        network.load_published(published)
    assert "unknown" not in str(caught.value)


def test_timm_has_weights_for_the_papers_sizes_alone() -> None:
    with pytest.raises(UsageError, match="timm has no weights for backbone=shapes"):
        Method(SMALL, Path(), 3).timm_weights("backbone")
