"""Attention over ranges of keys, against plain torch: canvases, prompts, windows, steps, pages, uneven head sizes."""

from __future__ import annotations

import pytest
import torch

from scumble.ops.triton import attention
from scumble.ops.triton.launch import tiles_for

pytestmark = pytest.mark.usefixtures("guarded")

TOLERANCE = {torch.bfloat16: 6e-3, torch.float32: 2e-5}


def relative(one: torch.Tensor, two: torch.Tensor) -> float:
    assert not one.isnan().any()
    return float((one.double() - two.double()).norm() / two.double().norm())


def heads(tokens: int, keys: int, share: int, groups: int, dim: int, dtype: torch.dtype, device: torch.device):
    """q [T, H, K] of moderate scores; k and v [S, G, K] as a cache has them: [G, S, K], turned."""
    q = (torch.randn(tokens, share * groups, dim, device=device) / dim**0.5).to(dtype)
    k, v = (torch.randn(groups, keys, dim, device=device).to(dtype).transpose(0, 1) for _ in range(2))
    return q, k, v


def ranges(tokens: int, keys: int, mode: str, window: int | None, device: torch.device):
    position = torch.arange(keys - tokens, keys, dtype=torch.int32, device=device)
    if mode == "canvas":
        low = torch.full_like(position, 0 if window is None else max(0, keys - tokens - window + 1))
        return low, torch.full_like(position, keys)
    low = torch.zeros_like(position) if window is None else (position - window + 1).clamp_min(0)
    return low, position + 1


CASES = [
    ("canvas", None, 64, 2, False),
    ("canvas", 40, 256, 2, False),
    ("canvas", None, 512, 8, False),
    ("prompt", None, 48, 1, False),
    ("prompt", 33, 256, 2, False),
    ("prompt", None, 512, 8, False),
    ("prompt", None, 256, 4, True),
]


@pytest.mark.parametrize(("mode", "window", "dim", "share", "step"), CASES)
def test_ranges_of_keys(mode, window, dim, share, step, dtype: torch.dtype, device: torch.device) -> None:
    tokens, keys = 1 if step else 21, 150
    q, k, v = heads(tokens, keys, share, 2, dim, dtype, device)
    low, high = ranges(tokens, keys, mode, window, device)
    queries = attention.one_row(low, high, share, attention.name_of(dim, step))
    out = attention.attend(q, k, v, queries, keys, step=step)
    assert relative(out, attention.attend_reference(q, k, v, low, high)) < TOLERANCE[dtype]


def test_pages_are_the_same_keys_elsewhere(device: torch.device) -> None:
    """Two rows in one call, their keys in shuffled pages, bit for bit as each row alone over contiguous keys."""
    page, lengths, tokens, share, dim = 32, (150, 70), 11, 2, 64
    name = attention.name_of(dim, False)
    count = [-(-n // page) for n in lengths]
    order = torch.randperm(sum(count), dtype=torch.int32)
    pages = torch.zeros(2, max(count), dtype=torch.int32)
    pool = [torch.full((sum(count) * page, 2, dim), float("nan")).bfloat16().to(device) for _ in range(2)]
    alone, asked = [], []
    for row, keys in enumerate(lengths):
        q, k, v = heads(tokens, keys, share, 2, dim, torch.bfloat16, device)
        low, high = ranges(tokens, keys, "canvas", None, device)
        alone.append(attention.attend(q, k, v, attention.one_row(low, high, share, name), keys))
        own = order[sum(count[:row]) : sum(count[: row + 1])]
        pages[row, : count[row]] = own
        for position in range(keys):
            slot = int(own[position // page]) * page + position % page
            pool[0][slot], pool[1][slot] = k[position], v[position]
        asked.append((q, low, high))
    q, low, high = (torch.cat([part[i] for part in asked]) for i in range(3))
    size = tiles_for(name, device)["BM"] // share
    tiles = [
        (row * tokens + first, min(size, tokens - first), row) for row in (0, 1) for first in range(0, tokens, size)
    ]
    first, counts, rows = torch.tensor([*tiles, (0, 0, 0)], dtype=torch.int32, device=device).T.contiguous()
    queries = attention.Queries(low, high, first, counts, rows)
    out = attention.attend(q, *pool, queries, max(lengths), pages.to(device), page)
    assert torch.equal(out, torch.cat(alone))


def test_the_bits_do_not_depend_on_how_many_runs_are_launched(device: torch.device) -> None:
    q, k, v = heads(9, 60, 2, 2, 64, torch.bfloat16, device)
    low, high = ranges(9, 60, "canvas", None, device)
    queries = attention.one_row(low, high, 2, attention.name_of(64, False))
    assert torch.equal(attention.attend(q, k, v, queries, 60), attention.attend(q, k, v, queries, 600))


def test_the_bits_do_not_depend_on_where_a_cache_begins(device: torch.device) -> None:
    """A window's keys from a cache that has let older ones go, and from one that has them all."""
    q, k, v = heads(9, 200, 2, 2, 64, torch.bfloat16, device)
    low, high = ranges(9, 200, "canvas", 90, device)
    queries = attention.one_row(low, high, 2, attention.name_of(64, False))
    kept = int(low[0])
    whole = attention.attend(q, k, v, queries, 200)
    k, v = k.clone(), v.clone()
    k[:kept], v[:kept] = float("nan"), float("nan")  # a block begins before the first key, and must not read there
    assert torch.equal(attention.attend(q, k[kept:], v[kept:], queries, 200 - kept, base=kept), whole)


def test_a_prompt_in_chunks_is_the_prompt_in_one(device: torch.device) -> None:
    q, k, v = heads(100, 100, 2, 2, 64, torch.bfloat16, device)
    low, high = ranges(100, 100, "prompt", 41, device)
    name = attention.name_of(64, False)
    whole = attention.attend(q, k, v, attention.one_row(low, high, 2, name), 100)
    for first, last in ((0, 37), (37, 58), (58, 100)):
        part = slice(first, last)
        queries = attention.one_row(low[part].contiguous(), high[part].contiguous(), 2, name)
        assert torch.equal(attention.attend(q[part], k[:last], v[:last], queries, last), whole[part])
