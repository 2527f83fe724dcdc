"""MC3D-AD's equations against loops over single tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anomaly3d.errors import InputError
from anomaly3d.models.mc3d_ad.attention import MaskedAttention
from anomaly3d.models.mc3d_ad.decoder import DecoderLayer, GlobalQueryDecoder
from anomaly3d.models.mc3d_ad.encoder import EncoderLayer, LocalEncoder
from anomaly3d.models.mc3d_ad.file_window import average_along_rows
from anomaly3d.models.mc3d_ad.mask import guide, visible_patches


def naive_guide(centres: np.ndarray, factor: float) -> np.ndarray:
    """The mask's guide, one centre and one neighbour at a time."""
    n = len(centres)
    gap = np.mean([min(np.linalg.norm(a - b) for j, b in enumerate(centres) if j != i) for i, a in enumerate(centres)])
    near = [[j for j in range(n) if np.linalg.norm(centres[i] - centres[j]) <= factor * gap] for i in range(n)]
    normals, curvature = [], []
    for i in range(n):
        values, vectors = np.linalg.eigh(np.cov(centres[near[i]].T, bias=True))
        outward = np.sign(vectors[:, 0] @ (centres[i] - centres.mean(0)))
        normals.append(outward * vectors[:, 0])
        curvature.append(values[0] / values.sum())
    v = []
    for i in range(n):
        others = [j for j in near[i] if j != i]
        turn = np.mean([np.arccos(np.clip(normals[i] @ normals[j], -1, 1)) for j in others])
        v.append(turn + 10 * np.mean([abs(curvature[i] - curvature[j]) for j in others]))
    return np.array(v)


def naive_attention(module: MaskedAttention, query: Tensor, memory: Tensor, position: Tensor, hidden: set[int]):
    """One head, one query and one key at a time, with -inf for hidden keys."""
    inner = module.attention
    (wq, wk, wv), (bq, bk, bv) = inner.in_proj_weight.chunk(3), inner.in_proj_bias.chunk(3)
    out, size = torch.zeros_like(query), query.shape[1] // inner.num_heads
    for h in range(inner.num_heads):
        rows = slice(h * size, (h + 1) * size)
        for t, q in enumerate(query):
            asked = wq[rows] @ q + bq[rows]
            logits = [
                -torch.inf if i in hidden else (asked @ (wk[rows] @ (m + p) + bk[rows])).item() / size**0.5
                for i, (m, p) in enumerate(zip(memory, position, strict=True))
            ]
            weights = torch.tensor(logits).softmax(0)
            values = [w * (wv[rows] @ m + bv[rows]) for w, m in zip(weights, memory, strict=True)]
            out[t, rows] = torch.stack(values).sum(0)
    return out @ inner.out_proj.weight.T + inner.out_proj.bias


def biased(module: nn.Module) -> Any:
    """Every bias and norm away from its starting value, so that a wrong one shows."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return module.eval()


def test_guide_is_the_change_of_normal_and_curvature():
    x = torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(0)).double()
    centres = (x / x.norm(dim=-1, keepdim=True) * torch.tensor([1.0, 0.7, 0.5])).float()
    expected = np.stack([naive_guide(c.double().numpy(), 5.0) for c in centres])
    np.testing.assert_allclose(guide(centres, 5.0).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("ratio", [0.0, 0.4, 0.65])
def test_the_mask_hides_the_roughest_or_the_smoothest(ratio):
    v = torch.rand(2, 10, generator=torch.Generator().manual_seed(1))
    visible = visible_patches(v, ratio, torch.tensor([True, False]))
    hidden = [sorted(set(range(10)) - set(row.tolist())) for row in visible]
    ranked = [sorted(range(10), key=lambda i, row=row: float(row[i])) for row in v]
    count = int(ratio * 10)
    assert visible.shape == (2, 10 - count)
    assert hidden[0] == sorted(ranked[0][10 - count :])
    assert hidden[1] == sorted(ranked[1][:count])


def test_a_ridge_is_hidden_where_rough_patches_are():
    u, v = torch.meshgrid(torch.linspace(0.05, 1, 12), torch.linspace(-0.5, 0.5, 12), indexing="ij")
    floor = torch.stack([u, v, torch.zeros_like(u)], -1).reshape(-1, 3)
    centres = torch.cat([floor, floor[:, [2, 1, 0]]])[None]
    edge = torch.cat([u.reshape(-1), u.reshape(-1)]) < 0.1
    variation = guide(centres, 2.0)
    assert not edge[visible_patches(variation, 0.2, torch.tensor([True]))].any()
    assert edge[visible_patches(variation, 0.2, torch.tensor([False]))].sum() == edge.sum()


def test_attention_leaves_hidden_keys_out():
    attention = biased(MaskedAttention(8, 2))
    query, memory, position = torch.randn(3, 2, 7, 8)
    visible = torch.tensor([[6, 0, 3, 4], [1, 2, 3, 5]])
    for b in range(2):
        hidden = set(range(7)) - set(visible[b].tolist())
        expected = naive_attention(attention, query[b], memory[b], position[b], hidden)
        torch.testing.assert_close(attention(query, memory, position, visible)[b], expected)
        whole = naive_attention(attention, query[b], memory[b], position[b], set())
        torch.testing.assert_close(attention(query, memory, position)[b], whole)


def feed_forward(module: nn.Module, x: Tensor) -> Tensor:
    w1, b1, w2, b2 = module.parameters()
    return (x @ w1.T + b1).clamp(min=0) @ w2.T + b2


def test_encoder_layer():
    layer = biased(EncoderLayer(8, 2, 16, dropout=0.1))
    x, position = torch.randn(2, 1, 6, 8)
    visible = torch.tensor([[0, 2, 5]])
    mixed = naive_attention(layer.attend, (x + position)[0], x[0], position[0], {1, 3, 4})
    a = layer.norms[0](x[0] + mixed)
    expected = layer.norms[1](a + feed_forward(layer.feed_forward, a))
    torch.testing.assert_close(layer(x, position, visible)[0], expected)


def test_decoder_layer_masks_its_first_branch_and_starts_from_the_position():
    layer = biased(DecoderLayer(8, 2, 16, dropout=0.1))
    encoded, previous, position = torch.randn(3, 1, 6, 8)
    visible = torch.tensor([[0, 2, 5]])
    found = naive_attention(layer.attend_encoded, position[0], encoded[0], position[0], {1, 3, 4})
    a = layer.norms[0](position[0] + found)
    b = layer.norms[1](a + naive_attention(layer.attend_previous, a + position[0], previous[0], position[0], set()))
    expected = layer.norms[2](b + feed_forward(layer.feed_forward, b))
    torch.testing.assert_close(layer(encoded, previous, position, visible)[0], expected)


def test_decoder_chains_its_layers_from_the_encoded_tokens():
    decoder = biased(GlobalQueryDecoder(12, 8, depth=2, heads=2, hidden=16, dropout=0.1))
    encoded, position, visible = torch.randn(1, 6, 8), torch.randn(1, 6, 8), torch.tensor([[1, 4]])
    first = decoder.layers[0](encoded, encoded, position, visible)
    second = decoder.layers[1](encoded, first, position, visible)
    torch.testing.assert_close(decoder(encoded, position, visible), decoder.project(decoder.norm(second)))
    # Without positions every query is the same.
    same = decoder(encoded, torch.zeros_like(position), visible)
    torch.testing.assert_close(same, same[:, :1].expand_as(same))


def test_a_token_that_nothing_sees_changes_no_other_encoded_token():
    encoder = biased(LocalEncoder(12, 8, depth=3, heads=2, hidden=16, dropout=0.1))
    tokens, position, visible = torch.randn(1, 6, 12), torch.randn(1, 6, 8), torch.tensor([[0, 1, 2, 4]])
    changed = tokens.clone()
    changed[0, 3] += 1
    difference = (encoder(tokens, position, visible) - encoder(changed, position, visible)).abs().amax(-1)[0]
    assert difference[3] > 1e-3
    assert torch.equal(difference[[0, 1, 2, 4, 5]], torch.zeros(5))
    unmasked = (encoder(tokens, position, None) - encoder(changed, position, None)).abs().amax(-1)[0]
    assert (unmasked > 1e-6).all()


@pytest.mark.parametrize(("n", "window"), [(20, 5), (3, 7), (8, 1)])
def test_average_along_rows_counts_zeros_beyond_the_ends(n, window):
    scores = torch.rand(n)
    half = window // 2
    expected = [sum(scores[j].item() for j in range(max(0, i - half), min(n, i + half + 1))) / window for i in range(n)]
    np.testing.assert_allclose(average_along_rows(scores, window).numpy(), expected, rtol=1e-5)


def test_impossible_sizes_are_named():
    with pytest.raises(InputError, match="row_window=4"):
        average_along_rows(torch.rand(9), 4)
    with pytest.raises(InputError, match="heads=3"):
        MaskedAttention(8, 3)
