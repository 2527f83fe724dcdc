from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly3d.models.sedir.c3l import CategoryContrast, cosine_consistency, supervised_contrastive
from anomaly3d.models.sedir.cfgt import Encoded, GlobalFeature, GlobalToken, global_feature


def make_encoded(batch: int = 3, tokens: int = 5, width: int = 8, seed: int = 0) -> Encoded:
    generator = torch.Generator().manual_seed(seed)
    fine, base, coarse = (torch.randn(batch, tokens, width, generator=generator) for _ in range(3))
    return Encoded(base, fine, coarse, torch.randn(batch, width, generator=generator))


def parts(encoded: Encoded, token: GlobalToken) -> tuple[Encoded, Tensor, Tensor]:
    feature = global_feature(encoded)
    return encoded, feature, token(feature)


def reference(z: Tensor, category: Tensor, memory: Tensor, memory_category: Tensor, temperature: float) -> float:
    terms = []
    for anchor, c in zip(z.double().numpy(), category.tolist(), strict=True):
        entries = [(m, int(mc)) for m, mc in zip(memory.double().numpy(), memory_category, strict=True) if mc >= 0]
        positives = [m for m, mc in entries if mc == c]
        if not positives or len(positives) == len(entries):
            terms.append(0.0)
            continue
        total = sum(np.exp(anchor @ m / temperature) for m, _ in entries)
        terms.append(np.mean([-np.log(np.exp(anchor @ p / temperature) / total) for p in positives]))
    return float(np.mean(terms))


@pytest.mark.parametrize("seed", range(4))
def test_supervised_contrastive_against_a_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    z, memory = (F.normalize(torch.randn(n, 6, generator=generator), dim=-1) for n in (4, 9))
    category, memory_category = torch.tensor([0, 1, 2, 5]), torch.tensor([0, 1, 1, 2, -1, 0, 2, -1, 1])
    loss = supervised_contrastive(z, category, memory, memory_category, 0.2)
    assert loss.item() == pytest.approx(reference(z, category, memory, memory_category, 0.2), rel=1e-4)


@pytest.mark.parametrize("memory_category", [[-1, -1, -1], [0, 0, 0], [1, 2, -1], [0, -1, -1], [1, -1, -1]], ids=str)
def test_no_pairs_is_zero_with_zero_gradient_and_no_nan(memory_category):
    z = F.normalize(torch.randn(1, 4), dim=-1).requires_grad_()
    loss = supervised_contrastive(z, torch.tensor([0]), torch.randn(3, 4), torch.tensor(memory_category), 0.1)
    loss.backward()
    assert loss.item() == 0.0
    assert z.grad is not None
    assert torch.equal(z.grad, torch.zeros_like(z))


def test_contrastive_gradient():
    memory, labels = torch.randn(5, 4, dtype=torch.double), torch.tensor([0, 1, -1, 0, 1])

    def loss(z: Tensor) -> Tensor:
        return supervised_contrastive(z, torch.tensor([0, 1]), memory, labels, 0.5).double()

    z = torch.randn(2, 4, dtype=torch.double, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(z), z)
    for i, j in np.ndindex(2, 4):
        step = torch.zeros(2, 4, dtype=torch.double)
        step[i, j] = 1e-2
        with torch.no_grad():
            assert gradient[i, j].item() == pytest.approx(((loss(z + step) - loss(z - step)) / 2e-2).item(), abs=2e-3)


def test_cosine_consistency_against_a_loop():
    encoded = make_encoded()
    assert encoded.fine is not None
    assert encoded.coarse is not None
    base, others = encoded.base.double().numpy(), [encoded.fine.double().numpy(), encoded.coarse.double().numpy()]
    per_token = [
        sum(1 - base[b, m] @ o[b, m] / np.linalg.norm(base[b, m]) / np.linalg.norm(o[b, m]) for o in others)
        for b in range(3)
        for m in range(5)
    ]
    assert cosine_consistency(encoded).item() == pytest.approx(np.mean(per_token), rel=1e-5)
    same = encoded._replace(fine=encoded.base, coarse=encoded.base * 2)
    assert cosine_consistency(same).item() == pytest.approx(0, abs=1e-6)


def test_global_feature_and_unit_length():
    base, fine, coarse, act = make_encoded()
    assert fine is not None
    assert coarse is not None
    assert act is not None
    expected: dict[GlobalFeature, Tensor] = {
        "cfgt": torch.cat([base.mean(1), coarse.mean(1), fine.mean(1), act], dim=1),
        "act": act,
        "mean": base.mean(1),
        "max": base.max(1).values,
    }
    for kind, feature in expected.items():
        assert torch.equal(global_feature(Encoded(base, fine, coarse, act), kind), feature)
    torch.testing.assert_close(GlobalToken(32, 8)(expected["cfgt"]).norm(dim=1), torch.ones(3))


def test_weights_and_class_loss():
    contrast = CategoryContrast(
        32, 8, 4, temperature=0.3, contrastive_weight=0.5, cosine_weight=0.25, class_weight=2.0
    ).eval()
    contrast.configure(3)
    assert contrast.classifier is not None
    (encoded, feature, z), category = parts(make_encoded(), GlobalToken(32, 8)), torch.tensor([0, 1, 2])
    memory = F.normalize(torch.randn(4, 8), dim=-1)
    contrast.buffer.push(memory, torch.tensor([0, 1, 0, 2]))
    terms = contrast.loss(encoded, feature, z, category)
    logits = contrast.classifier(feature)
    log_share = logits - logits.exp().sum(1, keepdim=True).log()
    torch.testing.assert_close(terms["class"], -log_share[range(3), category].mean())
    expected = reference(z.detach(), category, memory, torch.tensor([0, 1, 0, 2]), 0.3)
    assert terms["contrastive"].item() == pytest.approx(expected, rel=1e-4)
    total = 0.5 * terms["contrastive"] + 0.25 * terms["cosine"] + 2.0 * terms["class"]
    torch.testing.assert_close(terms["c3l"], total)


def test_embedding_is_pushed_after_the_loss_and_in_training_only():
    contrast = CategoryContrast(32, 8, 4)
    contrast.configure(2)
    (encoded, feature, z), category = parts(make_encoded(batch=1), GlobalToken(32, 8)), torch.tensor([1])
    contrast.eval().loss(encoded, feature, z, category)
    assert len(contrast.buffer) == 0
    terms = contrast.train().loss(encoded, feature, z, category)
    assert terms["contrastive"].item() == 0.0  # itself is not yet among the past
    assert torch.equal(contrast.buffer.embedding[0], z[0].detach())
    assert contrast.buffer.category.tolist() == [1, -1, -1, -1]


def test_backward_after_the_push_overwrote_the_buffer():
    contrast, token = CategoryContrast(32, 8, 2), GlobalToken(32, 8)
    contrast.configure(2)
    for step in range(6):
        terms = contrast.loss(*parts(make_encoded(batch=1, seed=step), token), torch.tensor([step % 2]))
        assert terms["c3l"].isfinite()
        terms["c3l"].backward()


def test_class_head_needs_configure():
    with pytest.raises(RuntimeError, match="configure"):
        CategoryContrast(32, 8, 4).logits(torch.zeros(1, 32))


@pytest.mark.parametrize("off", ["contrastive", "cosine", "class"])
def test_a_loss_of_no_weight_is_not_computed(off):
    settings: dict[str, Any] = {f"{off}_weight": 0.0}
    contrast = CategoryContrast(32, 8, 4, **settings)
    contrast.configure(2)
    terms = contrast.loss(*parts(make_encoded(), GlobalToken(32, 8)), torch.tensor([0, 1, 0]))
    assert set(terms) == {"contrastive", "cosine", "class", "c3l"} - {off}
    assert (len(contrast.buffer) == 0) == (off == "contrastive")
    assert (contrast.classifier is None) == (off == "class")
