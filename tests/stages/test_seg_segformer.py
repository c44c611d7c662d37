"""What the reference case does not show; the case itself: test_conformance_seg_segformer.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from closeness import FLOAT64, assert_close_in_norm
from torch import Tensor, nn

from stages.backbones.mit import SIZES, MiT, MiTSize
from stages.runtime.method import Image
from stages.seg.segformer import RECIPES, Method, Recipe, SegFormer
from wsssbed_hub.utils.errors import HubError, UsageError

DEPTHS = (1, 2, 1, 1)
SIZE = MiTSize((8, 16, 24, 32), DEPTHS, (1, 2, 3, 4))


@pytest.fixture(autouse=True)
def small_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "small", SIZE)  # type: ignore[arg-type]


def recipe(**changes: Any) -> Recipe:
    return replace(RECIPES["shapes"], **{"backbone": "small", "channels": 12, **changes})


def build(**changes: Any) -> SegFormer:
    network = Method(recipe(**changes), Path(), 3).build()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    return network.eval()


def backbone_names(theirs: str) -> Iterator[tuple[str, str]]:
    """Beginnings of names: MMSegmentation's, and NVlabs's or transformers' (the specification)."""
    hub = theirs == "transformers"
    for s, depth in enumerate(DEPTHS):
        stage = f"backbone.layers.{s}"
        if hub:
            embedding, norm = f"patch_embeddings.{s}", "layer_norm"
            yield f"{stage}.2.", f"segformer.encoder.layer_norm.{s}."
            root = "segformer.encoder."
        else:
            embedding, norm = f"patch_embed{s + 1}", "norm"
            yield f"{stage}.2.", f"backbone.norm{s + 1}."
            root = "backbone."
        yield f"{stage}.0.projection.", f"{root}{embedding}.proj."
        yield f"{stage}.0.norm.", f"{root}{embedding}.{norm}."
        for b in range(depth):
            ours = f"{stage}.1.{b}."
            block = f"{root}block.{s}.{b}." if hub else f"{root}block{s + 1}.{b}."
            pairs = {
                "norm1.": "layer_norm_1." if hub else "norm1.",
                "norm2.": "layer_norm_2." if hub else "norm2.",
                "attn.attn.out_proj.": "attention.output.dense." if hub else "attn.proj.",
                "attn.sr.": "attention.self.sr." if hub else "attn.sr.",
                "attn.norm.": "attention.self.layer_norm." if hub else "attn.norm.",
                "ffn.layers.0.": "mlp.dense1." if hub else "mlp.fc1.",
                "ffn.layers.1.": "mlp.dwconv.dwconv.",
                "ffn.layers.4.": "mlp.dense2." if hub else "mlp.fc2.",
            }
            yield from ((ours + mine, block + other) for mine, other in pairs.items())


def head_names(theirs: str) -> Iterator[tuple[str, str]]:
    hub = theirs == "transformers"
    for n in range(4):
        other = f"linear_c.{n}.proj." if hub else f"linear_c{n + 1}.proj."
        yield f"decode_head.convs.{n}.", f"decode_head.{other}"
    fuse = {"conv.": "linear_fuse." if hub else "linear_fuse.conv."}
    fuse |= {"bn.": "batch_norm." if hub else "linear_fuse.bn."}
    yield from ((f"decode_head.fusion_conv.{a}", f"decode_head.{b}") for a, b in fuse.items())
    yield "decode_head.conv_seg.", f"decode_head.{'classifier' if hub else 'linear_pred'}."


def as_theirs(state: dict[str, Tensor], theirs: str) -> dict[str, Tensor]:
    """Our checkpoint as NVIDIA would have written it."""
    names = [*backbone_names(theirs), *head_names(theirs)]
    found = {}
    for key, value in state.items():
        if ".in_proj_" in key:
            before, leaf = key.split("attn.attn.in_proj_")
            _, _, s, _, b, _ = before.split(".")
            query, keys, values = value.chunk(3)
            if theirs == "transformers":
                place = f"segformer.encoder.block.{s}.{b}.attention.self."
                parts = {"query": query, "key": keys, "value": values}
            else:
                place = f"backbone.block{int(s) + 1}.{b}.attn."
                parts = {"q": query, "kv": torch.cat([keys, values])}
            found |= {f"{place}{name}.{leaf}": part for name, part in parts.items()}
            continue
        ours, other = next(pair for pair in names if key.startswith(pair[0]))
        linear = ("ffn.layers.0.", "ffn.layers.4.")
        flat = key.endswith(".weight") and (ours.endswith(linear) or "convs." in ours)
        found[key.replace(ours, other)] = value[:, :, 0, 0] if flat else value
    return found


@pytest.mark.parametrize("theirs", ["NVlabs", "transformers"])
@pytest.mark.parametrize("wrapper", ["", "module."])
def test_nvidia_s_checkpoints(theirs: str, wrapper: str) -> None:
    source, network = build(head="authors"), build(head="authors")
    state = as_theirs(source.state_dict(), theirs)
    if theirs == "NVlabs":  # of their framework, unused
        state |= {"decode_head.conv_seg.weight": torch.ones(3, 128, 1, 1)}
        state |= {"decode_head.conv_seg.bias": torch.ones(3)}
    network.load_published({wrapper + key: value for key, value in state.items()})
    for key, value in network.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key


@pytest.mark.parametrize("theirs", ["MMSegmentation", "NVlabs", "transformers"])
def test_imagenet_weights(theirs: str) -> None:
    """Classifiers: no ``backbone.`` before their names, and a last layer that is not needed."""
    source, network = build(), build()
    state = {k: v for k, v in source.state_dict().items() if k.startswith("backbone.")}
    if theirs == "MMSegmentation":
        state = {key.removeprefix("backbone."): value for key, value in state.items()}
    else:
        head = {"NVlabs": "head", "transformers": "classifier"}[theirs]
        state = {k.removeprefix("backbone."): v for k, v in as_theirs(state, theirs).items()}
        state |= {f"{head}.weight": torch.ones(9, 32), f"{head}.bias": torch.ones(9)}
    Method(recipe(), Path(), 3).load_initial(network, state, "backbone")
    for key, value in network.backbone.state_dict().items():
        assert torch.equal(value, source.backbone.state_dict()[key]), key
    assert not torch.equal(network.decode_head.conv_seg.weight, source.decode_head.conv_seg.weight)


def test_initial_weights_without_a_projection_are_refused() -> None:
    state = as_theirs(build(head="authors").state_dict(), "transformers")
    state = {k: v for k, v in state.items() if not k.startswith("decode_head.")}
    del state["segformer.encoder.block.1.1.attention.self.key.weight"]
    with pytest.raises(HubError, match=r"missing: layers\.1\.1\.1\.attn\.attn\.in_proj_weight"):
        Method(recipe(), Path(), 3).load_initial(build(), state, "backbone")


@pytest.mark.parametrize(("given", "wanted"), [("mmseg", "authors"), ("authors", "mmseg")])
def test_the_other_head_is_refused_and_named(given: str, wanted: str) -> None:
    state = build(head=given, channels=20).state_dict()
    with pytest.raises(HubError, match=rf"--set head={given} --set channels=20"):
        build(head=wanted).load_published(state)


@pytest.mark.numerical
def test_the_authors_head_is_linear_up_to_the_fusion_and_begins_with_the_coarsest() -> None:
    head = build(head="authors", dropout=0.0).double().decode_head
    maps = [torch.randn(1, n, 2, 3, dtype=torch.float64) for n in SIZE.widths]
    with torch.inference_mode():
        found = head(maps)
        parts = [
            torch.einsum("oi,nihw->nohw", conv.weight[:, :, 0, 0], x) + conv.bias[:, None, None]
            for conv, x in zip(head.convs, maps, strict=True)
        ]
        fused = head.fusion_conv(torch.cat([parts[3], parts[2], parts[1], parts[0]], 1))
        expected = head.conv_seg(fused)
    assert_close_in_norm(found, expected, FLOAT64)


@pytest.mark.numerical
def test_what_fills_no_cell_is_not_attended_to() -> None:
    """A map of 9 by 10 places in cells of 8 by 8: one cell, and the rest changes no key."""
    torch.manual_seed(0)
    backbone = MiT(MiTSize((8, 8, 8, 8), (1, 1, 1, 1), (1, 1, 1, 1))).double().eval()
    attention = backbone.layers[0][1][0].attn  # type: ignore[index]
    x = torch.randn(1, 90, 8, dtype=torch.float64)
    changed = x.clone().unflatten(1, (9, 10))
    changed[:, 8:] = changed[:, :, 8:] = 0
    with torch.inference_mode():
        before, after = attention(x, (9, 10)), attention(changed.flatten(1, 2), (9, 10))
    inside = (slice(None), slice(0, 8), slice(0, 8))
    assert_close_in_norm(
        after.unflatten(1, (9, 10))[inside], before.unflatten(1, (9, 10))[inside], FLOAT64
    )
    # Values are the same for all, as there is one cell: so is what is found.
    assert_close_in_norm(before, before[:, :1].expand_as(before), FLOAT64)


def test_logits_have_the_size_of_the_image() -> None:
    rgb = np.zeros((33, 47, 3), np.uint8)
    with torch.inference_mode():
        logits = Method(recipe(), Path(), 3).logits(build(), Image("any", rgb))
    assert (logits.shape, logits.dtype) == ((4, 33, 47), torch.float32)


def test_the_recipes() -> None:
    published = RECIPES["published"]
    authors = replace(published, initial="mit_b5.pth", head="authors", channels=768)
    assert RECIPES["published-authors"] == authors
    assert RECIPES["coco-80k"] == replace(published, steps=80_000)
    assert published.padding == "mean"


def test_an_unknown_backbone() -> None:
    with pytest.raises(UsageError, match=r"backbone=mit-b6: .*mit-b5"):
        replace(RECIPES["published"], backbone="mit-b6")
