"""Category-conditioned contrastive learning (C3L): what makes the global token say which category it is of."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from anomaly3d.models.sedir.buffer import ContrastiveBuffer, Eviction
from anomaly3d.models.sedir.cfgt import Encoded
from anomaly3d.ops.precision import no_autocast


def cosine_consistency(encoded: Encoded) -> Float[Tensor, ""]:
    """`L_cos`: 1 - cos(base, other) of each centre's tokens, summed over the fine and coarse one; mean over centres."""
    return sum(
        (1 - F.cosine_similarity(encoded.base, other, dim=-1)).mean() for other in (encoded.fine, encoded.coarse)
    )  # pyright: ignore[reportReturnType]


def supervised_contrastive(
    z: Float[Tensor, "B Z"],
    category: Int[Tensor, " B"],
    memory: Float[Tensor, "L Z"],
    memory_category: Int[Tensor, " L"],
    temperature: float = 0.1,
) -> Float[Tensor, ""]:
    """`L_scl`: mean over the positives p of -log(exp(z.p / t) / sum over all entries a of exp(z.a / t)).

    Positives are the entries of the anchor's category, negatives all others; entries of category -1 are empty. An
    anchor with no positive or no negative counts as zero, so a cloud's term does not depend on its batch mates.
    """
    filled = memory_category >= 0
    positive = (category[:, None] == memory_category) & filled
    usable = positive.any(1) & (~positive & filled).any(1)
    with no_autocast(z):  # half precision would cost the exponential its second digit
        similarity = z.float() @ memory.float().T / temperature
    # An all-empty row would be a softmax over nothing: let it see everything and drop it below.
    visible = filled | ~usable[:, None]
    log_share = similarity - similarity.masked_fill(~visible, -torch.inf).logsumexp(1, keepdim=True)
    per_anchor = -(log_share * positive).sum(1) / positive.sum(1).clamp(min=1)
    return (per_anchor * usable).mean()


class CategoryContrast(nn.Module):
    """Global token z, its class head, and their three losses.

    Args:
        width: channels of the encoder, and of z (forced equal by the decoder's residual [inferred]).
        buffer_size: past clouds that a cloud is compared with [paper].
        eviction: `fifo` [paper] or `balanced` per category [ours].
        temperature: of the contrastive softmax [inferred].
        contrastive_weight: weight of `L_scl` [second-hand].
        cosine_weight: weight of `L_cos` [second-hand].
        class_weight: weight of `L_cls` [second-hand].
    """

    def __init__(
        self,
        width: int = 256,
        buffer_size: int = 64,
        eviction: Eviction = "fifo",
        temperature: float = 0.1,
        contrastive_weight: float = 0.001,
        cosine_weight: float = 0.001,
        class_weight: float = 0.01,
    ) -> None:
        super().__init__()
        self.width = width
        self.temperature = temperature
        self.contrastive_weight = contrastive_weight
        self.cosine_weight = cosine_weight
        self.class_weight = class_weight
        self.projection = nn.Sequential(
            nn.Linear(4 * width, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, width)
        )
        self.classifier: nn.Linear | None = None
        self.buffer = ContrastiveBuffer(buffer_size, width, eviction)

    def configure(self, num_categories: int) -> None:
        """Build the class head."""
        self.classifier = nn.Linear(4 * self.width, num_categories).to(self.buffer.embedding.device)

    def embed(self, encoded: Encoded) -> Float[Tensor, "B W"]:
        """z: the projected global feature, of unit length."""
        return F.normalize(self.projection(encoded.global_feature()).float(), dim=-1)

    def logits(self, encoded: Encoded) -> Float[Tensor, "B C"]:
        """Category logits of the class head; needs `configure`."""
        if self.classifier is None:
            raise RuntimeError("SeDiR has no class head yet: call configure(categories) before training.")
        return self.classifier(encoded.global_feature()).float()

    def loss(self, encoded: Encoded, z: Float[Tensor, "B W"], category: Int[Tensor, " B"]) -> dict[str, Tensor]:
        """`L_cls`, `L_cos`, `L_scl` and their weighted sum `c3l`. In training, z joins the buffer afterwards."""
        terms = {
            "contrastive": supervised_contrastive(
                z,
                category,
                # A copy: the push below overwrites in place what the backward pass still needs.
                self.buffer.embedding.clone(),
                self.buffer.category,
                self.temperature,
            ),
            "cosine": cosine_consistency(encoded),
            "class": F.cross_entropy(self.logits(encoded), category),
        }
        if self.training:
            self.buffer.push(z, category)
        weights = {
            "contrastive": self.contrastive_weight,
            "cosine": self.cosine_weight,
            "class": self.class_weight,
        }
        c3l = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        return {**terms, "c3l": c3l}
