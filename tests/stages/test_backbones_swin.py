from __future__ import annotations

import pytest
import torch
from closeness import FLOAT64, assert_close_in_norm
from torch import Tensor, nn
from torch.nn import functional as F

from stages.backbones.swin import Swin, SwinSize, drop_path, map_of, windows_of
from wsssbed_hub.utils.errors import HubError

SMALL = SwinSize(8, (2, 2, 3, 1), (1, 2, 2, 4))
WINDOW = 4
SIDE = 256  # all maps are multiples of the window, and larger: there timm pads nothing


def timms() -> nn.Module:
    """timm's network of the same size; its norms, biases and tables are drawn too."""
    from timm.models.swin_transformer import SwinTransformer

    torch.manual_seed(0)
    network = SwinTransformer(
        SIDE,
        embed_dim=SMALL.width,
        depths=SMALL.depths,
        num_heads=SMALL.heads,
        window_size=WINDOW,
        num_classes=3,
    )
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network.double().eval()


def microsofts(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's entries as Microsoft's checkpoints call them, with what those hold beside them."""
    found = {}
    for name, value in state.items():
        parts = name.split(".")
        if parts[2:3] == ["downsample"]:  # at the end of a stage, not at the beginning
            parts[1] = str(int(parts[1]) - 1)
        found[".".join(parts).replace("head.fc.", "head.")] = value
    found["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.int64)
    found["layers.0.blocks.1.attn_mask"] = torch.zeros(256, 16, 16)
    return found


def mmsegmentations(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same network as MMSegmentation's converter writes it, place by place of the mergings."""
    found = {}
    for name, value in microsofts(state).items():
        if name.endswith(("downsample.norm.weight", "downsample.norm.bias", "reduction.weight")):
            width = value.shape[-1] // 4
            turned = torch.empty_like(value)
            for block, (row, column) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
                for channel in range(width):
                    place = 4 * channel + 2 * row + column
                    turned[..., place] = value[..., block * width + channel]
            value = turned
        name = name.replace("layers.", "stages.").replace(".attn.", ".attn.w_msa.")
        name = name.replace("mlp.fc1", "ffn.layers.0.0").replace("mlp.fc2", "ffn.layers.1")
        found[name.replace("patch_embed.proj.", "patch_embed.projection.")] = value
    return found


@pytest.mark.numerical
@pytest.mark.parametrize("form", [dict, microsofts, mmsegmentations])
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_with_published_weights_the_maps_are_timms(form: type, prefix: str) -> None:
    theirs = timms()
    ours = Swin(SMALL, window=WINDOW).double().eval()
    ours.load_initial({prefix + k: v for k, v in form(theirs.state_dict()).items()}, "it")
    image = torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64)
    with torch.inference_mode():
        _, expected = theirs.forward_intermediates(image)  # type: ignore[operator]
        found = ours(image)
    for level, (got, want) in enumerate(zip(found, expected, strict=True)):
        want = F.layer_norm(want.permute(0, 2, 3, 1), want.shape[1:2]).permute(0, 3, 1, 2)
        assert_close_in_norm(got, want, FLOAT64, f"map {level}")


def test_norms_of_the_maps_are_taken_if_there_are_any() -> None:
    state = mmsegmentations(timms().state_dict())
    network = Swin(SMALL, window=WINDOW)
    network.load_initial(state | {"norm2.bias": torch.full((32,), 2.0)}, "it")
    assert network.norms[2].bias.eq(2).all()
    assert network.norms[1].bias.eq(0).all()


def test_weights_of_another_window_or_with_a_gap_are_refused() -> None:
    state = microsofts(timms().state_dict())
    network = Swin(SMALL, window=7)
    before = network.embed.bias.clone()
    with pytest.raises(HubError, match=r"of another shape: layers\.0\.blocks\.0\..*bias_table"):
        network.load_initial(state, "it")
    assert torch.equal(network.embed.bias, before)
    del state["layers.0.downsample.reduction.weight"]
    with pytest.raises(HubError, match=r"missing: stages\.0\.downsample\.reduction\.weight"):
        Swin(SMALL, window=WINDOW).load_initial(state, "it")


@pytest.mark.parametrize(("height", "width"), [(1, 5), (33, 60), (64, 31)])
def test_sizes_are_rounded_up(height: int, width: int) -> None:
    found = Swin(SMALL).eval()(torch.randn(1, 3, height, width))
    expected = [
        (1, 8 * 2**level, -(-height // stride), -(-width // stride))
        for level, stride in enumerate((4, 8, 16, 32))
    ]
    assert [tuple(plane.shape) for plane in found] == expected


def test_windows_row_by_row() -> None:
    x = torch.arange(2 * 4 * 6).view(2, 4, 6, 1)
    windows = windows_of(x, 2)
    assert windows.shape == (2, 6, 4, 1)
    assert windows[0, 1, :, 0].tolist() == [2, 3, 8, 9]
    assert windows[1, 3, :, 0].tolist() == [24 + 12, 24 + 13, 24 + 18, 24 + 19]
    assert torch.equal(map_of(windows, 4, 6), x)


def test_drop_path_leaves_samples_out_and_makes_up_for_them() -> None:
    torch.manual_seed(0)
    x = torch.ones(4000, 2, 3)
    found = drop_path(x, 0.25, training=True)
    values = found.flatten(1).unique(dim=1)
    assert values.shape == (4000, 1)  # a sample is dropped or kept as a whole
    assert sorted(values.unique().tolist()) == pytest.approx([0, 4 / 3])
    assert found.mean().item() == pytest.approx(1, abs=0.03)
    assert torch.equal(drop_path(x, 0.25, training=False), x)


def test_drop_path_grows_linearly_over_the_blocks_of_all_stages() -> None:
    network = Swin(SMALL, drop_path=0.7)
    drops = [block.drop for stage in network.stages for block in stage.blocks]
    assert drops == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])


def test_in_training_both_halves_of_a_block_are_dropped() -> None:
    torch.manual_seed(0)
    network = Swin(SMALL, drop_path=0.999999)
    block = network.stages[3].blocks[0]
    x = torch.randn(2, 7, 7, 64)
    mask = torch.zeros(1, 49, 49)
    assert torch.equal(block.train()(x, mask), x)
    assert not torch.equal(block.eval()(x, mask), x)
