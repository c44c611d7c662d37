"""Things that methods ask of the runtime, each with a method as small as it can be."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from toy_methods import Net, Recipe, Toy, ToyCam, ToyCamWithSaliency, ToySod, tensor

from stages import cam, seg, sod
from stages.cam import CamData
from stages.ops.determinism import generator
from stages.runtime.checkpoint import Checkpoint
from stages.runtime.method import Frozen, HasFrozen, Image, Initial
from stages.sod import SodData, SodMethod
from wsssbed_hub.artifacts.digests import file_digest
from wsssbed_hub.artifacts.key_folder import read_manifest
from wsssbed_hub.datasets import SOD_DATASETS, open_target
from wsssbed_hub.registry.open_artifact import open_artifact
from wsssbed_hub.utils.errors import HubError, UsageError

COMMON = {"target": "shapes", "device": "cpu", "workers": 0, "recipe": "shapes"}


def run_sod(method: type, shapes: Path, out: Path, **options: object) -> Path:
    options = {"data": "shapes-small", "data_root": shapes, "out": out, **COMMON, **options}
    sod.run("sod-toy", method, sod.Options(**options))  # type: ignore[arg-type]
    return out / "runs" / f"sod-toy-{options['data']}"


def content(folder: Path) -> str | None:
    return read_manifest(folder).entry("1.0.0", "shapes").content


class Related(ToyCamWithSaliency):
    """Maps that tell the image, its classes, a related image and saliency."""

    def activations(self, network: Net, image: Image, data: CamData) -> np.ndarray:
        assert data.saliency is not None
        assert image.rgb.shape[2] == 3
        others = [i for i in data.image_ids if {*data.image_labels(i)} & {*image.class_ids}]
        related = generator("related", image.id).choice(others)
        maps = np.zeros((len(image.class_ids), *image.rgb.shape[:2]), np.uint8)
        maps[:, 0, 0] = image.class_ids
        maps[:, 0, 1] = data.image_ids.index(image.id)
        maps[:, 0, 2] = data.image_ids.index(str(related))
        maps[:, 1:] = np.asarray(data.saliency.read(image.id))[1:]
        return maps


def test_maps_are_made_of_an_image_with_its_id_and_classes_and_of_the_data(
    shapes: Path, tmp_path: Path
) -> None:
    run_sod(ToySod, shapes, tmp_path)
    sal = tmp_path / "sal/toy-shapes-small"
    options = {"data_root": shapes, "out": tmp_path, "sal": str(sal), **COMMON}
    cam.run("cam-toy", Related, cam.Options(**options))  # type: ignore[arg-type]
    target = open_target("shapes", shapes)
    ids = target.image_ids("train_aug")
    saliency = open_artifact(sal, "shapes")
    for image_id, found in open_artifact(tmp_path / "cam/toy-toy-shapes-small", "shapes"):
        classes = target.image_labels(image_id)
        assert found.activations[:, 0, 0].tolist() == list(classes)  # type: ignore[union-attr]
        assert set(found.activations[:, 0, 1]) == {ids.index(image_id)}  # type: ignore[union-attr]
        (related,) = set(found.activations[:, 0, 2].tolist())  # type: ignore[union-attr]
        assert {*target.image_labels(ids[related])} & {*classes}
        np.testing.assert_array_equal(
            found.activations[0, 1:],  # type: ignore[union-attr]
            np.asarray(saliency.read(image_id))[1:],
        )


class ToyOfTwoTargets(ToyCam):
    """A toy whose authors trained it on VOC and on COCO."""

    recipes: ClassVar = {
        "published-voc": Recipe(initial="none", steps=2),
        "published-coco": Recipe(initial="none", steps=3),
    }


def test_the_recipe_that_was_published_for_the_target_is_used_and_on_record(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options = {**COMMON, "data_root": shapes, "out": tmp_path, "recipe": "published"}
    cam.run("cam-toy", ToyOfTwoTargets, cam.Options(**options))  # type: ignore[arg-type]
    assert "No recipe was published for shapes: published-voc is used." in capsys.readouterr().err
    provenance = read_manifest(tmp_path / "cam/toy").entry("1.0.0", "shapes").provenance
    assert provenance is not None
    recorded = provenance.recipe["recipe"]
    assert (recorded["name"], recorded["steps"]) == ("published-voc", 2)


class Helped(HasFrozen):
    """Looks through a helper that two of its parts share."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 1, 1)
        self.features = Frozen(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))
        self.critic = Critic(self.features)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image)) + self.critic(image)


class Critic(HasFrozen):
    def __init__(self, features: Frozen) -> None:
        super().__init__()
        self.features = features
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, image: Tensor) -> Tensor:
        return self.scale * self.features(image).mean(1, keepdim=True)


@dataclass(frozen=True)
class HelpedRecipe:
    initial_head: str = "head.pth"
    initial_features: str = "features.pth"
    steps: int = 3
    batch_size: int = 2
    rate: float = 0.05
    accumulate: int = 1


class ToyWithHelper(Toy, SodMethod):
    recipes: ClassVar = {"published": HelpedRecipe(), "shapes": HelpedRecipe()}  # type: ignore[misc]
    initial: ClassVar = {
        "head": Initial("head.pth", "https://example.org/head.pth"),
        "features": Initial("features.pth", "https://example.org/features.pth", frozen=True),
    }

    def build(self) -> Helped:  # type: ignore[override]
        return Helped()

    def load_initial(  # type: ignore[override]
        self, network: Helped, state: Mapping[str, Tensor], name: str
    ) -> None:
        part = network.head if name == "head" else network.features.network
        part.load_state_dict(state)

    def loss(self, network: Helped, batch: dict) -> Tensor:
        return (network(batch["image"]) - batch["mask"]).square().mean()

    def saliency(self, network: Helped, image: Image) -> np.ndarray:
        made = network(tensor(image.rgb)[None])[0, 0].sigmoid() * 255
        return made.to(torch.uint8).numpy()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    torch.manual_seed(1)
    network = Helped()
    parts = {"head": network.head, "features": network.features.network}
    for name, part in parts.items():
        save_file(part.state_dict(), tmp_path / f"{name}.safetensors")
    return {name: tmp_path / f"{name}.safetensors" for name in parts}


def test_a_helper_is_shared_frozen_and_in_no_checkpoint(
    shapes: Path, tmp_path: Path, files: dict[str, Path]
) -> None:
    init = [f"{name}={path}" for name, path in files.items()]
    folder = run_sod(ToyWithHelper, shapes, tmp_path / "a", init=init)
    names = {"head.weight", "head.bias", "critic.scale"}
    assert load_file(folder / "weights.safetensors").keys() == names
    entry = read_manifest(tmp_path / "a/sal/toy-shapes-small").entry("1.0.0", "shapes")
    made_from = {item.file: item.digest for item in entry.provenance.made_from}  # type: ignore[union-attr]
    for path in files.values():
        assert made_from[path.name] == file_digest(path)

    network = Helped()
    network.train()
    assert not network.features.network.training
    assert network.critic.features is network.features
    assert copy.deepcopy(network).critic.features.network is network.features.network
    assert all(p.requires_grad for p in network.parameters())
    assert next(network.double().features.network.parameters()).dtype == torch.float64
    image = torch.rand(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    network(image).sum().backward()
    assert image.grad is not None  # through it
    assert image.grad.any()


def test_a_checkpoint_in_the_middle_has_no_helper(
    shapes: Path, tmp_path: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []
    save = Checkpoint.save
    monkeypatch.setattr(
        Checkpoint, "save", lambda self, path: (kept.append([*self.network]), save(self, path))[1]
    )
    init = [f"{name}={path}" for name, path in files.items()]
    run_sod(ToyWithHelper, shapes, tmp_path, init=init, checkpoint_every=0.0)
    assert len(kept) == 3
    assert all(not any("features" in name for name in names) for names in kept)


def test_trained_weights_need_the_helper_beside_them(
    shapes: Path, tmp_path: Path, files: dict[str, Path]
) -> None:
    init = [f"{name}={path}" for name, path in files.items()]
    folder = run_sod(ToyWithHelper, shapes, tmp_path / "a", init=init)
    weights = folder / "weights.safetensors"
    with pytest.raises(UsageError, match=r"features\.pth \(https://.*--init features=FILE"):
        run_sod(ToyWithHelper, shapes, tmp_path / "b", weights=weights)
    with pytest.raises(UsageError, match="leave --init out"):
        run_sod(ToyWithHelper, shapes, tmp_path / "b", weights=weights, init=init)
    run_sod(ToyWithHelper, shapes, tmp_path / "b", weights=weights, init=[init[1]])
    key = "sal/toy-shapes-small"
    assert content(tmp_path / "a" / key) == content(tmp_path / "b" / key)
    # Maps of another split, from the trained folder: the helper is loaded again.
    run_sod(ToyWithHelper, shapes, tmp_path / "a", init=init, version="1.1.0")
    assert read_manifest(tmp_path / "a" / key).entry("1.1.0", "shapes").content == content(
        tmp_path / "a" / key
    )


def test_several_files_of_initial_weights_are_named(
    shapes: Path, tmp_path: Path, files: dict[str, Path]
) -> None:
    head, features = (f"{name}={path}" for name, path in files.items())
    for given, message in (
        ([], r"head\.pth .*--init head=FILE"),
        ([head], r"features\.pth .*--init features=FILE"),
        ([str(files["head"])], "Write NAME=FILE, with one of the names head, features"),
        ([f"heat={files['head']}"], "Did you mean 'head'"),
    ):
        with pytest.raises(UsageError, match=message):
            run_sod(ToyWithHelper, shapes, tmp_path, init=given)
    run_sod(ToyWithHelper, shapes, tmp_path, init=[head, features])
    with pytest.raises(HubError, match="other settings"):
        run_sod(ToyWithHelper, shapes, tmp_path, init=[head, "features=random"])


def test_a_helper_in_a_module_that_would_leave_it_behind_is_refused(
    shapes: Path, tmp_path: Path
) -> None:
    class Careless(ToySod):
        def build(self) -> Net:
            network = super().build()
            network.trunk.features = Frozen(nn.Conv2d(3, 3, 1))  # type: ignore[assignment]
            return network

    with pytest.raises(TypeError, match="trunk holds features and is no HasFrozen"):
        run_sod(Careless, shapes, tmp_path)


class Unsupervised(ToySod):
    """Learns the mean of two hand-crafted maps, one of which it makes itself if need be."""

    supervision = "unsupervised"
    takes_maps: ClassVar = {"rbd": True, "mc": False}

    def phases(self, network: Net, data: SodData):  # type: ignore[no-untyped-def]
        for image_id in data.image_ids:
            with pytest.raises(HubError, match="trained without masks"):
                data.read_mask(image_id)
            assert data.maps["rbd"].read(image_id).shape == data.read_image(image_id).shape[:2]
        yield from super().phases(network, _WithMasks(data))


class _WithMasks:
    def __init__(self, data: SodData) -> None:
        self.image_ids, self.read_image = data.image_ids, data.read_image
        self.read_mask = data.maps["rbd"].read


@pytest.fixture
def without_masks(shapes: Path, tmp_path: Path) -> Path:
    """The data root without any mask of ``shapes-small``."""
    root = tmp_path / "bare"
    shutil.copytree(shapes, root)
    (layout,) = SOD_DATASETS["shapes-small"].layouts
    assert layout.images != layout.masks
    shutil.rmtree(root / layout.masks)
    return root


def hand_crafted(folder: Path, images: dict[str, tuple[int, int]]) -> str:
    from PIL import Image as PilImage

    folder.mkdir()
    for image_id, size in images.items():
        plane = np.zeros(size, np.uint8)
        plane[:10, :10] = 255
        PilImage.fromarray(plane).save(folder / f"{image_id}.png")
    return str(folder)


def test_saliency_is_learnt_from_hand_crafted_maps_where_no_masks_are(
    without_masks: Path, tmp_path: Path
) -> None:
    from wsssbed_hub.datasets import open_sod_images
    from wsssbed_hub.datasets.image_files import image_size

    paths = open_sod_images("shapes-small", without_masks)
    sizes = {image_id: image_size(path) for image_id, path in paths.items()}
    rbd = hand_crafted(tmp_path / "rbd", sizes)
    run_sod(Unsupervised, without_masks, tmp_path / "out", maps=[f"rbd={rbd}"])
    entry = read_manifest(tmp_path / "out/sal/toy").entry("1.0.0", "shapes")
    assert entry.provenance is not None
    assert entry.provenance.recipe["maps"].keys() == {"rbd"}
    with pytest.raises(HubError, match="not below"):
        run_sod(ToySod, without_masks, tmp_path / "masks")
    for maps, message in (
        ([], "rbd with --maps rbd=MAPS"),
        ([f"rbd={rbd}", f"dsr={rbd}"], "names of Toy are one of rbd, mc"),
        ([rbd], "write NAME=MAPS"),
    ):
        with pytest.raises(UsageError, match=message):
            run_sod(Unsupervised, without_masks, tmp_path / "out", maps=maps)
    with pytest.raises(UsageError, match="it learns from no maps"):
        run_sod(ToySod, without_masks, tmp_path / "out", maps=[f"rbd={rbd}"])
    some = hand_crafted(tmp_path / "some", dict([*sizes.items()][1:]))
    with pytest.raises(HubError, match="1 of 4 images have no maps rbd"):
        run_sod(Unsupervised, without_masks, tmp_path / "some-out", maps=[f"rbd={some}"])


def test_labels_of_other_classes_are_named(shapes: Path, tmp_path: Path) -> None:
    from PIL import Image as PilImage
    from toy_methods import ToySeg

    target = open_target("shapes", shapes)
    (tmp_path / "labels").mkdir()
    for image_id in target.image_ids("train_aug"):
        plane = np.zeros(target.size(image_id), np.uint8)
        plane[:9] = 255
        plane[9:12] = target.num_classes + 1
        PilImage.fromarray(plane).save(tmp_path / "labels" / f"{image_id}.png")
    options = {"data_root": shapes, "out": tmp_path / "out", **COMMON}
    for workers in (0, 1):
        with pytest.raises(HubError, match=f"has the value {target.num_classes + 1}, and shapes"):
            seg.run(
                "seg-toy",
                ToySeg,
                seg.Options(labels=str(tmp_path / "labels"), **options | {"workers": workers}),  # type: ignore[arg-type]
            )
