from __future__ import annotations

import numpy as np
import pytest
import torch
from closeness import FLOAT64, assert_close_in_norm
from torch import Tensor
from torch.nn import functional as F

from stages.backbones.t2t_vit import Block, Performer, T2TViT, TokenTransformer, sinusoids


def sizes_of(found: tuple[Tensor, ...]) -> list[tuple[int, ...]]:
    return [tuple(tokens.shape) for tokens in found]


@pytest.mark.parametrize("size", [32, 80])
def test_tokens_at_three_resolutions(size: int) -> None:
    network = T2TViT(size, width=12, depth=1, heads=3, ratio=2, token_width=4)
    found = sizes_of(network(torch.randn(2, 3, size, size)))
    expected = [(2, (size // stride) ** 2, width) for stride, width in ((16, 12), (8, 4), (4, 4))]
    assert found == expected


@pytest.mark.numerical
def test_a_block_is_torchs_own_attention_before_its_mlp() -> None:
    torch.manual_seed(0)
    block = Block(12, 3, 2).double()
    theirs = torch.nn.TransformerEncoderLayer(
        12, 3, 24, dropout=0, activation=F.gelu, batch_first=True, norm_first=True
    ).double()
    names = {
        "self_attn.in_proj_weight": block.qkv.weight,
        "self_attn.in_proj_bias": torch.zeros(36),
        "self_attn.out_proj.weight": block.proj.weight,
        "self_attn.out_proj.bias": block.proj.bias,
        "linear1.weight": block.mlp[1].weight,
        "linear1.bias": block.mlp[1].bias,
        "linear2.weight": block.mlp[3].weight,
        "linear2.bias": block.mlp[3].bias,
        "norm1.weight": block.norm.weight,
        "norm1.bias": block.norm.bias,
        "norm2.weight": block.mlp[0].weight,
        "norm2.bias": block.mlp[0].bias,
    }
    theirs.load_state_dict(names)
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    assert_close_in_norm(block(x), theirs(x), FLOAT64)


@pytest.mark.numerical
def test_the_first_tokens_attend_at_the_scale_of_their_width_and_keep_their_values() -> None:
    torch.manual_seed(0)
    layer = TokenTransformer(27, 4).double()
    x = torch.randn(1, 6, 27, dtype=torch.float64)
    query, key, value = (layer.norm(x) @ w.T for w in layer.qkv.weight.split(4))
    attention = torch.exp(query @ key.transpose(1, 2) / 27**0.5)
    found = value + layer.proj(attention @ value / attention.sum(2, keepdim=True))
    assert_close_in_norm(layer(x), found + layer.mlp(found), FLOAT64)


@pytest.mark.numerical
def test_the_position_table() -> None:
    table = sinusoids(197, 384).double()
    assert table[0, 0::2].eq(0).all()
    assert table[0, 1::2].eq(1).all()
    # In every pair of channels sine and cosine of the same angle, one radian a place in the first.
    assert_close_in_norm(table[:, 0::2] ** 2 + table[:, 1::2] ** 2, np.ones((197, 192)), 1e-6)
    assert_close_in_norm(table[:, 0], np.sin(np.arange(197)), 1e-6)
    assert_close_in_norm(table[:, 383], np.cos(np.arange(197) / 10000 ** (382 / 384)), 1e-6)


@pytest.mark.numerical
def test_a_performer_attends_as_its_random_features_say() -> None:
    torch.manual_seed(0)
    performer = Performer(8, 4, dropout=0.1).double().eval()
    x = torch.randn(1, 5, 8, dtype=torch.float64)
    with torch.no_grad():
        key, query, value = F.linear(
            performer.norm(x), performer.kqv.weight, performer.kqv.bias
        ).split(8, 2)
        w = performer.directions

        def kernel(a: Tensor, b: Tensor) -> Tensor:
            """The mean over the features of exp(w.(a + b) - (|a|^2 + |b|^2) / 2)."""
            both = (a[:, None] + b[None]) @ w.T
            squares = a.square().sum(1)[:, None] + b.square().sum(1)[None]
            return (both - squares[..., None] / 2).exp().mean(2)

        attention = kernel(query[0], key[0])
        found = attention @ value[0] / attention.sum(1, keepdim=True)
        expected = x + performer.proj(found)
        expected = expected + performer.mlp(expected)
        assert_close_in_norm(performer(x), expected, 1e-6)  # the 1e-8 beside the normaliser


@pytest.mark.numerical
def test_the_random_features_are_orthogonal() -> None:
    torch.manual_seed(0)
    directions = Performer(64, 32, dropout=0.1).directions.double()
    assert_close_in_norm(directions @ directions.T, 32 * np.eye(32), 1e-6)
