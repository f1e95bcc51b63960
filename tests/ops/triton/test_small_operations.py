"""Router, rotary heads and addressed noise, against their references."""

from __future__ import annotations

import pytest
import torch

from scumble.diffusion import Address, SeededNoise
from scumble.ops.pages import Destination
from scumble.ops.reference import REFERENCE
from scumble.ops.triton import geglu, norms, rotate, router
from scumble.ops.triton.cases import Known
from scumble.ops.triton.ops import TritonOps

pytestmark = pytest.mark.usefixtures("guarded")


@pytest.mark.parametrize("experts", [8, 24])
def test_router_chooses_and_weighs_as_the_reference(experts: int, dtype: torch.dtype, device: torch.device) -> None:
    h, scale, proj = (torch.randn(*shape, device=device).to(dtype) for shape in ((21, 96), (96,), (experts, 96)))
    per_expert = torch.rand(experts, device=device).to(dtype)
    weights, chosen = router.router(h, scale, proj, per_expert, 3, 1e-6)
    wanted, ids = router.router_reference(h, scale, proj, per_expert, 3, 1e-6)
    assert torch.equal(chosen, ids)
    torch.testing.assert_close(weights, wanted, rtol=2e-5, atol=1e-6)


def test_among_equal_experts_the_lowest_id_comes_first(device: torch.device) -> None:
    h, proj = torch.randn(5, 32, device=device), torch.ones(8, 32, device=device)
    one = torch.ones(32, device=device), torch.ones(8, device=device)
    weights, chosen = router.router(h, one[0], proj, one[1], 3, 1e-6)
    assert chosen.tolist() == [[0, 1, 2]] * 5
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 3))


def test_a_token_of_no_number_still_goes_to_experts_that_exist(device: torch.device) -> None:
    """With weights that are no numbers, so that neither is what comes back; other tokens do not notice."""
    h, scale, proj = (torch.randn(*shape, device=device) for shape in ((5, 32), (32,), (8, 32)))
    wanted, ids = router.router(h, scale, proj, torch.ones(8, device=device), 3, 1e-6)
    h[2, 7] = float("nan")
    weights, chosen = router.router(h, scale, proj, torch.ones(8, device=device), 3, 1e-6)
    others = [0, 1, 3, 4]
    assert torch.equal(weights[others], wanted[others])
    assert torch.equal(chosen[others], ids[others])
    assert weights[2].isnan().all()
    assert bool((chosen >= 0).all() and (chosen < 8).all())


@pytest.mark.parametrize("size", [64, 48])
def test_norm_and_rotary_positions(size: int, dtype: torch.dtype, device: torch.device) -> None:
    x, weight = torch.randn(5, 3, size, device=device).to(dtype), torch.randn(size, device=device).to(dtype)
    cos, sin = (torch.randn(5, 1, size, device=device).to(dtype) for _ in range(2))
    ours = rotate.norm_rope(x, weight, cos, sin, 1e-6)
    tolerance = {torch.bfloat16: 2**-6, torch.float32: 5e-6}[dtype]
    torch.testing.assert_close(
        ours, rotate.norm_rope_reference(x, weight, cos, sin, 1e-6), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_heads_are_made_and_put_away_at_once(
    shared: bool, groups: int, dtype: torch.dtype, device: torch.device
) -> None:
    """From projections side by side: what norm_rope and norm make of each, and the same bits in slots of a pool, whose
    other slots stay as they were."""
    size, count = 48, 3
    projected = [torch.randn(5, n, size, device=device).to(dtype) for n in (count, groups, groups)]
    side_by_side = torch.cat([one.flatten(1) for one in projected[: 2 if shared else 3]], dim=-1)
    weights = torch.randn(size, device=device).to(dtype), torch.randn(size, device=device).to(dtype)
    rope = torch.randn(5, 1, size, device=device).to(dtype), torch.randn(5, 1, size, device=device).to(dtype)
    queries, keys, values = rotate.heads(side_by_side, weights, rope, groups, shared, 1e-6, None)
    tolerance = {torch.bfloat16: 2**-6, torch.float32: 5e-6}[dtype]
    for ours, wanted in (
        (queries, rotate.norm_rope_reference(projected[0], weights[0], *rope, 1e-6)),
        (keys, rotate.norm_rope_reference(projected[1], weights[1], *rope, 1e-6)),
        (values, norms.norm_reference(projected[1 if shared else 2], None, 1e-6)),
    ):
        torch.testing.assert_close(ours, wanted, rtol=tolerance, atol=tolerance)

    places = torch.tensor([8, 0, 3, 4, 6], device=device)
    pool = torch.full((9, groups, size), 7.0, device=device).to(dtype)
    to = Destination(pool, pool.clone(), places)
    again, *there = rotate.heads(side_by_side, weights, rope, groups, shared, 1e-6, to)
    assert torch.equal(again, queries)
    for pool, mine, new in zip((to.keys, to.values), there, (keys, values), strict=True):
        assert mine is pool
        assert torch.equal(pool[places], new)
        assert bool((pool[[1, 2, 5, 7]] == 7).all())


def test_gated_activation(dtype: torch.dtype, device: torch.device) -> None:
    gate, up = (torch.randn(7, 90, device=device).to(dtype) for _ in range(2))
    tolerance = {torch.bfloat16: 2**-7, torch.float32: 5e-6}[dtype]
    torch.testing.assert_close(geglu.geglu(gate, up), geglu.geglu_reference(gate, up), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("vocab", [1000, 262_144])
def test_noise_is_the_same_numbers_as_on_the_host(vocab: int, device: torch.device) -> None:
    """Rows of one call have addresses of their own."""
    rows = [(7, 0, 3, 2), (2**64 - 1, 2, 0, 11), (2**40 + 5, 63, 2**32 - 1, 0)]  # seed, candidate, canvas, pass
    seeds = [SeededNoise(seed, candidate) for seed, candidate, *_ in rows]
    address = Address.of(seeds, [canvas for _, _, canvas, _ in rows], device)
    passes = torch.tensor([number for *_, number in rows], device=device)
    ours, wanted = (ops.noise(address, passes, 150, vocab) for ops in (TritonOps(device=device), REFERENCE))
    for one, two in zip(ours, wanted, strict=True):
        assert torch.equal(one, two)
    for place, (_, _, canvas, number) in enumerate(rows):
        assert torch.equal(ours[0][place].cpu(), seeds[place].uniform(canvas, number, 150))
        assert torch.equal(ours[1][place].cpu(), seeds[place].renoise(canvas, number, 150, vocab))


def test_the_self_check_knows_right_numbers(device: torch.device) -> None:
    known, passes = Known.of(1, device), torch.tensor([2], device=device)
    address = Address.of([SeededNoise(2**63 + 5, 1)], [3], device)
    assert torch.equal(known.words, address.words)
    for one, two in zip(known.draw(passes, 4, 262_144), address.draw(passes, 4, 262_144), strict=True):
        assert torch.equal(one, two)
