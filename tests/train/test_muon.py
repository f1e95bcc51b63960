"""Muon: what it does to a matrix, and that vectors get plain AdamW."""

import pytest
import torch

from scumble.train.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32), (5, 24, 40)])
def test_singular_values_are_brought_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonal(matrix))
    assert values.shape[-1] == min(shape[-2:])
    assert float(values.max()) < 1.3
    assert float(values.median()) > 0.6


def test_a_stack_of_matrices_is_treated_one_by_one():
    stack = torch.randn(4, 16, 24, generator=torch.Generator().manual_seed(2))
    alone = torch.stack([orthogonal(matrix) for matrix in stack])
    torch.testing.assert_close(orthogonal(stack), alone, rtol=0, atol=0.02)  # bfloat16 products


def test_an_update_has_the_size_of_adamws():
    """Root mean square 0.2 · rate, whatever the gradient's size: so that one rate serves both."""
    for shape, size in (((64, 64), 1e-6), ((64, 256), 1e3)):
        weight = torch.nn.Parameter(torch.zeros(shape))
        weight.grad = size * torch.randn(shape, generator=torch.Generator().manual_seed(3))
        Muon([weight], [], lr=0.01, weight_decay=0.0, betas=(0.9, 0.95)).step()
        assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.002, rel=0.25)


def test_other_parameters_get_adamw():
    """Equal to torch's, over several steps, with decay."""
    start = torch.randn(10, generator=torch.Generator().manual_seed(4))
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    one = Muon([], [{"params": [ours]}], lr=0.02, weight_decay=0.1, betas=(0.9, 0.95))
    two = torch.optim.AdamW([theirs], lr=0.02, weight_decay=0.1, betas=(0.9, 0.95))
    for step in range(5):
        ours.grad = torch.randn(10, generator=torch.Generator().manual_seed(step))
        theirs.grad = ours.grad.clone()
        one.step()
        two.step()
    torch.testing.assert_close(ours, theirs)


def test_a_state_restored_goes_on_the_same():
    def fresh():
        weight = torch.nn.Parameter(torch.ones(6, 8))
        return weight, Muon([weight], [], lr=0.02, weight_decay=0.1, betas=(0.9, 0.95))

    def advance(weight, optimizer, steps):
        for step in steps:
            weight.grad = torch.randn(6, 8, generator=torch.Generator().manual_seed(step))
            optimizer.step()

    whole, optimizer = fresh()
    advance(whole, optimizer, range(4))
    half, before = fresh()
    advance(half, before, range(2))
    rest, after = fresh()
    with torch.no_grad():
        rest.copy_(half)
    after.load_state_dict(before.state_dict())
    advance(rest, after, range(2, 4))
    assert torch.equal(whole, rest)
