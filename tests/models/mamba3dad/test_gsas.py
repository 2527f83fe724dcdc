from __future__ import annotations

from typing import Literal
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly3d.errors import InputError
from anomaly3d.models.mamba3dad.blocks import spatial_blocks
from anomaly3d.models.mamba3dad.gsas import GSAS, initial_queries, order
from anomaly3d.models.mamba3dad.ordering import column_entropy, locality
from anomaly3d.ops.sinkhorn import Method, sinkhorn

ORDERINGS: tuple[Literal["sort"], Literal["argmax"]] = ("sort", "argmax")


def naive(gsas: GSAS, tokens: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One cloud, (L, M, D) and (M, 3), loop by loop."""
    weight, bias = gsas.down.weight.detach().numpy(), gsas.down.bias.detach().numpy()
    queries, slot_bias = gsas.queries.detach().numpy(), gsas.bias.detach().numpy()
    layers, patches, _ = tokens.shape
    e = np.zeros((layers * patches, len(weight)))
    for layer in range(layers):
        for i in range(patches):
            near = np.argsort([np.linalg.norm(centres[i] - c) for c in centres], kind="stable")[: gsas.neighbours]
            e[layer * patches + i] = np.max([weight @ tokens[layer, j] + bias for j in near], axis=0)
    affinity = e @ queries.T + slot_bias
    plan = np.exp((affinity - affinity.max(axis=0)) / gsas.tau)
    rows, slots = plan.shape
    for _ in range(gsas.iterations):
        for t in range(rows):
            plan[t] *= slots / rows / plan[t].sum()
        for s in range(slots):
            plan[:, s] /= plan[:, s].sum()
    features, coordinates = np.zeros((slots, tokens.shape[2])), np.zeros((slots, 3))
    for s in range(slots):
        for t in range(rows):
            features[s] += plan[t, s] * tokens[t // patches, t % patches]
            coordinates[s] += plan[t, s] * centres[t % patches]
    return features, coordinates, plan


def make(scale: float = 0.3) -> tuple[GSAS, torch.Tensor, torch.Tensor]:
    gsas = GSAS(width=6, slots=7, descriptor_width=5, neighbours=3, query_scale=scale).double()
    torch.nn.init.normal_(gsas.bias)
    return gsas, torch.randn(2, 2, 5, 6).double(), torch.randn(2, 5, 3).double()


# The sorter itself works in float32: double parameters would only hide that.
def test_equals_loops() -> None:
    gsas, tokens, centres = make()
    out = gsas.float()(tokens.float(), centres.float())
    for b in range(2):
        features, coordinates, plan = naive(gsas, tokens[b].numpy(), centres[b].numpy())
        np.testing.assert_allclose(out.features[b].detach(), features, atol=1e-5)
        np.testing.assert_allclose(out.coordinates[b].detach(), coordinates, atol=1e-5)
        np.testing.assert_allclose(out.plan[b].detach(), plan, atol=1e-5)


def test_cosine_affinity_is_of_the_angle_and_its_plan_keeps_its_row_sums_where_the_product_does_not() -> None:
    gsas, tokens, centres = make(scale=30.0)
    gsas, tokens, centres = gsas.float(), tokens.float(), centres.float()
    descriptors = gsas.describe(tokens, centres)
    share, error = 7 / 10, {}
    for cosine in (False, True):
        gsas.cosine = cosine
        error[cosine] = (gsas.plan(descriptors, centres).sum(2) / share - 1).abs().max().item()
    assert error[False] > 0.5
    assert error[True] < 0.05
    for b, t, s in ((0, 3, 2), (1, 9, 6)):
        e, q = descriptors[b, t].detach().numpy(), gsas.queries[s].detach().numpy()
        angle = e @ q / np.linalg.norm(e) / np.linalg.norm(q)
        assert gsas.affinity(descriptors)[b, t, s].item() == pytest.approx(angle + gsas.bias[s].item(), abs=1e-5)


def test_gradient_of_the_cosine_affinity() -> None:
    gsas, tokens, centres = make()
    gsas.cosine = True
    with torch.no_grad():
        descriptors = gsas.describe(tokens[:1], centres[:1])
    descriptors.requires_grad_()

    def of(descriptors: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(gsas, {"queries": queries}, (descriptors,))

    with mock.patch.object(gsas, "forward", gsas.affinity):
        assert torch.autograd.gradcheck(of, (descriptors, gsas.queries.detach().clone().requires_grad_()))


def test_marginals_at_the_paper_s_size_hold_to_the_stated_tolerance() -> None:
    # Columns always; rows where affinities are bounded: those of a product grow until eight iterations do not reach.
    torch.manual_seed(0)
    tokens, centres = torch.randn(1, 6, 256, 32), torch.randn(1, 256, 3)
    for affinity in ("cosine", "dot"):
        plan = GSAS(32, affinity=affinity)(tokens, centres).plan.detach()
        assert plan.shape == (1, 1536, 1024)
        assert (plan.sum(1) - 1).abs().max() < 1e-4
        if affinity == "cosine":
            assert (plan.sum(2) / (1024 / 1536) - 1).abs().max() < 0.02


@pytest.mark.parametrize("method", ["log", "scaling"])
def test_the_way_to_scale_is_a_setting_and_changes_no_plan(method: Method) -> None:
    torch.manual_seed(0)
    gsas, (tokens, centres) = GSAS(24, 40, query_scale=0.3), (torch.randn(1, 2, 30, 24), torch.randn(1, 30, 3))
    expected = gsas(tokens, centres).plan
    gsas.method = method
    with mock.patch("anomaly3d.models.mamba3dad.gsas.sinkhorn", wraps=sinkhorn) as called:
        torch.testing.assert_close(gsas(tokens, centres).plan, expected, atol=1e-5, rtol=1e-4)
    assert called.call_args.args[3] == method


def test_gradient_of_tokens_queries_and_projection_equals_finite_differences() -> None:
    gsas, tokens, centres = make(scale=0.1)
    gsas, tokens, centres = gsas.float(), tokens[:1].float().requires_grad_(), centres[:1].float()
    weight = torch.randn(7, 6)
    (gsas(tokens, centres).features[0] * weight).sum().backward()

    def value() -> float:
        return float(
            (naive(gsas, tokens.detach().numpy()[0].astype(float), centres[0].numpy())[0] * weight.numpy()).sum()
        )

    for parameter in (tokens, gsas.queries, gsas.bias, gsas.down.weight):
        assert parameter.grad is not None
        flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
        for i in range(0, flat.numel(), max(1, flat.numel() // 7)):
            kept, step = flat[i].item(), 2**-9
            flat[i] = kept + step
            up = value()
            flat[i] = kept - step
            down = value()
            flat[i] = kept
            assert gradient[i].item() == pytest.approx((up - down) / (2 * step), abs=5e-3, rel=2e-2)


def test_the_order_of_the_patches_does_not_matter() -> None:
    gsas, tokens, centres = make()
    gsas, tokens, centres = gsas.float(), tokens.float(), centres.float()
    shuffle = torch.randperm(5)
    a, b = gsas(tokens, centres), gsas(tokens[:, :, shuffle], centres[:, shuffle])
    torch.testing.assert_close(a.features, b.features)
    torch.testing.assert_close(a.coordinates, b.coordinates)


def test_each_cloud_of_a_batch_is_sorted_by_itself() -> None:
    gsas, tokens, centres = make()
    gsas, tokens, centres = gsas.float(), tokens.float(), centres.float()
    both = gsas(tokens, centres)
    for b in range(2):
        torch.testing.assert_close(both.features[b : b + 1], gsas(tokens[b : b + 1], centres[b : b + 1]).features)


def test_fewer_patches_than_neighbours() -> None:
    gsas, tokens, centres = make()
    gsas.neighbours = 50
    assert gsas.float()(tokens.float(), centres.float()).features.isfinite().all()


def test_sorts_in_float32_under_autocast() -> None:
    gsas, tokens, centres = make()
    gsas, tokens, centres = gsas.float(), tokens.float(), centres.float()
    expected = gsas(tokens, centres)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = gsas(tokens, centres)
    assert torch.equal(out.features, expected.features)
    assert torch.equal(out.plan, expected.plan)


def test_default_queries_give_slots_of_few_tokens() -> None:
    """At initialisation a slot is a mixture of a few tokens; with tiny queries it is the mean of all."""
    tokens, centres = torch.nn.functional.layer_norm(torch.randn(1, 4, 32, 96), (96,)), torch.randn(1, 32, 3)
    held = {}
    for scale in (1.0, 0.02):
        plan = GSAS(96, slots=85, query_scale=scale)(tokens, centres).plan
        held[scale] = (-(plan * (plan + 1e-9).log()).sum(1)).mean().exp().item()  # effective tokens per slot
    assert held[1.0] < 12
    assert held[0.02] > 64


@pytest.mark.parametrize("ordering", ["argmax", "sort"])
def test_deployment_orderings_equal_loops(ordering: Literal["argmax", "sort"]) -> None:
    gsas, tokens, centres = make(scale=1.0)
    gsas, tokens, centres = gsas.float(), tokens.float(), centres.float()
    out = gsas(tokens, centres, ordering)
    sharp = gsas.plan(gsas.describe(tokens, centres), centres, sharp=ordering == "argmax")
    assert torch.equal(out.plan, sharp)
    assert torch.equal(out.plan, gsas(tokens, centres).plan) == (ordering == "sort")
    for b in range(2):
        plan = out.plan[b].detach().double().numpy()
        if ordering == "argmax":
            chosen = [int(np.argmax(plan[:, s])) for s in range(7)]
        else:
            mu = [sum(s / 6 * plan[t, s] for s in range(7)) / plan[t].sum() for t in range(10)]
            chosen = sorted(range(10), key=lambda t: mu[t])
            assert sorted(chosen) == list(range(10))
        for place, t in enumerate(chosen):
            assert torch.equal(out.features[b, place], tokens[b, t // 5, t % 5])
            assert torch.equal(out.coordinates[b, place], centres[b, t % 5])
            assert out.assignment[b, :, place].nonzero().flatten().tolist() == [t]
    assert out.assignment.unique().tolist() == [0, 1]


def test_argmax_takes_its_tokens_from_a_near_binary_plan() -> None:
    torch.manual_seed(0)
    gsas = GSAS(24, slots=40, affinity="cosine", neighbours=2)
    tokens, centres = torch.randn(1, 2, 40, 24), torch.randn(1, 40, 3)
    plans = {"trained": gsas(tokens, centres).plan, "sharp": gsas(tokens, centres, "argmax").plan}
    entropy = {name: column_entropy(plan).item() for name, plan in plans.items()}
    different = {name: len(plan.argmax(1).unique()) for name, plan in plans.items()}
    assert entropy["trained"] > 3.5  # of log 80 = 4.4: a slot is everything
    assert entropy["sharp"] < entropy["trained"] - 1
    assert different["sharp"] > 1.2 * different["trained"]
    torch.testing.assert_close(plans["sharp"].sum(1), torch.ones(1, 40))
    torch.testing.assert_close(plans["sharp"].sum(2), torch.full((1, 80), 0.5), atol=0.1, rtol=0)
    gsas.argmax_tau = None
    assert torch.equal(gsas(tokens, centres, "argmax").plan, plans["trained"])


def test_neighbours_on_a_curve_come_near_each_other_once_the_sorter_alone_is_trained() -> None:
    """Tokens are features of their place on a helix: nothing but L_ent and L_loc shapes the order."""
    # A perfect order steps about 1/48 at a time, a random one 1/3.
    start, trained = steps_along_a_curve(4)
    assert start["sort"] > 0.1
    assert trained["sort"] < 0.1
    assert trained["argmax"] < 0.1
    # Independent queries: L_loc draws mean slots together, and finds no order of the columns.
    independent = steps_along_a_curve(None)[1]
    assert independent["sort"] < 0.1
    assert independent["argmax"] > 2 * trained["argmax"]


def test_initial_queries_of_neighbouring_slots_are_alike_and_have_the_asked_for_variance() -> None:
    torch.manual_seed(0)
    for waves in (1, 4, None):
        queries = initial_queries(200, 400, waves)
        assert queries.var().item() == pytest.approx(1, rel=0.15)
        step = (queries[1:] - queries[:-1]).norm(dim=1).max() / queries.norm(dim=1).mean()
        # Of a cosine of k waves a step is at most pi k / S of its amplitude; independent draws are sqrt(2) apart.
        assert step > 1.2 if waves is None else step < 2 * torch.pi * waves / 200


def steps_along_a_curve(waves: int | None) -> tuple[dict[str, float], dict[str, float]]:
    generator = torch.Generator().manual_seed(0)
    place = torch.rand(48, generator=generator)
    angle = 4 * torch.pi * place
    centres = torch.stack([angle.cos(), angle.sin(), 2 * place - 1], dim=1)[None]
    tokens = torch.cat([centres, torch.sin(5 * centres), torch.cos(5 * centres)], dim=-1)[:, None]
    torch.manual_seed(0)
    gsas = GSAS(width=9, slots=48, descriptor_width=16, neighbours=3, query_waves=waves)

    def steps() -> dict[str, float]:
        found = {}
        for ordering in ORDERINGS:
            plan = gsas(tokens, centres, ordering).plan.detach()  # for `argmax` a sharper one
            found[ordering] = place[order(plan, ordering)[0]].diff().abs().mean().item()
        return found

    start = steps()
    # A hundred times the paper's weight of L_loc and six times its sigma: what the term does shows in 400 steps.
    optimiser = torch.optim.Adam(gsas.parameters(), lr=3e-2)
    for _ in range(400):
        optimiser.zero_grad()
        plan = gsas(tokens, centres).plan
        (0.01 * column_entropy(plan) + 10 * locality(plan, centres, sigma=0.3)).backward()
        optimiser.step()
    return start, steps()


def test_hungarian_is_the_best_one_to_one_assignment_and_softmax_has_columns_of_one() -> None:
    gsas, tokens, centres = make(scale=1.0)
    gsas, tokens, centres = gsas.float(), tokens.float(), centres.float()
    affinity = gsas.affinity(gsas.describe(tokens, centres)).detach()
    gsas.assignment = "softmax"
    soft = gsas(tokens, centres).plan
    torch.testing.assert_close(soft, torch.exp(affinity / 0.2) / torch.exp(affinity / 0.2).sum(1, keepdim=True))
    gsas.assignment = "hungarian"
    hard = gsas(tokens, centres).plan
    for b in range(2):
        plan = hard[b].detach().round()
        assert torch.equal(plan.sum(0), torch.ones(7))
        assert plan.sum(1).max() == 1
        # No swap of two tokens, and no token that is left over, would do better: brute force over all pairs.
        token = plan.argmax(0)
        for s in range(7):
            free = [t for t in range(10) if t not in token]
            assert all(affinity[b, t, s] <= affinity[b, token[s], s] for t in free)
            for r in range(s):
                kept = affinity[b, token[s], s] + affinity[b, token[r], r]
                assert affinity[b, token[r], s] + affinity[b, token[s], r] <= kept + 1e-5
    weight, gradients = torch.randn(2, 10, 7), []
    for assignment in ("hungarian", "softmax"):
        gsas.assignment, gsas.queries.grad = assignment, None
        (gsas(tokens, centres).plan * weight).sum().backward()
        assert gsas.queries.grad is not None
        gradients.append(gsas.queries.grad)
    assert gradients[0].any()
    torch.testing.assert_close(*gradients)


@given(st.integers(2, 30), st.integers(1, 4), st.integers(1, 60), st.floats(0.05, 1))
@settings(max_examples=40, deadline=None)
def test_no_block_is_larger_than_asked_for_and_one_to_one_stays_one_to_one(
    patches: int, layers: int, block_tokens: int, share: float
) -> None:
    torch.manual_seed(0)
    slots = max(1, int(share * patches * layers))
    gsas = GSAS(6, slots, 5, neighbours=3, block_tokens=block_tokens, assignment="hungarian")
    tokens, centres = torch.randn(1, layers, patches, 6), torch.randn(1, patches, 3)
    sizes: list[int] = []

    def counted(affinity: torch.Tensor) -> torch.Tensor:
        sizes.append(affinity.shape[1])
        return affinity

    affinity = gsas.affinity
    try:
        with mock.patch.object(gsas, "affinity", lambda *args: counted(affinity(*args))):
            plan = gsas(tokens, centres).plan.detach().round()
    except InputError as error:
        assert "raise it" in str(error)  # noqa: PT017
        assert block_tokens < layers or slots < 2 * patches // max(1, block_tokens // layers) + 2
        return
    assert max(sizes) <= block_tokens
    assert sum(sizes) == patches * layers
    assert torch.equal(plan.sum(1), torch.ones(1, slots))
    assert plan.sum(2).max() == 1


def test_blocks_sort_what_lies_together_as_gsas_of_their_own_would() -> None:
    gsas, tokens, centres = make(scale=0.5)
    gsas, tokens, centres = gsas.float(), tokens.float(), centres.float()
    whole = gsas(tokens, centres)
    descriptors = gsas.describe(tokens, centres)
    gsas.block_tokens = 4
    plan = gsas(tokens, centres).plan
    torch.testing.assert_close(plan.sum(1), torch.ones(2, 7))
    assert not torch.allclose(plan, whole.plan, atol=1e-2)
    slots = torch.arange(7).tensor_split([2, 5])  # of 2, 2 and 1 patches, rounded down
    for b in range(2):
        for patches, mine in zip(spatial_blocks(centres[b], 3), slots, strict=True):
            rows = torch.cat([patches, patches + 5])
            alone = sinkhorn(gsas.affinity(descriptors)[b][rows][:, mine][None], tau=0.2, iterations=8)[0]
            torch.testing.assert_close(plan[b][rows][:, mine], alone)
            others = [t for t in range(10) if t not in rows]
            assert not plan[b][others][:, mine].any()
    gsas.block_tokens = 10
    assert torch.equal(gsas(tokens, centres).plan, whole.plan)
    gsas.block_tokens = 1
    with pytest.raises(InputError, match="block_tokens=1"):
        gsas(tokens, centres)
