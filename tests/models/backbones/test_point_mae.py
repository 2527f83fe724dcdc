"""Point-MAE against an independent network built of the published layers, and the published file formats."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from anomaly3d.errors import InputError
from anomaly3d.models.backbones.point_mae import FrozenPointMAE, PointMAE, Size, patch_radius
from anomaly3d.models.backbones.weights import frozen_point_mae, save_encoder, weights_hash

WIDTH, DEPTH, HEADS = 384, 12, 6


def published_state(encoder_width: int = WIDTH) -> dict[str, Tensor]:
    """Random weights with the keys and shapes of a published encoder."""

    def norm(prefix: str, width: int) -> dict[str, Tensor]:
        return {f"{prefix}.weight": 1 + 0.1 * torch.randn(width), f"{prefix}.bias": 0.1 * torch.randn(width)}

    def batch_norm(prefix: str, width: int) -> dict[str, Tensor]:
        return norm(prefix, width) | {
            f"{prefix}.running_mean": 0.1 * torch.randn(width),
            f"{prefix}.running_var": 0.5 + torch.rand(width),
            f"{prefix}.num_batches_tracked": torch.tensor(7),
        }

    def affine(prefix: str, n_in: int, n_out: int, *tail: int, bias: bool = True) -> dict[str, Tensor]:
        weight = {f"{prefix}.weight": torch.randn(n_out, n_in, *tail) / n_in**0.5}
        return weight | ({f"{prefix}.bias": 0.1 * torch.randn(n_out)} if bias else {})

    state = (
        affine("encoder.first_conv.0", 3, 128, 1)
        | batch_norm("encoder.first_conv.1", 128)
        | affine("encoder.first_conv.3", 128, 256, 1)
        | affine("encoder.second_conv.0", 512, 512, 1)
        | batch_norm("encoder.second_conv.1", 512)
        | affine("encoder.second_conv.3", 512, encoder_width, 1)
        | affine("pos_embed.0", 3, 128)
        | affine("pos_embed.2", 128, WIDTH)
        | norm("norm", WIDTH)
    )
    if encoder_width != WIDTH:
        state |= affine("reduce_dim", encoder_width, WIDTH)
    for i in range(DEPTH):
        block = f"blocks.blocks.{i}"
        state |= norm(f"{block}.norm1", WIDTH) | norm(f"{block}.norm2", WIDTH)
        state |= affine(f"{block}.attn.qkv", WIDTH, 3 * WIDTH, bias=False) | affine(f"{block}.attn.proj", WIDTH, WIDTH)
        state |= affine(f"{block}.mlp.fc1", WIDTH, 4 * WIDTH) | affine(f"{block}.mlp.fc2", 4 * WIDTH, WIDTH)
    return state


def reference_tokens(state: dict[str, Tensor], points: Tensor, centres: Tensor, blocks: list[int]) -> list[Tensor]:
    """The published forward pass written with functional 1x1 convolutions and explicit softmax attention."""
    f = nn.functional
    s = {k: v.double() for k, v in state.items()}
    points, centres = points.double(), centres.double()

    def batch_norm(x: Tensor, prefix: str) -> Tensor:
        p = {n: s[f"{prefix}.{n}"][:, None] for n in ("weight", "bias", "running_mean", "running_var")}
        return (x - p["running_mean"]) / (p["running_var"] + 1e-5).sqrt() * p["weight"] + p["bias"]

    def layer_norm(x: Tensor, prefix: str) -> Tensor:
        return f.layer_norm(x, (WIDTH,), s[f"{prefix}.weight"], s[f"{prefix}.bias"])

    def linear(x: Tensor, prefix: str) -> Tensor:
        return x @ s[f"{prefix}.weight"].T + s.get(f"{prefix}.bias", torch.zeros(()))

    batch, groups, size, _ = points.shape
    x = points.reshape(batch * groups, size, 3).transpose(1, 2)
    x = f.conv1d(x, s["encoder.first_conv.0.weight"], s["encoder.first_conv.0.bias"])
    x = batch_norm(x, "encoder.first_conv.1").relu()
    x = f.conv1d(x, s["encoder.first_conv.3.weight"], s["encoder.first_conv.3.bias"])
    x = torch.cat([x.max(dim=2, keepdim=True).values.repeat(1, 1, size), x], dim=1)
    x = f.conv1d(x, s["encoder.second_conv.0.weight"], s["encoder.second_conv.0.bias"])
    x = batch_norm(x, "encoder.second_conv.1").relu()
    x = f.conv1d(x, s["encoder.second_conv.3.weight"], s["encoder.second_conv.3.bias"])
    x = x.max(dim=2).values.reshape(batch, groups, -1)
    if "reduce_dim.weight" in s:
        x = linear(x, "reduce_dim")
    position = linear(f.gelu(linear(centres, "pos_embed.0")), "pos_embed.2")
    collected = []
    for i in range(max(blocks)):
        name = f"blocks.blocks.{i}"
        x = x + position
        q, k, v = linear(layer_norm(x, f"{name}.norm1"), f"{name}.attn.qkv").chunk(3, dim=-1)
        heads = []
        for head in range(HEADS):
            part = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
            weights = (q[..., part] @ k[..., part].transpose(1, 2) / (WIDTH // HEADS) ** 0.5).softmax(dim=-1)
            heads.append(weights @ v[..., part])
        x = x + linear(torch.cat(heads, dim=-1), f"{name}.attn.proj")
        x = x + linear(f.gelu(linear(layer_norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")), f"{name}.mlp.fc2")
        if i + 1 in blocks:
            collected.append(layer_norm(x, "norm"))
    return collected


CLASSES = {"modelnet_1k": 40, "modelnet_8k": 40, "scan_hardest": 15, "scan_objbg": 15, "scan_objonly": 15}
PUBLISHED = ["pretrain", *CLASSES, "part_seg", "point_bert"]


def heads(kind: str) -> dict[str, Tensor]:
    """What a published file holds beside the encoder."""

    def norm(prefix: str, width: int) -> dict[str, Tensor]:
        names = ("weight", "bias", "running_mean", "running_var")
        return {f"{prefix}.{name}": torch.ones(width) for name in names} | {
            f"{prefix}.num_batches_tracked": torch.tensor(7)
        }

    def affine(prefix: str, n_in: int, n_out: int, *tail: int) -> dict[str, Tensor]:
        return {f"{prefix}.weight": torch.zeros(n_out, n_in, *tail), f"{prefix}.bias": torch.zeros(n_out)}

    token = {"cls_token": torch.zeros(1, 1, WIDTH), "cls_pos": torch.zeros(1, 1, WIDTH)}
    if kind in CLASSES:
        head = "cls_head_finetune"
        layers = affine(f"{head}.0", 2 * WIDTH, 256) | norm(f"{head}.1", 256) | affine(f"{head}.4", 256, 256)
        return token | layers | norm(f"{head}.5", 256) | affine(f"{head}.8", 256, CLASSES[kind])
    if kind == "part_seg":
        mlp = affine("propagation_0.mlp_convs.0", 3 * WIDTH + 3, 1536, 1) | norm("propagation_0.mlp_bns.0", 1536)
        mlp |= affine("propagation_0.mlp_convs.1", 1536, 1024, 1) | norm("propagation_0.mlp_bns.1", 1024)
        label = {"label_conv.0.weight": torch.zeros(64, 16, 1)} | norm("label_conv.1", 64)
        layers = affine("convs1", 3392, 512, 1) | norm("bns1", 512) | affine("convs2", 512, 256, 1) | norm("bns2", 256)
        return mlp | label | layers | affine("convs3", 256, 50, 1)
    decoder = {k.replace("blocks.blocks", "MAE_decoder.blocks"): v for k, v in published_state().items()}
    decoder = {k: v for k, v in decoder.items() if k.startswith("MAE_decoder.blocks") and int(k.split(".")[2]) < 4}
    decoder |= {"MAE_decoder.norm.weight": torch.ones(WIDTH), "MAE_decoder.norm.bias": torch.zeros(WIDTH)}
    decoder |= affine("decoder_pos_embed.0", 3, 128) | affine("decoder_pos_embed.2", 128, WIDTH)
    return decoder | {"mask_token": torch.zeros(1, 1, WIDTH)} | affine("increase_dim.0", WIDTH, 96, 1)


def wrap(kind: str, state: dict[str, Tensor]) -> dict[str, object]:
    """The state as each published file wraps it, with the extra keys that it has."""
    if kind == "pretrain":
        inner = {f"MAE_encoder.{k}": v for k, v in state.items()} | heads(kind)
    elif kind == "point_bert":  # a momentum encoder and a tokenizer stand beside the encoder
        inner = {f"transformer_q.{k}": v for k, v in state.items()}
        inner |= {f"transformer_k.{k}": torch.zeros_like(v) for k, v in state.items()}
        inner |= {"transformer_q.cls_token": torch.zeros(1, 1, WIDTH), "dvae.codebook": torch.zeros(8, 256)}
        inner |= {"dvae.encoder.first_conv.0.weight": torch.zeros(128, 3, 1), "queue": torch.zeros(256, 16384)}
    else:
        inner = state | heads(kind)
    outer = "model_state_dict" if kind == "part_seg" else "base_model"
    return {outer: {f"module.{k}": v for k, v in inner.items()}, "epoch": 300}


@pytest.mark.parametrize("kind", PUBLISHED)
def test_published_files_load_and_give_the_published_tokens(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = published_state(encoder_width=256 if kind == "point_bert" else WIDTH)
    torch.save(wrap(kind, state), tmp_path / "file.pth")
    with caplog.at_level("INFO"):
        model = frozen_point_mae(None, str(tmp_path / "file.pth"))
    assert model.size == ("point_bert" if kind == "point_bert" else "base")
    (line,) = [record.message for record in caplog.records if "Backbone" in record.message]
    assert "file.pth" in line
    assert weights_hash(model) in line
    unused = line.split("not used: ")[1].split(", ")
    heads = {"pretrain": "MAE_decoder", "point_bert": "transformer_k", "part_seg": "propagation_0"}
    assert heads.get(kind, "cls_head_finetune") in unused
    assert "outside" not in unused
    points, centres = 0.2 * torch.randn(2, 5, 16, 3), torch.randn(2, 5, 3)
    ours = model(points, centres, blocks=[4, 12])
    for got, expected in zip(ours, reference_tokens(state, points, centres, [4, 12]), strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", PUBLISHED)
def test_wrong_weights_are_refused_by_name_in_every_format(kind: str, tmp_path: Path) -> None:
    whole = published_state(encoder_width=256 if kind == "point_bert" else WIDTH)
    deeper = {k.replace("blocks.11", "blocks.12"): v for k, v in whole.items() if "blocks.11" in k}
    fewer = {k: v for k, v in whole.items() if k != "blocks.blocks.3.attn.qkv.weight"}
    for state, named in (
        (fewer | {"norm.bias": torch.zeros(5)}, r"blocks\.blocks\.3\.attn\.qkv\.weight.*norm\.bias \(5,\)"),
        (whole | deeper, r"unknown here: blocks\.blocks\.12\."),
        (
            whole | {"blocks.blocks.0.attn.qkv.bias": torch.zeros(3)},
            r"unknown here: blocks\.blocks\.0\.attn\.qkv\.bias",
        ),
        (whole | {"norm.bias": torch.full((WIDTH,), torch.nan)}, r"not finite: norm\.bias"),
        ({k: v for k, v in whole.items() if k != "encoder.second_conv.3.weight"}, r"missing.*second_conv\.3\.weight$"),
    ):
        torch.save(wrap(kind, state), tmp_path / "wrong.pth")
        with pytest.raises(InputError, match=rf"wrong\.pth.*{named}"):
            frozen_point_mae(None, str(tmp_path / "wrong.pth"))


def test_exported_weights_are_as_readable_as_any_new_file(tmp_path: Path) -> None:
    model = frozen_point_mae("tiny", "random")
    save_encoder(model, tmp_path / "a.safetensors", {})
    (tmp_path / "plain").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
    state = load_file(tmp_path / "a.safetensors")
    del state["norm.bias"]
    save_file(state, tmp_path / "b.safetensors")
    with pytest.raises(InputError, match=r"b\.safetensors.*missing: norm\.bias"):
        frozen_point_mae("tiny", str(tmp_path / "b.safetensors"))


class _Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("executed",)


UNUSABLE: dict[str, bytes | object] = {
    "empty": b"",
    "text": b"<html>404</html>",
    "not UTF-8": b"\x80\x02X\x01\x00\x00\x00\xff.",
    "code": pickle.dumps({"base_model": _Payload()}),
    "no known key": {"state": {}},
    "bare tensor": torch.zeros(3),
    "tensor for a mapping": {"base_model": torch.zeros(3)},
    "number for a tensor": {"base_model": {"module.x": 1}},
    "number for a name": {"base_model": {1: torch.zeros(3)}},
    "scalar for a matrix": {"base_model": {"encoder.first_conv.0.weight": torch.tensor(1.0)}},
}


@pytest.mark.parametrize("content", ["missing", *UNUSABLE])
@pytest.mark.parametrize("size", [None, "base"])
def test_unusable_files_are_named(
    content: str, size: Size | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "weights.pth"
    if content != "missing":
        whole = UNUSABLE[content]
        path.write_bytes(whole) if isinstance(whole, bytes) else torch.save(whole, path)
    with pytest.raises(InputError, match=r"weights\.pth: \w"):
        frozen_point_mae(size, str(path))
    assert "executed" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def tiny() -> FrozenPointMAE:
    return frozen_point_mae("tiny", "random")


def test_tokens_ignore_the_order_and_repetition_of_a_patch_s_points(tiny: FrozenPointMAE) -> None:
    points, centres = 0.2 * torch.randn(1, 6, 10, 3), torch.randn(1, 6, 3)
    (expected,) = tiny(points, centres)
    (shuffled,) = tiny(points[:, :, torch.randperm(10)], centres)
    (padded,) = tiny(torch.cat([points, points[:, :, :1].expand(-1, -1, 4, -1)], dim=2), centres)
    torch.testing.assert_close(shuffled, expected)
    torch.testing.assert_close(padded, expected)


@pytest.mark.parametrize("size", ["point_bert", "tiny"])
def test_nested_patches_share_the_scale_of_the_largest_and_equal_passes_of_their_own(size: Size) -> None:
    model = frozen_point_mae(size, "random")
    points, centres = 0.2 * torch.randn(2, 5, 20, 3), torch.randn(2, 5, 3)
    nested = model.nested(points, centres, [4, 8, 16], [2, 4])
    # The scale is the point: patches of the published sizes stay as they are, whatever lies in them.
    scaled = points / patch_radius(points[:, :, :16]) if size == "tiny" else points
    for tokens, n in zip(nested, [4, 8, 16], strict=True):
        alone = model.transform(model.embed(scaled[:, :, :n]), centres, [2, 4])
        for got, expected in zip(tokens, alone, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_training_uses_the_statistics_of_all_patches() -> None:
    model, points = PointMAE("tiny").train(), 0.2 * torch.randn(2, 7, 10, 3)
    first, second = model.embed_nested(points, [5, 10])
    torch.testing.assert_close(first, model.encoder(points[:, :, :5].flatten(0, 1)).unflatten(0, (2, 7)))
    torch.testing.assert_close(second, model.encoder(points.flatten(0, 1)).unflatten(0, (2, 7)))
    assert not torch.allclose(second, model.eval().embed(points), atol=1e-2)


def test_tokens_follow_weights_that_are_loaded_later(tiny: FrozenPointMAE) -> None:
    model, points = PointMAE("tiny").eval(), 0.2 * torch.randn(1, 6, 10, 3)
    before = model.embed(points)
    model.load_state_dict(tiny.state_dict())
    assert not torch.allclose(model.embed(points), before, atol=1e-2)
    torch.testing.assert_close(model.embed(points), tiny.embed(points))


def test_frozen_stays_frozen(tiny: FrozenPointMAE) -> None:
    parent = nn.ModuleDict({"backbone": tiny, "head": nn.Linear(96, 1)}).train()
    before = weights_hash(tiny)
    (tokens,) = tiny(0.2 * torch.randn(1, 4, 8, 3), torch.randn(1, 4, 3))
    parent["head"](tokens).sum().backward()
    assert not tiny.training
    assert not any(module.training for module in tiny.modules())
    assert not any(p.requires_grad or p.grad is not None for p in tiny.parameters())
    assert weights_hash(tiny) == before


def test_random_weights_follow_their_seed_alone(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = frozen_point_mae("tiny", "random", seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert weights_hash(first) == weights_hash(frozen_point_mae("tiny", "random", seed=3))
    assert weights_hash(first) != weights_hash(frozen_point_mae("tiny", "random", seed=4))
    torch.manual_seed(3)
    torch.rand(5)
    assert weights_hash(first) == weights_hash(frozen_point_mae("tiny", "random")), "by default the run's seed"
    assert "random weights" in caplog.text


def test_unknown_block_is_refused(tiny: FrozenPointMAE) -> None:
    with pytest.raises(ValueError, match="blocks 1 to 4"):
        tiny(torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 3), blocks=[5])


def test_sizes() -> None:
    count = {size: sum(p.numel() for p in PointMAE(size).parameters()) / 1e6 for size in ("base", "small", "tiny")}
    assert 21.5 < count["base"] < 22.2  # 22.1 M with class token and head in the papers
    assert 2 < count["small"] < 3
    assert count["tiny"] < 0.6


def test_random_tokens_tell_patches_apart() -> None:
    plane = torch.rand(1, 50, 32, 2) * 0.2 - 0.1
    bend = torch.linspace(-8, 8, 50)[None, :, None]
    points = torch.cat([plane, (bend * plane[..., 0] ** 2)[..., None]], dim=-1)
    tiny = frozen_point_mae("tiny", "random")
    tokens = tiny.embed(points / tiny.unit(points))[0]
    flat, bent = tokens[25], tokens[0]
    assert (bent - flat).norm() > 0.1 * flat.norm()
