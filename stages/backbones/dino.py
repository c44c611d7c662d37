"""DINO's vision transformer, made of timm's parts; its published names are timm's.

Caron et al., ICCV 2021, arXiv 2104.14294. Code: facebookresearch/dino (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stages.backbones.positions import resized_positions, rows
from stages.backbones.state import load_strictly


class DinoViT(nn.Module):
    """Tokens of float[N, 3, H, W] (ImageNet's mean and deviation; sides multiples of the patch).

    ``side`` is that of the images of its own training, which the table of positions fits.
    """

    def __init__(
        self, width: int = 384, depth: int = 12, heads: int = 6, patch: int = 8, side: int = 224
    ) -> None:
        from timm.models.vision_transformer import VisionTransformer

        super().__init__()
        self.vit: Any = VisionTransformer(
            side, patch, embed_dim=width, depth=depth, num_heads=heads, num_classes=0
        )
        self.width, self.depth, self.patch = width, depth, patch

    def tokens(self, image: Tensor) -> Tensor:
        """float[N, 1 + cells, width]: class token and embedded patches, with their positions."""
        cells = self.vit.patch_embed.proj(image)
        tokens = torch.cat((self.vit.cls_token.expand(len(image), -1, -1), rows(cells)), 1)
        table, side = self.vit.pos_embed, self.vit.patch_embed.grid_size[0]
        if cells.shape[2:] != (side, side):
            table = resized_positions(table, *cells.shape[2:])
        embedded: Tensor = tokens + table
        return embedded

    def features(self, image: Tensor, blocks: int) -> Tensor:
        """float[N, width, H / patch, W / patch]: after the first ``blocks`` blocks, not normed."""
        tokens = self.tokens(image)
        for block in self.vit.blocks[:blocks]:
            tokens = block(tokens)
        height, width = (side // self.patch for side in image.shape[2:])
        return tokens[:, 1:].transpose(1, 2).unflatten(2, (height, width))

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """The authors' checkpoint, or timm's. Raises HubError if it does not fit exactly."""
        load_strictly(self.vit, state, "The DINO checkpoint")
