from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch
from scipy.special import erf, softmax
from torch import nn

from anomaly3d.errors import InputError
from anomaly3d.models.backbones.point_mae import PointMAE
from anomaly3d.models.mamba3dad import Mamba3dAD
from anomaly3d.models.mamba3dad.adapter import LTIAdapter
from anomaly3d.models.mamba3dad.adapters import AdapterKind, make_adapter
from anomaly3d.models.mamba3dad.attention import AttentionAdapter, sinusoids
from anomaly3d.models.mamba3dad.mlp import MLPAdapter
from anomaly3d.models.mamba3dad.selective import SelectiveAdapter
from anomaly3d.types import PointCloudBatch

KINDS = get_args(AdapterKind)
SCANS = ["lti", "selective"]
FORMS = [(kind, False) for kind in KINDS] + [(kind, True) for kind in SCANS]


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def numbers(module: nn.Module) -> dict[str, np.ndarray]:
    """Weights by name, with values that a test can tell apart."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return {name: p.detach().numpy() for name, p in module.named_parameters()}


def gated(w: dict[str, np.ndarray], x: np.ndarray, q: np.ndarray) -> np.ndarray:
    gate = 1 / (1 + np.exp(-(x @ w["gate.weight"].T + w["gate.bias"])))
    return gate * q + (1 - gate) * x


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * weight + bias


def numpy_selective(w: dict[str, np.ndarray], x: np.ndarray, state: int) -> np.ndarray:
    """q of one sequence (S, D), step by step."""
    a = -np.exp(w["log_a"])
    h, q = np.zeros_like(a), []
    for row in x:
        u = w["input.weight"] @ row
        chosen = w["select.weight"] @ u
        rank = len(chosen) - 2 * state
        step = np.log1p(np.exp(w["step.weight"] @ chosen[:rank] + w["step.bias"]))
        b, c = chosen[rank : rank + state], chosen[rank + state :]
        h = np.exp(step[:, None] * a) * h + (step * u)[:, None] * b
        q.append(w["output.weight"] @ (h @ c + w["skip"] * u))
    return np.stack(q)


def numpy_lti(adapter: LTIAdapter, w: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """C LN(h_t) of one sequence (S, D), step by step."""
    a = adapter.transition().dense().detach().numpy()  # pyright: ignore[reportAttributeAccessIssue]
    h, read = np.zeros(len(a)), []
    for row in x:
        h = a @ h + w["input.weight"] @ row
        read.append(w["output.weight"] @ layer_norm(h, w["norm.weight"], w["norm.bias"]))
    return np.stack(read)


def test_selective_equals_a_loop() -> None:
    adapter = SelectiveAdapter(6, channels=5, state=3).double()
    w, x = numbers(adapter), torch.randn(2, 40, 6).double()
    out = adapter(x).detach().numpy()
    for found, row in zip(out, x.numpy(), strict=True):
        np.testing.assert_allclose(found, gated(w, row, numpy_selective(w, row, 3)), atol=1e-9)


def test_selective_starts_with_the_step_sizes_of_mamba() -> None:
    adapter = SelectiveAdapter(64, channels=4000)
    steps = nn.functional.softplus(adapter.step.bias).detach()
    assert steps.min() >= 0.000999
    assert steps.max() <= 0.1001
    # Evenly spread on a logarithmic scale: as many below 0.01 as above.
    assert (steps < 0.01).float().mean().item() == pytest.approx(0.5, abs=0.04)


def test_attention_equals_numpy() -> None:
    adapter = AttentionAdapter(6, inner=8, heads=2).double()
    w, x = numbers(adapter), torch.randn(2, 9, 6).double()
    out = adapter(x).detach().numpy()
    places = np.array(
        [
            [math.sin(t / 10_000 ** (2 * i / 6)) for i in range(3)]
            + [math.cos(t / 10_000 ** (2 * i / 6)) for i in range(3)]
            for t in range(9)
        ]
    )
    np.testing.assert_allclose(sinusoids(9, 6).numpy(), places, atol=1e-6)
    for found, row in zip(out, x.numpy(), strict=True):
        normed = layer_norm(row, w["norm.weight"], w["norm.bias"]) + places
        q, k, v = np.split(normed @ w["qkv.weight"].T, 3, axis=1)
        heads = [
            softmax(q[:, part] @ k[:, part].T / math.sqrt(4), axis=1) @ v[:, part]
            for part in (slice(0, 4), slice(4, 8))
        ]
        np.testing.assert_allclose(found, gated(w, row, np.hstack(heads) @ w["output.weight"].T), atol=1e-6)


def test_mlp_equals_numpy() -> None:
    adapter = MLPAdapter(6, hidden=5).double()
    w, x = numbers(adapter), torch.randn(2, 9, 6).double()
    normed = layer_norm(x.numpy(), w["layers.0.weight"], w["layers.0.bias"])
    hidden = normed @ w["layers.1.weight"].T + w["layers.1.bias"]
    hidden = hidden * (1 + erf(hidden / math.sqrt(2))) / 2
    q = hidden @ w["layers.3.weight"].T + w["layers.3.bias"]
    np.testing.assert_allclose(adapter(x).detach().numpy(), gated(w, x.numpy(), q), atol=1e-9)


def test_identity_passes_slots_unchanged() -> None:
    x = torch.randn(2, 5, 6)
    assert torch.equal(make_adapter("identity", 6)(x), x)


@pytest.mark.parametrize(("kind", "bidirectional"), FORMS)
def test_gradients_of_input_and_every_parameter(kind: AdapterKind, bidirectional: bool) -> None:
    adapter = make_adapter(kind, 4, state=4, bidirectional=bidirectional).double()
    names, values = [*dict(adapter.named_parameters())], [*adapter.parameters()]

    def run(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(adapter, dict(zip(names, parameters, strict=True)), (x,))

    x = torch.randn(1, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, *values), fast_mode=True)


@pytest.mark.parametrize(("kind", "bidirectional"), FORMS)
def test_sequences_of_a_batch_do_not_mix(kind: AdapterKind, bidirectional: bool) -> None:
    """The second direction travels through the scan as more sequences of the batch."""
    adapter, x = make_adapter(kind, 8, state=8, bidirectional=bidirectional), torch.randn(3, 40, 8)
    together = adapter(x)
    for b in range(3):
        torch.testing.assert_close(adapter(x[b : b + 1])[0], together[b], atol=1e-5, rtol=1e-5)


def test_what_a_slot_sees() -> None:
    """A change at slot 20 of 40 reaches the slots behind, in front, or none, by kind."""
    x = torch.randn(1, 40, 8)
    changed = x.clone()
    changed[:, 20] = torch.randn(8)
    for kind, bidirectional, before, after in [
        ("lti", False, False, True),
        ("lti", True, True, True),
        ("selective", False, False, True),
        ("selective", True, True, True),
        ("attention", False, True, True),
        ("mlp", False, False, False),
    ]:
        adapter = make_adapter(kind, 8, state=8, bidirectional=bidirectional)  # pyright: ignore[reportArgumentType]
        moved = (adapter(x) - adapter(changed))[0].abs().amax(dim=1) > 1e-6
        assert moved[20], kind
        assert moved[:20].any() == before, kind
        assert moved[21:].any() == after, kind


@pytest.mark.parametrize("kind", SCANS)
def test_bidirectional_of_the_reversed_input_is_the_reversed_output(kind: AdapterKind) -> None:
    """The property of directions that share their weights; one direction does not have it."""
    x = torch.randn(2, 40, 8).double()
    both = make_adapter(kind, 8, state=8, bidirectional=True).double()
    torch.testing.assert_close(both(x.flip(1)), both(x).flip(1))
    one = make_adapter(kind, 8, state=8).double()
    assert not torch.allclose(one(x.flip(1)), one(x).flip(1), atol=1e-3)


@pytest.mark.parametrize("kind", SCANS)
def test_bidirectional_averages_two_loops(kind: AdapterKind) -> None:
    adapter = make_adapter(kind, 6, state=4, bidirectional=True).double()
    w, x = numbers(adapter), torch.randn(1, 30, 6).double()
    row = x[0].numpy()
    if isinstance(adapter, LTIAdapter):
        forward, backward = (numpy_lti(adapter, w, sequence) for sequence in (row, row[::-1]))
        q = (forward + backward[::-1]) / 2 + row @ w["skip.weight"].T
    else:
        forward, backward = (numpy_selective(w, sequence, 16) for sequence in (row, row[::-1]))
        q = (forward + backward[::-1]) / 2
    np.testing.assert_allclose(adapter(x)[0].detach().numpy(), gated(w, row, q), atol=1e-9)


@pytest.mark.parametrize(("width", "state"), [(384, 256), (192, 64)])
def test_kinds_are_of_one_size(width: int, state: int) -> None:
    lti = parameters(make_adapter("lti", width, state))
    for kind in ("selective", "attention", "mlp"):
        assert parameters(make_adapter(kind, width, state)) == pytest.approx(lti, rel=0.01)
    for kind in SCANS:
        both = make_adapter(kind, width, state, bidirectional=True)  # pyright: ignore[reportArgumentType]
        assert parameters(both) == parameters(make_adapter(kind, width, state))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_add_less_than_five_per_cent_of_the_backbone(kind: AdapterKind) -> None:
    with torch.device("meta"):
        backbone = parameters(PointMAE("base"))
    assert parameters(make_adapter(kind, 384)) < 0.05 * backbone


@pytest.mark.parametrize(("kind", "bidirectional"), FORMS)
def test_all_kinds_train_and_score(kind: AdapterKind, bidirectional: bool) -> None:
    torch.manual_seed(0)
    model = Mamba3dAD(
        backbone_size="tiny",
        backbone_weights="random",
        num_groups=16,
        group_size=16,
        voxel_size=None,
        slots=32,
        state=32,
        adapter=kind,
        bidirectional=bidirectional,
    )
    batch = PointCloudBatch.pack([torch.randn(200, 3), torch.randn(250, 3)], ["c/train/0", "c/train/1"])
    before = {name: p.detach().clone() for name, p in model.adapter.named_parameters()}

    def loss() -> torch.Tensor:
        """With the same augmentation, noise and dropout at every step: something to learn by heart."""
        torch.manual_seed(1)
        return model.loss(batch)["loss"]

    untrained = loss().item()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(20):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
    assert loss().item() < 0.8 * untrained
    assert not any(torch.equal(p, before[name]) for name, p in model.adapter.named_parameters())
    first, second = model.eval().score(batch), model.score(batch)
    assert first.point_scores.isfinite().all()
    assert torch.equal(first.point_scores, second.point_scores)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(InputError, match="adapter='gru': choose from lti, selective"):
        make_adapter("gru", 8)  # pyright: ignore[reportArgumentType]
    for kind in ("attention", "mlp", "identity"):
        with pytest.raises(InputError, match=f"adapter={kind} does not scan"):
            make_adapter(kind, 8, bidirectional=True)
