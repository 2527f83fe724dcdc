"""The kinds of adapter between sorter and discriminator: the paper's and its ablation's."""

from __future__ import annotations

from typing import Literal, get_args

from torch import nn

from anomaly3d.errors import InputError, check_choice
from anomaly3d.models.mamba3dad.adapter import LTIAdapter
from anomaly3d.models.mamba3dad.attention import AttentionAdapter
from anomaly3d.models.mamba3dad.mlp import MLPAdapter
from anomaly3d.models.mamba3dad.selective import SelectiveAdapter, step_rank

AdapterKind = Literal["lti", "selective", "attention", "mlp", "identity"]

_CHANNEL_STATE = 16  # of the selective scan, as in Mamba
_HEADS = 8


def make_adapter(
    kind: AdapterKind,
    width: int,
    state: int = 256,
    transition: Literal["rotation", "dense"] = "rotation",
    state_norm: Literal["readout", "recurrent"] = "readout",
    scale: float = 0.9,
    max_norm: float = 0.95,
    gate_bias: float = 0.0,
    bidirectional: bool = False,
) -> nn.Module:
    """An adapter (B, S, D) -> (B, S, D).

    All kinds but `identity`, which passes slots unchanged, end in the same gated residual. Around it `selective`,
    `attention` and `mlp` are as wide as the parameters of the LTI adapter's B, C and D pay for, so that the ablation
    compares mechanisms, not sizes. [ours]

    Args:
        kind: `lti` [paper: its equations], or a row of its ablation: `selective`, `attention`, `mlp`, `identity`.
        width: channels of a slot (D).
        state: width of the LTI adapter's state; the others' widths follow from it.
        transition: of `lti` alone, as `state_norm`, `scale` and `max_norm`: see `LTIAdapter`.
        state_norm: see `LTIAdapter`.
        scale: see `LTIAdapter`.
        max_norm: see `LTIAdapter`.
        gate_bias: initial bias of the gate.
        bidirectional: scan from both ends, `lti` and `selective` only.

    Raises:
        InputError: an unknown kind, or both directions asked of a kind that has none.
    """
    check_choice(get_args(AdapterKind), adapter=kind)
    if bidirectional and kind not in ("lti", "selective"):
        raise InputError(f"bidirectional=True: adapter={kind} does not scan; use lti or selective, or drop it")
    if kind == "lti":
        return LTIAdapter(width, state, transition, state_norm, scale, max_norm, gate_bias, bidirectional)
    budget = width * (2 * state + width)  # of B, C and D
    if kind == "selective":
        per_channel = 2 * width + 2 * step_rank(width) + 3 * _CHANNEL_STATE + 2
        return SelectiveAdapter(width, max(1, budget // per_channel), _CHANNEL_STATE, gate_bias, bidirectional)
    if kind == "attention":
        return AttentionAdapter(width, _HEADS * max(1, round(budget / (4 * width * _HEADS))), _HEADS, gate_bias)
    return MLPAdapter(width, max(1, budget // (2 * width)), gate_bias) if kind == "mlp" else nn.Identity()
