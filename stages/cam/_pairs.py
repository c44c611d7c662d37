"""Images that share a class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stages.cam import CamData


def partner(data: CamData, image_id: str, rng: np.random.Generator, *, itself: bool = True) -> str:
    """An image that has one of the classes of another one: each of these is as likely, then each
    image that has it.

    Unless ``itself`` is allowed it is another image, if there is one with that class. An image
    without a class is its own partner.
    """
    classes = data.image_labels(image_id)
    if not classes:
        return image_id
    others = data.images_by_class[classes[int(rng.integers(len(classes)))]]
    if itself or len(others) == 1:
        return drawn(others, 1, rng)[0]
    place = int(rng.integers(len(others) - 1))
    return others[place + (place >= others.index(image_id))]


def drawn(image_ids: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    """``count`` of the images, with replacement."""
    return [image_ids[n] for n in rng.integers(len(image_ids), size=count)]
