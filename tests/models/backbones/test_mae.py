"""The masked autoencoder against loops, and what its encoder may not see."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from scipy.spatial import KDTree
from torch import Tensor

from anomaly3d.errors import InputError
from anomaly3d.models.backbones.mae import MaskedAutoencoder, chamfer_l2, even_ranks, random_mask
from anomaly3d.models.backbones.point_mae import ARCHITECTURES, Block, PointMAE
from anomaly3d.models.backbones.weights import frozen_point_mae, save_encoder


def patches(clouds: int = 2, groups: int = 10, size: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    return 0.1 * torch.randn(clouds, groups, size, 3), torch.randn(clouds, groups, 3), random_mask(clouds, groups, 0.6)


def test_chamfer_against_nearest_neighbour_search() -> None:
    a, b = torch.randn(5, 32, 3, dtype=torch.float64), torch.randn(5, 20, 3, dtype=torch.float64)
    expected = 0.0
    for one, other in zip(a.numpy(), b.numpy(), strict=True):
        expected += (KDTree(other).query(one)[0] ** 2).mean() + (KDTree(one).query(other)[0] ** 2).mean()
    assert chamfer_l2(a, b).item() == pytest.approx(expected / 5, rel=1e-12)
    assert torch.autograd.gradcheck(chamfer_l2, (a.requires_grad_(), b))


def test_every_cloud_has_the_same_number_of_masked_patches_at_other_places() -> None:
    masked = random_mask(200, 64, 0.6)
    assert masked.sum(dim=1).unique().tolist() == [38]
    assert masked.float().mean(dim=0).sub(0.594).abs().max() < 0.15
    assert len({tuple(row) for row in masked.tolist()}) == 200


@pytest.mark.parametrize(("available", "wanted"), [(32, 32), (33, 32), (512, 32)])
def test_ranks_are_spread_evenly_up_to_the_last(available: int, wanted: int) -> None:
    ranks = even_ranks(available, wanted)
    assert ranks.unique().tolist() == ranks.tolist()
    assert ranks[-1] == available - 1
    assert ranks.diff().max() - ranks.diff().min() <= 1


@pytest.mark.parametrize("size", ["tiny", "point_bert"])
def test_masked_patches_are_not_seen(size: str) -> None:
    model = MaskedAutoencoder(size).eval()  # pyright: ignore[reportArgumentType]
    points, centres, masked = patches()
    before = model(points, centres, masked)
    turned = torch.where(masked[:, :, None, None], points.flip(-1), points)  # of the same size
    after = model(turned, centres, masked)
    torch.testing.assert_close(after.predicted, before.predicted)
    assert not torch.allclose(after.target, before.target)
    visible = torch.where(masked[:, :, None, None], points, points.flip(-1))
    assert not torch.allclose(model(visible, centres, masked).predicted, before.predicted)


def reference_decoding(model: MaskedAutoencoder, points: Tensor, centres: Tensor, masked: Tensor) -> Tensor:
    """The published decoder for one cloud: explicit attention, the position before every block, in float64."""
    f = torch.nn.functional
    model = copy.deepcopy(model).double()
    s, encoder = model.state_dict(), model.MAE_encoder

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ s[f"{name}.weight"].T + s.get(f"{name}.bias", torch.zeros(()))

    def norm(x: Tensor, name: str) -> Tensor:
        return f.layer_norm(x, x.shape[-1:], s[f"{name}.weight"], s[f"{name}.bias"])

    points, centres = points.double() / encoder.unit(points.double()[None])[0], centres.double()
    (seen,) = encoder.transform(encoder.embed(points[None, ~masked]), centres[None, ~masked])
    x = torch.cat([seen[0], s["mask_token"][0].repeat(int(masked.sum()), 1)])
    where = torch.cat([centres[~masked], centres[masked]])
    position = linear(f.gelu(linear(where, "decoder_pos_embed.0")), "decoder_pos_embed.2")
    heads = ARCHITECTURES[encoder.size].heads
    for i in range(len(model.MAE_decoder.blocks)):
        name = f"MAE_decoder.blocks.{i}"
        x = x + position
        q, k, v = linear(norm(x, f"{name}.norm1"), f"{name}.attn.qkv").chunk(3, dim=-1)
        parts = [(a.chunk(heads, dim=-1)) for a in (q, k, v)]
        mixed = [(a @ b.T / a.shape[-1] ** 0.5).softmax(-1) @ c for a, b, c in zip(*parts, strict=True)]
        x = x + linear(torch.cat(mixed, -1), f"{name}.attn.proj")
        x = x + linear(f.gelu(linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")), f"{name}.mlp.fc2")
    hidden = norm(x, "MAE_decoder.norm")[-int(masked.sum()) :]
    return linear(hidden, "increase_dim.0").reshape(len(hidden), -1, 3)


def test_the_decoder_is_the_published_one() -> None:
    model = MaskedAutoencoder("tiny", decoder_depth=3).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # the initial position embedding is next to nothing
        points, centres, masked = patches()
        found = model(points, centres, masked).predicted
        for b in range(2):
            expected = reference_decoding(model, points[b], centres[b], masked[b])
            torch.testing.assert_close(found[b].double(), expected, rtol=1e-3, atol=1e-3)


def test_targets_are_the_masked_patches_in_the_loss_s_unit() -> None:
    points, centres, masked = patches()
    found = MaskedAutoencoder("tiny", points=8).eval()(points, centres, masked)
    for b in range(2):
        radius = sum(max(float(p.norm()) for p in patch) for patch in points[b]) / points.shape[1]
        expected = points[b][masked[b]][:, even_ranks(40, 8)] / radius
        torch.testing.assert_close(found.target[b], expected)
        torch.testing.assert_close(found.unit[b].item(), radius)
        torch.testing.assert_close(found.centres[b, -6:], centres[b][masked[b]])
    plain = MaskedAutoencoder("point_bert", points=8).eval()(points, centres, masked)
    torch.testing.assert_close(plain.target[0], points[0][masked[0]][:, even_ranks(40, 8)])


def test_every_weight_learns_and_the_loss_falls() -> None:
    model = MaskedAutoencoder("tiny", decoder_depth=1, drop_path=0.0)
    points, centres, masked = patches(4)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    losses = []
    for _ in range(60):
        loss = model(points, centres, masked).loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    assert losses[-1] < 0.7 * losses[0]


def test_stochastic_depth_leaves_out_whole_branches_and_keeps_their_mean() -> None:
    block = Block(96, 4, drop_path=0.5)
    x = torch.randn(1, 3, 96).expand(4000, -1, -1)
    trained = block.train()._kept(x)
    left_out = (trained == 0).all(dim=2).all(dim=1)
    assert 0.45 < left_out.float().mean() < 0.55
    torch.testing.assert_close(trained[~left_out], 2 * x[~left_out])
    torch.testing.assert_close(block.eval()._kept(x), x)


def test_names_are_those_of_the_published_checkpoints() -> None:
    state = MaskedAutoencoder("base").state_dict()
    published = {
        "MAE_encoder.encoder.first_conv.3.weight": (256, 128),
        "MAE_encoder.encoder.second_conv.0.weight": (512, 512),
        "MAE_encoder.pos_embed.2.bias": (384,),
        "MAE_encoder.blocks.blocks.11.attn.qkv.weight": (1152, 384),
        "MAE_encoder.norm.weight": (384,),
        "MAE_decoder.blocks.3.mlp.fc2.weight": (384, 1536),
        "MAE_decoder.norm.bias": (384,),
        "mask_token": (1, 1, 384),
        "decoder_pos_embed.0.weight": (128, 3),
        "increase_dim.0.weight": (96, 384),
    }
    assert {name: tuple(state[name].shape) for name in published} == published


def test_a_saved_encoder_comes_back_to_half_precision(tmp_path: Path) -> None:
    model = PointMAE("tiny").train()
    model.embed(0.2 * torch.randn(2, 6, 16, 3))  # moves the BatchNorm statistics
    save_encoder(model, tmp_path / "weights.safetensors", {"seed": "3"})
    loaded = frozen_point_mae(weights=str(tmp_path / "weights.safetensors"))
    assert loaded.size == "tiny"
    points, centres = 0.2 * torch.randn(2, 6, 16, 3), torch.randn(2, 6, 3)
    (expected,), (got,) = model.eval()(points, centres), loaded(points, centres)
    torch.testing.assert_close(got, expected, rtol=0, atol=5e-3)
    assert [f.name for f in tmp_path.iterdir()] == ["weights.safetensors"]
    (tmp_path / "weights.safetensors").write_bytes(b"cut off")
    with pytest.raises(InputError, match=r"weights\.safetensors: not a readable"):
        frozen_point_mae("tiny", str(tmp_path / "weights.safetensors"))


def test_a_pretrained_checkpoint_of_ours_loads_as_the_published_ones_do(tmp_path: Path) -> None:
    model = MaskedAutoencoder("point_bert")
    torch.save({"base_model": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "ours.pth")
    loaded = frozen_point_mae(weights=str(tmp_path / "ours.pth"))
    assert loaded.size == "point_bert"
    torch.testing.assert_close(loaded.norm.weight, model.MAE_encoder.norm.weight)
