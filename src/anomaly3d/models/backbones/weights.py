"""Where the frozen backbone's weights come from: a published checkpoint or, by asking for them, random numbers."""

from __future__ import annotations

import hashlib
import logging
import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

from anomaly3d.errors import InputError
from anomaly3d.models.backbones.point_mae import FrozenPointMAE, Size

log = logging.getLogger(__name__)

# The outer key of the published files: Point-MAE's and Point-BERT's pre-training and fine-tuning; part segmentation.
_STATE_KEYS = ("base_model", "model_state_dict")
# Inside: pre-trained Point-MAE, pre-trained Point-BERT; fine-tuned files have no prefix.
_ENCODER_PREFIXES = ("MAE_encoder.", "transformer_q.")


def frozen_point_mae(size: Size = "base", weights: str = "random", seed: int = 0) -> FrozenPointMAE:
    """A frozen Point-MAE of `size` with `weights`.

    Args:
        size: architecture; published Point-MAE checkpoints are `base`, Point-BERT's `point_bert`.
        weights: path of a checkpoint in one of the published formats, or `random`.
        seed: of random weights; the same seed gives the same bits.

    Raises:
        InputError: the file is missing, unreadable or not an encoder of this size.
    """
    if weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = FrozenPointMAE(size)
            calibrate_batch_norm(model)
        log.warning(
            "The '%s' Point-MAE has random weights (seed %d): expect low scores. Name a checkpoint with "
            "--model.detector.backbone_weights FILE.",
            size,
            seed,
        )
        return model
    model = FrozenPointMAE(size)
    load_encoder(model, Path(weights))
    return model


@torch.no_grad()
def calibrate_batch_norm(model: FrozenPointMAE, patches: int = 512, points: int = 64) -> None:
    """Give an untrained encoder BatchNorm statistics of small curved patches [ours].

    With the initial mean 0 and variance 1 the biases outweigh coordinates of a tenth of the unit sphere, and the
    tokens of all patches are nearly the same. The patches are random quadrics of radius 0.05 to 0.37, drawn from
    the global random state.
    """
    plane = 2 * torch.rand(patches, points, 2) - 1
    quadratic = torch.stack([plane[..., 0] ** 2, plane[..., 1] ** 2, plane[..., 0] * plane[..., 1]], dim=-1)
    height = (0.7 * torch.randn(patches, 1, 3) * quadratic).sum(dim=-1, keepdim=True)
    rotation = torch.linalg.qr(torch.randn(patches, 3, 3)).Q
    radius = torch.empty(patches, 1, 1).uniform_(-3, -1).exp()
    samples = radius * torch.cat([plane, height], dim=-1) @ rotation
    norms = [module for module in model.encoder.modules() if isinstance(module, nn.BatchNorm1d)]
    for norm in norms:
        norm.momentum = None  # the plain average of one pass
        norm.train()
    model.encoder(samples - samples[:, :1])
    for norm in norms:
        norm.eval()


def load_encoder(model: nn.Module, path: Path) -> None:
    """Load the encoder out of a published checkpoint; heads, decoder and class token are dropped with one log line.

    Raises:
        InputError: no such file, not a weights-only loadable file, or an encoder weight is missing or of another
            shape (the message names the keys).
    """
    state = _encoder_state(path)
    expected = model.state_dict()
    # 1x1 convolutions hold (out, in, 1) where our Linear layers hold (out, in).
    state = {k: v.squeeze(-1) if v.dim() == 3 and k.startswith("encoder.") else v for k, v in state.items()}
    required = [k for k in expected if not k.endswith("num_batches_tracked")]
    missing = [k for k in required if k not in state]
    misshapen = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(expected[k].shape)}"
        for k in required
        if k in state and state[k].shape != expected[k].shape
    ]
    if missing or misshapen:
        problems = [f"missing: {_some(missing)}"] * bool(missing) + [f"other shape: {_some(misshapen)}"] * bool(
            misshapen
        )
        raise InputError(
            f"{path}: not the encoder of a Point-MAE of this size ({'; '.join(problems)}); choose the backbone_size "
            "that fits the file, or another file"
        )
    unused = sorted({k.split(".")[0] for k in state if k not in expected})
    log.info("%s: encoder loaded; dropped: %s", path, ", ".join(unused) or "nothing")
    model.load_state_dict({k: v for k, v in state.items() if k in expected}, strict=False)


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of a module's state, whatever file it came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _encoder_state(path: Path) -> dict[str, Tensor]:
    """The checkpoint's tensors with every wrapper's prefix removed."""
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; give a file, or 'random'")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise InputError(
            f"{path}: not a checkpoint that loads with weights only ({str(error).splitlines()[0]})"
        ) from error
    outer = next((k for k in _STATE_KEYS if isinstance(content, dict) and k in content), None)
    if outer is None:
        raise InputError(f"{path}: no published Point-MAE format; expected one of the keys {', '.join(_STATE_KEYS)}")
    state = {k.removeprefix("module."): v for k, v in content[outer].items()}
    for prefix in _ENCODER_PREFIXES:
        if any(k.startswith(prefix) for k in state):
            outside = {k: v for k, v in state.items() if not k.startswith(prefix)}
            inside = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            return {f"outside.{k}": v for k, v in outside.items()} | inside
    return state


def _some(items: list[str], most: int = 5) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")
