"""The masked autoencoder, made of timm's parts, as MOVE uses it: every patch is encoded.

He et al., CVPR 2022, arXiv 2111.06377. Parameters have their published names.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.backbones.positions import resized_positions, rows
from stages.backbones.state import load_strictly

AS_TRAINED = (224, 224)
"""Size of the images for which the encoder's table of positions is taken as it is. For others
MOVE's code resamples it, also where it fits."""
_EPSILON = 1e-6  # of every layer norm


class MaskedAutoencoder(nn.Module):
    """Encoder and decoder of images float[N, 3, side, side], with ImageNet's mean and deviation."""

    def __init__(
        self,
        side: int = 224,
        patch: int = 16,
        width: int = 1024,
        depth: int = 24,
        heads: int = 16,
        decoder_width: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
    ) -> None:
        from timm.layers import PatchEmbed

        super().__init__()
        self.patch = patch
        self.patch_embed = PatchEmbed(side, patch, 3, width)
        cells = self.patch_embed.num_patches
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, cells + 1, width) * 0.02)
        self.blocks = _blocks(depth, width, heads)
        self.norm = nn.LayerNorm(width, _EPSILON)
        self.decoder_embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.randn(1, 1, decoder_width) * 0.02)
        self.decoder_pos_embed = nn.Parameter(torch.randn(1, cells + 1, decoder_width) * 0.02)
        self.decoder_blocks = _blocks(decoder_depth, decoder_width, decoder_heads)
        self.decoder_norm = nn.LayerNorm(decoder_width, _EPSILON)
        self.decoder_pred = nn.Linear(decoder_width, patch**2 * 3)

    def encode(self, image: Tensor) -> Tensor:
        """float[N, 1 + cells, width]: class token and every patch, after the encoder's norm."""
        table: Tensor = self.pos_embed
        if image.shape[2:] != AS_TRAINED:
            table = resized_positions(table, *self.patch_embed.grid_size)
        return self._encoded(self.patch_embed(image), table)

    def features(self, image: Tensor) -> Tensor:
        """float[N, width, H / patch, W / patch] of images of any size, sides multiples of it."""
        cells = self.patch_embed.proj(image)
        height, width = cells.shape[2:]
        tokens = self._encoded(rows(cells), resized_positions(self.pos_embed, height, width))
        return tokens[:, 1:].transpose(1, 2).unflatten(2, (height, width))

    def _encoded(self, cells: Tensor, table: Tensor) -> Tensor:
        """The tokens of embedded patches float[N, cells, width], whose positions ``table`` has."""
        first = (self.cls_token + table[:, :1]).expand(len(cells), -1, -1)
        return self.norm(self.blocks(torch.cat((first, cells + table[:, 1:]), 1)))

    def decode(self, latent: Tensor, keep: Tensor | None = None) -> Tensor:
        """The image of an encoding: float[N, 3, side, side].

        ``keep`` float[N, cells] blends each patch with the mask token: 1 keeps it, at 0 the
        decoder has to guess it (soft inpainting). By default all are kept.
        """
        tokens = self.decoder_embed(latent)
        if keep is not None:
            share = keep.unsqueeze(2)
            cells = share * tokens[:, 1:] + (1 - share) * self.mask_token
            tokens = torch.cat((tokens[:, :1], cells), 1)
        tokens = self.decoder_blocks(tokens + self.decoder_pos_embed)
        return self._image(self.decoder_pred(self.decoder_norm(tokens))[:, 1:])

    def guessing_loss(self, image: Tensor, hidden: Tensor) -> Tensor:
        """The mean squared error of an image where ``hidden`` bool[N, cells] patches are guessed.

        Over all patches, since MOVE also looks at those that are kept. He et al. take the hidden
        ones alone, which their encoder does not see; this one sees all.
        """
        return F.mse_loss(self.decode(self.encode(image), (~hidden).to(image.dtype)), image)

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """The authors' checkpoint. Raises HubError if it does not fit exactly."""
        load_strictly(self, state, "The MAE checkpoint")

    def _image(self, patches: Tensor) -> Tensor:
        """float[N, cells, patch * patch * 3] put together."""
        side = round(patches.shape[1] ** 0.5)
        grid = patches.unflatten(2, (self.patch, self.patch, 3)).unflatten(1, (side, side))
        return grid.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def _blocks(depth: int, width: int, heads: int) -> nn.Sequential:
    from timm.models.vision_transformer import Block

    norm: Any = partial(nn.LayerNorm, eps=_EPSILON)
    blocks: list[Any] = [Block(width, heads, qkv_bias=True, norm_layer=norm) for _ in range(depth)]
    for block in blocks:
        block.attn.fused_attn = False  # whose gradient on a GPU is not the same every time
    return nn.Sequential(*blocks)
