"""SeDiR's modules against the paper's equations in float64, written out in NumPy, and their gradients."""

from __future__ import annotations

from math import erf, sqrt
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anomaly3d.models.sedir import SeDiR
from anomaly3d.models.sedir.c3l import CategoryContrast
from anomaly3d.models.sedir.cfgt import CoarseToFineTokenizer, Encoded, GlobalToken, position_embedding
from anomaly3d.models.sedir.ggd import DecoderLayer, GeometryGuidedAttention, GeometryGuidedDecoder
from anomaly3d.models.sedir.guidance import Guidance
from anomaly3d.models.sedir.sedir import FrozenView

Linear = tuple[np.ndarray, np.ndarray]
M = TypeVar("M", bound=nn.Module)


def shaken(module: M) -> M:
    """The module in float64, without dropout, and with no parameter at a value that hides it, such as a norm's 1."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.double().eval().parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.double)
    return module


def randn(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.double, requires_grad=True)


def numpy(x: Tensor) -> np.ndarray:
    return x.detach().numpy()


def of(layer: nn.Module) -> Linear:
    weight, bias = (numpy(p) for p in layer.parameters())
    return weight, bias


def linear(layer: Linear, x: np.ndarray) -> np.ndarray:
    return x @ layer[0].T + layer[1]


def norm(layer: Linear, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * layer[0] + layer[1]


def relu(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, 0)


def attention(layers: list[Linear], heads: int, x: np.ndarray, y: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """`softmax(Q K^T / sqrt(d_head) + b) V` of one cloud, one head and one query at a time; layers Q, K, V, output."""
    q, k, v = linear(layers[0], x), linear(layers[1], y), linear(layers[2], y)
    size = q.shape[1] // heads
    mixed = np.zeros_like(q)
    for part in (slice(head * size, (head + 1) * size) for head in range(heads)):
        for i in range(len(q)):
            weight = np.exp([q[i, part] @ k[j, part] / sqrt(size) + bias[j] for j in range(len(k))])
            mixed[i, part] = weight @ v[:, part] / weight.sum()
    return linear(layers[3], mixed)


def guided(module: GeometryGuidedAttention, x: np.ndarray, y: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return attention([of(m) for m in (module.query, module.key, module.value, module.out)], module.heads, x, y, bias)


def test_geometry_guided_attention():
    module = shaken(GeometryGuidedAttention(8, 2))
    query, memory, bias = randn(2, 5, 8), randn(2, 7, 8, seed=2), randn(2, 7, seed=3)
    expected = [guided(module, *map(numpy, cloud)) for cloud in zip(query, memory, bias, strict=True)]
    np.testing.assert_allclose(numpy(module(query, memory, Guidance(bias))), expected, atol=1e-12)


@pytest.mark.parametrize("with_z", [True, False])
def test_decoder(with_z):
    decoder = shaken(GeometryGuidedDecoder(12, 8, 3, 2, 16))
    z, position, encoded, bias = randn(2, 8), randn(2, 5, 8, seed=2), randn(2, 5, 8, seed=3), randn(2, 5, seed=4)
    expected = []
    for cloud in range(2):
        q, e, b = (numpy(x[cloud]) for x in (position, encoded, bias))
        q = numpy(z[cloud]) + q if with_z else q  # q_m = z + PE(s_m)
        previous = e  # Fh_0 = Ft^(k)
        for layer in decoder.layers:
            assert isinstance(layer, DecoderLayer)
            norms = [of(n) for n in layer.norms]
            first, second = of(layer.feed_forward[0]), of(layer.feed_forward[3])
            a = norm(norms[0], q + guided(layer.attend_encoded, q, e, b))
            c = norm(norms[1], a + guided(layer.attend_previous, a, previous, b))
            previous = norm(norms[2], c + linear(second, relu(linear(first, np.concatenate([a, c], axis=1)))))
        expected.append(linear(of(decoder.project), previous))
    found = decoder(z if with_z else None, position, encoded, Guidance(bias))
    np.testing.assert_allclose(numpy(found), expected, atol=1e-11)


def test_encoder_is_post_norm():
    tokenizer = shaken(CoarseToFineTokenizer(12, 8, depth=2, heads=2, hidden=16, context=False))
    base, position = randn(2, 5, 12), randn(2, 5, 8, seed=2)
    expected = []
    for tokens, place in zip(numpy(base), numpy(position), strict=True):
        x = linear(of(tokenizer.project), tokens) + place
        for layer in tokenizer.layers:
            assert isinstance(layer, nn.TransformerEncoderLayer)
            mha = layer.self_attn
            weights, offsets = np.split(numpy(mha.in_proj_weight), 3), np.split(numpy(mha.in_proj_bias), 3)
            layers = [*zip(weights, offsets, strict=True), of(mha.out_proj)]
            x = norm(of(layer.norm1), x + attention(layers, 2, x, x, np.zeros(len(x))))
            x = norm(of(layer.norm2), x + linear(of(layer.linear2), relu(linear(of(layer.linear1), x))))
        expected.append(x)
    np.testing.assert_allclose(numpy(tokenizer(base, position).base), expected, atol=1e-11)


def test_global_token_is_linear_norm_gelu_linear_of_unit_length():
    module, feature = shaken(GlobalToken(12, 8)), randn(3, 12)
    first, centre, _, last = module.projection
    x = norm(of(centre), linear(of(first), numpy(feature)))
    x = linear(of(last), np.vectorize(lambda t: t * (1 + erf(t / sqrt(2))) / 2)(x))
    expected = x / np.sqrt((x**2).sum(1, keepdims=True))
    np.testing.assert_allclose(numpy(module(feature)), expected, atol=1e-6)  # z is float32


def test_position_embedding_is_linear_relu_linear():
    module, centres = shaken(position_embedding(8)), randn(2, 5, 3)
    expected = linear(of(module[2]), relu(linear(of(module[0]), numpy(centres))))
    np.testing.assert_allclose(numpy(module(centres)), expected, atol=1e-12)


def test_the_parts_are_joined_as_in_the_paper():
    """The parts themselves are checked above."""
    backbone: dict[str, Any] = {"backbone_size": "tiny", "backbone_weights": "random"}
    model = shaken(SeDiR(width=8, encoder_depth=1, decoder_depth=2, heads=2, hidden=16, **backbone))
    base, fine, coarse = (randn(2, 6, model.backbone.width, seed=seed) for seed in range(3))
    centres, geometry = randn(2, 6, 3, seed=3), randn(2, 6, 2, seed=4)
    found = model.reconstruct(FrozenView(fine, base, coarse, centres, geometry))
    position = model.position(centres)
    encoded = model.tokenizer(base, position, (fine, coarse))
    means = [tokens.sum(1) / 6 for tokens in (encoded.base, encoded.coarse, encoded.fine)]
    feature = torch.cat([*means, encoded.act], dim=1)
    assert model.embed is not None
    assert found.feature is not None
    assert found.z is not None
    z = model.embed(feature)
    rebuilt = model.decoder(z, position, encoded.base, model.guidance(geometry))
    for got, expected in ((found.feature, feature), (found.z, z), (found.tokens, rebuilt)):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("kind", ["bias", "gate"])
def test_gradients_of_attention(kind):
    module = shaken(GeometryGuidedAttention(8, 2))

    def output(query: Tensor, memory: Tensor, geometry: Tensor) -> Tensor:
        return module(query, memory, Guidance(**{kind: geometry}))

    assert torch.autograd.gradcheck(output, (randn(1, 3, 8), randn(1, 4, 8, seed=2), randn(1, 4, seed=3)))


def test_gradients_of_a_decoder_layer():
    layer = shaken(DecoderLayer(8, 2, 16, dropout=0.1))

    def output(query: Tensor, encoded: Tensor, previous: Tensor, bias: Tensor) -> Tensor:
        return layer(query, encoded, previous, Guidance(bias))

    inputs = randn(1, 3, 8), randn(1, 3, 8, seed=2), randn(1, 3, 8, seed=3), randn(1, 3, seed=4)
    assert torch.autograd.gradcheck(output, inputs)


def test_gradients_of_the_whole_decoder():
    decoder = shaken(GeometryGuidedDecoder(5, 4, 2, 2, 6))

    def output(z: Tensor, position: Tensor, encoded: Tensor, bias: Tensor) -> Tensor:
        return decoder(z, position, encoded, Guidance(bias))

    assert torch.autograd.gradcheck(
        output, (randn(1, 4), randn(1, 3, 4, seed=2), randn(1, 3, 4, seed=3), randn(1, 3, seed=4))
    )


def test_gradients_of_cosine_consistency_reach_all_three_resolutions():
    contrast = CategoryContrast(32, 8, contrastive_weight=0.0, class_weight=0.0)

    def loss(base: Tensor, fine: Tensor, coarse: Tensor) -> Tensor:
        return contrast.loss(Encoded(base, fine, coarse), None, None, torch.tensor([0]))["cosine"]

    assert torch.autograd.gradcheck(loss, (randn(1, 3, 8), randn(1, 3, 8, seed=2), randn(1, 3, 8, seed=3)))


def test_class_loss_and_its_gradients_are_the_closed_forms():
    """Not by differences: the logits are float32."""
    contrast = CategoryContrast(6, 8, contrastive_weight=0.0, cosine_weight=0.0)
    contrast.configure(3)
    shaken(contrast)
    feature, category = randn(4, 6), torch.tensor([0, 2, 1, 2])
    assert contrast.classifier is not None
    loss = contrast.loss(Encoded(randn(4, 3, 8)), feature, None, category)["class"]
    loss.backward()
    weight, bias = contrast.classifier.parameters()
    share = np.exp(linear(of(contrast.classifier), numpy(feature)))
    share /= share.sum(1, keepdims=True)
    assert loss.item() == pytest.approx(-np.log(share[np.arange(4), category.numpy()]).mean(), rel=1e-6)
    slope = (share - np.eye(3)[category.numpy()]) / 4
    for found, expected in ((feature, slope @ numpy(weight)), (weight, slope.T @ numpy(feature)), (bias, slope.sum(0))):
        assert found.grad is not None
        np.testing.assert_allclose(found.grad, expected, atol=1e-6)


def test_gradients_of_the_encoder_and_the_position_embedding():
    tokenizer = shaken(CoarseToFineTokenizer(6, 4, depth=1, heads=2, hidden=8))
    position = shaken(position_embedding(4))

    def output(base: Tensor, fine: Tensor, coarse: Tensor, centres: Tensor) -> tuple[Tensor, ...]:
        encoded = tokenizer(base, position(centres), (fine, coarse))
        return tuple(part for part in encoded if part is not None)

    tokens = [randn(1, 3, 6, seed=seed) for seed in range(3)]
    assert torch.autograd.gradcheck(output, (*tokens, randn(1, 3, 3, seed=3)))


def test_gradients_of_the_global_token():
    """By differences coarse enough for z, which is float32."""
    module, feature, direction = shaken(GlobalToken(12, 8)), randn(1, 12), randn(1, 12, seed=2).detach()
    weights = randn(1, 8, seed=3).detach()

    def output(step: float) -> Tensor:
        return (module(feature + step * direction).double() * weights).sum()

    output(0.0).backward()
    assert feature.grad is not None
    slope = (output(1e-2) - output(-1e-2)).item() / 2e-2
    assert (feature.grad * direction).sum().item() == pytest.approx(slope, rel=1e-2)
    assert abs(slope) > 1e-2


def test_the_reconstruction_loss_and_its_gradient_are_the_closed_forms(monkeypatch: pytest.MonkeyPatch):
    """The mean square over tokens and channels, and `2 (Fh - F) / (B G D)`."""
    backbone: dict[str, Any] = {"backbone_size": "tiny", "backbone_weights": "random"}
    model = SeDiR(width=8, encoder_depth=1, decoder_depth=1, heads=2, hidden=16, standardise=False, **backbone)
    model.configure(["a", "b"])
    base, fine, coarse = (randn(2, 6, model.backbone.width, seed=seed).float().detach() for seed in range(3))
    view = FrozenView(fine, base, coarse, randn(2, 6, 3).float().detach(), randn(2, 6, 2).float().detach())
    kept = []
    reconstruct = model.reconstruct

    def keeping(seen: FrozenView) -> Any:
        found = reconstruct(seen)
        found.tokens.retain_grad()
        kept.append(found.tokens)
        return found

    monkeypatch.setattr(model, "reconstruct", keeping)
    terms = model.loss_of(view, torch.tensor([0, 1]))
    terms["reconstruction"].backward()
    (rebuilt,) = kept
    squares = [
        (rebuilt[b, m, c].item() - view.base[b, m, c].item()) ** 2
        for b in range(2)
        for m in range(6)
        for c in range(view.base.shape[2])
    ]
    assert terms["reconstruction"].item() == pytest.approx(sum(squares) / len(squares), rel=1e-5)
    torch.testing.assert_close(rebuilt.grad, 2 * (rebuilt - view.base).detach() / len(squares))
    assert terms["loss"].item() == pytest.approx(terms["reconstruction"].item() + terms["c3l"].item(), rel=1e-6)
