"""Every benchmark imports this first: it runs the package that lies in the clone beside it, installed or not.

So do the processes that a benchmark starts.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = str(ROOT / "src")
sys.path.insert(0, SOURCE)
sys.path.append(str(ROOT / "tests"))  # whose helpers some use
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (SOURCE, os.environ.get("PYTHONPATH"))))


def interpret() -> None:
    """Kernels run on the CPU, as in tests. To be called before triton is imported: its own functions change as well."""
    os.environ["TRITON_INTERPRET"] = "1"
    from ops.triton import interpreter

    interpreter.install()
