"""The kernels for AVX-512 on a processor without it: SIMDE emulates the instructions, and the kernels' tests run again.

It proves results, not speed. Minutes, most of them the compiler's.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scumble.ops.cpu import native

HERE = Path(__file__).parent
SIMDE = Path("/usr/include/simde/x86/avx512.h")
TESTS = ("test_native.py", "test_vocab_head.py", "test_classes.py", "test_batch_invariance.py", "test_training.py")


@pytest.mark.slow
@pytest.mark.skipif(not SIMDE.exists(), reason="SIMDE (libsimde-dev) is not installed")
@pytest.mark.skipif(native.library() is None, reason="no compiler, or a processor without AVX2")
def test_the_kernels_for_avx512_pass_their_tests_in_emulation(tmp_path):
    paths = (str(HERE / "emulated"), os.environ.get("PYTHONPATH", ""))
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(paths)}
    chosen = [str(HERE / name) for name in TESTS]
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "avx512", "-k", "not start_together", *chosen],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout[-4000:] + found.stderr[-2000:]
