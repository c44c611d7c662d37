"""Maps as pictures."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from wsssbed_hub.artifacts import pictures


@pytest.mark.parametrize(
    ("index", "colour"),
    [  # as the VOC 2012 annotation guidelines list them
        (0, (0, 0, 0)),
        (1, (128, 0, 0)),
        (2, (0, 128, 0)),
        (7, (128, 128, 128)),
        (8, (64, 0, 0)),
        (15, (192, 128, 128)),
        (20, (0, 64, 128)),
        (255, (224, 224, 192)),
    ],
)
def test_voc_palette(index, colour):
    assert tuple(pictures.voc_palette()[index]) == colour
    assert pictures.hex_colour(index) == "#{:02x}{:02x}{:02x}".format(*colour)


def test_every_label_has_its_own_colour():
    assert len({tuple(colour) for colour in pictures.voc_palette()}) == 256


def test_the_palette_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        pictures.voc_palette()[0] = 1


def test_label_picture():
    picture = pictures.label_picture(np.array([[0, 1], [15, 255]], np.uint8))
    assert picture.tolist() == [[[0, 0, 0], [128, 0, 0]], [[192, 128, 128], [224, 224, 192]]]


def test_heat_rises_in_lightness():
    """So that it can be read without colours."""
    heat = pictures.heat_picture(np.arange(256, dtype=np.uint8)[None]).astype(float)[0]
    lightness = heat @ [0.2126, 0.7152, 0.0722]  # ITU-R BT.709
    assert (np.diff(lightness[::4]) > 0).all()
    assert lightness[0] < 2
    assert lightness[-1] > 230


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def test_overlay_from_nothing_to_all(image):
    colours = 255 - image
    np.testing.assert_array_equal(pictures.overlay(image, colours, 0), image)
    np.testing.assert_array_equal(pictures.overlay(image, colours, 1.0), colours)
    half = np.zeros((6, 9))
    half[:3] = 1
    mixed = pictures.overlay(image, colours, half)
    np.testing.assert_array_equal(mixed[:3], colours[:3])
    np.testing.assert_array_equal(mixed[3:], image[3:])


def test_overlay_of_another_size(image):
    with pytest.raises(ValueError, match=r"\(6, 9\) and \(5, 9\)"):
        pictures.overlay(image, image[:5], 0.5)


def test_heat_overlay_shows_the_image_where_nothing_is_active(image):
    activation = np.zeros((6, 9), np.uint8)
    activation[0, 0] = 255
    shown = pictures.heat_overlay(image, activation)
    # dimmed by a quarter, rounded
    np.testing.assert_allclose(shown[1:], 0.75 * image[1:], atol=0.5)
    assert np.abs(shown[0, 0].astype(int) - (252, 255, 164)).max() < 60  # the top of the scale


def test_shrink():
    picture = np.random.default_rng(0).integers(0, 256, (30, 60, 3), dtype=np.uint8)
    assert pictures.shrink(picture, 20).shape == (10, 20, 3)
    assert pictures.shrink(picture, 60) is picture
    assert pictures.shrink(np.zeros((1, 999), np.uint8), 10).shape == (1, 10)
    label = np.array([[0, 255] * 20] * 20, np.uint8)
    assert set(np.unique(pictures.shrink(label, 7, exact=True))) <= {0, 255}


def test_encode():
    grey = np.tile(np.arange(256, dtype=np.uint8), (16, 1))
    png = Image.open(io.BytesIO(pictures.encode(grey, "PNG")))
    assert (png.format, png.mode) == ("PNG", "L")
    np.testing.assert_array_equal(np.asarray(png), grey)
    jpeg = Image.open(io.BytesIO(pictures.encode(grey, "JPEG")))
    assert (jpeg.format, jpeg.mode) == ("JPEG", "L")
    # a ramp is easy for JPEG: two grey levels is what its quality loses here
    assert np.abs(np.asarray(jpeg).astype(int) - grey).max() <= 2


def test_contact_sheet():
    red = np.full((20, 30, 3), (200, 0, 0), np.uint8)
    grey = np.full((10, 40), 77, np.uint8)
    rows = [
        [pictures.Tile(red, "a"), pictures.Tile(None)],
        [pictures.Tile(grey), pictures.Tile(red, "a caption that is much too long for its column")],
    ]
    sheet = pictures.contact_sheet(rows, ["one", "two"], longest=40, gap=10)
    assert sheet.shape[1] == 2 * (40 + 10) + 10
    assert (sheet[32:52, 10:40] == (200, 0, 0)).all()
    assert (sheet[32:52, 60:] == 255).all()  # the gap
    assert (sheet == 77).all(axis=2).sum() == grey.size
    assert (sheet[:, -10:] == 255).all()  # no words beyond the last column
    np.testing.assert_array_equal(
        sheet, pictures.contact_sheet(rows, ["one", "two"], longest=40, gap=10)
    )


def test_contact_sheet_of_nothing():
    with pytest.raises(ValueError, match="no pictures"):
        pictures.contact_sheet([[]])
