"""Images and maps on one sheet, also where something is wrong with them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from reports import MapsOf, Pictures, activations, saliency, truth

from wsssbed_hub.artifacts import pictures
from wsssbed_hub.report import thumbnail_gallery
from wsssbed_hub.utils.errors import HubError

PITCH, TOP = 110, 32  # a column of 100 pixels and a gap of 10; the titles above


def sheet(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)))


def place(picture: np.ndarray, column: int, shape: tuple[int, int]) -> np.ndarray:
    """What is where the picture of a column of the first row belongs."""
    left = 10 + column * PITCH
    return picture[TOP : TOP + shape[0], left : left + shape[1]]


def test_thumbnails():
    columns = [("A", activations()), ("truth", truth())]
    encoded = thumbnail_gallery(Pictures(), columns, ["img-1", "img-3"], longest=100)
    assert encoded == thumbnail_gallery(Pictures(), columns, ["img-1", "img-3"], longest=100)
    shown = sheet(encoded)
    # image, two activations, label: four columns of 100 pixels with gaps of 10
    assert shown.shape[1] == 4 * 110 + 10
    wanted = pictures.label_picture(truth().read("img-1"))
    np.testing.assert_array_equal(place(shown, 3, (12, 16)), wanted)


def test_without_the_images():
    shown = sheet(thumbnail_gallery(None, [("S", saliency(40))], ["img-1"], longest=100))
    grey = place(shown, 1, (12, 16))[..., 0]
    np.testing.assert_array_equal(grey, saliency(40).read("img-1"))
    heat = sheet(thumbnail_gallery(None, [("A", activations())], ["img-1"], longest=100))
    wanted = pictures.heat_picture(activations().read("img-1")[0][0])
    np.testing.assert_array_equal(place(heat, 1, (12, 16)), wanted)


@pytest.mark.parametrize("kind", ["sal", "cam"])
def test_a_map_of_another_size_is_shown_as_it_is(kind: str):
    grey = np.full((5, 5), 90, np.uint8)
    found = grey if kind == "sal" else (grey[None], np.array([1]))
    maps = MapsOf(kind, {"img-1": found})
    shown = sheet(thumbnail_gallery(Pictures(), [("M", maps)], ["img-1"], longest=100))
    wanted = pictures.heat_picture(grey) if kind == "cam" else np.stack([grey] * 3, axis=-1)
    np.testing.assert_array_equal(place(shown, 1, (5, 5)), wanted)


class Damaged(MapsOf):
    def read(self, image_id: str):
        raise HubError("it is damaged")


def test_what_cannot_be_read_leaves_a_gap_with_words():
    maps = Damaged("sal", {"img-1": None})
    shown = sheet(thumbnail_gallery(Pictures(), [("S", maps)], ["img-1"], longest=100))
    assert (place(shown, 1, (12, 16))[:1] == 255).all()
    words = shown[TOP:, 10 + PITCH :]
    assert (words < 200).any()


def test_a_remark_stands_below_its_image():
    maps = [("S", saliency(40))]
    plain = sheet(thumbnail_gallery(Pictures(), maps, ["img-1"]))
    said = sheet(thumbnail_gallery(Pictures(), maps, ["img-1"], remarks={"img-1": "odd"}))
    assert plain.shape == said.shape
    changed = np.argwhere((plain != said).any(axis=-1))
    assert changed.min(axis=0)[0] >= TOP + 12
    assert changed.max(axis=0)[1] < 10 + 170


def test_many_classes_are_cut_off():
    cam = MapsOf("cam", {"img-1": (np.zeros((6, 12, 16), np.uint8), np.arange(6))})
    shown = sheet(thumbnail_gallery(Pictures(), [("A", cam)], ["img-1"], longest=100))
    assert shown.shape[1] == 5 * PITCH + 10
