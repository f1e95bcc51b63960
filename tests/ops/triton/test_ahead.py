"""Kernels that are compiled ahead are those that launches find. In processes of their own: kernels that have been
imported for the interpreter cannot be compiled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# Launches of two kernels, of one aligned and not, are compiled ahead. Then they are made on tensors with numbers, up
# to where a card would be needed, and Triton tells whether it found what it would have compiled.
PROGRAM = """
import torch
from triton import knobs
from triton.runtime import driver

from scumble.ops.triton import geglu, norms
from scumble.ops.triton.ahead import Card, compile_ahead, described, restored
from scumble.ops.triton.launch import recorded

def work(device):
    x, one = torch.ones(5, 64, device=device), torch.ones(64, device=device)
    unaligned = torch.ones(65, device=device)[1:].view(1, 64)
    return [lambda: geglu.geglu(x, x), lambda: norms.norm(x, one, 1e-6), lambda: norms.norm(unaligned, one, 1e-6)]

with recorded(90) as made:
    for call in work("meta"):
        call()
assert all(described(restored(described(one))) == described(one) for one in made)
assert compile_ahead(made, 90, processes=2) == 3, [described(one) for one in made]

found = []
knobs.compilation.listener = lambda src, metadata, metadata_group, times, cache_hit: found.append(cache_hit)
driver.set_active(Card(90))
for call in work("cpu"):
    try:
        call()
    except AttributeError:
        pass  # the card that is not there cannot launch
print(found)
"""


def test_a_launch_finds_what_was_compiled_ahead(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=300
    )
    assert found.stdout == "[True, True, True]\n", found.stdout + found.stderr
