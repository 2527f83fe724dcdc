from __future__ import annotations

import numpy as np
import pytest
import torch
from written_out import written_out

from anomaly3d.models.mamba3dad.adapter import LTIAdapter
from anomaly3d.models.mamba3dad.transition import DenseTransition, RotationTransition
from anomaly3d.ops.scan import Rotation


def naive(adapter: LTIAdapter, x: np.ndarray) -> np.ndarray:
    """One sequence (S, D), step by step."""
    a = adapter.transition()
    a = (a.dense() if isinstance(a, Rotation) else a).detach().numpy()
    b, c, d = (m.weight.detach().numpy() for m in (adapter.input, adapter.output, adapter.skip))
    gamma, beta = adapter.norm.weight.detach().numpy(), adapter.norm.bias.detach().numpy()
    gate_weight, gate_bias = adapter.gate.weight.detach().numpy(), adapter.gate.bias.detach().numpy()
    h, out = np.zeros(len(a)), []
    for row in x:
        h = a @ h + b @ row
        normed = (h - h.mean()) / np.sqrt(h.var() + adapter.norm.eps) * gamma + beta
        if adapter.state_norm == "recurrent":
            h = normed
        q = c @ normed + d @ row
        gate = 1 / (1 + np.exp(-(gate_weight @ row + gate_bias)))
        out.append(gate * q + (1 - gate) * row)
    return np.stack(out)


@pytest.mark.parametrize("transition", ["rotation", "dense"])
@pytest.mark.parametrize("state_norm", ["readout", "recurrent"])
def test_equals_a_loop(transition: str, state_norm: str) -> None:
    adapter = LTIAdapter(5, state=8, transition=transition, state_norm=state_norm).double()  # pyright: ignore[reportArgumentType]
    torch.nn.init.normal_(adapter.norm.weight)
    torch.nn.init.normal_(adapter.norm.bias)
    x = torch.randn(2, 70, 5).double()
    out = adapter(x).detach().numpy()
    for b in range(2):
        np.testing.assert_allclose(out[b], naive(adapter, x[b].numpy()), atol=1e-9)


@pytest.mark.parametrize("transition", ["rotation", "dense"])
@pytest.mark.parametrize("state_norm", ["readout", "recurrent"])
def test_gradients_of_input_and_every_parameter(transition: str, state_norm: str) -> None:
    adapter = LTIAdapter(3, state=4, transition=transition, state_norm=state_norm).double()  # pyright: ignore[reportArgumentType]
    names, values = zip(*adapter.named_parameters(), strict=True)

    def run(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(adapter, dict(zip(names, parameters, strict=True)), (x,))

    x = torch.randn(1, 6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, *values))


@pytest.mark.parametrize("state_norm", ["readout", "recurrent"])
def test_rotation_and_the_dense_built_from_it_agree(state_norm: str) -> None:
    rotation = LTIAdapter(12, state=16, transition="rotation", state_norm=state_norm)  # pyright: ignore[reportArgumentType]
    dense = LTIAdapter(12, state=16, transition="dense", state_norm=state_norm)  # pyright: ignore[reportArgumentType]
    shared = {k: v for k, v in rotation.state_dict().items() if not k.startswith("transition.")}
    dense.load_state_dict(shared, strict=False)
    assert isinstance(rotation.transition, RotationTransition)
    dense.transition = written_out(rotation.transition)

    xs = [torch.randn(2, 300, 12).requires_grad_()]
    xs.append(xs[0].detach().clone().requires_grad_())
    weight = torch.randn(2, 300, 12) / 300
    outs = [adapter(x) for adapter, x in zip((rotation, dense), xs, strict=True)]
    for out in outs:
        (out * weight).sum().backward()
    torch.testing.assert_close(outs[0], outs[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(xs[0].grad, xs[1].grad, atol=1e-5, rtol=1e-5)
    theirs = dict(dense.named_parameters())
    for name, parameter in rotation.named_parameters():
        if name != "transition.angles":
            torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-5, rtol=1e-5)
    assert isinstance(dense.transition, DenseTransition)
    assert dense.transition.skew.grad is not None
    pairs = torch.stack([dense.transition.skew.grad[2 * i, 2 * i + 1] for i in range(8)])
    torch.testing.assert_close(-pairs, rotation.transition.angles.grad, atol=1e-5, rtol=1e-5)


def test_is_causal() -> None:
    adapter, x = LTIAdapter(6, state=8), torch.randn(1, 50, 6)
    changed = x.clone()
    changed[:, 30:] += 1
    before, after = adapter(x), adapter(changed)
    torch.testing.assert_close(before[:, :30], after[:, :30])
    assert not torch.allclose(before[:, 30:], after[:, 30:])


def test_adds_less_than_five_per_cent_of_the_backbone() -> None:
    from anomaly3d.models.backbones.point_mae import PointMAE

    with torch.device("meta"):
        backbone = sum(p.numel() for p in PointMAE("base").parameters())
    for transition in ("rotation", "dense"):
        assert sum(p.numel() for p in LTIAdapter(384, transition=transition).parameters()) < 0.05 * backbone


@pytest.mark.parametrize("state_norm", ["readout", "recurrent"])
def test_states_are_float32_under_autocast(state_norm: str) -> None:
    adapter = LTIAdapter(6, state=8, state_norm=state_norm)  # pyright: ignore[reportArgumentType]
    u = torch.randn(2, 40, 8)
    expected = adapter._normed_states(u)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = adapter._normed_states(u.bfloat16())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, adapter._normed_states(u.bfloat16().float()))
    assert (found - expected).abs().max() < 0.1  # of the inputs' rounding alone
