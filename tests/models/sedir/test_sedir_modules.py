from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anomaly3d.models.components.jitter import FeatureJitter
from anomaly3d.models.sedir.cfgt import CoarseToFineTokenizer
from anomaly3d.models.sedir.ggd import DecoderLayer, GeometryGuidedAttention, GeometryGuidedDecoder
from anomaly3d.models.sedir.guidance import Guidance


def test_bias_draws_attention_and_its_common_part_does_not_matter():
    module = GeometryGuidedAttention(8, 2).eval()
    query, memory, bias = torch.randn(1, 5, 8), torch.randn(1, 7, 8), torch.randn(1, 7)
    torch.testing.assert_close(module(query, memory, Guidance(bias + 4)), module(query, memory, Guidance(bias)))
    only_third = torch.full((1, 7), -1e4).index_fill(1, torch.tensor(2), 0.0)
    alone = module(query, memory[:, 2:3], Guidance())
    torch.testing.assert_close(module(query, memory, Guidance(only_third)), alone)


def test_bias_receives_a_gradient():
    module = GeometryGuidedAttention(8, 2).eval()
    bias = torch.zeros(1, 7, requires_grad=True)
    module(torch.randn(1, 5, 8), torch.randn(1, 7, 8), Guidance(bias)).square().sum().backward()
    assert bias.grad is not None
    assert bias.grad.abs().min() > 0
    torch.testing.assert_close(bias.grad.sum(), torch.tensor(0.0), atol=1e-5, rtol=0)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="multiple"):
        GeometryGuidedAttention(10, 4)


def test_decoder_layer_is_two_attentions_and_a_joint_feed_forward():
    layer = DecoderLayer(8, 2, 16, dropout=0.1).eval()
    query, encoded, previous = torch.randn(3, 1, 5, 8)
    bias = Guidance(torch.randn(1, 5))
    a = layer.norms[0](query + layer.attend_encoded(query, encoded, bias))
    b = layer.norms[1](a + layer.attend_previous(a, previous, bias))
    w1, b1, w2, b2 = layer.feed_forward.parameters()
    hidden = (torch.cat([a, b], dim=-1) @ w1.T + b1).clamp(min=0)
    expected = layer.norms[2](b + hidden @ w2.T + b2)
    torch.testing.assert_close(layer(query, encoded, previous, bias), expected)


def test_a_plain_decoder_layer_sees_the_second_attention_alone():
    layer = DecoderLayer(8, 2, 16, dropout=0.1, joined=False).eval()
    query, encoded, previous = torch.randn(3, 1, 5, 8)
    a = layer.norms[0](query + layer.attend_encoded(query, encoded, Guidance()))
    b = layer.norms[1](a + layer.attend_previous(a, previous, Guidance()))
    w1, b1, w2, b2 = layer.feed_forward.parameters()
    expected = layer.norms[2](b + (b @ w1.T + b1).clamp(min=0) @ w2.T + b2)
    torch.testing.assert_close(layer(query, encoded, previous, Guidance()), expected)


def test_decoder_depends_on_global_token_position_and_tokens():
    decoder = GeometryGuidedDecoder(12, 8, 2, 2, 16).eval()
    z, position, encoded = torch.randn(2, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    bias = Guidance(torch.randn(2, 5))
    rest = position, encoded, bias
    out = decoder(z, *rest)
    assert out.shape == (2, 5, 12)
    for changed in ((z.flip(0), position, encoded, bias), (z, position, encoded.flip(0), bias), (None, *rest)):
        assert (decoder(*changed) - out).abs().max() > 1e-3
    # Without the position every token would be rebuilt alike.
    same = decoder(z, torch.zeros_like(position), encoded, bias)
    torch.testing.assert_close(same, same[:, :1].expand_as(same))
    assert (out - out[:, :1]).abs().max() > 1e-3


def test_decoder_layers_start_from_different_weights():
    decoder = GeometryGuidedDecoder(12, 8, 2, 2, 16)
    one, two = (next(layer.parameters()) for layer in decoder.layers)
    assert not torch.equal(one, two)


class TestTokenizer:
    @pytest.fixture
    def tokenizer(self) -> CoarseToFineTokenizer:
        torch.manual_seed(0)
        return CoarseToFineTokenizer(12, 8, depth=2, heads=2, hidden=16).eval()

    @pytest.fixture
    def tokens(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(1)
        return [torch.randn(2, 5, c, generator=generator) for c in (12, 12, 12, 8)]

    def test_each_resolution_goes_through_the_same_encoder(self, tokenizer, tokens):
        fine, base, coarse, position = tokens
        encoded = tokenizer(base, position, (fine, coarse))
        torch.testing.assert_close(encoded.fine, tokenizer.layers(tokenizer.project(fine) + position))
        torch.testing.assert_close(encoded.coarse, tokenizer.layers(tokenizer.project(coarse) + position))
        sequence = torch.cat([tokenizer.context.expand(2, 1, 8), tokenizer.project(base) + position], dim=1)
        expected = tokenizer.layers(sequence)
        torch.testing.assert_close(encoded.act, expected[:, 0])
        torch.testing.assert_close(encoded.base, expected[:, 1:])

    def test_context_token_sees_the_base_sequence_only(self, tokenizer, tokens):
        fine, base, coarse, position = tokens
        act = tokenizer(base, position, (fine, coarse)).act
        assert torch.equal(tokenizer(base, position, (fine + 1, coarse - 1)).act, act)
        assert (tokenizer(base + torch.randn_like(base), position).act - act).abs().max() > 1e-3

    def test_what_is_not_asked_for_is_left_out(self, tokenizer, tokens):
        fine, base, coarse, position = tokens
        alone = tokenizer(base, position)
        assert alone.fine is None
        assert alone.coarse is None
        assert torch.equal(alone.base, tokenizer(base, position, (fine, coarse)).base)
        without = CoarseToFineTokenizer(12, 8, depth=1, heads=2, hidden=16, context=False).eval()
        encoded = without(base, position)
        assert encoded.act is None
        torch.testing.assert_close(encoded.base, without.layers(without.project(base) + position))

    def test_layers_start_from_different_weights(self, tokenizer):
        assert not torch.equal(tokenizer.layers[0].linear1.weight, tokenizer.layers[1].linear1.weight)

    def test_everything_learns(self, tokenizer, tokens):
        fine, base, coarse, position = tokens
        encoded = tokenizer(base, position, (fine, coarse))
        (encoded.act.square().sum() + encoded.fine[..., 0].square().sum()).backward()
        assert all(p.grad is not None for p in tokenizer.parameters())


def test_jitter_has_the_papers_strength():
    tokens = torch.randn(1, 2000, 16) * torch.linspace(0.5, 3, 2000)[:, None]
    jitter = FeatureJitter(scale=20.0)
    noise = (jitter(tokens) - tokens) / (tokens.norm(dim=-1, keepdim=True) / 16 * 20)
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.std().item() == pytest.approx(1, abs=0.02)


def test_jitter_is_for_training_and_by_chance_per_cloud():
    tokens = torch.randn(200, 3, 4)
    assert torch.equal(FeatureJitter().eval()(tokens), tokens)
    assert torch.equal(FeatureJitter(scale=0.0)(tokens), tokens)
    assert torch.equal(FeatureJitter(probability=0.0)(tokens), tokens)
    changed = (FeatureJitter(probability=0.5)(tokens) != tokens).flatten(1)
    assert torch.equal(changed.any(1), changed.all(1))
    assert 60 < changed.any(1).sum() < 140
