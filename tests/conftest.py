"""Shared by all tests: helper modules beside this file (`oracle`) can be imported from any test, and no test goes to
the network."""

import os
import signal
import sys
from pathlib import Path

import hypothesis
import torch

sys.path.insert(0, str(Path(__file__).parent))
os.environ["PYTHONPATH"] = str(Path(__file__).parents[1] / "src")  # for processes that tests start
os.environ["HF_HUB_OFFLINE"] = "1"
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it runs in the background ignore Ctrl-C
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel's module is imported, so it has to be set before any is

# A busy machine is no failure, and a red run must be red again for whoever repeats it.
hypothesis.settings.register_profile(
    "scumble", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("scumble")
