"""Geometry in full precision: what every operation on coordinates checks and casts first."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def no_autocast(tensor: Tensor) -> torch.autocast:
    """Context in which autocast is off for the tensor's device: bfloat16 distances have two correct digits."""
    return torch.autocast(tensor.device.type, enabled=False)


def as_coordinates(xyz: Float[Tensor, "*shape 3"], name: str = "xyz") -> Float[Tensor, "*shape 3"]:
    """Coordinates in float32 (float64 stays), detached.

    Raises:
        ValueError: not three columns, no points, an integer type, or NaN or infinity among them.
    """
    if xyz.shape[-1:] != (3,) or xyz.ndim < 2:
        raise ValueError(f"{name} must have shape (..., N, 3), not {tuple(xyz.shape)}")
    if xyz.numel() == 0:
        raise ValueError(f"{name} is empty: {tuple(xyz.shape)}")
    if not xyz.is_floating_point():
        raise ValueError(f"{name} must be floating point, not {xyz.dtype}: convert it with .float()")
    xyz = full_precision(xyz.detach())
    if not torch.isfinite(xyz).all():
        raise ValueError(f"{name} has NaN or infinite coordinates")
    return xyz


def full_precision(tensor: Tensor) -> Tensor:
    """float32 for the half types; float32 and float64 stay as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
