"""A method of each family, as small as they can be: what a second person has to write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.cam import CamData, CamMethod
from stages.runtime.method import Image, Initial, Phase, Source, poly
from stages.seg import SegData, SegMethod
from stages.sod import SodData, SodMethod
from wsssbed_hub.artifacts import manifest

CARD = manifest.MethodCitation(name="Toy", paper="https://arxiv.org/abs/0000.00000")
SIDE = 24


@dataclass(frozen=True)
class Recipe:
    initial: str = "toy.pth"
    steps: int = 6
    batch_size: int = 4
    rate: float = 0.05
    accumulate: int = 1


RECIPES = {"published": Recipe(), "shapes": replace(Recipe(), initial="none", steps=3)}


class Net(nn.Module):
    """float[N, 3, H, W] to float[N, outputs, H, W]."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Conv2d(4, outputs, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(F.relu(self.trunk(image)))

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        self.load_state_dict({key.removeprefix("theirs."): state[key] for key in state})


def tensor(rgb: np.ndarray) -> Tensor:
    return torch.from_numpy(rgb.transpose(2, 0, 1).astype(np.float32) / 255)


class Crops:
    """Corners of images, mirrored at random, with whatever belongs to the image."""

    def __init__(self, data: SodData | CamData | SegData) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data.image_ids)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        image_id = self.data.image_ids[index]
        rgb = self.data.read_image(image_id)
        sample: dict[str, Tensor] = {}
        if isinstance(self.data, CamData):
            sample["classes"] = torch.zeros(self.data.num_classes)
            sample["classes"][list(self.data.image_labels(image_id))] = 1
        elif isinstance(self.data, SegData):
            label = torch.from_numpy(self.data.read_label(image_id).astype(np.int64))
            sample["label"] = label[:SIDE, :SIDE]
        else:
            mask = torch.from_numpy(self.data.read_mask(image_id).astype(np.float32) / 255)
            sample["mask"] = mask[None, :SIDE, :SIDE]
        sample["image"] = tensor(rgb)[:, :SIDE, :SIDE]
        flip = rng.random() < 0.5
        return {k: v.flip(-1) if flip and v.dim() > 1 else v for k, v in sample.items()}


class Toy:
    """What the three toys share."""

    card = CARD
    recipes = RECIPES
    initial: ClassVar = {"trunk": Initial("toy.pth", "https://example.org/toy.pth")}
    recipe: Recipe

    def load_initial(self, network: Net, state: Mapping[str, Tensor], name: str) -> None:
        network.trunk.load_state_dict({k: state[k] for k in ("weight", "bias")})

    def phases(self, network: Net, data: SodData | CamData | SegData) -> Iterator[Phase]:
        yield Phase(
            name="train",
            steps=self.recipe.steps,
            sources={"crops": Source(Crops(data), self.recipe.batch_size)},
            optimizer=lambda: torch.optim.SGD(network.parameters(), self.recipe.rate, momentum=0.9),
            schedule=poly(self.recipe.steps),
            loss=lambda batches, step: {"toy": self.loss(network, batches["crops"])},
            accumulate=self.recipe.accumulate,
        )


class ToySod(Toy, SodMethod):
    def build(self) -> Net:
        return Net(1)

    def loss(self, network: Net, batch: dict) -> Tensor:
        return F.binary_cross_entropy_with_logits(network(batch["image"]), batch["mask"])

    def saliency(self, network: Net, image: Image) -> np.ndarray:
        return (network(tensor(image.rgb)[None])[0, 0].sigmoid() * 255).to(torch.uint8).numpy()


class ToyCam(Toy, CamMethod):
    def build(self) -> Net:
        return Net(self.num_classes)

    def loss(self, network: Net, batch: dict) -> Tensor:
        logits = network(batch["image"]).mean((2, 3))
        return F.binary_cross_entropy_with_logits(logits, batch["classes"])

    def activations(self, network: Net, image: Image, data: CamData) -> np.ndarray:
        maps = network(tensor(image.rgb)[None])[0].sigmoid()[image.class_ids.tolist()]
        return (maps * 255).to(torch.uint8).numpy()


class ToyCamWithSaliency(ToyCam):
    needs_saliency = True

    def phases(self, network: Net, data: CamData) -> Iterator[Phase]:
        assert data.saliency is not None
        for image_id in data.image_ids:
            assert np.asarray(data.saliency.read(image_id)).shape == data.target.size(image_id)
        yield from super().phases(network, data)


class ToySeg(Toy, SegMethod):
    def build(self) -> Net:
        return Net(self.num_classes + 1)

    def loss(self, network: Net, batch: dict) -> Tensor:
        return F.cross_entropy(network(batch["image"]), batch["label"], ignore_index=255)

    def logits(self, network: Net, image: Image) -> Tensor:
        return network(tensor(image.rgb)[None])[0]
