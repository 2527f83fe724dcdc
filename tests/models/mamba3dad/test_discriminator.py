from __future__ import annotations

import numpy as np
import pytest
import torch

from anomaly3d.models.mamba3dad.discriminator import Discriminator


def gelu(x: np.ndarray) -> np.ndarray:
    return torch.nn.functional.gelu(torch.from_numpy(x)).numpy()


def linear(layer: torch.nn.Linear, x: np.ndarray) -> np.ndarray:
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


@pytest.mark.parametrize("head_norm", [True, False])
def test_equals_loops_over_slots_and_heads(head_norm: bool) -> None:
    model = Discriminator(16, heads=4, position_width=8, head_norm=head_norm).double().eval()
    torch.nn.init.normal_(model.attention.in_proj_bias)
    q, p = torch.randn(2, 9, 16).double(), torch.randn(2, 9, 3).double()
    out = model(q, p).detach().numpy()
    weight, bias = model.attention.in_proj_weight.detach().numpy(), model.attention.in_proj_bias.detach().numpy()
    for b in range(2):
        x = q[b].numpy() + linear(model.position[2], gelu(linear(model.position[0], p[b].numpy())))  # pyright: ignore[reportArgumentType]
        normed = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + model.norm.eps)
        query, key, value = np.split(normed @ weight.T + bias, 3, axis=1)
        attended = np.zeros_like(x)
        for head in range(4):
            part = slice(4 * head, 4 * head + 4)
            for s in range(9):
                logits = np.array([query[s, part] @ key[t, part] / 2 for t in range(9)])
                weights = np.exp(logits - logits.max())
                attended[s, part] = weights @ value[:, part] / weights.sum()
        x = x + linear(model.attention.out_proj, attended)
        if head_norm:
            x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
        expected = linear(model.head[3], gelu(linear(model.head[1], x)))[:, 0]  # pyright: ignore[reportArgumentType]
        np.testing.assert_allclose(out[b], expected, atol=1e-9)


def test_gradients() -> None:
    model = Discriminator(8, heads=2, position_width=4).double().eval()
    q = torch.randn(1, 4, 8, dtype=torch.float64, requires_grad=True)
    p = torch.randn(1, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, (q, p))


def test_a_slot_is_judged_by_the_others_too_and_clouds_apart() -> None:
    model = Discriminator(16, heads=4).eval()
    q, p = torch.randn(2, 6, 16), torch.randn(2, 6, 3)
    changed = q.clone()
    changed[0, 5, :8] += 1  # not all channels alike: the norm would take that out again
    before, after = model(q, p), model(changed, p)
    assert (before[0, :5] != after[0, :5]).all()
    torch.testing.assert_close(before[1], after[1])


def test_dropout_only_in_training() -> None:
    model, q, p = Discriminator(16, heads=4), torch.randn(1, 6, 16), torch.randn(1, 6, 3)
    assert not torch.equal(model(q, p), model(q, p))
    model.eval()
    assert torch.equal(model(q, p), model(q, p))
