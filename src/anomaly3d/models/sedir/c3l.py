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
    assert encoded.fine is not None
    assert encoded.coarse is not None
    fine, coarse = (F.cosine_similarity(encoded.base, side, dim=-1) for side in (encoded.fine, encoded.coarse))
    return (2 - fine - coarse).mean()


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
    """The three losses on the global feature and token; a loss of weight 0 is not computed.

    Args:
        feature_width: channels of the global feature, which the class head reads.
        width: channels of z.
        buffer_size: past clouds that a cloud is compared with [paper].
        eviction: `fifo` [paper] or `balanced` per category [ours].
        temperature: of the contrastive softmax [inferred].
        contrastive_weight: weight of `L_scl` [second-hand].
        cosine_weight: weight of `L_cos` [second-hand].
        class_weight: weight of `L_cls` [second-hand]; with 0 there is no class head.
    """

    def __init__(
        self,
        feature_width: int,
        width: int = 256,
        buffer_size: int = 64,
        eviction: Eviction = "fifo",
        temperature: float = 0.1,
        contrastive_weight: float = 0.001,
        cosine_weight: float = 0.001,
        class_weight: float = 0.01,
    ) -> None:
        super().__init__()
        self.feature_width = feature_width
        self.temperature = temperature
        self.weights = {"contrastive": contrastive_weight, "cosine": cosine_weight, "class": class_weight}
        self.classifier: nn.Linear | None = None
        self.buffer = ContrastiveBuffer(buffer_size, width, eviction)

    def configure(self, num_categories: int) -> None:
        """Build the class head."""
        if self.weights["class"]:
            self.classifier = nn.Linear(self.feature_width, num_categories).to(self.buffer.embedding.device)

    def logits(self, feature: Float[Tensor, "B F"]) -> Float[Tensor, "B C"]:
        """Category logits of the class head; needs `configure`."""
        if self.classifier is None:
            raise RuntimeError("SeDiR has no class head yet: call configure(categories) before training.")
        return self.classifier(feature).float()

    def loss(
        self,
        encoded: Encoded,
        feature: Float[Tensor, "B F"] | None,
        z: Float[Tensor, "B W"] | None,
        category: Int[Tensor, " B"],
    ) -> dict[str, Tensor]:
        """`contrastive`, `cosine`, `class` and their weighted sum `c3l`. In training, z joins the buffer afterwards.

        `feature` and z may be None where the losses that need them have no weight.
        """
        terms = {}
        if self.weights["contrastive"]:
            assert z is not None
            # A copy: the push overwrites in place what the backward pass still needs.
            past = self.buffer.embedding.clone()
            terms["contrastive"] = supervised_contrastive(z, category, past, self.buffer.category, self.temperature)
            if self.training:
                self.buffer.push(z, category)
        if self.weights["cosine"]:
            terms["cosine"] = cosine_consistency(encoded)
        if self.weights["class"]:
            assert feature is not None
            terms["class"] = F.cross_entropy(self.logits(feature), category)
        c3l = sum((self.weights[name] * term for name, term in terms.items()), encoded.base.new_zeros(()))
        return {**terms, "c3l": c3l}
