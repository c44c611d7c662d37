"""Maps as pictures: label colours, heat maps, overlays, contact sheets.

Everything takes and gives uint8 arrays (RGB is ``[H, W, 3]``) until ``encode`` makes bytes of
them. The same input gives the same bytes. (Labels as PNG: ``wsssbed_hub.artifacts.png_codec``.)
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_JPEG_QUALITY = 85
_PAPER, _INK, _FAINT = (255, 255, 255), (32, 33, 36), (112, 117, 122)


@cache
def voc_palette() -> np.ndarray:
    """The colours of the PASCAL VOC development kit, uint8[256, 3].

    Bits 0, 1 and 2 of the index go to red, green and blue as the highest bit, bits 3, 4 and 5 as
    the next, and so on; so 0 is black, 15 (person) is (192, 128, 128), 255 is (224, 224, 192).
    """
    index = np.arange(256)
    palette = np.zeros((256, 3), dtype=np.uint8)
    for place in range(3):
        for channel in range(3):
            bit = (index >> (3 * place + channel)) & 1
            palette[:, channel] |= (bit << (7 - place)).astype(np.uint8)
    palette.setflags(write=False)
    return palette


def hex_colour(index: int) -> str:
    """The label colour of ``index`` as CSS writes it: ``#c08080``."""
    return "#" + bytes(voc_palette()[index]).hex()


def label_picture(label: np.ndarray) -> np.ndarray:
    """uint8[H, W] labels (0 background, c + 1 class, 255 ignored) in VOC colours, as RGB."""
    return voc_palette()[label]


@cache
def _heat_colours() -> np.ndarray:
    from matplotlib import colormaps

    return (colormaps["inferno"](np.arange(256))[:, :3] * 255).round().astype(np.uint8)


def heat_picture(grey: np.ndarray) -> np.ndarray:
    """uint8[H, W] activations from black over red to light yellow, as RGB.

    The scale rises evenly in lightness, so it can be read in grey print and by colour-blind people.
    """
    return _heat_colours()[grey]


def overlay(image: np.ndarray, colours: np.ndarray, opacity: np.ndarray | float) -> np.ndarray:
    """RGB ``colours`` over the RGB ``image``; ``opacity`` in [0, 1], one or uint-shaped [H, W].

    Raises ValueError if the pictures differ in size.
    """
    if image.shape != colours.shape:
        raise ValueError(f"pictures of sizes {image.shape[:2]} and {colours.shape[:2]}")
    alpha = np.asarray(opacity, dtype=np.float32)
    alpha = alpha[..., None] if alpha.ndim == 2 else alpha
    return np.rint(image * (1 - alpha) + colours * alpha).astype(np.uint8)


def heat_overlay(image: np.ndarray, activation: np.ndarray) -> np.ndarray:
    """The heat map of ``activation`` over a dimmed ``image``: the image where nothing is active."""
    strength = activation.astype(np.float32) / 255
    dimmed = overlay(image, np.zeros_like(image), 0.25)
    return overlay(dimmed, heat_picture(activation), 0.85 * np.sqrt(strength))


def shrink(picture: np.ndarray, longest: int, *, exact: bool = False) -> np.ndarray:
    """``picture`` (grey or RGB) with its longer side at most ``longest``; never enlarged.

    ``exact`` keeps to values that occur (nearest pixel), which label maps need.
    """
    height, width = picture.shape[:2]
    scale = longest / max(height, width)
    if scale >= 1:
        return picture
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    how = Image.Resampling.NEAREST if exact else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(picture).resize(size, how))


def encode(picture: np.ndarray, form: Literal["JPEG", "PNG"]) -> bytes:
    """A grey or RGB picture as the bytes of a file."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, form, quality=_JPEG_QUALITY, optimize=True)
    return file.getvalue()


class Tile(NamedTuple):
    """One picture of a contact sheet, RGB or grey, or None for a gap, and the words below it."""

    picture: np.ndarray | None
    caption: str = ""


def contact_sheet(
    rows: Sequence[Sequence[Tile]], titles: Sequence[str] = (), *, longest: int = 160, gap: int = 10
) -> np.ndarray:
    """Rows of pictures on white, ``titles`` above the columns, as RGB.

    Pictures are shrunk to ``longest`` pixels and never enlarged. Words that are wider than their
    column are cut short. Raises ValueError if there is nothing to show.
    """
    cells = [[_fit(cell, longest) for cell in row] for row in rows]
    if not any(cells):
        raise ValueError("a contact sheet of no pictures")
    columns = max(map(len, cells))
    font = ImageFont.load_default(size=12)
    line = 17 if any(cell.caption for row in cells for cell in row) else 0
    head = 22 if titles else 0
    heights = [max((_size(cell)[0] for cell in row), default=0) + line for row in cells]
    pitch = longest + gap
    sheet = Image.new(
        "RGB", (columns * pitch + gap, sum(heights) + len(heights) * gap + head + gap), _PAPER
    )
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        pen.text((gap + column * pitch, gap), _cut(title, longest, font), _INK, font)
    top = head + gap
    for row, height in zip(cells, heights, strict=True):
        for column, cell in enumerate(row):
            left = gap + column * pitch
            if cell.picture is not None:
                sheet.paste(Image.fromarray(cell.picture), (left, top))
            under = top + _size(cell)[0] + 1
            pen.text((left, under), _cut(cell.caption, longest, font), _FAINT, font)
        top += height + gap
    return np.asarray(sheet)


def _fit(cell: Tile, longest: int) -> Tile:
    if cell.picture is None:
        return cell
    return cell._replace(picture=shrink(cell.picture, longest))


def _size(cell: Tile) -> tuple[int, int]:
    return (0, 0) if cell.picture is None else (cell.picture.shape[0], cell.picture.shape[1])


def _cut(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    text = " ".join(text.split())[:200]
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
