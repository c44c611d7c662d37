"""Images beside their maps, as cells of the page and as one picture."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image
from reports import IDS, MapsOf, Pictures, activations, saliency, truth

from wsssbed_hub.report import choose_images, make_gallery
from wsssbed_hub.report.data import Picture
from wsssbed_hub.utils.errors import HubError


def pixels(picture: Picture) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.data))))


HUNDRED = [f"{number:03}" for number in range(100)]


class Many(Pictures):
    """A hundred images of which only two have the rare class."""

    def image_labels(self, image_id: str) -> tuple[int, ...]:
        return (1,) if image_id in ("017", "050") else (0,)


def test_chosen_images_show_all_classes():
    chosen = choose_images(Many(), HUNDRED, 3)
    assert len(set(chosen)) == 3
    assert chosen == sorted(chosen)
    assert {"017", "050"} & set(chosen)


def test_the_same_images_are_chosen_in_any_order():
    assert choose_images(Many(), HUNDRED, 5) == choose_images(Many(), HUNDRED[::-1], 5)


def test_no_more_images_than_there_are():
    assert choose_images(Pictures(), IDS, 8) == IDS
    assert choose_images(Pictures(), IDS, 0) == []


def test_cells():
    columns = [("S", saliency(40)), ("A", activations()), ("truth", truth())]
    gallery = make_gallery(Pictures(), columns, ["img-1", "img-3"])
    assert gallery.columns == ["image", "S", "A", "truth"]
    assert gallery.shown == [0, 1, 2, 255]
    assert gallery.widths == [1, 1, 2, 1]
    one, three = gallery.rows
    assert [len(cell) for cell in three.cells] == [1, 1, 2, 1]
    assert [picture.what for picture in three.cells[2]] == ["disc", "star"]
    assert one.classes == [0]
    label = one.cells[3][0]
    np.testing.assert_array_equal(pixels(label), truth().read("img-1"))
    assert label.pixelated
    assert pixels(one.cells[0][0]).shape == (12, 16, 3)
    # JPEG: near, not equal; noise is the worst case for it
    difference = pixels(one.cells[1][0]).astype(int) - saliency(40).read("img-1")
    assert np.abs(difference).mean() < 6


def test_large_pictures_are_shrunk_and_labels_keep_their_values():
    gallery = make_gallery(Pictures(), [("truth", truth())], ["img-3"], longest=8)
    image, label = (cell[0] for cell in gallery.rows[0].cells)
    assert (image.height, image.width) == (6, 8)
    assert pixels(label).shape == (6, 8)
    assert set(np.unique(pixels(label))) <= {0, 1, 2, 255}


def test_an_image_that_a_column_lacks_stays_empty():
    half = MapsOf("sal", {"img-1": saliency(40).read("img-1")})
    gallery = make_gallery(Pictures(), [("S", half)], ["img-1", "img-2"])
    assert [len(row.cells[1]) for row in gallery.rows] == [1, 0]


def test_a_map_of_another_size_is_an_error():
    small = MapsOf("sal", {"img-1": np.zeros((5, 5), np.uint8)})
    with pytest.raises(HubError, match=r"S, img-1: the map is 5 x 5 .* the image 12 x 16"):
        make_gallery(Pictures(), [("S", small)], ["img-1"])


def test_an_unknown_class_has_a_number():
    cam = MapsOf("cam", {"img-1": (np.zeros((1, 12, 16), np.uint8), np.array([7]))})
    gallery = make_gallery(Pictures(), [("A", cam)], ["img-1"])
    assert gallery.rows[0].cells[1][0].what == "class 7"
