"""How much memory the tiled operator adds, by the program that prints the published figures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "vocab_memory.py"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")


def extra_megabytes(dtype: str, *sizes: str, **environment: str) -> float:
    command = [sys.executable, str(PROGRAM), "--dtype", dtype, *sizes]
    child = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | environment)
    return json.loads(child.stdout)["extra_mb"]


def test_the_logits_of_a_canvas_never_exist_at_once():
    """n = 256, V = 65,536: one [n, V] float32 tensor takes 67 MB, and so would tiles that the heap cannot reuse.

    The least of up to nine runs: a kernel that hands out huge pages makes any one of them 20 to 30 MB more.
    """
    sizes = ("--rows", "256", "--vocab", "65536", "--hidden", "64")
    assert any(extra_megabytes("float32", *sizes, OMP_NUM_THREADS="1") < 40 for _ in range(9))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_at_the_release_sizes_it_adds_at_most_96_megabytes(dtype):
    assert extra_megabytes(dtype) <= 96
