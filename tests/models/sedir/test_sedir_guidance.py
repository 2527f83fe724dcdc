from __future__ import annotations

import numpy as np
import pytest
import torch

from anomaly3d.errors import InputError
from anomaly3d.models.sedir import SeDiR
from anomaly3d.models.sedir.ggd import GeometryGuidedAttention
from anomaly3d.models.sedir.guidance import GeometryGuidance


def by_hand(guidance: GeometryGuidance, h: torch.Tensor) -> np.ndarray:
    """beta * MLP(h) in float64."""
    w1, b1, w2, *b2 = (p.detach().double().numpy() for p in guidance.mlp.parameters())
    hidden = np.maximum(h.double().numpy() @ w1.T + b1, 0)
    return guidance.beta.item() * (hidden @ w2[0] + sum(b2))


@pytest.mark.parametrize("injection", ["bias", "gating"])
def test_learned_guidance_is_the_equation_with_gradients(injection):
    guidance, h = GeometryGuidance(injection, hidden=8, beta=3.0), torch.randn(2, 10, 2)
    bias, gate = guidance(h)
    if injection == "bias":
        assert gate is None
        found, expected = bias, by_hand(guidance, h)
    else:
        assert bias is None
        found, expected = gate, 1 / (1 + np.exp(-by_hand(guidance, h)))
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-5)
    found.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in guidance.parameters())


@pytest.mark.parametrize("injection", ["bias", "gating"])
def test_gradients_of_learned_guidance(injection):
    guidance, h = GeometryGuidance(injection, hidden=5, beta=2.0).double(), torch.randn(1, 6, 2).double()
    weights = {name: p.detach().clone().requires_grad_() for name, p in guidance.named_parameters()}

    def of(h, *values):
        found = torch.func.functional_call(guidance, dict(zip(weights, values, strict=True)), (h,))
        return found.bias if injection == "bias" else found.gate

    assert torch.autograd.gradcheck(of, (h.requires_grad_(), *weights.values()))


def test_masking_hides_the_patches_where_geometry_varies_least():
    guidance = GeometryGuidance("masking", masked=0.4)
    assert not list(guidance.parameters())
    h = torch.randn(2, 10, 2)
    attention = GeometryGuidedAttention(8, 2)
    query, memory = torch.randn(2, 5, 8), torch.randn(2, 10, 8, requires_grad=True)
    out = attention(query, memory, guidance(h))
    for b in range(2):
        kept = np.sort(np.argsort(h[b].sum(-1).numpy())[4:])
        torch.testing.assert_close(
            out[b : b + 1], attention(query[b : b + 1], memory[b : b + 1, kept], GeometryGuidance("none")(h))
        )
    out.sum().backward()
    assert memory.grad is not None
    used = memory.grad.abs().sum(-1) > 0
    assert used.sum(1).tolist() == [6, 6]


def test_gate_multiplies_the_values():
    attention, h = GeometryGuidedAttention(8, 2), torch.randn(1, 7, 2)
    guidance = GeometryGuidance("gating")(h)
    query, memory = torch.randn(1, 5, 8), torch.randn(1, 7, 8)
    assert guidance.gate is not None
    q, k, v = (layer(x) for layer, x in ((attention.query, query), (attention.key, memory), (attention.value, memory)))
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        weight = (q[0, :, part] @ k[0, :, part].T / 2).softmax(-1)
        heads.append(weight @ torch.diag(guidance.gate[0]) @ v[0, :, part])
    expected = attention.out(torch.cat(heads, dim=-1))[None]
    torch.testing.assert_close(attention(query, memory, guidance), expected)


def test_the_detector_s_settings_arrive():
    settings = {"backbone_size": "tiny", "backbone_weights": "random", "geometry_hidden": 8, "geometry_beta": 2.0}
    learned = SeDiR(**settings).guidance
    assert [tuple(p.shape) for p in learned.mlp.parameters()] == [(8, 2), (8,), (1, 8)]
    assert learned.beta.item() == 2.0
    hidden = SeDiR(geometry="masking", geometry_masked=0.3, **settings).guidance(torch.randn(1, 10, 2)).bias
    assert (hidden < 0).sum() == 3
    with pytest.raises(InputError, match="geometry_masked=1"):
        SeDiR(geometry="masking", geometry_masked=1.0, **settings)
