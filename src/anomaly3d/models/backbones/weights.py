"""Where the frozen backbone's weights come from: the package, a file or, by asking for them, random numbers."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from anomaly3d.errors import InputError, reason
from anomaly3d.files import replacing
from anomaly3d.models.backbones.point_mae import ARCHITECTURES, FrozenPointMAE, Size

SHIPPED: dict[str, Path] = {"small": Path(__file__).with_name("point_mae_small.safetensors")}
"""Weights that come with the package; point_mae_small.md says how they were made."""

log = logging.getLogger(__name__)

# The outer key of the published files: Point-MAE's and Point-BERT's pre-training and fine-tuning; part segmentation.
_STATE_KEYS = ("base_model", "model_state_dict")
# Inside: pre-trained Point-MAE, pre-trained Point-BERT; fine-tuned files have no prefix.
_ENCODER_PREFIXES = ("MAE_encoder.", "transformer_q.")
# What stands under these names is the encoder's; all else is a head, a decoder or a token that we drop.
_ENCODER_PARTS = ("encoder.", "pos_embed.", "blocks.", "norm.", "reduce_dim.")
_OUTSIDE = "outside."
_GROUP_LAYERS = tuple(f"encoder.{half}_conv.{layer}.weight" for half in ("first", "second") for layer in (0, 3))


def frozen_point_mae(size: Size | None = None, weights: str = "small", seed: int | None = None) -> FrozenPointMAE:
    """A frozen Point-MAE with `weights`; heads, decoder and class token of a file are dropped with one log line.

    Args:
        size: architecture; None takes the one that the weights have, and `small` for random ones.
        weights: `small`, which come with the package; path of a `.safetensors` file that `anomaly3d pretrain` wrote, or
            of a checkpoint in one of the published formats; or `random`.
        seed: of random weights; the same seed gives the same bits. None takes the last one that torch was given: the
            run's.

    Raises:
        InputError: no such file, not one that loads with weights only, or an encoder weight is missing, of another
            shape, not finite, or one that this architecture does not have (the message names the keys).
    """
    if weights == "random":
        size = size or "small"
        seed = torch.initial_seed() if seed is None else seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = FrozenPointMAE(size)
            calibrate_batch_norm(model)
        log.warning(
            "The '%s' Point-MAE has random weights (seed %d, sha256 of the state %s): expect low scores. "
            "Those that come with the package are --model.detector.init_args.backbone_weights small.",
            size,
            seed,
            weights_hash(model),
        )
        return model
    path = SHIPPED.get(weights, Path(weights))
    state = _encoder_state(path)
    model = FrozenPointMAE(size or _size_of(state, path))
    _load(model, state, path)
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
    samples = samples - samples[:, :1]
    samples = samples / model.unit(samples[:, None])[:, 0]
    norms = [module for module in model.encoder.modules() if isinstance(module, nn.BatchNorm1d)]
    for norm in norms:
        norm.momentum = None  # the plain average of one pass
        norm.train()
    model.encoder(samples)
    for norm in norms:
        norm.eval()


def save_encoder(model: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    """Write an encoder in half precision, its BatchNorm statistics in single."""
    state = {k: v.detach().cpu() for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    state = {k: (v if "running" in k else v.half()).contiguous() for k, v in state.items()}
    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # safetensors would leave a file that its owner alone can read
        save_file(state, temporary, dict(metadata))
        temporary.chmod(mode)


def _load(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    expected = model.state_dict()
    required = [k for k in expected if not k.endswith("num_batches_tracked")]
    missing = [k for k in required if k not in state]
    misshapen = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(expected[k].shape)}"
        for k in required
        if k in state and state[k].shape != expected[k].shape
    ]
    unknown = [k for k in state if k not in expected and k.startswith(_ENCODER_PARTS)]
    found = {"missing": missing, "other shape": misshapen, "unknown here": unknown}
    if problems := [f"{what}: {_some(keys)}" for what, keys in found.items() if keys]:
        raise InputError(
            f"{path}: not the encoder of a Point-MAE of this size ({'; '.join(problems)}); choose the backbone_size "
            "that fits the file, or another file"
        )
    if broken := [k for k in required if not state[k].isfinite().all()]:
        raise InputError(f"{path}: damaged, or of a training that diverged: not finite: {_some(broken)}")
    unused = sorted({k.removeprefix(_OUTSIDE).split(".")[0] for k in state if k not in expected})
    model.load_state_dict({k: v for k, v in state.items() if k in expected}, strict=False)
    dropped = f"; not used: {', '.join(unused)}" if unused else ""
    log.info("Backbone: %s, sha256 of the state %s%s", path.name, weights_hash(model), dropped)


def _size_of(state: Mapping[str, Tensor], path: Path) -> Size:
    """The architecture that the group encoder's layers have."""
    widths = [len(state[key]) for key in _GROUP_LAYERS if key in state and state[key].dim()]
    for size, architecture in ARCHITECTURES.items():
        if tuple(widths) == architecture.point_widths:
            return size
    if missing := [key for key in _GROUP_LAYERS if key not in state]:
        raise InputError(f"{path}: no Point-MAE; missing of its group encoder: {', '.join(missing)}")
    raise InputError(f"{path}: no Point-MAE that is known here; its group encoder has widths {widths}")


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of a module's state, whatever file it came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _encoder_state(path: Path) -> dict[str, Tensor]:
    """The file's tensors with every wrapper's prefix removed."""
    if not path.is_file():
        raise InputError(f"{path}: no such weights; give a file, 'small' or 'random'")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: not a readable safetensors file ({error})") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in any way that unpickling can
        # torch's own text advises to load whatever the file has in it
        why = "damaged, or more than tensors" if isinstance(error, UnpicklingError) else reason(error)
        raise InputError(f"{path}: no checkpoint that loads with weights only ({why})") from error
    outer = next((k for k in _STATE_KEYS if isinstance(content, dict) and k in content), None)
    if outer is None:
        raise InputError(f"{path}: no published Point-MAE format; expected one of the keys {', '.join(_STATE_KEYS)}")
    tensors = content[outer]
    if not isinstance(tensors, dict) or not all(isinstance(k, str) and torch.is_tensor(v) for k, v in tensors.items()):
        raise InputError(f"{path}: no published Point-MAE format; its {outer} holds other things than named tensors")
    state = {k.removeprefix("module."): v for k, v in tensors.items()}
    for prefix in _ENCODER_PREFIXES:
        if any(k.startswith(prefix) for k in state):
            outside = {f"{_OUTSIDE}{k}": v for k, v in state.items() if not k.startswith(prefix)}
            inside = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            state = outside | inside
            break
    # 1x1 convolutions hold (out, in, 1) where our Linear layers hold (out, in).
    return {k: v.squeeze(-1) if v.dim() == 3 and k.startswith("encoder.") else v for k, v in state.items()}


def _some(items: list[str], most: int = 5) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")
