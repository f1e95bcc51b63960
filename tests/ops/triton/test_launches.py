"""What the host asks of a card, launch by launch, at the release's size: nothing new is compiled while a model serves,
and no launch is larger than a card allows.

Triton compiles a kernel anew for every value of a constant, for whole numbers that are 1 or multiples of 16, and for
pointers that are not aligned, unless a kernel says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from ops.triton import release
from ops.triton.release import CHOICES, EXPERTS, HIDDEN, MLP, VOCABULARY, WIDTH, empty
from scumble.ops import VocabQuery
from scumble.ops.pages import Pages
from scumble.ops.triton import activations, experts, grouping, linear, norms, rotate, router, vocab
from scumble.ops.triton.launch import Launch, recorded
from scumble.ops.triton.ops import TritonOps


def unspecialized(kernel: Any, what: str) -> set[str]:
    """Parameters that a kernel has marked so."""
    if hasattr(kernel, "params"):
        return {param.name for param in kernel.params if getattr(param, what)}
    return set(kernel.kwargs.get(what) or ())  # as the interpreter keeps them


def compiled_as(launch: Launch) -> str:
    """Two launches with the same of this are served by one compiled kernel."""
    free = unspecialized(launch.kernel, "do_not_specialize")
    unaligned = unspecialized(launch.kernel, "do_not_specialize_on_alignment")
    key: list[Any] = [launch.name, launch.kernel.fn.__name__, sorted(launch.constants.items()), launch.tiles]
    for name, value in zip(launch.kernel.arg_names, launch.arguments, strict=False):
        if isinstance(value, torch.Tensor):
            offset = value.storage_offset() * value.element_size()
            key.append((value.dtype, name in unaligned or offset % 16 == 0))
        elif isinstance(value, int):
            key.append((value >= 2**31, name not in free and (value == 1, value % 16 == 0)))
    return str(key)


def forward(tokens: int) -> None:
    """All that a layer launches once for so many tokens, and the head."""
    x, one, eps = empty(tokens, HIDDEN), empty(HIDDEN), 1e-6
    norms.attention_tail_for(x, x, (one, one, one), eps, ("plain", "fp8"))
    _, chosen = router.router(x, one, empty(EXPERTS, HIDDEN), empty(EXPERTS), CHOICES, eps)
    weights = empty(tokens, CHOICES, dtype=torch.float32)
    for format in ("plain", "fp8", "int4"):
        rounded = activations.for_format(x, format)
        linear.linear(rounded, *(release.weight(format, size, HIDDEN) for size in (8192, 1024)))
        linear.gated_linear(rounded, release.weight(format, MLP, HIDDEN), release.weight(format, MLP, HIDDEN))
        groups = grouping.group(chosen, EXPERTS, format)
        up, down = release.weight(format, EXPERTS, 2 * WIDTH, HIDDEN), release.weight(format, EXPERTS, HIDDEN, WIDTH)
        experts.experts(rounded, weights, groups, up, down)
    cos = empty(tokens, 1, 256)
    rotate.heads(empty(tokens, 32 * 256), (empty(256), empty(256)), (cos, cos), 8, False, eps, None)


def head(positions: int) -> None:
    heat = empty(1024, dtype=torch.float32)[positions % 7 :][:positions]  # of one row among others
    uniforms = empty(1024, dtype=torch.float64)[positions % 3 :][:positions]
    query = VocabQuery(heat, uniforms=uniforms, want_soft=True, top=positions % 9 + 1)
    vocab.vocab_head(empty(positions, HIDDEN), empty(VOCABULARY, HIDDEN), query, cap=30.0)


def attended(context: int, first: int, tokens: int) -> None:
    """Over a context of which a cache has let go all before `first`, and over pages."""
    ops = TritonOps()
    for dim, groups in ((256, 8), (512, 2)):
        q, cache = empty(tokens, 16, dim), empty(groups, context - first + tokens, dim)
        ops.attend_all(q, cache, cache, first)
        ops.attend_causal(q, cache, cache, 1024, first)
        number, pool = empty(2 * tokens, dtype=torch.int32), empty(4096, groups, dim)
        pages = Pages(empty(2, context // 128 + 5, dtype=torch.int32), number, number, tokens, context + tokens)
        ops.attend_pages(empty(2 * tokens, 16, dim), pool, pool, pages)


Work = Callable[..., None]
CASES: dict[str, tuple[Work, list[tuple[int, ...]], list[tuple[int, ...]]]] = {
    "tokens of a forward": (forward, [(256,)], [(1,), (77,), (160,), (2048,), (2049,)]),
    "positions of the head": (head, [(256,)], [(1,), (77,), (160,), (512,)]),
    "canvases over contexts": (
        attended,
        [(100, 0, 256), (20_000, 0, 256)],
        [(n, first, 256) for n in (9000, 16_385, 70_001, 262_144) for first in (0, 1, 7, 4096)],
    ),
    "steps over contexts": (attended, [(100, 0, 1), (900, 0, 1)], [(n, 0, 1) for n in (417, 20_000, 70_001, 262_144)]),
}


def launches(work: Work, cases: list[tuple[int, ...]], arch: int = 90) -> Iterator[Launch]:
    with recorded(arch) as made:
        for case in cases:
            work(*case)
    yield from made


@pytest.mark.parametrize("name", CASES)
def test_other_lengths_compile_nothing_new(name: str) -> None:
    work, first, later = CASES[name]
    known = {compiled_as(launch) for launch in launches(work, first)}
    for launch in launches(work, later):
        assert compiled_as(launch) in known, f"{launch.name}: {launch.constants}, {launch.arguments}"


@pytest.mark.parametrize("arch", [90, 120])
def test_no_launch_is_larger_than_a_card_allows(arch: int) -> None:
    """65,535 programs along the second and third axis of a grid: for the longest prompts in one go, and many masks."""
    made = [*launches(forward, [(131_072,)], arch), *launches(attended, [(262_144, 0, 131_072)], arch)]
    with recorded(arch) as masks:
        vocab.packed(torch.empty(70_000, VOCABULARY, dtype=torch.bool, device="meta"))
    assert len(made) > 20
    for launch in [*made, *masks]:
        assert all(size <= 65_535 for size in launch.grid[1:]), (launch.name, launch.grid)
