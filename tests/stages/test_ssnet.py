"""What every setting of SSNet has to keep; the reference cases: test_conformance_ssnet_*.py."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from closeness import FLOAT32, FLOAT64, assert_close_in_norm
from ssnets import SMALL, build, method, picture, two_images
from torch import nn

from stages.ops.determinism import generator
from stages.runtime.checkpoint import save_weights
from stages.runtime.method import Image
from stages.runtime.options import TrainOptions
from stages.runtime.session import setup
from stages.runtime.trainer import TrainConfig, Trainer
from stages.ssnet.samples import SsnetData
from stages.ssnet.ssnet import (
    RECIPES,
    SETTINGS,
    Method,
    SaliencyAggregation,
    Setting,
    SSNet,
    SSNet1Head,
    SSNet2Head,
    class_loss,
    masked,
    saliency_loss,
    segmentation_loss,
)
from wsssbed_hub.utils.errors import HubError, UsageError

ALL = pytest.mark.parametrize("name", SETTINGS)


@pytest.fixture(scope="module")
def data(shapes: Path) -> SsnetData:
    return two_images(shapes)


def trained(one: Method, data: SsnetData, folder: Path, seed: int = 0) -> SSNet:
    network = build(one, seed)
    Trainer(network, folder, TrainConfig(seed, torch.device("cpu"))).run(one.phases(network, data))
    return network.eval()


def test_the_settings_are_those_of_tables_5_and_6() -> None:
    rows = {s.name: (s.network, s.losses, s.labels_from) for s in SETTINGS.values()}
    assert rows == {
        "S": (1, ("class",), None),
        "M": (1, ("class", "saliency"), None),
        "SS": (2, ("segmentation",), "S"),
        "MS": (2, ("segmentation",), "M"),
        "MM": (2, ("saliency", "segmentation"), "M"),
        "2S": (2, ("saliency",), None),
    }
    assert all(SETTINGS[name].name == name for name in SETTINGS)


def test_the_sizes_of_the_specification() -> None:
    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    assert count(SSNet1Head(1664, 20)) == 34_965
    assert count(SSNet2Head(1664, 20, (6, 12, 18, 24))) == 1_258_068
    assert count(SaliencyAggregation(1664, 20, 32)) == 34_078_740
    network = method("MM", 20, RECIPES["published"]).build()
    deconvolution = 21 * 21 * 16 * 16 + 21
    assert count(network) == 12_484_480 + 1_258_068 + 34_078_740 + deconvolution
    alone = method("MS", 20, RECIPES["published"]).build()
    assert count(alone) == 12_484_480 + 1_258_068 + deconvolution
    conv = network.head.branches[2]  # type: ignore[union-attr]
    assert (conv.dilation, conv.padding, conv.kernel_size) == ((18, 18), (18, 18), (3, 3))


@pytest.mark.numerical
@pytest.mark.parametrize(("backbone", "name"), [("densenet169", "MM"), ("vgg16", "M")])
def test_both_backbones_at_256(backbone: Any, name: str) -> None:
    one = method(name, 20, RECIPES["published"], backbone=backbone)
    network = one.build().eval()
    with torch.inference_mode():
        probability = one.probabilities(network, picture())
        saliency = one.saliency(network, picture())
    assert (probability.shape, probability.dtype) == ((21, 256, 256), torch.float32)
    assert_close_in_norm(probability.sum(0), torch.ones(256, 256), FLOAT32)
    assert (saliency.shape, saliency.dtype) == ((50, 70), np.uint8)


@pytest.mark.numerical
def test_scores_of_a_larger_feature_are_the_mean_logits_of_its_windows() -> None:
    module = SaliencyAggregation(3, 5, 4).double()
    feature = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    windows = [feature[..., y : y + 4, x : x + 4] for y in range(3) for x in range(2)]
    logits = torch.stack([module(window).double().logit() for window in windows]).mean(0)
    assert module(feature).shape == (2, 5)
    assert_close_in_norm(module(feature), logits.sigmoid(), FLOAT32)


def test_new_layers_start_small_and_without_bias() -> None:
    network = method("MM", 20, RECIPES["published"]).build()
    for module in (network.head, network.aggregation):
        weights = torch.cat([p.flatten() for p in module.parameters() if p.dim() > 1])  # type: ignore[union-attr]
        assert weights.std().item() == pytest.approx(0.02, rel=0.02)
        assert abs(weights.mean().item()) < 1e-3
        assert all(not p.any() for p in module.parameters() if p.dim() == 1)  # type: ignore[union-attr]


@pytest.mark.numerical
@pytest.mark.parametrize("softmax", ["output", "eighth"])
def test_probabilities_sum_to_one_up_to_the_border(softmax: Any) -> None:
    one = method("MM", softmax=softmax)
    network = build(one).eval()
    with torch.no_grad():
        for parameter in network.head.parameters():
            parameter.mul_(50)  # as sure as a trained one
        output = network(torch.randn(2, 3, 64, 64))
    assert output.probability.shape == (2, 7, 64, 64)
    assert output.probability.max() > 0.99
    assert_close_in_norm(output.probability.sum(1), torch.ones(2, 64, 64), FLOAT32)
    assert output.probability.min() >= 0
    assert output.saliency is not None
    assert output.saliency.min() >= 0
    assert output.saliency.max() <= 1 - output.probability[:, 0].min() + FLOAT32
    likely = output.probability > 1e-6
    assert_close_in_norm(output.log_probability[likely].exp(), output.probability[likely], FLOAT32)
    assert output.log_probability.isfinite().all()
    assert (network.upsampling is None) == (softmax == "eighth")


def test_the_orders_of_the_softmax_differ_inside_too() -> None:
    networks = [build(method("S", softmax=order)).eval() for order in ("output", "eighth")]
    networks[1].load_state_dict(networks[0].state_dict(), strict=False)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for network in networks:
            for parameter in network.head.parameters():
                parameter.mul_(50)
        one, other = (network(image).probability for network in networks)
    # In the middle between the cells' centres: the mean of logits or of probabilities.
    assert (one - other).abs().max() > 0.01
    # Where a fine pixel lies nearly on a cell's centre the two nearly agree.
    assert (one - other).abs()[..., 4::8, 4::8].mean() < (one - other).abs().mean()


@ALL
def test_gradients_reach_every_parameter(name: str, data: SsnetData, tmp_path: Path) -> None:
    one = method(name, steps=2)
    network = build(one)
    reached: set[str] = set()
    for key, parameter in network.named_parameters():
        assert parameter.requires_grad, key
        parameter.register_hook(
            lambda gradient, key=key: reached.add(key) if gradient.any() else None
        )
    before = {key: p.clone() for key, p in network.named_parameters()}
    (phase,) = one.phases(network, data)
    Trainer(network, tmp_path, TrainConfig(0, torch.device("cpu"))).run([phase])
    # The bias before a batch norm or a softmax over all could cancel; here none does.
    assert reached == before.keys()
    for key, parameter in network.named_parameters():
        assert parameter.isfinite().all(), key
        assert not torch.equal(parameter, before[key]), key
    line = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    assert set(line["terms"]) == set(SETTINGS[name].losses)
    assert line["phase"] == f"ssnet-{name}"


@ALL
def test_the_same_seed_gives_the_same_bytes(name: str, data: SsnetData, tmp_path: Path) -> None:
    files = []
    for number, seed in enumerate((5, 5, 6)):
        folder = tmp_path / str(number)
        folder.mkdir()
        network = trained(method(name, steps=2), data, folder, seed)
        save_weights(network, folder / "weights.safetensors")
        files.append((folder / "weights.safetensors").read_bytes())
    assert files[0] == files[1]
    assert files[0] != files[2]


@pytest.mark.parametrize(
    "changes",
    [
        {"softmax": "eighth"},
        {"normalisation": "sum", "class_loss": "mean", "accumulate": 2},
        {"augmentation": "code"},
    ],
    ids=str,
)
def test_the_other_readings_train_too(
    changes: dict[str, Any], data: SsnetData, tmp_path: Path
) -> None:
    for name in ("M", "MM"):
        folder = tmp_path / name
        folder.mkdir()
        one = method(name, steps=2, **changes)
        network = trained(one, data, folder)
        assert all(p.isfinite().all() for p in network.parameters())


@pytest.mark.numerical
def test_a_batch_is_half_from_each_set_in_one_pass(data: SsnetData) -> None:
    one = method("M", batch_size=6, class_weight=1.0)
    network = build(one)
    seen: list[torch.Size] = []
    network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    (phase,) = one.phases(network, data)
    batches = {
        name: {
            key: torch.as_tensor(np.stack([sample[key] for sample in samples]))
            for key in samples[0]
        }
        for name, source in phase.sources.items()  # type: ignore[union-attr]
        for samples in [[source.samples.sample(0, generator(0, n)) for n in range(3)]]
    }
    assert {n: s.batch_size for n, s in phase.sources.items()} == {"class": 3, "saliency": 3}  # type: ignore[union-attr]
    losses = phase.loss(batches, 0)
    assert seen == [(6, 3, 64, 64)]
    # Each loss is that of its half alone: the other's may be anything.
    output = network(torch.cat([batches["class"]["image"], batches["saliency"]["image"]]))
    first = class_loss(output.probability[:3], batches["class"]["classes"], "sum")
    second = saliency_loss(output.saliency[3:], batches["saliency"]["mask"], "mean")
    assert_close_in_norm(losses["class"], first, FLOAT32)
    assert_close_in_norm(losses["saliency"], second, FLOAT32)


@pytest.mark.numerical
def test_the_losses_and_their_normalisations_by_hand() -> None:
    """Two images of 2 x 2 pixels with one class, H constant: 0.8, 0.2 and 0.4, 0.6."""
    foreground = torch.tensor([0.2, 0.6], dtype=torch.float64).view(2, 1, 1, 1).expand(2, 1, 2, 2)
    probability = torch.cat([1 - foreground, foreground], 1)
    classes = torch.tensor([[1.0], [0.0]])
    by_class = -(np.log(0.2) + np.log(0.4)) / 2
    for over in ("sum", "mean"):  # of one class
        assert class_loss(probability, classes, over).item() == pytest.approx(by_class, rel=FLOAT64)
    two = torch.cat([probability, torch.zeros(2, 1, 2, 2)], 1)
    more = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert class_loss(two, more, "mean").item() == pytest.approx(by_class / 2, rel=FLOAT64)
    mask = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]])
    by_image = [-(np.log(0.2) + 3 * np.log(0.8)), -4 * np.log(0.6)]
    saliency = foreground[:, 0]
    assert saliency_loss(saliency, mask, "sum").item() == pytest.approx(
        np.mean(by_image), rel=FLOAT64
    )
    mean = saliency_loss(saliency, mask, "mean").item()
    assert mean == pytest.approx(np.mean(by_image) / 4, rel=FLOAT64)
    label, logs = mask.long(), probability.log()
    for over, divisor in (("sum", 1), ("mean", 4)):
        loss = segmentation_loss(logs, label, over).item()
        assert loss == pytest.approx(np.mean(by_image) / divisor, rel=FLOAT64)


@pytest.mark.numerical
def test_certainty_gives_large_losses_and_no_nan() -> None:
    probability = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2).requires_grad_()
    losses = [
        class_loss(probability, torch.ones(1, 1), "sum"),
        saliency_loss(probability[:, 0], torch.zeros(1, 2, 2), "mean"),
        saliency_loss(probability[:, 1], torch.ones(1, 2, 2), "mean"),
    ]
    for loss in losses:
        assert loss.item() == pytest.approx(-np.log(1e-7), rel=1e-3)
    (gradient,) = torch.autograd.grad(sum(losses), probability)
    assert gradient.isfinite().all()


def test_the_background_takes_no_part_in_the_class_loss() -> None:
    logits = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    probability = logits.softmax(1).requires_grad_()
    (gradient,) = torch.autograd.grad(class_loss(probability, torch.ones(1, 3), "sum"), probability)
    assert not gradient[:, 0].any()
    assert gradient[:, 1:].all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 100}, "size must be a multiple of 8, not 100"),
        ({"size": 0}, "size must be a multiple of 8, not 0"),
        ({"crop": 0.0}, "crop must be more than 0"),
        ({"crop": 1.1}, "crop must be more than 0"),
        ({"halve_every": 0}, "halve_every and accumulate"),
        ({"rates": ()}, "rates must be dilations"),
        ({"rates": (0, 1)}, "rates must be dilations"),
        ({"crf": "ssnets"}, r"no CRF settings 'ssnets'.*Did you mean 'ssnet'"),
    ],
)
def test_recipes_that_make_no_training_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(RECIPES["published"], **changes)


def test_what_a_setting_lacks_is_named(data: SsnetData) -> None:
    with pytest.raises(UsageError, match=r"SSNet-M takes half.*even --batch-size, not 5"):
        method("M", batch_size=5)
    assert method("S", batch_size=5).recipe.batch_size == 5
    for name, lacking, message in (
        ("MM", replace(data, sod=None), "SSNet-MM is trained on a SOD dataset"),
        ("MM", replace(data, labels=None), "SSNet-MM is trained on pseudo labels"),
    ):
        one = method(name)
        with pytest.raises(UsageError, match=message):
            list(one.phases(build(one), lacking))
    one = method("MS")
    with pytest.raises(UsageError, match="SSNet-MS is trained without saliency"):
        one.saliency(build(one).eval(), picture())
    for class_id in (6, -1):
        with pytest.raises(UsageError, match=rf"no class {class_id} among 6"):
            masked(torch.rand(7, 2, 2), [class_id])


def test_the_published_recipe_starts_from_timm_without_being_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    real = timm.create_model

    def create(name: str, pretrained: bool) -> nn.Module:
        asked.append((name, pretrained))
        return real(name, pretrained=False)

    monkeypatch.setattr(timm, "create_model", create)
    session = setup("ssnet", Method, TrainOptions(device="cpu"))
    assert (session.initial_names, session.settings["initial"]) == ("timm", "timm")
    assert asked == []  # what is trained already needs none
    one = Method(session.recipe, Path(), 20, SETTINGS["S"])
    state = session.initial["backbone"].read(one)  # type: ignore[misc]
    assert asked == [("densenet169.tv_in1k", True)]
    network = one.build()
    one.load_initial(network, state, "backbone")
    for key, value in network.backbone.state_dict().items():
        assert torch.equal(value, state[key])
    given = setup("ssnet", Method, TrainOptions(device="cpu", init=["random"]))
    assert given.initial_names == "random"
    small = setup("ssnet", Method, TrainOptions(device="cpu", recipe="shapes"))
    assert small.initial_names == "random"
    del state["features.norm5.weight"]
    with pytest.raises(HubError, match=r"The initial densenet169 .*missing: features\.norm5"):
        one.load_initial(network, state, "backbone")


@pytest.mark.slow
def test_two_images_of_each_set_can_be_overfitted(data: SsnetData, tmp_path: Path) -> None:
    one = method("MM", steps=150, crop=1.0, halve_every=60)
    network = trained(one, data, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    for term in ("saliency", "segmentation"):
        losses = [line["terms"][term] for line in lines]
        assert np.mean(losses[-15:]) < 0.3 * np.mean(losses[:15]), term
    wrong, away = [], []
    with torch.inference_mode():
        for image_id in data.image_ids:
            truth = data.labels.read(image_id)  # type: ignore[union-attr]
            image = Image(image_id, data.target.read_image(image_id))
            wrong.append((one.segmentation(network, image) != truth).mean())
        assert data.sod is not None
        for image_id in data.sod.image_ids:
            found = one.saliency(network, Image(image_id, data.sod.read_image(image_id))) / 255
            away.append(np.abs(found - data.sod.read_mask(image_id) / 255).mean())
    assert np.mean(wrong) < 0.1
    assert np.mean(away) < 0.1


def test_the_aggregation_may_begin_flatter_and_learn_slower() -> None:
    one = method("MM", aggregation_deviation=0.001, aggregation_factor=0.1, rate=1e-3)
    network = build(one)
    assert network.aggregation is not None
    assert network.aggregation.conv.weight.std().item() == pytest.approx(0.001, rel=0.05)
    assert network.head.branches[0].weight.std().item() == pytest.approx(0.02, rel=0.05)  # type: ignore[union-attr]
    (phase,) = one.phases(network, SsnetData(None, [0], [0], []))  # type: ignore[arg-type]
    rest, slow = phase.optimizer().param_groups  # type: ignore[union-attr]
    assert (rest["lr"], slow["lr"]) == (1e-3, pytest.approx(1e-4))
    assert [id(p) for p in slow["params"]] == [id(p) for p in network.aggregation.parameters()]


def test_the_class_loss_may_weigh_less(data: SsnetData, tmp_path: Path) -> None:
    terms = []
    for weight in (1.0, 0.5):
        folder = tmp_path / str(weight)
        folder.mkdir()
        trained(method("M", steps=1, class_weight=weight), data, folder)
        terms.append(json.loads((folder / "log.jsonl").read_text())["terms"])
    assert terms[1]["class"] == pytest.approx(terms[0]["class"] / 2, rel=1e-5)
    assert terms[1]["saliency"] == pytest.approx(terms[0]["saliency"], rel=1e-5)


def test_settings_are_data() -> None:
    """A setting of one's own trains like those of the paper."""
    own = Setting("own", 1, ("saliency",))
    assert build(Method(SMALL, Path(), 3, own)).aggregation is not None
