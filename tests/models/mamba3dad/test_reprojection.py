from __future__ import annotations

import numpy as np
import torch

from anomaly3d.models.mamba3dad.reprojection import in_order_of_file, patch_scores, point_scores
from anomaly3d.ops.canonical import canonical_order
from anomaly3d.ops.sinkhorn import sinkhorn


def test_patch_scores_equal_loops() -> None:
    layers, patches, slots = 3, 5, 7
    plan, logits = sinkhorn(torch.randn(2, layers * patches, slots)), torch.randn(2, slots)
    out = patch_scores(logits, plan, patches)
    for b in range(2):
        for m in range(patches):
            tokens = []
            for layer in range(layers):
                row = plan[b, layer * patches + m].numpy()
                tokens.append(row @ logits[b].numpy() / row.sum())
            np.testing.assert_allclose(out[b, m], max(tokens), atol=1e-5)


def test_a_sharp_plan_hands_each_patch_its_own_logit() -> None:
    logits = torch.randn(1, 6)
    torch.testing.assert_close(patch_scores(logits, torch.eye(6)[None], 6), logits, atol=1e-5, rtol=0)


def test_point_scores_equal_loops_also_for_points_in_no_patch() -> None:
    cloud, centres = torch.randn(60, 3), torch.randn(6, 3)
    index, scores = torch.randint(0, 40, (6, 9)), torch.randn(6)
    out = point_scores(scores, index, centres, cloud)
    bare = 0
    for n in range(60):
        holding = [scores[m].item() for m in range(6) if n in index[m].tolist()]
        if not holding:
            bare += 1
            nearest = np.argmin([np.linalg.norm(cloud[n] - c) for c in centres])
            holding = [scores[nearest].item()]
        assert out[n].item() == max(holding)
    assert 20 <= bare < 50


def test_scores_of_the_patches_come_back_exactly() -> None:
    """No sum and no rounding on the way: every point's score is one of the patches'."""
    scores = torch.randn(4)
    out = point_scores(scores, torch.randint(0, 30, (4, 8)), torch.randn(4, 3), torch.randn(30, 3))
    assert set(out.tolist()) <= set(scores.tolist())


def test_points_of_the_file_get_the_scores_of_the_ordered_ones_and_copies_share_theirs() -> None:
    distinct = torch.randint(-3, 4, (40, 3)).float().unique(dim=0)
    xyz = torch.cat([distinct, distinct[:15], distinct[5:10]])[torch.randperm(len(distinct) + 20)]
    order = canonical_order(xyz)
    scores = torch.randn(len(xyz))
    out = in_order_of_file(scores, order, xyz)
    for point, score in zip(xyz, out, strict=True):
        copies = [place for place, t in enumerate(order.tolist()) if torch.equal(xyz[t], point)]
        assert score == scores[copies[0]]
    assert len(out.unique()) == len(distinct)


def test_tokens_that_no_slot_takes_say_nothing() -> None:
    plan = torch.zeros(1, 8, 3)  # two layers of four patches
    plan[0, 0, 0] = 1e-7  # of little mass, yet of one slot alone
    plan[0, 5, 1] = plan[0, 6, 2] = 1.0
    logits = torch.tensor([[-5.0, -3.0, -4.0]])
    torch.testing.assert_close(patch_scores(logits, plan, 4), torch.tensor([[-5.0, -3.0, -4.0, -4.0]]))
